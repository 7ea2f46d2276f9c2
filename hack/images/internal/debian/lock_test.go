package debian_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/lambdamesh/lambdamesh/hack/images/internal/debian"
)

func sample() debian.Set {
	return debian.Set{Root: "nodejs", Arch: "arm64", Packages: []debian.Package{
		{Arch: "arm64", Name: "libstdc++6", Version: "14.2.0-19", Size: 7, SHA256: strings.Repeat("a", 64)},
		{Arch: "arm64", Name: "nodejs", Version: "1:20.19.2+dfsg-1~deb13u3", Size: 8, SHA256: strings.Repeat("b", 64)},
	}}
}

func TestLockIsReadAsItWasWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "debian.lock")
	if err := (debian.Lock{sample()}).Write(file); err != nil {
		t.Fatal(err)
	}
	lock, err := debian.ReadLock(file)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := lock.Set("nodejs", "arm64"); !ok || !reflect.DeepEqual(got, sample()) {
		t.Errorf("read %+v", got)
	}
	if _, ok := lock.Set("nodejs", "amd64"); ok {
		t.Error("there is a set that was not written")
	}
}

func TestABrokenLockNamesTheLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "debian.lock")
	if err := os.WriteFile(file, []byte("# a comment\nnodejs arm64 zlib1g\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := debian.ReadLock(file); err == nil || !strings.Contains(err.Error(), "debian.lock:2:") {
		t.Errorf("got %v", err)
	}
}

func TestPartsAreNamedAsScannersLookThemUp(t *testing.T) {
	parts := sample().Parts()
	for i, want := range []string{
		"pkg:deb/debian/libstdc%2B%2B6@14.2.0-19?arch=arm64&distro=debian-13",
		"pkg:deb/debian/nodejs@1%3A20.19.2%2Bdfsg-1~deb13u3?arch=arm64&distro=debian-13",
	} {
		if parts[i].PURL != want {
			t.Errorf("%s, want %s", parts[i].PURL, want)
		}
	}
}
