package e2e

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestASecondStartFindsTheDataOfTheFirst(t *testing.T) {
	dir := t.TempDir()
	first := start(t, dir)
	first.mustKubectl(t, "", "create", "namespace", "kept")
	first.mustKubectl(t, "", "create", "configmap", "-n", "kept", "note", "--from-literal=text=hello")
	id := publishOne(t, first, "kept", "1")
	first.mustKubectl(t, webhookObjects, "apply", "-f", "-")
	first.waitFor(t, "default", "application/hooked", "Ready")
	require.Equal(t, http.StatusOK, sendHook(t, first.caller(t), first.Webhooks+"/webhooks/hooked/code", "push", "{}", "hush"))
	first.stop(t)
	require.Equal(t, 0, first.cmd.ProcessState.ExitCode(), "Ctrl-C is no failure:\n%s", first.output)
	require.Empty(t, first.processes(t), "nothing is left behind")
	_, err := os.Stat(filepath.Join(dir, "endpoints.json"))
	require.ErrorIs(t, err, os.ErrNotExist, "endpoints.json is there only while it runs")

	second := start(t, dir)
	require.Equal(t, "hello", second.mustKubectl(t, "", "get", "configmap", "-n", "kept", "note", "-o", "jsonpath={.data.text}"))
	require.Equal(t, id, publishOne(t, second, "kept", "1"), "the same source and id is the event stored before the restart")
	require.Equal(t, http.StatusOK, sendHook(t, second.caller(t), second.Webhooks+"/webhooks/hooked/code", "push", "{}", "hush"))
	stored, code := second.cli(t, "events", "list", "--source", "hooked", "-A")
	require.Zero(t, code, stored)
	require.Equal(t, 1, strings.Count(stored, "com.github.push"), "a webhook that is repeated after the restart is the event stored before: %s", stored)
}

func TestAfterKillMinus9NothingIsLeftAndTheNextStartGoesOn(t *testing.T) {
	dir := t.TempDir()
	m := start(t, dir, "--apply", "examples/hello")
	m.waitFor(t, "default", "lambda/hello", "Ready")
	m.kill(t)
	eventually(t, time.Minute, func() error {
		if left := m.processes(t); len(left) > 0 {
			return errorf("still there: %s", strings.Join(left, "\n"))
		}
		return nil
	})
	again := start(t, dir)
	again.waitFor(t, "default", "lambda/hello", "Ready")
}

func TestTwoInstancesRunBesideEachOther(t *testing.T) {
	one, two := start(t, t.TempDir()), start(t, t.TempDir())
	require.NotEqual(t, one.endpoints, two.endpoints)
	one.mustKubectl(t, "", "create", "namespace", "only-in-one")
	_, err := two.kubectl(t, "", "get", "namespace", "only-in-one")
	require.ErrorContains(t, err, "not found")
}

func TestAStartThatCannotWorkSaysWhyInOneLine(t *testing.T) {
	dir := t.TempDir()
	running := start(t, dir)
	busy := listen(t)

	unwritable := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(unwritable, nil, 0o600))

	half := t.TempDir()
	copied := exec.Command("cp", "-R", filepath.Join(dir, "kubernetes"), half)
	require.NoError(t, copied.Run())
	require.NoError(t, os.Remove(filepath.Join(half, "kubernetes", "pki", "ca.crt")))

	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"the same data directory twice":     {append(freePorts(), "--data-dir", dir), 1, dir},
		"a port in use":                     {append(freePorts(), "--data-dir", t.TempDir(), "--gateway-address", busy.Addr().String()), 1, busy.Addr().String()},
		"a data directory that is a file":   {append(freePorts(), "--data-dir", filepath.Join(unwritable, "below")), 1, unwritable},
		"a half-written data directory":     {append(freePorts(), "--data-dir", half), 1, half},
		"a file to apply that is not there": {append(freePorts(), "--data-dir", t.TempDir(), "--apply", "/no/such.yaml"), 2, "/no/such.yaml"},
		"an address that is none":           {[]string{"--data-dir", t.TempDir(), "--gateway-address", "8080"}, 2, "--gateway-address"},
		"no Kubernetes binaries":            {append(freePorts(), "--data-dir", t.TempDir(), "--bin-dir", t.TempDir()), 1, "make kubernetes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary(t, "lambdamesh"), append([]string{"dev"}, tt.args...)...)
			var stderr strings.Builder
			cmd.Stderr = &stderr
			_ = cmd.Run()
			require.Equal(t, tt.code, cmd.ProcessState.ExitCode(), stderr.String())
			require.Contains(t, stderr.String(), tt.want)
			require.Equal(t, 1, strings.Count(strings.TrimSpace(stderr.String()), "\n")+1, "one line: %s", stderr.String())
		})
	}
	running.mustKubectl(t, "", "get", "namespaces")
}

func TestAMissingRuntimeIsACondition(t *testing.T) {
	// A PATH with the Go toolchain and nothing else.
	bin := t.TempDir()
	goProgram, err := exec.LookPath("go")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(goProgram, filepath.Join(bin, "go")))
	t.Setenv("PATH", bin)
	t.Setenv("GOROOT", runtime.GOROOT()) //nolint:staticcheck // the toolchain behind the symlink
	m := start(t, t.TempDir(), "--apply", "examples/hello")
	eventually(t, time.Minute, func() error {
		reason, err := m.kubectl(t, "", "get", "lambda", "-n", "default", "hello", "-o",
			`jsonpath={.status.conditions[?(@.type=="SourceReady")].reason}`)
		if err != nil {
			return err
		}
		if reason != "RuntimeMissing" {
			return errorf("SourceReady has reason %q", reason)
		}
		return nil
	})
}
