package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// load is what a probe does again and again.
type load struct {
	Call     call
	Callers  int
	Duration time.Duration
	Event    bool
}

type loaded struct {
	Requests int
	Statuses map[int]int
	Errors   map[string]int
	Elapsed  time.Duration
	P50, P99 time.Duration
}

func (l loaded) String() string {
	return fmt.Sprintf("%.0f/s, p50 %s, p99 %s (%d in %s, %v %v)", float64(l.Requests)/l.Elapsed.Seconds(),
		l.P50.Round(10*time.Microsecond), l.P99.Round(10*time.Microsecond), l.Requests, l.Elapsed.Round(time.Millisecond), l.Statuses, l.Errors)
}

// testFigures logs what docs/performance.md tells of pods, beside the same load
// on the local mesh. Client and server share the machine.
func testFigures(t *testing.T, c *cluster) {
	t.Run("pod start", func(t *testing.T) {
		var took []time.Duration
		for i := range 3 {
			name := fmt.Sprintf("start-%d", i)
			began := time.Now()
			c.apply(t, lambda("hello", name, "nodejs", hello, ""))
			c.waitFor(t, "hello", "lambda/"+name, "Ready")
			took = append(took, since(began))
		}
		t.Logf("from kubectl apply to Ready: %v", took)
	})
	program := startProbe(t)
	local := startLocal(t)
	local.apply(t, lambda("default", "hello", "nodejs", hello, "")+open("default", "hello"))
	token := c.token(t, nil, "hello", "default", v1alpha1.EventBusTokenAudience)
	for _, test := range []struct {
		name           string
		callers        int
		cluster, local load
	}{
		{
			"requests to a lambda through the gateway", 16,
			load{Call: call{URL: "https://" + c.nodePort(t, "gateway", "https", "") + "/", Header: map[string]string{"Host": "hello." + domain}}},
			load{Call: call{URL: local.Gateway + "/", Header: map[string]string{"Host": "hello.lambdas.localhost"}}},
		},
		{
			"events accepted", 64,
			load{Event: true, Call: event("https://"+c.nodePort(t, "eventbus-public", "https", "")+"/publish", "/hello/default", token)},
			load{Event: true, Call: event(local.EventBus+"/publish", "/default/hello", "")},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			for at, l := range map[string]load{"cluster": test.cluster, "local mesh": test.local} {
				for _, callers := range []int{1, test.callers} {
					l.Callers, l.Duration = callers, 5*time.Second
					eventually(t, patience, func() error { return program.good(t, l) })
					r := program.run(t, l)
					t.Logf("%s, %d callers, %s: %s", test.name, callers, at, r)
					require.Empty(t, r.Errors)
					for status := range r.Statuses {
						require.Equal(t, 2, status/100, "%s", r)
					}
					require.NotEmpty(t, r.Statuses)
				}
			}
		})
	}
}

func event(url, source, token string) call {
	header := map[string]string{"Ce-Specversion": "1.0", "Ce-Source": source, "Ce-Type": "figures.v1", "Content-Type": "application/json"}
	if token != "" {
		header["Authorization"] = "Bearer " + token
	}
	return call{Method: http.MethodPost, URL: url, Header: header, Body: `{"pad": "` + strings.Repeat("x", 1000) + `"}`}
}

// probeProcess is a probe that runs on this machine.
type probeProcess struct{ address string }

func startProbe(t *testing.T) *probeProcess {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-o", program, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	listener, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	require.NoError(t, err)
	p := &probeProcess{address: listener.Addr().String()}
	require.NoError(t, listener.Close())
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), "LAMBDAMESH_LISTEN=unix:"+filepath.Join(dir, "app.sock"), "LAMBDAMESH_ADMIN_LISTEN=tcp:"+p.address)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return p
}

func (p *probeProcess) ask(ctx context.Context, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.address+"/"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

// good says whether one such request succeeds.
func (p *probeProcess) good(t *testing.T, l load) error {
	if l.Event {
		l.Call.Header["Ce-Id"] = "first"
	}
	var r result
	if err := p.ask(t.Context(), "do", l.Call, &r); err != nil {
		return err
	}
	if r.Status/100 != 2 {
		return fmt.Errorf("%+v", r)
	}
	return nil
}

func (p *probeProcess) run(t *testing.T, l load) loaded {
	t.Helper()
	var r loaded
	require.NoError(t, p.ask(t.Context(), "load", l, &r))
	return r
}

// localMesh is a running `lambdamesh dev`.
type localMesh struct {
	Gateway, EventBus string
	dir               string
}

func startLocal(t *testing.T) *localMesh {
	t.Helper()
	m := &localMesh{dir: t.TempDir()}
	args := []string{"dev", "--data-dir", m.dir}
	for _, name := range []string{"gateway", "gateway-tls", "eventbus", "eventbus-admin", "connector", "xds", "kubernetes"} {
		args = append(args, "--"+name+"-address", "127.0.0.1:0")
	}
	cmd := exec.Command(filepath.Join(os.Getenv(binVar), "lambdamesh"), args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("lambdamesh dev wrote:\n%s", output.String())
		}
	})
	eventually(t, patience, func() error {
		data, err := os.ReadFile(filepath.Join(m.dir, "endpoints.json"))
		if err != nil {
			return err
		}
		return json.Unmarshal(data, m)
	})
	return m
}

func (m *localMesh) apply(t *testing.T, yaml string) {
	t.Helper()
	local := &cluster{kubeconfig: filepath.Join(m.dir, "kubeconfig")}
	local.apply(t, yaml)
	local.waitFor(t, "default", "lambda/hello", "Ready")
	local.waitFor(t, "default", "apirule/hello", "Ready")
}
