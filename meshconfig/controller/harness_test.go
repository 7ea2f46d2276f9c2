package controller_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/controller"
	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	envoyoutput "github.com/lambdamesh/lambdamesh/meshconfig/output/envoy"
	istiooutput "github.com/lambdamesh/lambdamesh/meshconfig/output/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/watch"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// patience is for machines that run many test binaries at once.
const patience = time.Minute

const domain = "example.test"

// world is a namespace of a real API server with a Gateway in it.
type world struct {
	t         testing.TB
	config    *rest.Config
	client    client.Client
	namespace string
	ca        *ca.CA
}

func newWorld(t testing.TB) *world {
	t.Helper()
	ctrllog.SetLogger(telemetry.Logr(slog.New(slog.DiscardHandler)))
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	w := &world{t: t, config: testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)}
	w.client, err = client.New(w.config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	w.namespace = testkit.Namespace(t, w.config)
	w.ca, err = ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	w.create(&networkingv1.Gateway{
		ObjectMeta: metav1.ObjectMeta{Name: "gateway", Annotations: map[string]string{v1alpha1.AnnotationDomain: domain}},
		Spec: istioapi.Gateway{Servers: []*istioapi.Server{{
			Port: &istioapi.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"},
		}}},
	})
	return w
}

// create makes an object, in the world's namespace unless it names another, and
// deletes it after the test: the API server is shared, and its namespaces never end.
func (w *world) create(object client.Object) {
	w.t.Helper()
	object.SetNamespace(cmp.Or(object.GetNamespace(), w.namespace))
	require.NoError(w.t, w.client.Create(w.t.Context(), object))
	w.t.Cleanup(func() {
		if err := client.IgnoreNotFound(w.client.Delete(context.Background(), object)); err != nil {
			w.t.Errorf("clean up: %v", err)
		}
	})
}

func (w *world) delete(object client.Object) {
	w.t.Helper()
	require.NoError(w.t, w.client.Delete(w.t.Context(), object))
}

type runnable interface{ Run(context.Context) error }

// run runs a component until stop is called or the test ends.
func run(t testing.TB, c runnable) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("%T ended: %v", c, err)
				}
			case <-time.After(patience):
				t.Errorf("%T did not stop", c)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

type runFunc func(context.Context) error

func (f runFunc) Run(ctx context.Context) error { return f(ctx) }

// controlPlane is the controller with both outputs.
type controlPlane struct {
	ads     *ads.Server
	address string
	stop    func()
}

type options struct {
	address string
	envoy   bool
	istio   bool
	allow   []string
	jwks    jwks.Config
	replica string
	standby bool // somebody else is the leader
	// meshConfig is the name of the ConfigMap in the world's namespace.
	meshConfig string
	limits     translate.Limits
	response   int // bytes that a message carries
}

func (w *world) controlPlane(change ...func(*options)) *controlPlane {
	w.t.Helper()
	o := options{address: "127.0.0.1:0", envoy: true}
	for _, f := range change {
		f(&o)
	}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(w.t.Output(), nil))
	}
	cacheOptions := cache.Options{Scheme: w.client.Scheme()}
	watch.ConfigureCache(&cacheOptions)
	objects, err := cache.New(w.config, cacheOptions)
	require.NoError(w.t, err)

	p := &controlPlane{}
	var peers *envoyoutput.PeersConfig
	if o.replica != "" {
		peers = &envoyoutput.PeersConfig{Client: w.client, Namespace: w.namespace, Name: o.replica}
	}
	var elected chan struct{}
	if o.standby {
		elected = make(chan struct{})
	}
	var outputs []output.Output
	if o.envoy {
		listener, err := net.Listen("tcp", o.address)
		require.NoError(w.t, err)
		output, err := envoyoutput.New(envoyoutput.Config{
			ADS:   ads.Config{Listener: listener, CA: w.ca, Authenticator: tokens{}, Log: log, MaxResponseBytes: o.response},
			Cache: objects, Reader: w.client, Peers: peers,
		})
		require.NoError(w.t, err)
		outputs = append(outputs, output)
		p.ads, p.address = output.Server(), output.Server().Addr()
	}
	if o.istio {
		output, err := istiooutput.New(istiooutput.Config{Cache: objects, Client: w.client, Log: log})
		require.NoError(w.t, err)
		outputs = append(outputs, output)
	}
	o.jwks.Policy, err = targets.New(targets.Config{Allow: o.allow})
	require.NoError(w.t, err)
	backends, err := targets.New(targets.Config{Allow: []string{"127.0.0.1"}}) // this process serves them
	require.NoError(w.t, err)
	c, err := controller.New(controller.Config{
		Cache: objects, Client: w.client, Reader: w.client, Outputs: outputs, JWKS: o.jwks, Elected: elected, Log: log,
		MeshConfig: types.NamespacedName{Namespace: w.namespace, Name: o.meshConfig},
		Settings:   translate.Settings{Limits: o.limits, Targets: backends},
	})
	require.NoError(w.t, err)
	stopCache := run(w.t, runFunc(objects.Start))
	stopController := run(w.t, c)
	select {
	case <-c.Ready():
	case <-time.After(patience):
		w.t.Fatal("the controller did not become ready")
	}
	stopADS := func() {}
	if o.envoy {
		stopADS = run(w.t, p.ads)
	}
	p.stop = func() { stopADS(); stopController(); stopCache() }
	return p
}

