package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// What hack/e2e-cluster.sh sets.
const (
	kubeconfigVar = "LAMBDAMESH_E2E_CLUSTER"  // of the cluster; unset: left out
	registryVar   = "LAMBDAMESH_E2E_REGISTRY" // host, and path if any, that this machine pushes to and nodes pull from
	nameVar       = "LAMBDAMESH_E2E_NAME"     // of a cluster of `make cluster`, whose nodes can be killed
	meshVar       = "LAMBDAMESH_E2E_MESH"     // who carries requests, as in the chart's values; default envoy
	binVar        = "LAMBDAMESH_BIN"
	requiredVar   = "LAMBDAMESH_CLUSTER_REQUIRED"

	system = v1alpha1.SystemNamespace
	domain = "lambdas.localhost"

	// patience is for what a cluster on two busy cores does in its own time.
	patience = 3 * time.Minute
	poll     = 200 * time.Millisecond
)

// cluster is a Kubernetes that somebody runs.
type cluster struct {
	kubeconfig, registry, name, mesh string
	// images is the registry by the name that nodes know it by. Those of `make
	// cluster` ask the cluster's own for ghcr.io, so that the installation there
	// names its images as everywhere.
	images string
	// probeImage is the probe's below a registry.
	probeImage string
	// before is what there was before the first installation.
	before map[string]bool
	// installed says that there is something to look at.
	installed bool

	client  client.Client
	clients kubernetes.Interface

	mu       sync.Mutex
	gateways map[string]*http.Client // by address
}

// newCluster is the one to install with a mesh on, envoy or istio.
func newCluster(t *testing.T, mesh string) *cluster {
	t.Helper()
	c := &cluster{kubeconfig: os.Getenv(kubeconfigVar), registry: os.Getenv(registryVar), name: os.Getenv(nameVar), mesh: mesh}
	if c.images = c.registry; c.name != "" {
		c.images = "ghcr.io"
	}
	if c.kubeconfig == "" {
		if os.Getenv(requiredVar) != "" {
			t.Fatalf("a cluster is required by %s: run `make e2e-cluster`", requiredVar)
		}
		t.Skip("LEFT OUT: everything on real nodes: run `make e2e-cluster`")
	}
	if wanted := cmp.Or(os.Getenv(meshVar), "envoy"); wanted != mesh {
		t.Skipf("LEFT OUT: the mesh %s on real nodes: this cluster is for %s; run `make e2e-cluster MESH=%s`", mesh, wanted, mesh)
	}
	for _, variable := range []string{registryVar, binVar} {
		require.NotEmpty(t, os.Getenv(variable), "%s is not set: run `make e2e-cluster`", variable)
	}
	config, err := kube.RESTConfig(c.kubeconfig)
	require.NoError(t, err)
	config.QPS, config.Burst = 100, 200
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c.client, err = client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	c.clients, err = kubernetes.NewForConfig(config)
	require.NoError(t, err)
	c.gateways = map[string]*http.Client{}
	taken := []string{system}
	if c.name == "" { // somebody's
		taken = append(taken, testNamespaces()...)
	}
	for _, name := range taken {
		err = c.client.Get(t.Context(), client.ObjectKey{Name: name}, &corev1.Namespace{})
		require.True(t, apierrors.IsNotFound(err), "the cluster has a namespace %s (%v): these tests make and remove it, so they take only a cluster without", name, err)
	}
	require.NotContains(t, c.mustKubectl(t, "", "get", "crds", "-o", "name"), ".lambdamesh.dev", "these tests remove such CustomResourceDefinitions, so they take only a cluster without")
	return c
}

// run runs a program in the checkout, and returns all that it wrote.
func (c *cluster) run(t testing.TB, stdin, program string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.kubeconfig, "PATH="+os.Getenv(binVar)+":"+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), err
}

func (c *cluster) kubectl(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	return c.run(t, stdin, filepath.Join(os.Getenv(binVar), "kubectl"), args...)
}

func (c *cluster) mustKubectl(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := c.kubectl(t, stdin, args...)
	require.NoError(t, err)
	return out
}

// cli runs lambdamesh against the cluster.
func (c *cluster) cli(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return c.run(t, "", filepath.Join(os.Getenv(binVar), "lambdamesh"), args...)
}

// nodes runs hack/cluster for this cluster.
func (c *cluster) nodes(t testing.TB, args ...string) {
	t.Helper()
	_, err := c.run(t, "", "hack/cluster/run", append(args, "--name", c.name)...)
	require.NoError(t, err)
}

func (c *cluster) apply(t testing.TB, yaml string) {
	t.Helper()
	c.mustKubectl(t, yaml, "apply", "-f", "-")
}

// waitFor waits for a condition of an object, and says what it says when it
// does not come.
func (c *cluster) waitFor(t testing.TB, namespace, object, condition string) {
	t.Helper()
	_, err := c.kubectl(t, "", "wait", "-n", namespace, object, "--for=condition="+condition, "--timeout="+patience.String())
	if err != nil {
		described, _ := c.kubectl(t, "", "get", "-n", namespace, object, "-o", "yaml")
		pods, _ := c.kubectl(t, "", "get", "pods", "-A", "-o", "wide")
		t.Fatalf("%v\n%s\n%s", err, described, pods)
	}
}

// node is an address of each node by which the machine reaches NodePorts.
func (c *cluster) nodeAddresses(t testing.TB) map[string]string {
	t.Helper()
	var nodes corev1.NodeList
	require.NoError(t, c.client.List(t.Context(), &nodes))
	addresses := map[string]string{}
	for i := range nodes.Items {
		for _, address := range nodes.Items[i].Status.Addresses {
			if address.Type == corev1.NodeInternalIP {
				addresses[nodes.Items[i].Name] = address.Address
			}
		}
	}
	require.NotEmpty(t, addresses)
	return addresses
}

