package process

import (
	"syscall"

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