// tokens are "namespace/serviceaccount".
type tokens struct{}

func (tokens) Authenticate(_ context.Context, token string) (ads.Identity, error) {
	namespace, account, ok := strings.Cut(token, "/")
	if !ok {
		return ads.Identity{}, ads.ErrUnauthenticated
	}
	return ads.Identity{Namespace: namespace, ServiceAccount: account}, nil
}

// node is an embedded proxy whose listeners are on ports of their own.
type node struct {
	t    testing.TB
	stop func()

	mu   sync.Mutex
	real map[string]string
	err  error // what listening fails with
}

func (w *world) gateway(address string) *node {
	w.t.Helper()
	return w.node(address, ads.GatewayNodeID(w.namespace, "gateway", "0"), v1alpha1.SystemNamespace+"/"+v1alpha1.ServiceAccountGateway, nil)
}

func (w *world) node(address, id, token string, bound net.Listener) *node {
	w.t.Helper()
	n := &node{t: w.t, real: map[string]string{}}
	p, err := proxy.New(proxy.Config{
		NodeID: id, ADSAddress: address, RootCAs: w.ca.Roots,
		Token: func(context.Context) (string, error) { return token, nil },
		Log:   slog.New(slog.DiscardHandler), DrainTimeout: 5 * time.Second,
		Listen: func(ctx context.Context, network, address string) (net.Listener, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.err != nil {
				return nil, n.err
			}
			if bound != nil && strings.HasSuffix(address, bound.Addr().String()) {
				return bound, nil
			}
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
			if err == nil {
				_, port, _ := net.SplitHostPort(address)
				n.real[port] = l.Addr().String()
			}
			return l, err
		},
	})
	require.NoError(w.t, err)
	n.stop = run(w.t, p)
	return n
}

func (n *node) refuse(why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = nil
	if why != "" {
		n.err = errors.New(why)
	}
}

// get asks the gateway and returns status and body; the error is that there is
// no answer.
func (n *node) get(host, path string, header ...string) (int, string, error) {
	n.mu.Lock()
	address := n.real["80"]
	n.mu.Unlock()
	if address == "" {
		return 0, "", errors.New("the gateway does not listen yet")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

func (n *node) requireStatus(want int, host, path string, header ...string) {
	n.t.Helper()
	testkit.Eventually(n.t, patience, func() error {
		got, body, err := n.get(host, path, header...)
		if err == nil && got != want {
			err = fmt.Errorf("answered %d: %s", got, body)
		}
		return err
	}, fmt.Sprintf("GET http://%s%s answers %d", host, path, want))
}

// service makes a Service outside of the mesh's policies, served by this
// process, and returns its name.
func (w *world) service(name, answer string) {
	w.t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, answer) }))
	w.t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(w.t, err)
	number, err := strconv.ParseUint(port, 10, 16)
	require.NoError(w.t, err)
	w.create(httpService(name, map[string]string{"app": name}))
	w.create(&networkingv1.WorkloadEntry{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		Spec:       istioapi.WorkloadEntry{Address: "127.0.0.1", Ports: map[string]uint32{v1alpha1.ServiceHTTPPort: uint32(number)}},
	})
}

func httpService(name string, selector map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Selector: selector,
			Ports:    []corev1.ServicePort{{Name: v1alpha1.ServiceHTTPPort, Port: v1alpha1.ServicePort}},
		},
	}
}

// apiRule exposes something under a host label.
func (w *world) apiRule(name, host string, rules ...v1alpha1.Rule) *v1alpha1.APIRule {
	return &v1alpha1.APIRule{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace},
		Spec:       v1alpha1.APIRuleSpec{Hosts: []string{host}, Gateway: w.namespace + "/gateway", Rules: rules},
	}
}

func open(path string) v1alpha1.Rule { return v1alpha1.Rule{Path: path, NoAuth: new(true)} }

func toService(name string) v1alpha1.Rule {
	rule := open("/*")
	rule.Service = &v1alpha1.ServiceRef{Name: name}
	return rule
}

func toLambda(name string) v1alpha1.Rule {
	rule := open("/*")
	rule.Lambda = name
	return rule
}

// requireCondition waits for a condition of the current generation.
func (w *world) requireCondition(rule *v1alpha1.APIRule, conditionType string, status metav1.ConditionStatus, reason string) metav1.Condition {
	w.t.Helper()
	var found metav1.Condition
	testkit.Eventually(w.t, patience, func() error {
		var now v1alpha1.APIRule
		if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(rule), &now); err != nil {
			return err
		}
		c := meta.FindStatusCondition(now.Status.Conditions, conditionType)
		if c == nil || c.Status != status || c.Reason != reason || c.ObservedGeneration != now.Generation {
			return fmt.Errorf("generation %d, conditions %+v", now.Generation, now.Status.Conditions)
		}
		found = *c
		return nil
	}, fmt.Sprintf("APIRule %s has %s=%s (%s)", rule.Name, conditionType, status, reason))
	return found
}

func (w *world) requireReady(rule *v1alpha1.APIRule) {
	w.t.Helper()
	w.requireCondition(rule, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
}
