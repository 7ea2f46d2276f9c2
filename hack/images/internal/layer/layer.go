// Package layer writes the layers of images: archives that have the same bytes
// whenever and wherever they are made of the same files, kept by what they are
// made of.
package layer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
)

// Cache keeps layers in a folder.
type Cache struct {
	dir, self string
}

// NewCache returns the cache in dir. Other sources of this program may write
// other layers of the same files, so what they wrote is not taken.
func NewCache(dir string) (*Cache, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	self, err := HashFile(executable)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	return &Cache{dir: dir, self: self}, nil
}

// HashFile returns the SHA-256 of a file's content, in hexadecimal.
func HashFile(name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// Layer returns the layer that write fills. The key names all that write reads;
// a layer that was made of the same is taken instead.
func (c *Cache) Layer(key []string, write func(*Writer) error) (v1.Layer, error) {
	encoded, err := json.Marshal(append([]string{c.self}, key...))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(encoded)
	path := filepath.Join(c.dir, hex.EncodeToString(sum[:16]))
	kept, err := open(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	return create(path, write)
}

// open returns the layer at path, whose description comes last: without one
// there is no layer.
func open(path string) (v1.Layer, error) {
	description, err := os.ReadFile(path + ".json")
	if err != nil {
		return nil, err
	}
	l := &layer{path: path + ".tar.gz"}
	if err := json.Unmarshal(description, &l.about); err != nil {
		return nil, fmt.Errorf("read %s.json (remove it): %w", path, err)
	}
	info, err := os.Stat(l.path)
	if err != nil {
		return nil, err
	}
	if info.Size() != l.about.Size {
		return nil, fmt.Errorf("%s has %d bytes, not the %d that were written: remove it", l.path, info.Size(), l.about.Size)
	}
	return l, nil
}

func create(path string, write func(*Writer) error) (v1.Layer, error) {
	file, err := os.CreateTemp(filepath.Dir(path), "new-*")
	if err != nil {
		return nil, err
	}
	defer func() {
		file.Close()
		os.Remove(file.Name()) // gone already when all went well
	}()

	compressed, content := sha256.New(), sha256.New()
	counted := &counter{w: io.MultiWriter(file, compressed)}
	zipped := gzip.NewWriter(counted)
	w := newWriter(io.MultiWriter(zipped, content))
	if err := write(w); err != nil {
		return nil, err
	}
	if err := errors.Join(w.close(), zipped.Close(), file.Close()); err != nil {
		return nil, err
	}
	l := &layer{path: path + ".tar.gz", about: about{
		Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(compressed.Sum(nil))},
		DiffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(content.Sum(nil))},
		Size:   counted.n,
	}}
	description, err := json.Marshal(l.about)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(file.Name(), l.path); err != nil {
		return nil, err
	}
	return l, writeFile(path+".json", description)
}

// writeFile leaves no half of a file behind.
func writeFile(name string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(name), "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(data)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), name)
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

type about struct {
	Digest v1.Hash `json:"digest"`
	DiffID v1.Hash `json:"diffID"`
	Size   int64   `json:"size"`
}

// layer is a v1.Layer whose digests are known: those of go-containerregistry
// read and compress the file again to find them.
type layer struct {
	path  string
	about about
}

func (l *layer) Digest() (v1.Hash, error)             { return l.about.Digest, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.about.DiffID, nil }
func (l *layer) Size() (int64, error)                 { return l.about.Size, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }
func (l *layer) Compressed() (io.ReadCloser, error)   { return os.Open(l.path) }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return openZipped(l.path) }

func openZipped(path string) (io.ReadCloser, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{unzipped, file}, nil
}
