package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// InitCommand is the argument with which the program is the first process of a
// part of a cluster: cluster init FOLDER PART.
const InitCommand = "init"

// Processes are the first processes of a cluster's parts, by the part's name.
// They are found by their command line, so that none is missed and no other
// process is taken for one, whatever happened to those who started them.
func Processes(s *state.State) (map[string]int, error) {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[string]int{}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		if part, ok := partOf(s, filepath.Join("/proc", dir.Name())); ok {
			found[part] = pid
		}
	}
	return found, nil
}

func partOf(s *state.State, proc string) (string, bool) {
	cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return "", false
	}
	// One that has ended and was not asked for its code has no command line.
	argv := strings.Split(string(bytes.TrimSuffix(cmdline, []byte{0})), "\x00")
	if len(argv) != 4 || argv[1] != InitCommand || argv[2] != s.Dir() {
		return "", false
	}
	// Anybody may have such a command line, but only root such a process.
	var stat unix.Stat_t
	if unix.Stat(proc, &stat) != nil || stat.Uid != 0 {
		return "", false
	}
	return argv[3], true
}

// Kill ends parts of a cluster (all, when none is named) as a power cut would:
// with the first process of a PID namespace the kernel kills all others. It
// returns when they are gone.
func Kill(ctx context.Context, s *state.State, parts ...string) error {
	for {
		running, err := Processes(s)
		if err != nil {
			return err
		}
		if len(parts) > 0 {
			maps.DeleteFunc(running, func(part string, _ int) bool { return !slices.Contains(parts, part) })
		}
		if len(running) == 0 {
			return nil
		}
		ends := map[string]int{}
		for part, pid := range running {
			fd, err := unix.PidfdOpen(pid, 0)
			if errors.Is(err, unix.ESRCH) {
				continue
			}
			if err != nil {
				return fmt.Errorf("kill %s: %w", part, err)
			}
			defer func() { _ = unix.Close(fd) }()
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill %s: %w", part, err)
			}
			ends[part] = fd
		}
		for part, fd := range ends {
			if err := ended(ctx, fd); err != nil {
				return fmt.Errorf("%s of cluster %s does not end: %w", part, s.Name, err)
			}
		}
	}
}

// ended waits until a process has ended, and with it its PID namespace. (Its
// command line is gone before that.)
func ended(ctx context.Context, pidfd int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
