package testkit

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Eventually calls check until it returns nil. It fails the test, with msg and
// the last error, when timeout has passed before that.
func Eventually(t testing.TB, timeout time.Duration, check func() error, msg string) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	pause := 5 * time.Millisecond
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().Add(pause).After(deadline) {
			t.Fatalf("%s: not within %s: %v", msg, timeout, err)
		}
		select {
		case <-time.After(pause):
		case <-t.Context().Done():
			t.Fatalf("%s: the test ended: %v", msg, err)
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// Golden compares got with the file at path. With UPDATE_GOLDEN=1 in the
// environment it writes the file instead.
func Golden(t testing.TB, path string, got []byte) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") == "1" {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // a source directory
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil { //nolint:gosec // a source file
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path) //nolint:gosec // the test names its own file
	if err != nil {
		t.Fatalf("%v (UPDATE_GOLDEN=1 writes it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got; UPDATE_GOLDEN=1 writes it):\n%s", path, diff)
	}
}

// TempSocketDir returns a directory, removed after the test, whose path leaves
// room for the name of a Unix socket: sockaddr_un holds 104 bytes on macOS and
// 108 on Linux, and t.TempDir is longer than that there and for long test names.
func TempSocketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the sockets of the test: %v", err)
		}
	})
	return dir
}
