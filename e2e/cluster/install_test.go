package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// maxIdle is what all parts of an installation may take of memory without load.
const maxIdle = 400 << 20

// values are what an installation on a cluster without load balancers sets. The
// images are those of the chart's own version.
func (c *cluster) values(t testing.TB) []string {
	t.Helper()
	services, err := c.clients.NetworkingV1().ServiceCIDRs().Get(t.Context(), "kubernetes", metav1.GetOptions{})
	require.NoError(t, err)
	return []string{
		"--set", "mesh=" + c.mesh,
		"--set", "image.registry=" + c.images + "/lambdamesh",
		"--set", "gateway.domain=" + domain,
		"--set", "gateway.service.type=NodePort",
		"--set", "eventbus.public.service.type=NodePort",
		"--set", "targets.serviceCIDRs={" + strings.Join(services.Spec.CIDRs, ",") + "}",
		"--set", "targets.allow={" + c.webshopAddress(t) + "}",
	}
}

// helm runs the pinned one.
func (c *cluster) helm(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.run(t, "", "hack/tools/run", append([]string{"helm"}, args...)...)
	require.NoError(t, err)
	return out
}

const hello = `
export function main(event, context) {
  return { hello: context.lambda, isEvent: event.isEvent, type: event.type ?? null, caller: context.caller, path: event.path, headers: event.headers };
}`

func testInstall(t *testing.T, c *cluster) {
	c.before = c.inventory(t)
	began := time.Now()
	c.helm(t, append([]string{"install", "lambdamesh", "manifests/charts/lambdamesh"}, c.values(t)...)...)
	t.Logf("helm install returned after %s", since(began))
	c.apply(t, namespaces("hello")+lambda("hello", "hello", "nodejs", hello, "")+open("hello", "hello"))
	c.firstAnswer(t, began, c.gateway)
	c.awaitInstalled(t)
	t.Logf("every part ready after %s", since(began))
	c.installed = true
	c.noRestarts(t, system)

	t.Run("a second run changes nothing", func(t *testing.T) {
		before := c.podUIDs(t)
		c.helm(t, append([]string{"upgrade", "--install", "lambdamesh", "manifests/charts/lambdamesh"}, c.values(t)...)...)
		c.awaitInstalled(t)
		require.Equal(t, before, c.podUIDs(t))
	})
	t.Run("status of the mesh", func(t *testing.T) {
		for _, args := range [][]string{{"status", "-A"}, {"status", "-n", "hello"}} {
			out, err := c.cli(t, args...)
			require.NoError(t, err)
			require.Contains(t, out, "hello")
		}
		out, err := c.cli(t, "status")
		require.NoError(t, err)
		require.NotRegexp(t, `(?m)^Lambda `, out, "it is of the context's namespace")
		out, err = c.kubectl(t, "", "lambdamesh", "status", "-A", "-o", "json")
		require.NoError(t, err)
		require.Contains(t, out, `"name": "hello"`)
	})
}

// firstAnswer waits for the first one from a lambda through the gateway.
func (c *cluster) firstAnswer(t *testing.T, began time.Time, at func(testing.TB) string) {
	t.Helper()
	eventually(t, 2*patience, func() error {
		resp, err := c.ask(t.Context(), at(t), http.MethodGet, "hello", "/", "")
		if err != nil {
			return err
		}
		if resp.status != http.StatusOK {
			return fmt.Errorf("%d %s", resp.status, resp.body)
		}
		return nil
	})
	t.Logf("first answer of a lambda through the gateway after %s", since(began))
}

// gateway is where it is at a node's port of its Service.
func (c *cluster) gateway(t testing.TB) string { return c.nodePort(t, "gateway", "https", "") }

// hostPort is where a gateway is at a port of the node that it runs on.
func (c *cluster) hostPort(t testing.TB) string {
	return net.JoinHostPort(c.nodeAddresses(t)[c.pod(t, system, "app.kubernetes.io/name", "gateway").Spec.NodeName], "443")
}

