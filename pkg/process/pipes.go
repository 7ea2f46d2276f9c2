package process

import (
	"io"
	"os"
	"syscall"
	"time"
)

type files []*os.File

func (f files) close() {
	for _, file := range f {
		_ = file.Close() // again does no harm
	}
}

// pipes makes pipes between this process and a watcher and remembers whose end
// is whose, and the first error.
type pipes struct {
	kept, given files
	err         error
}

func (p *pipes) make() (read, write *os.File) {
	if p.err == nil {
		read, write, p.err = os.Pipe()
	}
	return read, write
}

func (p *pipes) toChild() (read, write *os.File) {
	read, write = p.make()
	p.given, p.kept = append(p.given, read), append(p.kept, write)
	return read, write
}

func (p *pipes) fromChild() (read, write *os.File) {
	read, write = p.make()
	p.kept, p.given = append(p.kept, read), append(p.given, write)
	return read, write
}

// reading is the reading of an output.
type reading struct {
	from *os.File
	done chan struct{}
}

func read(from *os.File, to *lineWriter) *reading {
	// Giving the file to the watcher made it blocking, which finish could not
	// interrupt.
	if raw, err := from.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = syscall.SetNonblock(int(fd), true) })
	}
	r := &reading{from: from, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		_, _ = io.Copy(to, from) // ends with the output
		to.flush()
	}()
	return r
}

// finish waits for the end of the output, at most until the deadline: a
// descendant that left the group may hold it open for ever.
func (r *reading) finish(deadline time.Time) {
	_ = r.from.SetReadDeadline(deadline)
	<-r.done
	_ = r.from.Close()
}
