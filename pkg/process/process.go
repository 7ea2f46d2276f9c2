package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// DefaultGrace is the time between SIGTERM and SIGKILL when a Spec names none.
	DefaultGrace = 10 * time.Second

	// outputDelay is how long output is still read after the end of a child
	// whose descendants left the group and hold its pipes open.
	outputDelay = time.Second

	// watcherDelay is how much longer than it should take a watcher may take: it
	// may itself be halted.
	watcherDelay = 2*lastWait + outputDelay
)

// ErrKilled is wrapped by the error of Stop when a group did not end by SIGTERM.
var ErrKilled = errors.New("killed: did not end in time")

// Spec says what to run.
type Spec struct {
	// Name is what errors call it; empty means the base name of Path.
	Name string
	// Path is the executable. It is not looked up in PATH.
	Path string
	// Args are the arguments after the program's name.
	Args []string
	// Env is the whole environment, as KEY=value. Nothing is inherited.
	Env []string
	// Dir is the working directory; empty means that of this process.
	Dir string
	// Stdout and Stderr get one Write per line, its newline included, never two
	// at a time. A line longer than MaxLine comes in pieces. A Write that blocks
	// blocks the child once its pipe is full. Nil discards; standard input is
	// empty.
	Stdout, Stderr io.Writer
	// Grace is the time between SIGTERM and SIGKILL; 0 means DefaultGrace.
	Grace time.Duration
	// OrphanGrace is the same for the case that this process is gone; 0 means
	// Grace. Choose less for a child that can do nothing useful by then, such as
	// one whose database ends together with it.
	OrphanGrace time.Duration
}

func (s *Spec) complete() error {
	if s.Path == "" {
		return errors.New("no path")
	}
	if !strings.ContainsRune(s.Path, filepath.Separator) {
		return fmt.Errorf("path %q has no directory: PATH is not searched", s.Path)
	}
	path, err := filepath.Abs(s.Path) // Dir must not change what is run
	if err != nil {
		return err
	}
	s.Path = path
	if s.Name == "" {
		s.Name = filepath.Base(path)
	}
	if s.Grace <= 0 {
		s.Grace = DefaultGrace
	}
	if s.OrphanGrace <= 0 {
		s.OrphanGrace = s.Grace
	}
	return nil
}

// Process is a started child and its process group.
type Process struct {
	name     string
	grace    time.Duration
	pid      int
	watcher  *exec.Cmd
	lifeline *os.File // the watcher ends the group when this closes
	status   *os.File
	tail     *tail
	done     chan struct{}

	mu       sync.Mutex
	stopping bool
	err      error // how it ended; read it after done
	killed   bool
}

// Start starts a child and returns when it runs, that is, when its executable
// was found and begun. ctx bounds the starting only. The error names the child.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := spec.complete(); err != nil {
		return nil, fmt.Errorf("starting process %q: %w", spec.Name, err)
	}
	p, err := start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	return p, nil
}