// awaitInstalled waits until all of the installation runs.
func (c *cluster) awaitInstalled(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"deployment", "statefulset"} {
		for name := range strings.FieldsSeq(c.mustKubectl(t, "", "get", kind, "-n", system, "-o", "name")) {
			c.mustKubectl(t, "", "rollout", "status", "-n", system, name, "--timeout="+patience.String())
		}
	}
}

// noRestarts: a pod waits for what it needs, and does not end for want of it.
func (c *cluster) noRestarts(t *testing.T, namespace string) {
	t.Helper()
	var pods corev1.PodList
	require.NoError(t, c.client.List(t.Context(), &pods, client.InNamespace(namespace)))
	require.NotEmpty(t, pods.Items)
	for i := range pods.Items {
		pod := &pods.Items[i]
		for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			require.Zero(t, status.RestartCount, "%s/%s, container %s: %+v", pod.Namespace, pod.Name, status.Name, status.LastTerminationState)
		}
	}
}

func (c *cluster) podUIDs(t *testing.T) map[string]types.UID {
	t.Helper()
	var pods corev1.PodList
	require.NoError(t, c.client.List(t.Context(), &pods, client.InNamespace(system)))
	uids := map[string]types.UID{}
	for i := range pods.Items {
		uids[pods.Items[i].Name] = pods.Items[i].UID
	}
	require.NotEmpty(t, uids)
	return uids
}

// testIdle adds up what kubelets say our pods take.
func testIdle(t *testing.T, c *cluster) {
	var total uint64
	var lines []string
	eventually(t, patience, func() error {
		total, lines = 0, nil
		missing := c.podUIDs(t)
		for node := range c.nodeAddresses(t) {
			var summary struct {
				Pods []struct {
					PodRef     struct{ Name, Namespace string }
					Containers []struct {
						Name   string
						Memory struct{ WorkingSetBytes uint64 }
					}
				}
			}
			data, err := c.clients.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", node, "proxy/stats/summary").Do(t.Context()).Raw()
			if err != nil {
				return err
			}
			if err := json.Unmarshal(data, &summary); err != nil {
				return err
			}
			for _, pod := range summary.Pods {
				if pod.PodRef.Namespace != system {
					continue
				}
				for _, container := range pod.Containers {
					if container.Memory.WorkingSetBytes == 0 {
						return fmt.Errorf("no figure for %s of %s", container.Name, pod.PodRef.Name)
					}
					total += container.Memory.WorkingSetBytes
					lines = append(lines, fmt.Sprintf("%5.1f MiB  %s %s", float64(container.Memory.WorkingSetBytes)/(1<<20), pod.PodRef.Name, container.Name))
				}
				delete(missing, pod.PodRef.Name)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("no figures for %v", missing)
		}
		return nil
	})
	t.Logf("%.0f MiB in all:\n%s", float64(total)/(1<<20), strings.Join(lines, "\n"))
	require.LessOrEqual(t, total, uint64(maxIdle), "all parts, idle")
}

// inventory are the objects of the cluster, but those that come and go by
// themselves and those of namespaces that the tests made.
func (c *cluster) inventory(t *testing.T) map[string]bool {
	t.Helper()
	kinds := c.mustKubectl(t, "", "api-resources", "--verbs=list,delete", "-o", "name")
	var list []string
	for kind := range strings.FieldsSeq(kinds) {
		if !strings.HasPrefix(kind, "events") && !strings.HasPrefix(kind, "endpoint") && kind != "ipaddresses.networking.k8s.io" {
			list = append(list, kind)
		}
	}
	out := c.mustKubectl(t, "", "get", strings.Join(list, ","), "-A", "--ignore-not-found",
		"-o", `go-template={{range .items}}{{.metadata.namespace}} {{.kind}} {{.metadata.name}}{{"\n"}}{{end}}`)
	found := map[string]bool{}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(strings.ReplaceAll(line, "<no value>", "-"))
		namespace, _, _ := strings.Cut(line, " ")
		if namespace == "-" || namespace == system || strings.HasPrefix(namespace, "kube-") || namespace == "default" {
			found[line] = true
		}
	}
	require.NotEmpty(t, found)
	return found
}

