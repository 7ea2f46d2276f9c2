package main_test

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestInterrupted ends starts at different moments and expects nothing to stay.
func TestInterrupted(t *testing.T) {
	m := newMachine(t)
	before := snapshot(t)
	for _, moment := range []string{"cluster test-c", "registry on", "API server ready", "node1 ready"} {
		t.Run("killed at: "+moment, func(t *testing.T) {
			m.interrupt(t, moment, syscall.SIGKILL)
			m.run(t, "down", "--name", "test-c")
			m.run(t, "down", "--name", "test-c") // twice does no harm
			compare(t, before, snapshot(t))
		})
	}
	t.Run("interrupted by the user, who calls nothing", func(t *testing.T) {
		m.interrupt(t, "API server ready", syscall.SIGINT)
		if out := m.run(t, "list"); out != "" {
			t.Errorf("list: %s", out)
		}
		m.run(t, "down", "--name", "test-c") // its logs
		compare(t, before, snapshot(t))
	})
	t.Run("killed, and started again", func(t *testing.T) {
		m.interrupt(t, "API server ready", syscall.SIGKILL)
		c := m.up(t, "test-c", 1)
		c.must(t, "get", "node", "node1")
		if out := m.run(t, "up", "--name", "test-c"); !strings.Contains(out, c.kubeconfig) {
			t.Errorf("the second up printed %q", out)
		}
	})
	compare(t, before, snapshot(t))
}

// interrupt starts a cluster and signals the program once it has said something.
func (m *machine) interrupt(t *testing.T, moment string, signal syscall.Signal) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := m.command("up", "--name", "test-c", "--nodes", "1")
	cmd.Stderr = w
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.run(t, "down", "--name", "test-c") })
	var said bytes.Buffer
	buffer := make([]byte, 4096)
	for !strings.Contains(said.String(), moment) {
		n, err := r.Read(buffer)
		said.Write(buffer[:n])
		if err != nil {
			t.Fatalf("it ended before it said %q: %s", moment, said.String())
		}
	}
	if err := cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the start was not interrupted")
	}
}
