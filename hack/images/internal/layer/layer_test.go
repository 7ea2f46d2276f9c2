package layer_test

import (
	"archive/tar"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/layer"
)

func newCache(t *testing.T) *layer.Cache {
	t.Helper()
	cache, err := layer.NewCache(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return cache
}

func sample(w *layer.Writer) error {
	return errors.Join(
		w.File("/etc/../../etc/passwd", 0o644, []byte("root")),
		w.Copy("etc/late", 0o600, time.Unix(7, 999), 4, strings.NewReader("late")),
		w.Dir("etc", 0o700),
		w.Symlink("etc/link", "passwd"),
	)
}

func digests(t *testing.T, l v1.Layer) [2]v1.Hash {
	t.Helper()
	digest, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	diff, err := l.DiffID()
	if err != nil {
		t.Fatal(err)
	}
	return [2]v1.Hash{digest, diff}
}

func TestEqualFilesAreEqualLayers(t *testing.T) {
	one, err := newCache(t).Layer([]string{"a"}, sample)
	if err != nil {
		t.Fatal(err)
	}
	two, err := newCache(t).Layer([]string{"b"}, sample)
	if err != nil {
		t.Fatal(err)
	}
	if digests(t, one) != digests(t, two) {
		t.Errorf("%v and %v", digests(t, one), digests(t, two))
	}
	compressed, err := one.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer compressed.Close()
	if sum, size, err := v1.SHA256(compressed); err != nil || sum != digests(t, one)[0] {
		t.Errorf("the layer is %s of %d bytes, and says %s: %v", sum, size, digests(t, one)[0], err)
	}
}

func TestNamesStayInsideAndFoldersComeFirst(t *testing.T) {
	l, err := newCache(t).Layer([]string{"a"}, sample)
	if err != nil {
		t.Fatal(err)
	}
	content, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var names []string
	for reader := tar.NewReader(content); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, header.Name)
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" {
			t.Errorf("%s belongs to %d:%d %q", header.Name, header.Uid, header.Gid, header.Uname)
		}
	}
	if got := strings.Join(names, " "); got != "etc/ etc/passwd etc/late etc/link" {
		t.Errorf("names %q", got)
	}
}

func TestALayerIsWrittenOncePerKey(t *testing.T) {
	cache := newCache(t)
	written := 0
	write := func(w *layer.Writer) error {
		written++
		return sample(w)
	}
	for _, key := range []string{"a", "a", "b", "a"} {
		if _, err := cache.Layer([]string{key}, write); err != nil {
			t.Fatal(err)
		}
	}
	if written != 2 {
		t.Errorf("written %d times for 2 keys", written)
	}
}

func TestAnInterruptedLayerIsNone(t *testing.T) {
	cache := newCache(t)
	broken := errors.New("interrupted")
	_, err := cache.Layer([]string{"a"}, func(w *layer.Writer) error {
		return errors.Join(sample(w), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	l, err := cache.Layer([]string{"a"}, sample)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := l.Size(); err != nil || size == 0 {
		t.Errorf("%d bytes: %v", size, err)
	}
}
