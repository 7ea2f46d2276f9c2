package meshtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	kubeclient "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/meshconfig/reference"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestMain(m *testing.M) {
	process.WatcherMain()
	os.Exit(m.Run())
}

// patience is for machines that run many test binaries at once.
const patience = time.Minute

const gatewayIdentity = "spiffe://cluster.local/ns/lambdamesh-system/sa/gateway"

// istioMesh is a mesh of Istio's: a real API server and istiod, which tells
// embedded proxies, the gateways and the sidecars, what to do.
type istioMesh struct {
	config *rest.Config
	client kubeclient.Client
	istiod *grpc.ClientConn
	ca     *ca.CA
}

func newIstioMesh(t *testing.T) *istioMesh {
	t.Helper()
	meshtest.RequireIstiod(t)
	m := &istioMesh{config: testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)}
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	m.client, err = kubeclient.New(m.config, kubeclient.Options{Scheme: scheme})
	require.NoError(t, err)
	m.ca, err = ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	m.istiod = meshtest.Istiod(t, m.config, "")
	return m
}

// create an object, and delete it after the test.
func (m *istioMesh) create(t *testing.T, object kubeclient.Object) {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: object.GetNamespace()}}
	if err := m.client.Create(t.Context(), namespace); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	require.NoError(t, m.client.Create(t.Context(), object), "%T %s", object, object.GetName())
	t.Cleanup(func() {
		if err := kubeclient.IgnoreNotFound(m.client.Delete(context.Background(), object)); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
}

// serve runs what a mesh describes: its gateways, and for each workload behind a
// destination an application with its sidecar. The result is the address of each
// "<gateway> <port>".
func (m *istioMesh) serve(t *testing.T, mesh *ir.Mesh, gateways []*networkingv1.Gateway, backend func(key string) http.Handler) map[string]string {
	t.Helper()
	for _, object := range istio.Objects(mesh) {
		typed, ok := object.(kubeclient.Object)
		require.True(t, ok)
		m.create(t, typed)
	}
	for i := range mesh.Destinations {
		m.destination(t, mesh, mesh.Destinations[i], backend(mesh.Destinations[i].Key()))
	}
	addresses := map[string]string{}
	for _, g := range gateways {
		name := g.Namespace + "-" + g.Name
		own := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: g.Name}}
		g.Spec.DeepCopyInto(&own.Spec)
		own.Spec.Selector = map[string]string{"istio": name}
		// istiod gives certificates of gateways only to who authenticates himself.
		own.Spec.Servers = slices.DeleteFunc(own.Spec.Servers, func(s *networking.Server) bool { return s.GetTls() != nil })
		m.create(t, own)
		relay, address := meshtest.NewRelay(t, m.istiod, meshtest.GatewayNode(t, name), m.ca, gatewayIdentity)
		listeners := m.proxy(t, relay, address, nil)
		for _, s := range own.Spec.GetServers() {
			port := strconv.FormatUint(uint64(s.GetPort().GetNumber()), 10)
			testkit.Eventually(t, patience, func() error {
				if listeners(port) == "" {
					return fmt.Errorf("the gateway %s does not listen; refused: %v", g.Name, relay.Refused())
				}
				return nil
			}, "port "+port)
			addresses[g.Namespace+"/"+g.Name+" "+port] = listeners(port)
		}
	}
	return addresses
}

