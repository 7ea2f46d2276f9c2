package process

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// MaxLine is the length in bytes at which a line without an end is cut.
const MaxLine = 64 << 10

const (
	tailLines    = 10
	tailLineSize = 1 << 10
)

// lineWriter passes on whole lines, one Write each.
type lineWriter struct {
	lock *sync.Mutex
	to   io.Writer
	tail *tail
	rest []byte // a line whose end has not come yet
}

// Write never fails: an error would end the reading, and the child with it.
func (w *lineWriter) Write(data []byte) (int, error) {
	w.lock.Lock()
	defer w.lock.Unlock()
	for rest := data; len(rest) > 0; {
		n := bytes.IndexByte(rest, '\n') + 1
		if n == 0 {
			n = len(rest)
		}
		n = min(n, MaxLine-len(w.rest))
		w.rest = append(w.rest, rest[:n]...)
		rest = rest[n:]
		if len(w.rest) == MaxLine || w.rest[len(w.rest)-1] == '\n' {
			w.emit()
		}
	}
	return len(data), nil
}

func (w *lineWriter) flush() {
	w.lock.Lock()
	defer w.lock.Unlock()
	if len(w.rest) > 0 {
		w.emit()
	}
}

func (w *lineWriter) emit() {
	if w.rest[len(w.rest)-1] != '\n' {
		w.rest = append(w.rest, '\n')
	}
	if w.to != nil {
		_, _ = w.to.Write(w.rest)
	}
	if w.tail != nil {
		w.tail.add(w.rest)
	}
	w.rest = w.rest[:0]
}

// tail keeps the last lines of an output for the error that explains its end.
type tail struct {
	mu   sync.Mutex
	last []string
}

func (t *tail) add(line []byte) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.last) == tailLines {
		t.last = append(t.last[:0], t.last[1:]...)
	}
	t.last = append(t.last, string(line[:min(len(line), tailLineSize)]))
}

func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.last...)
}

// LineFunc makes an io.Writer for a Spec of a function that gets each line
// without its newline. The bytes are only valid during the call.
func LineFunc(f func(line []byte)) io.Writer { return lineFunc(f) }

type lineFunc func([]byte)

func (f lineFunc) Write(line []byte) (int, error) {
	f(bytes.TrimSuffix(line, []byte("\n")))
	return len(line), nil
}

// logGenerations is how many rotated files are kept beside the current one.
const logGenerations = 2

// Log is a file for output that starts anew when it has grown to a size. The
// older parts are kept as path.1 (the newest) and path.2.
type Log struct {
	path string
	max  int64

	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenLog opens the file at path for appending, readable by its owner only, and
// creates it and its directory where missing. maxBytes is the size at which it is rotated.
func OpenLog(path string, maxBytes int64) (*Log, error) {
	l := &Log{path: path, max: maxBytes}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	return l, l.open()
}

func (l *Log) open() error {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return err
	}
	l.file, l.size = file, info.Size()
	return nil
}

// Write appends data, to a new file if the current one would grow beyond its size.
func (l *Log) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, os.ErrClosed
	}
	if l.size > 0 && l.size+int64(len(data)) > l.max {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.file.Write(data)
	l.size += int64(n)
	return n, err
}

func (l *Log) rotate() error {
	for i := logGenerations - 1; i > 0; i-- {
		if err := os.Rename(l.generation(i), l.generation(i+1)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if err := os.Rename(l.path, l.generation(1)); err != nil && !os.IsNotExist(err) {
		return err
	}
	old := l.file
	if err := l.open(); err != nil {
		return err // and go on with the old file at the next Write
	}
	return old.Close()
}

func (l *Log) generation(i int) string { return fmt.Sprintf("%s.%d", l.path, i) }

// Close closes the file; later Writes fail.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	file := l.file
	l.file = nil
	return file.Close()
}
