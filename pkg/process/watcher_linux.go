package process

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// childAttributes put the child in a group of its own and, as a second net, have
// the kernel kill it when its watcher is killed.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// adoptOrphans makes descendants whose parent ended children of the watcher.
func adoptOrphans() {
	// Without it (kernels before 3.4) process 1 gets them.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// killAdopted kills the descendants that left the group: their parents ended, so
// they are the watcher's children by now. Theirs become so in turn.
func killAdopted() {
	for range 100 { // whoever starts children faster than this gets away
		found := false
		tasks, _ := filepath.Glob("/proc/self/task/*/children")
		for _, task := range tasks {
			children, err := os.ReadFile(task) //nolint:gosec // the kernel's
			if err != nil {
				continue // that thread is gone
			}
			for _, field := range bytes.Fields(children) {
				if pid, err := strconv.Atoi(string(field)); err == nil {
					found = true
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		if !found {
			return
		}
		time.Sleep(time.Millisecond) // reap collects them
	}
}
