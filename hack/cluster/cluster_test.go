package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

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

// TestCluster is the life of one cluster, with a second one beside it for a while.
func TestCluster(t *testing.T) {
	m := newMachine(t)
	before := snapshot(t)
	t.Run("life", func(t *testing.T) { testLife(t, m) })
	compare(t, before, snapshot(t))
}

func testLife(t *testing.T, m *machine) {
	c := m.up(t, "test-a", 2)
	t.Logf("two nodes and CoreDNS ready after %s", c.took.Round(100*time.Millisecond))
	if c.took > startLimit {
		t.Errorf("ready after %s, not after %s", c.took, startLimit)
	}
	ranges := map[netip.Prefix]bool{}
	for name, node := range c.nodes(t) {
		if ready, why := node.Ready(); !ready {
			t.Errorf("%s is not ready: %s", name, why)
		}
		ranges[node.Spec.PodCIDR] = node.Spec.PodCIDR.Bits() == 24
	}
	if len(ranges) != 2 {
		t.Errorf("the nodes' ranges of pods are %v, not two different ones", ranges)
	}

	web := filepath.Join(t.TempDir(), "web")
	build := exec.Command("go", "build", "-o", web, "./testdata/web")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	c.run(t, "push", web, c.registry+"/test/web:1")
	if out, err := c.apply(t, "pods.yaml"); err != nil {
		t.Fatal(out)
	}
	c.must(t, "-n", "test", "wait", "--for=condition=Available", "--timeout=60s", "deployment/front", "deployment/back")
	c.must(t, "-n", "test", "rollout", "status", "--timeout=60s", "statefulset/store")

	t.Run("an image is pulled by any registry's name", func(t *testing.T) {
		out := c.must(t, "-n", "test", "get", "pods", "-o", "jsonpath={range .items[*]}{.spec.containers[0].image} {.status.phase}{\"\\n\"}{end}")
		for _, want := range []string{"registry.example.com/test/web:1 Running", c.registry + "/test/web:1 Running"} {
			if err := contains(out, want); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("NodePort of every node from the machine", func(t *testing.T) {
		for node := range c.nodes(t) {
			eventually(t, node, 20*time.Second, func() error {
				body, err := get(c.front(t, node, "/", nil))
				if err != nil {
					return err
				}
				return contains(body, "front-")
			})
		}
	})
	t.Run("Service and name across nodes, with the pod's own address", func(t *testing.T) {
		ip := c.must(t, "-n", "test", "get", "pods", "-l", "app=front", "-o", "jsonpath={.items[0].status.podIP}")
		body, err := get(c.front(t, "node1", "/get", url.Values{"url": {"http://back.test.svc.cluster.local/"}}))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"back-", "uid=65532", "from=" + ip} {
			if err := contains(body, want); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("names that are not there do not exist", func(t *testing.T) {
		for _, host := range []string{"nosuch.test.svc.cluster.local", "nosuch.invalid"} {
			body, err := get(c.front(t, "node1", "/lookup", url.Values{"host": {host}}))
			if err == nil {
				err = contains(body, "notfound=true")
			}
			if err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
	})
	t.Run("pods reach beyond the machine", func(t *testing.T) {
		server := outside(t)
		body, err := get(c.front(t, "node1", "/get", url.Values{"url": {server}}))
		if err != nil {
			t.Fatal(err)
		}
		if err := contains(body, "asked by "+outsideMachine); err != nil {
			t.Error(err)
		}
	})
	t.Run("pod security is enforced", func(t *testing.T) {
		out, err := c.apply(t, "privileged.yaml")
		if err == nil {
			t.Fatal("a privileged pod was taken")
		}
		if err := contains(out, `violates PodSecurity "restricted`); err != nil {
			t.Error(err)
		}
	})
	t.Run("a native sidecar runs before the container that needs it", func(t *testing.T) {
		c.must(t, "-n", "test", "wait", "--for=condition=Ready", "--timeout=60s", "pod/sidecar")
		out := c.must(t, "-n", "test", "get", "pod", "sidecar", "-o",
			"jsonpath={.status.initContainerStatuses[0].started} {.status.containerStatuses[0].restartCount}")
		if out != "true 0" {
			t.Errorf("sidecar started and restarts of the container: %s, want true 0", out)
		}
	})
	t.Run("a Service leads to a port that a sidecar names", func(t *testing.T) {
		eventually(t, "answer", 20*time.Second, func() error {
			body, err := get(c.front(t, "node1", "/get", url.Values{"url": {"http://sidecar.test.svc.cluster.local/"}}))
			if err != nil {
				return err
			}
			return contains(body, "sidecar uid=")
		})
	})
	t.Run("memory of pods", func(t *testing.T) {
		eventually(t, "figures", time.Minute, func() error {
			var summary struct {
				Pods []struct {
					PodRef struct{ Name string }
					Memory struct{ WorkingSetBytes uint64 }
				}
			}
			if err := json.Unmarshal([]byte(c.must(t, "get", "--raw", "/api/v1/nodes/node1/proxy/stats/summary")), &summary); err != nil {
				return err
			}
			for _, pod := range summary.Pods {
				if strings.HasPrefix(pod.PodRef.Name, "front-") && pod.Memory.WorkingSetBytes > 1<<20 {
					return nil
				}
			}
			return fmt.Errorf("no pod front-* with more than 1 MiB in %+v", summary)
		})
	})
	t.Run("logs and exec", func(t *testing.T) {
		if err := contains(c.must(t, "-n", "test", "logs", "deployment/back"), "listening"); err != nil {
			t.Error(err)
		}
		// The image has no shell: that its one program cannot listen a second
		// time shows that it ran in the pod.
		out, err := c.kube("-n", "test", "exec", "deployment/front", "--", "/web")
		if err == nil || !strings.Contains(out, "address already in use") {
			t.Errorf("exec: %v: %s", err, out)
		}
	})
	t.Run("the API server reaches pods", func(t *testing.T) { // as it does for webhooks
		if err := contains(c.must(t, "get", "--raw", "/api/v1/namespaces/test/services/http:back:80/proxy/"), "back-"); err != nil {
			t.Error(err)
		}
	})
	t.Run("a port of the node", func(t *testing.T) {
		address, _ := c.nodes(t)["node1"].Address()
		eventually(t, "answer", time.Minute, func() error {
			body, err := get("http://" + net.JoinHostPort(address.String(), "8088"))
			if err != nil {
				return err
			}
			return contains(body, "hostport")
		})
	})
	t.Run("a container that takes more memory than it may have is killed", func(t *testing.T) {
		eventually(t, "killed", time.Minute, func() error {
			return contains(c.must(t, "-n", "test", "get", "pod", "greedy", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason}"), "OOMKilled")
		})
	})
	t.Run("a second cluster beside it", func(t *testing.T) { testBeside(t, c) })
	t.Run("dead daemons are started again", func(t *testing.T) {
		for _, daemon := range []string{"kubelet", "containerd", "kube-proxy"} {
			old := strings.TrimSpace(c.run(t, "node", "--name", c.name, "exec", "1", "pidof", daemon))
			c.run(t, "node", "--name", c.name, "exec", "1", "kill", "-KILL", old)
			eventually(t, daemon+" runs again", 20*time.Second, func() error {
				out, err := c.command("node", "--name", c.name, "exec", "1", "pidof", daemon).Output()
				if pid := strings.TrimSpace(string(out)); err != nil || pid == old {
					return fmt.Errorf("pid %q, was %q: %w", pid, old, err)
				}
				return nil
			})
		}
		c.must(t, "-n", "test", "delete", "pod", "-l", "app=front")
		c.must(t, "-n", "test", "wait", "--for=condition=Available", "--timeout=60s", "deployment/front")
	})
	t.Run("a node is killed and comes back", func(t *testing.T) { testKill(t, c) })
	t.Run("a volume goes with its claim", func(t *testing.T) {
		folder := c.must(t, "get", "persistentvolumes", "-o", "jsonpath={.items[0].spec.local.path}")
		c.run(t, "node", "--name", c.name, "exec", "2", "test", "-e", folder+"/starts")
		c.must(t, "-n", "test", "delete", "statefulset/store", "persistentvolumeclaim/data-store-0")
		eventually(t, "removed", time.Minute, func() error {
			if left := c.must(t, "get", "persistentvolumes", "-o", "name"); left != "" {
				return fmt.Errorf("left: %s", left)
			}
			return nil
		})
		if out, err := c.command("node", "--name", c.name, "exec", "2", "test", "-e", folder).CombinedOutput(); err == nil {
			t.Errorf("the folder %s is still there: %s", folder, out)
		}
	})
	t.Run("the control plane is killed and comes back", func(t *testing.T) {
		front := c.front(t, "node1", "/", nil)
		c.run(t, "node", "kill", "control-plane", "--name", c.name)
		if _, err := c.kube("get", "--raw", "/readyz", "--request-timeout=1s"); err == nil {
			t.Fatal("the API server answers without a control plane")
		}
		if _, err := get(front); err != nil {
			t.Errorf("pods do not answer without a control plane: %v", err)
		}
		c.run(t, "node", "start", "control-plane", "--name", c.name)
		eventually(t, "the API server is back", time.Minute, func() error {
			_, err := c.kube("-n", "test", "get", "deployment", "front")
			return err
		})
	})
}

func testBeside(t *testing.T, c *running) {
	b := c.up(t, "test-b", 3)
	t.Logf("three nodes ready after %s", b.took.Round(100*time.Millisecond))
	if nodes := b.nodes(t); len(nodes) != 3 {
		t.Errorf("%d nodes, want 3", len(nodes))
	}
	for name, node := range b.nodes(t) {
		other, ok := c.nodes(t)[name]
		address, _ := node.Address()
		if taken, _ := other.Address(); ok && address == taken {
			t.Errorf("%s has the address %s in both clusters", name, address)
		}
	}
	out, err := b.kube("get", "namespace", "test")
	if err == nil {
		t.Errorf("the second cluster has the first one's namespace: %s", out)
	}
	b.run(t, "down", "--name", b.name)
	if _, err := get(c.front(t, "node1", "/", nil)); err != nil {
		t.Errorf("the first cluster does not answer once the second is gone: %v", err)
	}
}

func testKill(t *testing.T, c *running) {
	back := url.Values{"url": {"http://back.test.svc.cluster.local/"}}
	c.run(t, "node", "kill", "2", "--name", c.name)
	if body, err := get(c.front(t, "node1", "/get", back)); err == nil {
		t.Errorf("a pod of the killed node answers: %s", body)
	}
	eventually(t, "node2 is not ready", time.Minute, func() error {
		if ready, _ := c.nodes(t)["node2"].Ready(); ready {
			return fmt.Errorf("node2 is ready")
		}
		return nil
	})
	if _, err := get(c.front(t, "node1", "/", nil)); err != nil {
		t.Errorf("node1 does not answer without node2: %v", err)
	}
	c.run(t, "node", "start", "2", "--name", c.name)
	eventually(t, "node2 is ready", time.Minute, func() error {
		if ready, why := c.nodes(t)["node2"].Ready(); !ready {
			return fmt.Errorf("%s", why)
		}
		return nil
	})
	eventually(t, "its pod answers", time.Minute, func() error {
		body, err := get(c.front(t, "node1", "/get", back))
		if err != nil {
			return err
		}
		return contains(body, "back-")
	})
	eventually(t, "its volume holds what was written before", time.Minute, func() error {
		body, err := get(c.front(t, "node1", "/get", url.Values{"url": {"http://store.test.svc.cluster.local/starts"}}))
		if err == nil && body != "start\nstart\n" {
			err = fmt.Errorf("starts written: %q", body)
		}
		return err
	})
	restarts := c.must(t, "-n", "test", "get", "pods", "-l", "app=back", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}")
	if restarts != "1" {
		t.Errorf("the pod's container was started again %s times, want once", restarts)
	}
}

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

// outsideMachine is this machine's address in the network of outside.
const outsideMachine = "198.51.100.1"

// outside is a server beyond the machine: in a namespace that only the machine
// is joined to, with no way back to a cluster's addresses.
func outside(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	space, err := netns.New() // enters it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { space.Close() })
	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err := netns.Set(home); err != nil {
		t.Fatal(err) // the thread stays locked, and ends with the test
	}
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lm-outside"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "machine", PeerNamespace: netlink.NsFd(space)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(attrs.Name); err == nil {
			_ = netlink.LinkDel(link)
		}
	})
	inside, err := netlink.NewHandleAt(space, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	for _, end := range []struct {
		handle        *netlink.Handle
		link, address string
	}{{here, attrs.Name, outsideMachine + "/30"}, {inside, "machine", "198.51.100.2/30"}} {
		link, err := end.handle.LinkByName(end.link)
		if err != nil {
			t.Fatal(err)
		}
		address, err := netlink.ParseAddr(end.address)
		if err != nil {
			t.Fatal(err)
		}
		if err := end.handle.AddrAdd(link, address); err != nil {
			t.Fatal(err)
		}
		if err := end.handle.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "asked by %s", host)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return fmt.Sprintf("http://198.51.100.2:%d/", listener.Addr().(*net.TCPAddr).Port)
}