// destination makes the Service, and a WorkloadEntry for the application. That of a workload is a socket behind a sidecar.
func (m *istioMesh) destination(t *testing.T, mesh *ir.Mesh, d *ir.Destination, backend http.Handler) {
	t.Helper()
	const portName = "http"
	selector := map[string]string{"app": d.Name}
	workload, member := mesh.Workload(d.Workload)
	member = member && workload.Owner.Kind == "Lambda" // the system's own know their callers by other means
	if member {
		selector = workload.Selector
	}
	m.create(t, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name},
		Spec:       corev1.ServiceSpec{Selector: selector, Ports: []corev1.ServicePort{{Name: portName, Port: int32(d.Port)}}},
	})
	if d.Workload == "" && len(d.Endpoints) == 0 {
		return // a Service that has none, on purpose
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, text, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	port, err := strconv.ParseUint(text, 10, 16)
	require.NoError(t, err)
	entry := &networkingv1.WorkloadEntry{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name + "-0", Labels: map[string]string{v1alpha1.LabelReplica: d.Name + "-0"}},
		Spec:       networking.WorkloadEntry{Address: "127.0.0.1", Ports: map[string]uint32{portName: uint32(port)}},
	}
	for k, v := range selector {
		entry.Labels[k] = v
	}
	if !member {
		serveHTTP(t, listener, backend)
		m.create(t, entry)
		return
	}
	socket := filepath.Join(testkit.TempSocketDir(t), "s")
	local, err := net.Listen("unix", socket)
	require.NoError(t, err)
	serveHTTP(t, local, backend)
	entry.Labels["security.istio.io/tlsMode"] = "istio"
	entry.Spec.ServiceAccount = workload.Identity[strings.LastIndexByte(workload.Identity, '/')+1:]
	m.create(t, &networkingv1.Sidecar{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: entry.Name},
		Spec: networking.Sidecar{
			WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{v1alpha1.LabelReplica: entry.Name}},
			Ingress: []*networking.IstioIngressListener{{
				Port: &networking.SidecarPort{Number: uint32(port), Name: portName, Protocol: "HTTP"}, Bind: "127.0.0.1",
				CaptureMode: networking.CaptureMode_NONE, DefaultEndpoint: "unix://" + socket,
			}},
			Egress: []*networking.IstioEgressListener{{
				Port: &networking.SidecarPort{Number: 32001, Name: "http-proxy", Protocol: "HTTP_PROXY"}, Bind: "127.0.0.1",
				CaptureMode: networking.CaptureMode_NONE, Hosts: []string{"./*"},
			}},
		},
	})
	m.create(t, entry)
	node := meshtest.SidecarNode(t, d.Namespace, entry.Name, entry.Labels)
	testkit.Eventually(t, patience, func() error {
		for _, packed := range meshtest.Fetch(t, m.istiod, node, resource.ListenerType) {
			var l listenerv3.Listener
			if err := packed.UnmarshalTo(&l); err != nil || l.GetAddress().GetSocketAddress().GetPortValue() == uint32(port) {
				return err
			}
		}
		return errors.New("it has no listener for the workload")
	}, "istiod knows the Sidecar")
	relay, address := meshtest.NewRelay(t, m.istiod, node, m.ca, workload.Identity)
	m.proxy(t, relay, address, listener)
}

// echo answers as withBackends' do.
func echo(backend string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := json.Marshal(seen{Backend: backend, Path: r.RequestURI, Host: r.Host, Headers: r.Header})
		w.Header().Set(echoHeader, string(text))
		for name, value := range backendCORS() {
			w.Header()[name] = value
		}
	})
}

func serveHTTP(t *testing.T, listener net.Listener, handler http.Handler) {
	t.Helper()
	server := &http.Server{Handler: handler, ReadHeaderTimeout: patience}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
}

// proxy runs an embedded proxy. Nothing that istiod sends may be refused. Its
// listeners are at ports of the system's choice, and bound is one of them; the
// result finds them.
func (m *istioMesh) proxy(t *testing.T, relay *meshtest.Relay, address string, bound net.Listener) (listeners func(port string) string) {
	t.Helper()
	var mu sync.Mutex
	real := map[string]string{}
	p, err := proxy.New(proxy.Config{
		NodeID: "any", ADSAddress: address, RootCAs: m.ca.Roots, WholeState: true, Log: slog.New(slog.DiscardHandler),
		Token: func(context.Context) (string, error) { return "any", nil },
		Listen: func(_ context.Context, _, address string) (net.Listener, error) {
			mu.Lock()
			defer mu.Unlock()
			if bound != nil && bound.Addr().String() == address {
				return bound, nil
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				_, port, _ := net.SplitHostPort(address)
				real[port] = l.Addr().String()
			}
			return l, err
		},
	})
	require.NoError(t, err)
	start(t, p)
	t.Cleanup(func() {
		for _, nack := range relay.Refused() {
			t.Errorf("the proxy refused %s", nack)
		}
	})
	return func(port string) string {
		mu.Lock()
		defer mu.Unlock()
		return real[port]
	}
}

