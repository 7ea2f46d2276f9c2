package e2e

import (
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// common is the mesh that most tests share: they keep apart by namespaces and
// hosts, and starting one takes seconds.
var common struct { //nolint:gochecknoglobals // one per test binary is its purpose
	once sync.Once
	mesh *mesh
	dir  string
}

// shared returns the common mesh, with the commerce demo applied.
func shared(t testing.TB) *mesh {
	t.Helper()
	common.once.Do(func() {
		dir, err := os.MkdirTemp("", "lambdamesh-e2e-")
		if err != nil {
			t.Fatal(err)
		}
		common.dir = dir
		m := launch(t, dir, append(freePorts(), "--apply", "examples/commerce", "--allow-target", "127.0.0.1/32")...)
		m.awaitEndpoints(t)
		common.mesh = m
	})
	if common.mesh == nil {
		t.Fatal("the common mesh did not start: see the first test that needed it")
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the common mesh wrote:\n%s", common.mesh.output)
		}
	})
	return common.mesh
}

func TestMain(m *testing.M) {
	code := m.Run()
	if mesh := common.mesh; mesh != nil {
		_ = mesh.cmd.Process.Signal(os.Interrupt)
		select {
		case <-mesh.done:
		case <-time.After(stopTimeout):
			_ = mesh.cmd.Process.Kill()
			code = max(code, 1)
		}
	}
	if common.dir != "" {
		_ = exec.Command("rm", "-rf", common.dir).Run()
	}
	os.Exit(code)
}
