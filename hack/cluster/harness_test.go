package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/kube"
)

// The test starts real clusters with the built program; test.sh builds and sets
// what it needs. They have a folder of their own, so that it finds and leaves
// alone those that somebody else runs.
const (
	programVar = "LAMBDAMESH_CLUSTER_PROGRAM"
	requireVar = "LAMBDAMESH_CLUSTER_REQUIRED" // in CI: what cannot run fails
)

// startLimit is what a start may take from built programs.
const startLimit = 30 * time.Second

type machine struct {
	program string
	env     []string
	kubectl string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	program := os.Getenv(programVar)
	if program == "" {
		t.Skipf("LEFT OUT: real nodes: run hack/cluster/test.sh, which sets %s", programVar)
	}
	if out, err := exec.Command(program, "check").CombinedOutput(); err != nil {
		if os.Getenv(requireVar) != "" {
			t.Fatalf("real nodes are required by %s: %s", requireVar, out)
		}
		t.Skipf("LEFT OUT: real nodes: %s", out)
	}
	m := &machine{program: program, env: append(os.Environ(), "LAMBDAMESH_CLUSTERS="+filepath.Join(t.TempDir(), "clusters"))}
	for _, dir := range filepath.SplitList(os.Getenv("LAMBDAMESH_CLUSTER_PATH")) {
		if _, err := os.Stat(filepath.Join(dir, "kubectl")); err == nil {
			m.kubectl = filepath.Join(dir, "kubectl")
		}
	}
	return m
}

func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(m.program, args...)
	cmd.Env = m.env
	return cmd
}

func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := m.command(args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("cluster %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	if stderr.Len() > 0 {
		t.Logf("cluster %s:\n%s", strings.Join(args, " "), stderr.String())
	}
	return stdout.String()
}

// running is a cluster of the test.
type running struct {
	*machine
	name       string
	kubeconfig string
	registry   string
	took       time.Duration
}

func (m *machine) up(t *testing.T, name string, nodes int) *running {
	t.Helper()
	t.Cleanup(func() { m.run(t, "down", "--name", name) })
	began := time.Now()
	out := m.run(t, "up", "--name", name, "--nodes", fmt.Sprint(nodes))
	c := &running{machine: m, name: name, took: time.Since(began)}
	for line := range strings.Lines(out) {
		variable, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		switch variable {
		case "KUBECONFIG":
			c.kubeconfig = value
		case "REGISTRY":
			c.registry = value
		}
	}
	if c.kubeconfig == "" || c.registry == "" {
		t.Fatalf("up printed %q, no KUBECONFIG and REGISTRY to export", out)
	}
	return c
}

func (c *running) kube(args ...string) (string, error) {
	cmd := exec.Command(c.kubectl, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "HOME="+filepath.Dir(c.kubeconfig))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *running) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.kube(args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// apply applies a manifest of testdata.
func (c *running) apply(t *testing.T, file string) (string, error) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(t.TempDir(), file)
	if err := os.WriteFile(manifest, bytes.ReplaceAll(data, []byte("REGISTRY"), []byte(c.registry)), 0o600); err != nil {
		t.Fatal(err)
	}
	return c.kube("apply", "-f", manifest)
}

func (c *running) nodes(t *testing.T) map[string]kube.Node {
	t.Helper()
	var list struct{ Items []kube.Node }
	if err := json.Unmarshal([]byte(c.must(t, "get", "nodes", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]kube.Node{}
	for _, node := range list.Items {
		nodes[node.Metadata.Name] = node
	}
	return nodes
}

// front is a URL of the pods' Service at a node's port.
func (c *running) front(t *testing.T, node, path string, query url.Values) string {
	t.Helper()
	port := c.must(t, "-n", "test", "get", "service", "front", "-o", "jsonpath={.spec.ports[0].nodePort}")
	address, _ := c.nodes(t)[node].Address()
	return (&url.URL{Scheme: "http", Host: net.JoinHostPort(address.String(), port), Path: path, RawQuery: query.Encode()}).String()
}

func get(url string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}

// eventually waits for what a cluster does in its own time.
func eventually(t *testing.T, what string, limit time.Duration, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			t.Logf("%s after %s", what, time.Since(began).Round(100*time.Millisecond))
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: not after %s: %v", what, limit, err)
		}
		kube.Pause(ctx, 200*time.Millisecond)
	}
}

func contains(got, want string) error {
	if !strings.Contains(got, want) {
		return fmt.Errorf("%q does not contain %q", got, want)
	}
	return nil
}
