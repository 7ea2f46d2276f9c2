package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	watcherArg = "process-watcher"
	// watcherEnv keeps a user's argument of the same name from making a watcher.
	watcherEnv = "LAMBDAMESH_PROCESS_WATCHER"

	lifelineFD = 3
	statusFD   = 4
	stdoutFD   = 5
	stderrFD   = 6

	// pollGroup is how often the watcher looks whether a group that was told to
	// end has; no system tells it.
	pollGroup = 5 * time.Millisecond
	// lastWait is how long it looks after SIGKILL, which only fails to end what
	// hangs in the kernel.
	lastWait = 2 * time.Second
)

// hasWatcher says that this program has called WatcherMain. Without that, a
// started watcher would be the whole program again, starting children of its own.
var hasWatcher atomic.Bool //nolint:gochecknoglobals // a fact about the program

// What goes down the lifeline, and what comes back as status. Both ends are the
// same program, so the form may change freely.
type (
	request struct {
		Start *startRequest `json:",omitempty"`
		Stop  bool          `json:",omitempty"`
		Kill  bool          `json:",omitempty"`
	}
	startRequest struct {
		Path               string
		Args               []string
		Env                []string
		Dir                string
		Grace, OrphanGrace time.Duration
	}
	// report is sent twice: once with PID or Error, once with how it ended.
	report struct {
		PID    int    `json:",omitempty"`
		Error  string `json:",omitempty"`
		Code   int    `json:",omitempty"`
		Signal int    `json:",omitempty"`
		Killed bool   `json:",omitempty"`
	}
)

// WatcherMain makes this process a watcher, and does not return, when it was
// started as one. Otherwise it does nothing but allow Start. Call it first in main.
func WatcherMain() {
	if len(os.Args) > 1 && os.Args[1] == watcherArg && os.Getenv(watcherEnv) != "" {
		//nolint:forbidigo // it is the main of a program of its own
		os.Exit(watch(os.NewFile(lifelineFD, "lifeline"), os.NewFile(statusFD, "status")))
	}
	hasWatcher.Store(true)
}

// watch starts the child that the lifeline asks for, ends its group when told to
// or when the lifeline closes, and returns the child's exit code.
func watch(lifeline, status *os.File) int {
	// The child must not hold the pipes: it would be its own lifeline.
	for fd := lifelineFD; fd <= stderrFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	// Notified, not ignored: the child would inherit what is ignored.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	// Linux kills the child when the thread that started it ends.
	runtime.LockOSThread()

	requests := json.NewDecoder(lifeline)
	reports := json.NewEncoder(status)
	var first request
	if err := requests.Decode(&first); err != nil || first.Start == nil {
		return 1 // the parent is gone already
	}
	adoptOrphans()
	pid, err := fork(first.Start)
	if err != nil {
		_ = reports.Encode(report{Error: err.Error()})
		return 1
	}
	_ = reports.Encode(report{PID: pid}) // an error means that the lifeline is closed, too

	g := group{
		pid: pid, grace: first.Start.Grace, orphanGrace: first.Start.OrphanGrace,
		exited: make(chan syscall.WaitStatus, 1),
		stop:   make(chan struct{}), kill: make(chan struct{}), orphaned: make(chan struct{}),
	}
	go g.reap()
	go g.listen(requests)
	ended, killed := g.wait(signals)
	killAdopted()

	last := report{Code: ended.ExitStatus(), Killed: killed}
	if ended.Signaled() {
		last.Signal = int(ended.Signal())
	}
	_ = reports.Encode(last)
	if last.Signal != 0 {
		return 128 + last.Signal
	}
	return last.Code
}

func fork(s *startRequest) (int, error) {
	pid, err := syscall.ForkExec(s.Path, append([]string{s.Path}, s.Args...), &syscall.ProcAttr{
		Dir:   s.Dir,
		Env:   s.Env,
		Files: []uintptr{0, 1, 2},
		Sys:   childAttributes(),
	})
	if err == nil {
		return pid, nil
	}
	if s.Dir != "" {
		if _, dirErr := os.Stat(s.Dir); dirErr != nil {
			return 0, fmt.Errorf("its directory: %w", dirErr) // the system says the same of both
		}
	}
	return 0, &os.PathError{Op: "exec", Path: s.Path, Err: err}
}

// group is a child's process group as its watcher sees it.
type group struct {
	pid                int
	grace, orphanGrace time.Duration
	exited             chan syscall.WaitStatus // the child's end
	stop, kill         chan struct{}           // closed to ask for it
	orphaned           chan struct{}           // closed when the lifeline has
}

// reap collects the child, and on Linux its orphaned descendants, which would
// otherwise stay in the group as zombies where process 1 collects nothing.
func (g *group) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return // no children are left
		case pid == g.pid:
			g.exited <- status
		}
	}
}

// listen takes requests until the lifeline closes, which is one to stop.
func (g *group) listen(requests *json.Decoder) {
	stopped := false
	for {
		var r request
		err := requests.Decode(&r)
		if !stopped && (err != nil || r.Stop || r.Kill) {
			stopped = true
			close(g.stop)
		}
		if err != nil {
			// Nobody else reads what the child writes while it ends.
			for _, fd := range []uintptr{stdoutFD, stderrFD} {
				go func() { _, _ = io.Copy(io.Discard, os.NewFile(fd, "output")) }()
			}
			close(g.orphaned)
			return
		}
		if r.Kill {
			close(g.kill)
			return
		}
	}
}

// wait returns when the group has ended: how the child did, and whether any of
// the group had to be killed.
func (g *group) wait(signals <-chan os.Signal) (ended syscall.WaitStatus, killed bool) {
	exited := false
	select {
	case ended = <-g.exited:
		exited = true
		if g.empty() {
			return ended, false
		}
	case <-g.stop:
	case <-signals:
	}

	g.signal(syscall.SIGTERM)
	g.signal(syscall.SIGCONT) // one that is halted would not see it
	timeout := time.After(g.grace)
	tick := time.NewTicker(pollGroup)
	defer tick.Stop()
	kill, orphaned := g.kill, g.orphaned
	for !exited || !g.empty() {
		select {
		case ended = <-g.exited:
			exited = true
			continue
		case <-tick.C:
			continue
		case <-orphaned:
			orphaned = nil
			if !killed {
				timeout = time.After(g.orphanGrace)
			}
			continue
		case <-kill:
		case <-timeout:
		}
		if killed && exited {
			return ended, killed // see lastWait
		}
		killed, kill = true, nil
		g.signal(syscall.SIGKILL)
		timeout = time.After(lastWait)
	}
	return ended, killed
}

func (g *group) signal(s syscall.Signal) { _ = syscall.Kill(-g.pid, s) }

// empty reports whether nobody is left that could be signaled.
func (g *group) empty() bool { return syscall.Kill(-g.pid, 0) != nil }