func start(ctx context.Context, spec Spec) (_ *Process, err error) {
	if !hasWatcher.Load() {
		return nil, errors.New("process.WatcherMain was not called: main (or TestMain) must begin with it")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	self, err := executable()
	if err != nil {
		return nil, err
	}
	var ends pipes
	defer func() {
		ends.given.close()
		if err != nil {
			ends.kept.close()
		}
	}()
	lifelineRead, lifeline := ends.toChild()
	status, statusWrite := ends.fromChild()
	stdoutRead, stdoutWrite := ends.fromChild()
	stderrRead, stderrWrite := ends.fromChild()
	if ends.err != nil {
		return nil, ends.err
	}

	p := &Process{
		name: spec.Name, grace: spec.Grace, lifeline: lifeline, status: status, tail: &tail{}, done: make(chan struct{}),
		watcher: &exec.Cmd{
			Path: self,
			// ps shows this.
			Args:   []string{os.Args[0], watcherArg, spec.Name},
			Env:    []string{watcherEnv + "=1"},
			Stdout: stdoutWrite,
			Stderr: stderrWrite,
			// Descriptors 3 and up. It gets both ends of the outputs to go on
			// reading when we are gone: a broken pipe would end the child at
			// its next line, without its grace period.
			ExtraFiles:  []*os.File{lifelineRead, statusWrite, stdoutRead, stderrRead},
			SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
		},
	}
	if err := p.watcher.Start(); err != nil {
		return nil, fmt.Errorf("starting its watcher: %w", err)
	}
	ends.given.close() // so that reading ends when the child's side is closed

	// The watcher ends when the lifeline closes, and with it the status.
	cancel := context.AfterFunc(ctx, func() { _ = lifeline.Close() })
	reports := json.NewDecoder(status)
	var first report
	err = json.NewEncoder(lifeline).Encode(request{Start: &startRequest{
		Path: spec.Path, Args: spec.Args, Env: spec.Env, Dir: spec.Dir,
		Grace: spec.Grace, OrphanGrace: spec.OrphanGrace,
	}})
	if err == nil {
		err = reports.Decode(&first)
	}
	inTime := cancel()
	switch {
	case !inTime:
		err = ctx.Err()
	case err != nil:
		err = fmt.Errorf("its watcher failed: %w", err)
	case first.Error != "":
		err = errors.New(first.Error)
	}
	if err != nil {
		_ = lifeline.Close()
		_ = p.watcher.Wait()
		return nil, err
	}
	p.pid = first.PID
	// One lock for both outputs: they may be the same writer.
	var lock sync.Mutex
	go p.wait(reports,
		read(stdoutRead, &lineWriter{lock: &lock, to: spec.Stdout}),
		read(stderrRead, &lineWriter{lock: &lock, to: spec.Stderr, tail: p.tail}))
	return p, nil
}

// executable returns this program, also after its file was replaced or removed
// where the system can.
func executable() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// wait waits for the end of the child and says how it was.
func (p *Process) wait(reports *json.Decoder, outputs ...*reading) {
	var last report
	reportErr := reports.Decode(&last)
	if reportErr != nil {
		// The watcher is gone without a word. Nobody else knows the group.
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	}
	_ = p.watcher.Wait() // its exit code is the child's, which the report says better
	deadline := time.Now().Add(outputDelay)
	for _, output := range outputs {
		output.finish(deadline)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case reportErr != nil:
		p.err = &ExitError{Name: p.name, Code: -1, Reason: "its watcher was killed", Tail: p.tail.lines()}
	case p.stopping || (last.Code == 0 && last.Signal == 0):
	default:
		p.err = &ExitError{
			Name: p.name, Code: last.Code, Signal: syscall.Signal(last.Signal),
			Tail: p.tail.lines(),
		}
	}
	p.killed = last.Killed || (reportErr != nil && p.stopping)
	_ = p.lifeline.Close()
	_ = p.status.Close()
	close(p.done)
}

// PID is the process id of the child, and the id of its group.
func (p *Process) PID() int { return p.pid }

// Done is closed when the child and its group have ended and its output was read.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the child ended: nil while it runs, after exit code 0 and after
// Stop, else an *ExitError.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Stop ends the group: SIGTERM, then SIGKILL after the grace period or, if that
// is earlier, when ctx ends. It returns when nothing of the group is left; the
// error wraps ErrKilled if SIGKILL was needed. Stopping what has ended does
// nothing.
func (p *Process) Stop(ctx context.Context) error {
	p.ask(request{Stop: true})
	late := time.NewTimer(p.grace + watcherDelay)
	defer late.Stop()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.ask(request{Kill: true})
		late.Reset(watcherDelay)
		select {
		case <-p.done:
		case <-late.C:
			p.kill()
		}
	case <-late.C:
		p.kill()
	}
	if p.killed {
		return fmt.Errorf("stopping %s: %w", p.name, ErrKilled)
	}
	return nil
}

// kill ends the group when its watcher does not.
func (p *Process) kill() {
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	_ = p.watcher.Process.Kill()
	<-p.done
}

func (p *Process) ask(r request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return // how it ended was its own doing
	default:
	}
	p.stopping = true
	// An error means that the watcher is gone, which wait sees as well.
	_ = json.NewEncoder(p.lifeline).Encode(r)
}

// Run starts a child and waits. When ctx ends it stops the child and returns
// what Stop returned; when the child ends before that, it returns its Err, or an
// error that says so if it was nil.
func Run(ctx context.Context, spec Spec) error {
	p, err := Start(ctx, spec)
	if err != nil {
		return err
	}
	return p.runUntil(ctx)
}

func (p *Process) runUntil(ctx context.Context) error {
	select {
	case <-p.done:
		if p.err == nil {
			return &ExitError{Name: p.name, Tail: p.tail.lines()}
		}
		return p.err
	case <-ctx.Done():
		return p.Stop(context.WithoutCancel(ctx))
	}
}

// ExitError says how a child ended that was not asked to.
type ExitError struct {
	Name   string
	Code   int            // -1 when a signal ended it
	Signal syscall.Signal // 0 when it exited
	Reason string         // set when neither is known
	Tail   []string       // its last lines on standard error
}

// Error returns one line on how it ended and, if there are any, the last lines
// it wrote to standard error.
func (e *ExitError) Error() string {
	var how string
	switch {
	case e.Reason != "":
		how = "ended: " + e.Reason
	case e.Signal != 0:
		how = fmt.Sprintf("ended by signal %d (%s)", int(e.Signal), e.Signal)
	default:
		how = fmt.Sprintf("exited with code %d", e.Code)
	}
	if len(e.Tail) == 0 {
		return e.Name + " " + how
	}
	return e.Name + " " + how + "; its last lines:\n\t" + strings.Join(e.Tail, "\n\t")
}
