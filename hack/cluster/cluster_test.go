package main_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

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