// The table of each case through a real istiod: what it makes of our objects, in
// the gateway and in the sidecars, answers as the table says.
func TestIstiodAnswersTheTable(t *testing.T) {
	m := newIstioMesh(t)
	for _, c := range meshtest.Cases(t) {
		requests := slices.DeleteFunc(c.Requests(t), func(r meshtest.Request) bool { return r.Only != "" && r.Only != "istio" })
		if len(requests) == 0 {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			addresses := m.serve(t, c.Mesh(t), c.Snapshot(t).Gateways, echo)
			address := func(r meshtest.Request) string { return addresses[fmt.Sprintf("%s %d", r.Gateway, r.Port)] }
			// istiod pushes in steps.
			testkit.Eventually(t, patience, func() error {
				var wrong []error
				for _, r := range requests {
					token := ""
					if r.Token != nil {
						token = r.Token.Mint(t, time.Now())
					}
					if got, err := exchange(t.Context(), address(r), r, token); err != nil {
						return err
					} else if got.status != r.Want.Status || r.Want.Backend != "" && got.echo.Backend != r.Want.Backend {
						wrong = append(wrong, fmt.Errorf("%s: answered %d by %q", r.Name, got.status, got.echo.Backend))
					}
				}
				return errors.Join(wrong...)
			}, "every row is answered")
			for _, r := range requests {
				t.Run(r.Name, func(t *testing.T) {
					got := send(t, address(r), r)
					// The sidecar says who called, behind whatever came before.
					if called := got.echo.Headers.Values(headers.ClientCert); len(called) > 0 {
						elements := strings.Split(strings.Join(called, ","), ",")
						require.Contains(t, elements[len(elements)-1]+";", ";URI="+gatewayIdentity+";")
						require.Len(t, elements, 1, "the gateway passes on what a client wrote")
						got.echo.Headers.Del(headers.ClientCert)
					}
					// A rewritten path is normalized by the sidecar.
					r.Want.Path = strings.ReplaceAll(r.Want.Path, `\`, "/")
					check(t, r, got)
				})
			}
		})
	}
}

// Random rules and requests through a real istiod, held to the reference.
func TestRandomRequestsThroughIstiodGetTheAnswersTheyDeserve(t *testing.T) {
	m := newIstioMesh(t)
	const seed, rules, cases = 7, 20, 4_000
	j, mesh := judge(t, seed, randomRules(rand.New(rand.NewPCG(seed, 0)), rules))
	m.judged(t, j, mesh)
	testkit.Eventually(t, patience, func() error { return j.run(0, 500) }, "istiod has pushed everything")
	clear(j.statuses)
	require.NoError(t, j.run(1, cases))
	for _, status := range []int{200, 400, 401, 403, 404} {
		require.Greater(t, j.statuses[status], cases/200, "too few answers %d to show anything: %v", status, j.statuses)
	}
	t.Log(j.statuses)
}

func TestNoSpellingOfAPathReachesALessProtectedRuleThroughIstiod(t *testing.T) {
	m := newIstioMesh(t)
	rule := &v1alpha1.APIRule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "paths", Generation: 1}, Spec: v1alpha1.APIRuleSpec{Hosts: []string{"paths"}}}
	for _, path := range meshtest.SpelledPaths() {
		rule.Spec.Rules = append(rule.Spec.Rules, v1alpha1.Rule{Path: path, Lambda: "orders", JWT: &v1alpha1.JWTAuth{
			Authentications: []v1alpha1.JWTAuthentication{{Issuer: issuer, JWKSSecret: "issuer-keys"}},
		}})
	}
	rule.Spec.Rules = append(rule.Spec.Rules, v1alpha1.Rule{Path: "/{**}", Lambda: "open", NoAuth: new(true)})
	j, mesh := judge(t, 0, []*v1alpha1.APIRule{rule})
	m.judged(t, j, mesh)
	const host = "paths.lambdas.localhost"
	c := &client{address: j.address}
	testkit.Eventually(t, patience, func() error {
		got, _, err := j.check(c, reference.Request{Method: http.MethodGet, Host: host, Target: "/orders:cancel"}, bearer{})
		if err == nil && got.status != http.StatusUnauthorized {
			err = fmt.Errorf("answered %+v", got)
		}
		return err
	}, "istiod has pushed the rules")
	for path, want := range meshtest.Spellings() {
		for _, spelled := range []string{host, strings.ToUpper(host) + ":80"} {
			r := reference.Request{Method: http.MethodGet, Host: spelled, Target: path}
			got, err := c.send(r, "")
			require.NoError(t, err, "%q", path)
			if brokenEscape.MatchString(path) { // Envoy lets it pass: it is no escape to anybody
				want = append(slices.Clone(want), j.asEnvoyReads(r, reference.Answer{}).Status)
			}
			require.Contains(t, want, got.status, "%q", path)
			_, _, err = j.check(c, r, bearer{})
			require.NoError(t, err, "%q", path)
		}
	}
}

// judged rules are served by Istio.
func (m *istioMesh) judged(t *testing.T, j *judged, mesh *ir.Mesh) {
	t.Helper()
	j.viaIstiod = true
	j.address = m.serve(t, mesh, judgeCase(t).Snapshot(t).Gateways, judgedBackend)["lambdamesh-system/gateway 80"]
	require.NotEmpty(t, j.address)
}