// nodePort is where a port of a Service is on a node; on any when it names none.
func (c *cluster) nodePort(t testing.TB, service, port, node string) string {
	t.Helper()
	var s corev1.Service
	require.NoError(t, c.client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: service}, &s))
	for _, p := range s.Spec.Ports {
		if p.Name != port && len(s.Spec.Ports) > 1 {
			continue
		}
		require.NotZero(t, p.NodePort, "Service %s, port %s: no NodePort: %+v", service, port, s.Spec)
		for name, address := range c.nodeAddresses(t) {
			if node == "" || node == name {
				return net.JoinHostPort(address, strconv.Itoa(int(p.NodePort)))
			}
		}
	}
	t.Fatalf("Service %s has no port %s on node %q: %+v", service, port, node, s.Spec.Ports)
	return ""
}

// response is an answer read whole.
type response struct {
	status int
	header http.Header
	body   string
}

// ask asks the gateway at an address; header is name, value, name, value...
func (c *cluster) ask(ctx context.Context, at, method, host, path, body string, header ...string) (response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+host+"."+domain+path, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client, err := c.browser(ctx, at)
	if err != nil {
		return response{}, err
	}
	return c.send(client, req)
}

// browser is a client that finds every host at one address and trusts who signed
// the gateway's certificate.
func (c *cluster) browser(ctx context.Context, at string) (*http.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.gateways[at]; known != nil {
		return known, nil
	}
	var secret corev1.Secret
	if err := c.client.Get(ctx, client.ObjectKey{Namespace: system, Name: "gateway-tls"}, &secret); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(secret.Data["ca.crt"]) {
		return nil, fmt.Errorf("no certificate in ca.crt of Secret gateway-tls")
	}
	c.gateways[at] = &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 64,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, at)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c.gateways[at], nil
}

// trusting verifies servers by what members of the mesh trust at that moment.
func (c *cluster) trusting(name string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: name,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it
		VerifyConnection: func(state tls.ConnectionState) error {
			trusted, err := c.trusted(context.Background())
			if err != nil {
				return err
			}
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM(trusted)
			_, err = state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: state.ServerName})
			return err
		},
	}
}

// trusted are the roots of the installation: those of its mesh, or under Istio, whose
// mesh has its own, those that stand beside a certificate.
func (c *cluster) trusted(ctx context.Context) ([]byte, error) {
	if c.mesh == "istio" {
		var secret corev1.Secret
		err := c.client.Get(ctx, client.ObjectKey{Namespace: system, Name: "eventbus-tls"}, &secret)
		return secret.Data["ca.crt"], err
	}
	var config corev1.ConfigMap
	err := c.client.Get(ctx, client.ObjectKey{Namespace: system, Name: "lambdamesh-mesh"}, &config)
	return []byte(config.Data["ca.crt"]), err
}

func (c *cluster) send(client *http.Client, req *http.Request) (response, error) {
	resp, err := client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<22))
	return response{resp.StatusCode, resp.Header, string(body)}, err
}

// call is what a probe does for the test (testdata/probe).
type call struct {
	Method, URL, Body string
	Header            map[string]string
	Proxy             bool
	Identity          string
	Certificate, Key  string
}

type result struct {
	Status int
	Body   string
	Header http.Header
	Error  string
	End    string
}

// How a probe's request ends. Who ends it in one of the first ways was reached and
// refuses; the others tell nothing of the one it was for.
const (
	answered   = "answered"
	closed     = "closed"      // the peer took the connection and ended it
	alert      = "alert"       // of TLS
	noListener = "no listener" // the host is there, and nobody at the port
	timeout    = "timeout"
)

// from makes a request in the pod of a probe.
func (c *cluster) from(t testing.TB, namespace, pod string, what call) result {
	t.Helper()
	var r result
	eventually(t, patience, func() error { return c.ofProbe(t, namespace, pod, http.MethodPost, "do", what, &r) })
	return r
}

// ofProbe asks a probe's admin port by way of the API server.
func (c *cluster) ofProbe(t testing.TB, namespace, pod, method, path string, body, into any) error {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	out, err := c.clients.CoreV1().RESTClient().Verb(method).Namespace(namespace).Resource("pods").Name(pod + ":8081").
		SubResource("proxy").Suffix(path).Body(data).Do(t.Context()).Raw()
	if err != nil {
		return fmt.Errorf("ask the probe %s/%s: %w: %s", namespace, pod, err, out)
	}
	return json.Unmarshal(out, into)
}

// seen are the events that a probe got, and how often.
func (c *cluster) seen(t testing.TB, namespace, pod string) (map[string]int, error) {
	t.Helper()
	var seen map[string]int
	err := c.ofProbe(t, namespace, pod, http.MethodGet, "seen", nil, &seen)
	return seen, err
}

// pod is a running pod with the label.
func (c *cluster) pod(t testing.TB, namespace, label, value string) *corev1.Pod {
	t.Helper()
	var found *corev1.Pod
	eventually(t, patience, func() error {
		var pods corev1.PodList
		if err := c.client.List(t.Context(), &pods, client.InNamespace(namespace), client.MatchingLabels{label: value}); err != nil {
			return err
		}
		for i := range pods.Items {
			if pod := &pods.Items[i]; pod.DeletionTimestamp.IsZero() && ready(pod) {
				found = pod
				return nil
			}
		}
		return fmt.Errorf("no ready pod in %s with %s=%s among %d", namespace, label, value, len(pods.Items))
	})
	return found
}

func ready(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// eventually polls until check returns nil, and fails with its last error.
func eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %v", timeout, err)
		case <-ticker.C:
		}
	}
}
