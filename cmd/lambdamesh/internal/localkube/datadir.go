package localkube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// leftoverWait is how long a start waits for the children of a run that was
	// killed; their watchers kill them after orphanGrace.
	leftoverWait = 5 * orphanGrace
	pollInterval = 25 * time.Millisecond
)

// lock takes the data directory for this process until unlock or its end.
func (c *Config) lock() (unlock func(), err error) {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory cannot be made: %w", err)
	}
	file, err := os.OpenFile(c.lockFile(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory cannot be written: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(c.lockFile())
		_ = file.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s cannot be locked: %w", c.DataDir, err)
		}
		return nil, fmt.Errorf("data directory %s is in use by process %s: stop that, or choose another directory",
			c.DataDir, strings.TrimSpace(string(holder)))
	}
	// The file stays: removing it would let two processes lock two files.
	err = file.Truncate(0)
	if err == nil {
		_, err = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("data directory cannot be written: %w", err)
	}
	return func() { _ = file.Close() }, nil
}

// checkBinaries finds out early what a child's start would say less clearly.
func (c *Config) checkBinaries() error {
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		if _, err := os.Stat(c.binary(name)); err != nil {
			return fmt.Errorf("%s is missing: %w; run `make kubernetes`", name, err)
		}
	}
	return nil
}

// checkData refuses data that is there in part, or that another Kubernetes
// wrote, and returns the version of the binaries.
func (c *Config) checkData(ctx context.Context) (version string, err error) {
	out, err := exec.CommandContext(ctx, c.binary("kube-apiserver"), "--version").Output() //nolint:gosec // the configured binary
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", c.binary("kube-apiserver"), err)
	}
	version = strings.TrimSpace(strings.TrimPrefix(string(out), "Kubernetes "))

	written, err := os.ReadFile(c.versionFile())
	used := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if was := strings.TrimSpace(string(written)); used && minor(was) != minor(version) {
		return "", fmt.Errorf("%s was written by Kubernetes %s, these binaries are %s: use those of %s, or another data directory",
			c.stateDir(), was, version, minor(was))
	}

	entries, err := os.ReadDir(c.etcdDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if !used && len(entries) == 0 {
		return version, nil // the first start
	}
	for _, part := range []string{"member", "member/wal", "member/snap/db"} {
		if _, err := os.Stat(filepath.Join(c.etcdDir(), part)); err != nil && (used || part == "member") {
			return "", fmt.Errorf("the objects in %s are incomplete: %w; restore that directory, or remove %s to begin with none",
				c.etcdDir(), err, c.stateDir())
		}
	}
	return version, nil
}

// minor returns "v1.36" of "v1.36.3".
func minor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

func (c *Config) pidFile(name string) string { return filepath.Join(c.runDir(), name+".pid") }

// awaitLeftovers waits until the children of a run that was killed are gone: they
// hold the port and the database. It waits for a limited time only, because
// after a reboot the id may be somebody else's.
func (c *Config) awaitLeftovers(ctx context.Context) error {
	waiting, cancel := context.WithTimeout(ctx, leftoverWait)
	defer cancel()
	files, err := filepath.Glob(c.pidFile("*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file) //nolint:gosec // one of ours
		if err != nil {
			return err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		if err == nil && pid > 1 {
			c.awaitGroup(waiting, pid)
		}
		if err := os.Remove(file); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c *Config) awaitGroup(ctx context.Context, pid int) {
	logged := false
	for ctx.Err() == nil && syscall.Kill(-pid, 0) == nil {
		if !logged {
			logged = true
			c.Log.InfoContext(ctx, "waiting for a process of the last run to end", "pid", pid)
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
		}
	}
}
