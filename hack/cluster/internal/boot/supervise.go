package boot

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// supervisor runs the daemons of a part. As the first process of its PID
// namespace it is also the parent of all orphans, so it waits for any child at
// all, and os/exec, which waits for its own, has no place here once it runs.
type supervisor struct {
	logs   string
	env    []string
	logger *slog.Logger

	mu      sync.Mutex // held while a child is started, so that its end finds it here
	running map[int]*daemon
}

type daemon struct {
	argv    []string
	log     string
	started time.Time
}

func newSupervisor(logs string, logger *slog.Logger) *supervisor {
	v := &supervisor{
		logs:    logs,
		logger:  logger,
		env:     []string{"PATH=" + Path(), "HOME=/root"},
		running: map[int]*daemon{},
	}
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGCHLD)
	go func() {
		for range ends {
			v.reap()
		}
	}()
	return v
}

// start runs a program until the part ends. Its output goes into NAME.log.
func (v *supervisor) start(argv ...string) {
	d := &daemon{argv: argv, log: filepath.Join(v.logs, filepath.Base(argv[0])+".log")}
	if err := v.spawn(d); err != nil {
		v.logger.Error("cannot start a daemon", "daemon", argv[0], "error", err)
		v.again(d)
	}
}

func (v *supervisor) spawn(d *daemon) error {
	program, err := lookPath(d.argv[0])
	if err != nil {
		return err
	}
	out, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	v.mu.Lock()
	defer v.mu.Unlock()
	process, err := os.StartProcess(program, d.argv, &os.ProcAttr{
		Env: v.env, Dir: "/", Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	d.started = time.Now()
	v.running[process.Pid] = d
	return process.Release()
}

func (v *supervisor) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		v.mu.Lock()
		d := v.running[pid]
		delete(v.running, pid)
		v.mu.Unlock()
		if d == nil {
			continue // an orphan
		}
		how := "exit code " + strconv.Itoa(status.ExitStatus())
		if status.Signaled() {
			how = status.Signal().String()
		}
		v.logger.Warn("a daemon ended; starting it again", "daemon", d.argv[0], "after", time.Since(d.started), "how", how)
		v.again(d)
	}
}

// again starts what ended, at once when it ran for a while.
func (v *supervisor) again(d *daemon) {
	delay := time.Second
	if !d.started.IsZero() && time.Since(d.started) > 10*time.Second {
		delay = 0
	}
	time.AfterFunc(delay, func() {
		if err := v.spawn(d); err != nil {
			v.logger.Error("cannot start a daemon", "daemon", d.argv[0], "error", err)
			v.again(d)
		}
	})
}

func lookPath(program string) (string, error) {
	for _, dir := range filepath.SplitList(Path()) {
		file := filepath.Join(dir, program)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", &os.PathError{Op: "look for", Path: program, Err: os.ErrNotExist}
}