// testNamespaces are those that the tests make.
func testNamespaces() []string {
	return []string{"hello", "commerce", "shop", "hostile", "attack", "outside", "failures", "kill", "rotate", "goes", "webshop"}
}

// kept is what the notes of the chart say that stays after helm uninstall, and what
// Kubernetes and istiod make in every namespace.
var kept = regexp.MustCompile(`^(- ((CustomResourceDefinition|APIService) \S+|Namespace (lambdamesh-system|` + strings.Join(testNamespaces(), "|") + `)|PersistentVolume \S+|Application(Service)? \S+)` + //nolint:gochecknoglobals // a constant
	`|lambdamesh-system (Secret (lambdamesh-ca|nats|nats-tls|eventbus-tls|gateway-tls|webhooks-tls|connector-\S+|commerce\S*|webshop\S*)|EventType \S+|ConfigMap (lambdamesh-mesh|kube-root-ca.crt|istio-ca-root-cert|istio-ca-crl)|ServiceAccount default|PersistentVolumeClaim data-nats-\d|Gateway gateway|Lease \S+))$`)

// testRemoval: what stays is what the notes of the chart name. Nobody waits for
// what is gone, and a second installation takes up what is there.
func testRemoval(t *testing.T, c *cluster) {
	c.apply(t, namespaces("hello")+subscription("hello", "orphan", "/hello/default")+subscription("hello", "stays", "/hello/default"))
	c.waitFor(t, "hello", "subscription/orphan", "Subscribed")
	c.waitFor(t, "hello", "subscription/stays", "Subscribed")
	orphan := c.mustKubectl(t, "", "get", "subscription", "orphan", "-n", "hello", "-o", "jsonpath={.metadata.uid}")
	stays := c.mustKubectl(t, "", "get", "subscription", "stays", "-n", "hello", "-o", "jsonpath={.metadata.uid}")
	c.uninstall(t)
	require.NotEmpty(t, c.mustKubectl(t, "", "get", "lambda", "hello", "-n", "hello", "-o", "name"), "users' objects stay")
	require.NotEmpty(t, c.mustKubectl(t, "", "get", "pvc", "-n", system, "-o", "name"), "stored events stay")
	c.mustKubectl(t, "", "delete", "subscription", "orphan", "-n", "hello", "--timeout=30s")
	c.mustKubectl(t, "", "create", "namespace", "goes")
	c.apply(t, subscription("goes", "with-it", "/goes/default"))
	c.mustKubectl(t, "", "delete", "namespace", "goes", "--timeout="+patience.String())

	again := t.Run("a second installation", func(t *testing.T) {
		began := time.Now()
		args, at := append([]string{"install", "lambdamesh", "manifests/charts/lambdamesh"}, c.values(t)...), c.gateway
		if c.name != "" { // ports of the nodes themselves, which are nobody else's here
			args, at = append(args, "--set", "gateway.hostPort=true", "--set", "gateway.service.type=ClusterIP"), c.hostPort
		}
		c.helm(t, args...)
		c.firstAnswer(t, began, at)
		c.awaitInstalled(t)
		c.noRestarts(t, system)
		eventually(t, patience, func() error {
			consumers := ""
			for _, pod := range []string{"nats-0", "nats-1", "nats-2"} {
				data, err := c.clients.CoreV1().RESTClient().Get().Namespace(system).Resource("pods").Name(pod+":8222").SubResource("proxy").Suffix("jsz").
					Param("streams", "true").Param("consumers", "true").Do(t.Context()).Raw()
				if err != nil {
					return err
				}
				consumers += string(data)
			}
			if !strings.Contains(consumers, stays) {
				return fmt.Errorf("the backlog of a Subscription that stayed is gone")
			}
			if strings.Contains(consumers, orphan) {
				return fmt.Errorf("the backlog of a Subscription that was deleted meanwhile is still there")
			}
			return nil
		})
	})
	if !again {
		c.tell(t) // before it is gone
	}
	c.uninstall(t)
}

