package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// startTimeout covers a machine with two busy cores, not a good one.
	startTimeout = 3 * time.Minute
	stopTimeout  = time.Minute
	poll         = 100 * time.Millisecond
)

// binary is the path of a built program.
func binary(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("LAMBDAMESH_BIN")
	if dir == "" {
		t.Fatal("LAMBDAMESH_BIN is not set: run `make e2e`")
	}
	return filepath.Join(dir, name)
}

// endpoints is <data-dir>/endpoints.json as api.md has it.
type endpoints struct {
	Gateway, GatewayTLS, EventBus, EventBusAdmin, Connector, Webhooks, ConnectorOutbound, XDS, Kubernetes string

	PID int
}

// mesh is a running `lambdamesh dev`.
type mesh struct {
	endpoints
	dataDir string
	cmd     *exec.Cmd
	output  *buffer
	done    chan struct{} // closed when the process has ended
}

// buffer is what a process wrote so far.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// freePorts are the flags for addresses that no other instance has.
func freePorts() []string {
	var flags []string
	for _, name := range []string{"gateway", "gateway-tls", "eventbus", "eventbus-admin", "connector", "xds", "kubernetes"} {
		flags = append(flags, "--"+name+"-address", "127.0.0.1:0")
	}
	return flags
}

// launch starts `lambdamesh dev` and does not wait.
func launch(t testing.TB, dataDir string, args ...string) *mesh {
	t.Helper()
	m := &mesh{dataDir: dataDir, output: &buffer{}, done: make(chan struct{})}
	m.cmd = exec.Command(binary(t, "lambdamesh"), append([]string{"dev", "--data-dir", dataDir, "--log-level", "info"}, args...)...)
	m.cmd.Dir = ".."
	m.cmd.Stdout, m.cmd.Stderr = m.output, m.output
	require.NoError(t, m.cmd.Start())
	go func() { _ = m.cmd.Wait(); close(m.done) }()
	return m
}

// start starts one on free ports, waits until it serves, and stops it with the
// test.
func start(t testing.TB, dataDir string, args ...string) *mesh {
	t.Helper()
	m := launch(t, dataDir, append(freePorts(), args...)...)
	t.Cleanup(func() {
		m.stop(t)
		if t.Failed() {
			t.Logf("lambdamesh dev wrote:\n%s", m.output)
		}
	})
	m.awaitEndpoints(t)
	return m
}

func (m *mesh) awaitEndpoints(t testing.TB) {
	t.Helper()
	eventually(t, startTimeout, func() error {
		select {
		case <-m.done:
			t.Fatalf("lambdamesh dev ended:\n%s", m.output)
		default:
		}
		raw, err := os.ReadFile(filepath.Join(m.dataDir, "endpoints.json"))
		if err != nil {
			return err
		}
		if err := json.Unmarshal(raw, &m.endpoints); err != nil {
			return err
		}
		if m.PID != m.cmd.Process.Pid {
			return errorf("endpoints.json is that of process %d", m.PID)
		}
		return nil
	})
}

// stop interrupts it as Ctrl-C does and waits for its end.
func (m *mesh) stop(t testing.TB) {
	t.Helper()
	select {
	case <-m.done:
		return
	default:
	}
	require.NoError(t, m.cmd.Process.Signal(os.Interrupt))
	select {
	case <-m.done:
	case <-time.After(stopTimeout):
		_ = m.cmd.Process.Kill()
		t.Errorf("lambdamesh dev did not stop within %s of Ctrl-C:\n%s", stopTimeout, m.output)
	}
}

// kill is kill -9.
func (m *mesh) kill(t testing.TB) {
	t.Helper()
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGKILL))
	<-m.done
}

// processes lists what runs with the data directory in its command line or
// environment: every child is started with a path below it.
func (m *mesh) processes(t testing.TB) []string {
	t.Helper()
	out, err := exec.Command("ps", "-eo", "pid=,args=").Output()
	require.NoError(t, err)
	var found []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, m.dataDir) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// kubectl runs the real one against the mesh and returns what it printed.
func (m *mesh) kubectl(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(m.dataDir, "kubeconfig"))
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (m *mesh) mustKubectl(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := m.kubectl(t, stdin, args...)
	require.NoError(t, err)
	return out
}

// apply applies YAML and removes it again with the test.
func (m *mesh) apply(t testing.TB, yaml string) {
	t.Helper()
	m.mustKubectl(t, yaml, "apply", "-f", "-")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary(t, "kubectl"), "delete", "--ignore-not-found", "--wait=false", "-f", "-")
		cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(m.dataDir, "kubeconfig"))
		cmd.Stdin = strings.NewReader(yaml)
		_ = cmd.Run()
	})
}

// waitFor waits until the object's condition has the status, as `kubectl wait`.
func (m *mesh) waitFor(t testing.TB, namespace, object, condition string) {
	t.Helper()
	out, err := m.kubectl(t, "", "wait", "-n", namespace, object, "--for=condition="+condition, "--timeout=170s")
	if err != nil {
		describe, _ := m.kubectl(t, "", "get", "-n", namespace, object, "-o", "yaml")
		t.Fatalf("%v\n%s\n%s", err, out, describe)
	}
}

// cli runs lambdamesh with the mesh's data directory.
func (m *mesh) cli(t testing.TB, args ...string) (stdout string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t, "lambdamesh"), append(args, "--data-dir", m.dataDir)...)
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// response is an answer read whole.
type response struct {
	status int
	header http.Header
	body   string
}

// get asks the gateway for a path of a host.
func (m *mesh) get(ctx context.Context, host, path string, header ...string) (response, error) {
	return m.request(ctx, http.MethodGet, host, path, "", header...)
}

// request asks the gateway; header is name, value, name, value...
func (m *mesh) request(ctx context.Context, method, host, path, body string, header ...string) (response, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.Gateway+path, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	req.Host = host
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return do(http.DefaultClient, req)
}

func do(client *http.Client, req *http.Request) (response, error) {
	resp, err := client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<22))
	return response{status: resp.StatusCode, header: resp.Header, body: string(raw)}, err
}

// eventually polls until check returns nil, and fails with its last error.
func eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", timeout, err)
		}
		<-ticker.C
	}
}

// listen takes a free loopback port.
func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}
