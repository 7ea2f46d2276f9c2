// Package progress says what takes long while it does.
package progress

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Quiet is how long a step may take without a word.
const Quiet = 2 * time.Second

const every = 5 * time.Second

// Reporter writes lines for people. It is safe for concurrent use.
type Reporter struct {
	mu  sync.Mutex
	out io.Writer
}

// New returns a reporter that writes to out.
func New(out io.Writer) *Reporter { return &Reporter{out: out} }

// Say writes one line.
func (r *Reporter) Say(format string, arguments ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "images: "+format+"\n", arguments...)
}

// Step runs the function; while it runs longer than [Quiet], lines tell what
// runs and how far it is. detail is called from another goroutine and may be nil.
func (r *Reporter) Step(name string, detail func() string, run func() error) error {
	done := make(chan struct{})
	var reporting sync.WaitGroup
	reporting.Go(func() {
		began := time.Now()
		timer := time.NewTimer(Quiet)
		defer timer.Stop()
		for {
			select {
			case <-done:
				return
			case <-timer.C:
			}
			suffix := ""
			if detail != nil {
				suffix = ": " + detail()
			}
			r.Say("%s, %d s%s", name, int(time.Since(began).Seconds()), suffix)
			timer.Reset(every)
		}
	})
	defer reporting.Wait()
	defer close(done)
	return run()
}
