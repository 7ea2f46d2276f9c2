// Package cluster starts clusters and ends them, and does the same to single
// nodes. What runs belongs to package boot, what the machine is changed by to
// package host, and what was changed is written down by package state.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/boot"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/host"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/kube"
	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// endTimeout is more than any part takes to end.
const endTimeout = 30 * time.Second

// Down ends a cluster and undoes all that it changed, however far its start
// came. Doing it twice does nothing.
func Down(ctx context.Context, name string) error {
	unlock, err := state.Lock(name)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := state.Load(name)
	if errors.Is(err, fs.ErrNotExist) {
		// A start that failed leaves its logs, and nothing else.
		return state.New(name).Remove()
	}
	if err != nil {
		return err
	}
	if err := undo(ctx, s); err != nil {
		return err
	}
	return s.Remove()
}

// undo leaves the logs in the cluster's folder and nothing else. What fails stays
// written down, to be undone again.
func undo(ctx context.Context, s *state.State) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if err := host.Kill(ctx, s); err != nil {
		return err
	}
	if err := errors.Join(host.Disconnect(ctx, s), host.RemoveCgroup(ctx, s, "")); err != nil {
		return err
	}
	return host.Restore(s)
}

// Kill ends one part, a node's name mostly, as a power cut would.
func Kill(ctx context.Context, name, part string) error {
	s, unlock, err := lockRunning(name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := checkPart(s, part); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	return host.Kill(ctx, s, part)
}

// Start starts a part that was killed, with what is on its disk.
func Start(ctx context.Context, name, part string) error {
	s, unlock, err := lockRunning(name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := checkPart(s, part); err != nil {
		return err
	}
	running, err := host.Processes(s)
	if err != nil {
		return err
	}
	if _, ok := running[part]; ok {
		return fmt.Errorf("%s of cluster %s is running", part, name)
	}
	return startPart(ctx, s, part, running[boot.Switch])
}

func lockRunning(name string) (*state.State, func(), error) {
	unlock, err := state.Lock(name)
	if err != nil {
		return nil, nil, err
	}
	s, err := state.Load(name)
	if err == nil && s.Ready {
		return s, unlock, nil
	}
	unlock()
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("no cluster %s is running: make cluster NAME=%s", name, name)
	}
	return nil, nil, err
}

func checkPart(s *state.State, part string) error {
	if part == boot.ControlPlane {
		return nil
	}
	for n := 1; n <= s.Nodes; n++ {
		if part == boot.NodeName(n) {
			return nil
		}
	}
	return fmt.Errorf("cluster %s has no %s: it has node1 to %s, and %s", s.Name, part, boot.NodeName(s.Nodes), boot.ControlPlane)
}

// Parts are the running parts' first processes.
func Parts(name string) (*state.State, map[string]int, error) {
	s, err := state.Load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("no cluster %s is running: make cluster NAME=%s", name, name)
	}
	if err != nil {
		return nil, nil, err
	}
	parts, err := host.Processes(s)
	return s, parts, err
}

// spawn starts the first process of a part. The part does nothing yet: what it
// waits for is the returned function.
func spawn(s *state.State, part string, files ...*os.File) (pid int, release func() error, err error) {
	if err := os.MkdirAll(s.Path(part), 0o700); err != nil {
		return 0, nil, err
	}
	log, err := os.OpenFile(s.Path(part, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 0, nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	program, err := os.Executable()
	if err != nil {
		return 0, nil, err
	}
	cmd := exec.Command(program) //nolint:noctx // it outlives us
	cmd.Args = []string{"lambdamesh-cluster", host.InitCommand, s.Dir(), part}
	cmd.Env = []string{"PATH=" + host.Path}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = append([]*os.File{r}, files...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: boot.Namespaces}
	if err := cmd.Start(); err != nil {
		w.Close()
		return 0, nil, fmt.Errorf("start %s: %w", part, err)
	}
	go func() { _ = cmd.Wait() }() // as long as we are there, we are its parent
	return cmd.Process.Pid, func() error {
		defer w.Close()
		_, err := w.Write([]byte{1})
		return err
	}, nil
}

// startSwitch starts what joins all others, and joins the machine to it.
func startSwitch(ctx context.Context, s *state.State) (pid int, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Registry())
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	tcp, ok := listener.(*net.TCPListener)
	if !ok {
		return 0, fmt.Errorf("%T is no TCP listener", listener)
	}
	s.RegistryPort = int(netip.MustParseAddrPort(tcp.Addr().String()).Port())
	if err := s.Save(); err != nil {
		return 0, err
	}
	file, err := tcp.File()
	if err != nil {
		return 0, err
	}
	defer file.Close()
	pid, release, err := spawn(s, boot.Switch, file)
	if err != nil {
		return 0, err
	}
	for { // its bridge is there in a moment
		err := host.Connect(ctx, s, pid)
		if err == nil {
			return pid, release()
		}
		if !errors.Is(err, host.ErrNoBridge) || ctx.Err() != nil {
			return 0, err
		}
		kube.Pause(ctx, 10*time.Millisecond)
	}
}

// startPart starts the control plane or a node, and joins it to the switch.
func startPart(ctx context.Context, s *state.State, part string, switchPID int) error {
	if part != boot.ControlPlane {
		ctx, cancel := context.WithTimeout(ctx, endTimeout)
		defer cancel()
		if err := host.MakeCgroup(ctx, s, part); err != nil {
			return err
		}
	}
	pid, release, err := spawn(s, part)
	if err != nil {
		return err
	}
	if err := host.Join(boot.Eth, boot.Address(s, part), pid, part, switchPID); err != nil {
		return err
	}
	return release()
}

// ParsePart takes 2 for node2.
func ParsePart(argument string) string {
	if _, err := strconv.Atoi(argument); err == nil {
		return "node" + argument
	}
	return argument
}

// lastLines is the end of a log, for a message.
func lastLines(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