// uninstall runs helm's, and looks at what it leaves.
func (c *cluster) uninstall(t *testing.T) {
	t.Helper()
	c.helm(t, "uninstall", "lambdamesh", "--wait", "--timeout", patience.String())
	eventually(t, patience, func() error {
		if left := c.left(t, kept.MatchString); len(left) > 0 {
			return fmt.Errorf("left: %s", strings.Join(left, ", "))
		}
		return nil
	})
}

// testOverlay installs with kubectl alone, on a cluster that helm has left.
func testOverlay(t *testing.T, c *cluster) {
	overlay := []string{"-k", "manifests/overlays/" + c.mesh}
	rendered := ""
	if c.name == "" {
		// The nodes of a cluster of somebody's find the images in the registry only.
		rendered = strings.ReplaceAll(c.mustKubectl(t, "", "kustomize", overlay[1]), "ghcr.io/lambdamesh/", c.images+"/lambdamesh/")
		overlay = []string{"-f", "-"}
	}
	began := time.Now()
	c.mustKubectl(t, rendered, append([]string{"apply"}, overlay...)...)
	c.firstAnswer(t, began, c.gateway)
	c.awaitInstalled(t)
	c.noRestarts(t, system)
	before := c.podUIDs(t)
	c.mustKubectl(t, rendered, append([]string{"apply"}, overlay...)...)
	c.awaitInstalled(t)
	require.Equal(t, before, c.podUIDs(t), "the second run changes nothing")
	// With Subscriptions, as users have them: nothing waits for who is gone.
	require.NotEmpty(t, c.mustKubectl(t, "", "get", "subscriptions", "-A", "-o", "name"))
	c.mustKubectl(t, rendered, append([]string{"delete", "--timeout=" + patience.String()}, overlay...)...)
	for _, what := range []string{"namespaces", "clusterroles", "clusterrolebindings", "crds"} {
		require.NotRegexp(t, `/lambdamesh|\.lambdamesh\.dev`, c.mustKubectl(t, "", "get", what, "-o", "name"))
	}
}

// remove takes away what the tests made, also when they failed half-way.
func (c *cluster) remove(t *testing.T) {
	t.Helper()
	if c.name != "" {
		return // the cluster goes with all that is in it
	}
	_, _ = c.run(t, "", "hack/tools/run", "helm", "uninstall", "lambdamesh", "--ignore-not-found")
	_, _ = c.kubectl(t, "", append([]string{"delete", "namespace", "--ignore-not-found", "--timeout=" + patience.String(), system}, testNamespaces()...)...)
	crds, _ := c.kubectl(t, "", "get", "crds", "-o", "name")
	for crd := range strings.FieldsSeq(crds) {
		_, name, _ := strings.Cut(crd, "/")
		// Istio's come along where there is no Istio.
		if strings.HasSuffix(name, ".lambdamesh.dev") || strings.HasSuffix(name, ".istio.io") && c.before != nil && !c.before["- CustomResourceDefinition "+name] {
			_, _ = c.kubectl(t, "", "delete", crd, "--timeout="+patience.String())
		}
	}
	if c.before == nil {
		return
	}
	eventually(t, patience, func() error {
		if left := c.left(t, func(string) bool { return false }); len(left) > 0 {
			return fmt.Errorf("the cluster is not as it was: %s", strings.Join(left, ", "))
		}
		return nil
	})
}

// left are the objects that were not there before the first installation, but those
// that may stay.
func (c *cluster) left(t *testing.T, may func(object string) bool) []string {
	t.Helper()
	var left []string
	for object := range c.inventory(t) {
		if !c.before[object] && !may(object) {
			left = append(left, object)
		}
	}
	return left
}

func since(began time.Time) time.Duration { return time.Since(began).Round(100 * time.Millisecond) }
