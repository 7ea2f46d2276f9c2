package layer

import (
	"archive/tar"
	"io"
	"path"
	"strings"
	"time"
)

// Writer takes the files of a layer. All of them are root's, without the times
// and the names of the machine that writes them; folders above a file are made.
type Writer struct {
	tar  *tar.Writer
	dirs map[string]bool
}

func newWriter(out io.Writer) *Writer {
	return &Writer{tar: tar.NewWriter(out), dirs: map[string]bool{".": true}}
}

func (w *Writer) close() error { return w.tar.Close() }

// Dir adds a folder; a second one of its name is none.
func (w *Writer) Dir(name string, mode int64) error {
	name = clean(name)
	if w.dirs[name] {
		return nil
	}
	if err := w.above(name); err != nil {
		return err
	}
	w.dirs[name] = true
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: time.Unix(0, 0)})
}

// File adds a file.
func (w *Writer) File(name string, mode int64, data []byte) error {
	return w.Copy(name, mode, time.Unix(0, 0), int64(len(data)), strings.NewReader(string(data)))
}

// Copy adds a file of `size` bytes.
func (w *Writer) Copy(name string, mode int64, modified time.Time, size int64, content io.Reader) error {
	name = clean(name)
	if err := w.above(name); err != nil {
		return err
	}
	// Seconds, because what is finer would take another format of archive.
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, ModTime: modified.Truncate(time.Second)}
	if err := w.tar.WriteHeader(header); err != nil {
		return err
	}
	_, err := io.Copy(w.tar, content)
	return err
}

// Symlink adds a symbolic link, Link a second name of a file.
func (w *Writer) Symlink(name, target string) error { return w.link(tar.TypeSymlink, name, target) }

// Link adds a second name of a file that was added.
func (w *Writer) Link(name, target string) error { return w.link(tar.TypeLink, name, clean(target)) }

func (w *Writer) link(kind byte, name, target string) error {
	name = clean(name)
	if err := w.above(name); err != nil {
		return err
	}
	return w.tar.WriteHeader(&tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777, ModTime: time.Unix(0, 0)})
}

func (w *Writer) above(name string) error { return w.Dir(path.Dir(name), 0o755) }

// clean is the name as archives of images have it: no slash in front, and no way
// out of the root.
func clean(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return "."
	}
	return name
}
