package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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
	// projects is a directory that is applied too, and again when it changes.
	projects string
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
		common.projects = filepath.Join(dir, "projects")
		err = errors.Join(os.Mkdir(common.projects, 0o700), os.WriteFile(filepath.Join(common.projects, "namespace.yaml"), []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: projects}\n"), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		m := launch(t, filepath.Join(dir, "data"), append(freePorts(), "--apply", "examples/commerce", "--apply", common.projects, "--allow-target", "127.0.0.1/32")...)
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
