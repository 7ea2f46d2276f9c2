package connector_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/reconcile"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// world is a running connector on a real API server.
type world struct {
	t         *testing.T
	rest      *rest.Config
	client    client.Client
	namespace string
	outbound  *http.Client // to the gateway's socket
	public    string
	roots     *x509.CertPool // of the public port
	admin     string
	log       *log
	stop      func()
}

// log is what a connector has written.
type log struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

func start(t *testing.T, allow ...string) *world {
	t.Helper()
	return startBehind(t, "", allow...)
}

// startBehind starts a connector whose sidecar listens at meshProxy.
func startBehind(t *testing.T, meshProxy string, allow ...string) *world {
	t.Helper()
	return startOn(t, testkit.KubeAPI(t, manifests.CRDs), func(c *connector.Config) {
		var err error
		c.MeshProxyURL = meshProxy
		c.Targets, err = targets.New(targets.Config{Allow: allow, ServiceCIDRs: []string{"10.96.0.0/12"}})
		require.NoError(t, err)
	})
}

// startOn starts a connector of the API server, as change makes it.
func startOn(t *testing.T, api *rest.Config, change func(*connector.Config)) *world {
	t.Helper()
	w := &world{t: t, rest: testkit.KubeAPI(t, manifests.CRDs), log: &log{}}
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	w.client, err = client.New(w.rest, client.Options{Scheme: scheme})
	require.NoError(t, err)
	err = w.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	if !apierrors.IsAlreadyExists(err) {
		require.NoError(t, err)
	}
	w.namespace = testkit.Namespace(t, w.rest)

	socket := filepath.Join(testkit.TempSocketDir(t), "outbound")
	listen := func(address string) net.Listener {
		listener, err := httpserver.Listen(t.Context(), address, "")
		require.NoError(t, err)
		return listener
	}
	server := testkit.NewAuthority(t)
	certificate, key := server.Issue(t, "127.0.0.1")
	pair, err := tls.X509KeyPair(certificate, key)
	require.NoError(t, err)
	w.roots = server.Pool()
	config := connector.Config{
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }, Roots: server.RootPEM(),
		REST: api, Outbound: listen("unix:" + socket), Public: listen("127.0.0.1:0"), Admin: listen("127.0.0.1:0"),
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	config.Targets, err = targets.New(targets.Config{})
	require.NoError(t, err)
	w.public, w.admin = "https://"+config.Public.Addr().String(), "http://"+config.Admin.Addr().String()
	config.PublicURL = w.public
	change(&config)
	w.outbound = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	c, err := connector.New(config)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Logf("the connector wrote:\n%s", w.log)
		}
	})
	select {
	case <-c.Ready():
	case err := <-done:
		done <- err
		t.Fatalf("the connector ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the connector is not ready")
	}
	return w
}

func (w *world) create(objects ...client.Object) {
	w.t.Helper()
	for _, object := range objects {
		require.NoError(w.t, w.client.Create(w.t.Context(), object))
		w.t.Cleanup(func() { // Applications and Secrets of the system are everybody's
			require.NoError(w.t, client.IgnoreNotFound(w.client.Delete(context.WithoutCancel(w.t.Context()), object)))
		})
	}
}

// becomes waits until Ready speaks of the object's generation, with the reason
// and a message that contains the text.
func (w *world) becomes(object reconcile.Object, reason, message string) {
	w.t.Helper()
	testkit.Eventually(w.t, time.Minute, func() error {
		if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		ready := meta.FindStatusCondition(*object.Conditions(), v1alpha1.ConditionReady)
		if ready == nil || ready.ObservedGeneration != object.GetGeneration() {
			return errors.New("no condition of this generation")
		}
		if ready.Reason != reason || !strings.Contains(ready.Message, message) ||
			(ready.Status == metav1.ConditionTrue) != (reason == v1alpha1.ReasonReady) {
			return fmt.Errorf("it is %s %s: %s", ready.Status, ready.Reason, ready.Message)
		}
		return nil
	}, fmt.Sprintf("%T %s should become %s", object, object.GetName(), reason))
}

func application(name, targetURL string) *v1alpha1.Application {
	return &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ApplicationSpec{
		Services: []v1alpha1.InlineService{{Name: "orders", ServiceDefinition: v1alpha1.ServiceDefinition{API: &v1alpha1.ServiceAPI{
			TargetURL: targetURL,
			Auth:      &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: name}}},
		}}}},
	}}
}

func credentials(name string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: name},
		Data:       map[string][]byte{"username": []byte("ada"), "password": []byte("pw")},
	}
}

func (w *world) get(client *http.Client, url, caller string) (int, string, error) {
	request, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	if caller != "" {
		request.Header.Set(headers.ClientCert, "URI="+v1alpha1.SPIFFEID(v1alpha1.DefaultTrustDomain, w.namespace, caller))
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

func TestABoundLambdaCallsAndStatusFollows(t *testing.T) {
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, _, _ := r.BasicAuth(); user != "ada" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = io.WriteString(w, r.URL.Path)
	}))
	defer shop.Close()
	w := start(t, strings.TrimPrefix(shop.URL, "http://"))

	app := application("commerce", shop.URL+"/api")
	bound := &v1alpha1.ApplicationBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "commerce"},
		Spec: v1alpha1.ApplicationBindingSpec{
			Application: "commerce", Services: []string{"orders"},
			Lambdas: &v1alpha1.LambdaSelection{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "back"}}},
		},
	}
	code := "exports.main = () => 'x'"
	lambda := &v1alpha1.Lambda{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "last-order", Labels: map[string]string{"tier": "back"}},
		Spec:       v1alpha1.LambdaSpec{Runtime: v1alpha1.RuntimeNodeJS, Source: v1alpha1.SourceSpec{Inline: &v1alpha1.InlineSource{Code: code}}},
	}
	w.create(bound, lambda)
	w.becomes(bound, v1alpha1.ReasonNotFound, "there is no Application commerce")
	w.create(app)
	w.becomes(bound, v1alpha1.ReasonReady, "")
	w.becomes(app, "SecretNotFound", "service orders: Secret lambdamesh-system/commerce does not exist")
	w.create(credentials("commerce"))
	w.becomes(app, v1alpha1.ReasonReady, "")

	call := func() (int, string, error) {
		return w.get(w.outbound, "http://connector-outbound/commerce/orders/4", "last-order")
	}
	testkit.Eventually(t, time.Minute, func() error {
		status, body, err := call()
		if err != nil || status != http.StatusOK || body != "/api/4" {
			return fmt.Errorf("%d %s %w", status, body, err)
		}
		return nil
	}, "a bound lambda calls the API")

	app.Spec.Services[0].Name = "sales"
	require.NoError(t, w.client.Update(t.Context(), app))
	w.becomes(bound, v1alpha1.ReasonNotFound, "the Application commerce has no service orders")
	require.NoError(t, w.client.Delete(t.Context(), bound))
	testkit.Eventually(t, time.Minute, func() error {
		if status, body, err := call(); err != nil || status != http.StatusForbidden {
			return fmt.Errorf("%d %s %w", status, body, err)
		}
		return nil
	}, "without the binding the lambda is refused")
}

func TestStatusSaysWhatToDo(t *testing.T) {
	w := start(t)
	w.create(credentials("complete"))

	refused := application("refused", "http://127.0.0.1:8180/api")
	incomplete := application("incomplete", "https://shop.example.com")
	incomplete.Spec.Services[0].API.Auth = &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{
		TokenURL: "https://shop.example.com/token", Secret: v1alpha1.SecretRef{Name: "complete"},
	}}
	csrf := application("csrf", "https://shop.example.com")
	csrf.Spec.Services[0].API.Auth = &v1alpha1.APIAuth{CSRF: &v1alpha1.CSRFAuth{TokenURL: "https://elsewhere.example.com/token"}}
	webhooks := application("complete", "https://shop.example.com")
	webhooks.Spec.Webhooks = []v1alpha1.Webhook{{Name: "orders", Provider: "shopify", SecretName: "x"}}
	unreadable := &v1alpha1.ApplicationBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "unreadable"},
		Spec: v1alpha1.ApplicationBindingSpec{Application: "complete", Lambdas: &v1alpha1.LambdaSelection{
			Selector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: "Near"}}},
		}},
	}
	token := &v1alpha1.TokenRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "token"},
		Spec:       v1alpha1.TokenRequestSpec{Application: "nobody"},
	}
	// A Service by its address, and an API's token by one.
	address := application("address", "http://10.96.3.4/others/events")
	tokens := application("tokens", "https://shop.example.com")
	tokens.Spec.Services[0].API.Auth = &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{
		TokenURL: "https://10.96.0.1/token", Secret: v1alpha1.SecretRef{Name: "complete"},
	}}
	w.create(refused, incomplete, csrf, webhooks, unreadable, token, address, tokens)
	w.becomes(address, v1alpha1.ReasonTargetRefused, "10.96.3.4 is an address of the cluster's Services: write the Service's name")
	w.becomes(tokens, v1alpha1.ReasonTargetRefused, "10.96.0.1 is an address of the cluster's Services: write the Service's name")
	w.becomes(refused, v1alpha1.ReasonTargetRefused, "add it with --allow-target 127.0.0.1:8180")
	w.becomes(incomplete, "SecretInvalid", "has no key clientId")
	w.becomes(csrf, v1alpha1.ReasonInvalid, "service orders: auth.csrf.tokenUrl must have the scheme, host and port of targetUrl")
	w.becomes(webhooks, v1alpha1.ReasonNotSupported, "this installation serves no webhooks")
	w.becomes(unreadable, v1alpha1.ReasonInvalid, "lambdas.selector")
	w.becomes(token, v1alpha1.ReasonNotFound, "there is no Application nobody")
}

func TestASourceBelongsToTheOldestApplicationThatNamesIt(t *testing.T) {
	w := start(t)
	speaker := func(name string) *v1alpha1.Application {
		return &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ApplicationSpec{
			Sources: []string{"https://shop.example.com"},
		}}
	}
	elder, younger := speaker("elder"), speaker("younger")
	w.create(elder)
	w.becomes(elder, v1alpha1.ReasonReady, "")
	w.create(younger)
	w.becomes(younger, "SourceConflict", "https://shop.example.com belongs to the older Application elder")
	w.becomes(elder, v1alpha1.ReasonReady, "")
	require.NoError(t, w.client.Delete(t.Context(), elder))
	w.becomes(younger, v1alpha1.ReasonReady, "")
}

func TestATargetInTheClusterIsCalledThroughTheMeshAndNoOther(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	sidecar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Method+" "+r.RequestURI)
		if r.URL.Path == "/oauth/token" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"access_token":"t","token_type":"Bearer","expires_in":300}`)
			return
		}
		_, _ = io.WriteString(w, r.Header.Get("Authorization"))
	}))
	defer sidecar.Close()
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "outside") }))
	defer outside.Close()
	w := startBehind(t, sidecar.URL, strings.TrimPrefix(outside.URL, "http://"))

	secret := credentials("inside")
	secret.Data["clientId"], secret.Data["clientSecret"] = secret.Data["username"], secret.Data["password"]
	inside := application("inside", "http://commerce.third.svc/api")
	inside.Spec.Services[0].API.Auth = &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{
		TokenURL: "http://commerce.third.svc.cluster.local/oauth/token", Secret: v1alpha1.SecretRef{Name: "inside"},
	}}
	public := application("public", outside.URL)
	encrypted := application("encrypted", "https://commerce.third.svc/api")
	bus := application("bus", "http://EventBus.lambdamesh-system.svc./publish")
	busShort := application("bus-short", "http://eventbus.lambdamesh-system/publish")
	w.create(secret, credentials("public"), inside, public, encrypted, bus, busShort)
	w.becomes(inside, v1alpha1.ReasonReady, "")
	w.becomes(public, v1alpha1.ReasonReady, "")
	w.becomes(encrypted, v1alpha1.ReasonTargetRefused, "called through the mesh, which encrypts; write http")
	w.becomes(bus, v1alpha1.ReasonTargetRefused, "this installation denies it")
	w.becomes(busShort, v1alpha1.ReasonTargetRefused, "this installation denies it")
	for _, name := range []string{"inside", "public"} {
		w.create(&v1alpha1.ApplicationBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name},
			Spec:       v1alpha1.ApplicationBindingSpec{Application: name, Lambdas: &v1alpha1.LambdaSelection{Names: []string{"last-order"}}},
		})
	}
	for name, want := range map[string]string{"inside": "Bearer t", "public": "outside"} {
		testkit.Eventually(t, time.Minute, func() error {
			status, body, err := w.get(w.outbound, "http://connector-outbound/"+name+"/orders/4", "last-order")
			if err != nil || status != http.StatusOK || body != want {
				return fmt.Errorf("%d %s %w", status, body, err)
			}
			return nil
		}, name)
	}
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{
		"POST http://commerce.third.svc.cluster.local/oauth/token", "GET http://commerce.third.svc/api/4",
	}, seen)
}

func TestPorts(t *testing.T) {
	w := start(t)
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}}}
	for url, want := range map[string]int{
		w.public + "/healthz":            http.StatusOK,
		w.public + "/commerce/v1/events": http.StatusForbidden,
		w.admin + "/readyz":              http.StatusOK,
		w.admin + "/metrics":             http.StatusOK,
		w.admin + "/debug":               http.StatusNotFound,
	} {
		status, _, err := w.get(plain, url, "")
		require.NoError(t, err)
		require.Equal(t, want, status, url)
	}
	status, _, err := w.get(w.outbound, "http://connector-outbound/commerce/orders/", "")
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, status)
}

func TestConfigNamesAllThatIsMissing(t *testing.T) {
	_, err := connector.New(connector.Config{})
	for _, name := range []string{"REST", "Outbound", "Targets"} {
		require.ErrorContains(t, err, name+" is required")
	}
	for _, proxy := range []string{"nowhere", "https://127.0.0.1:1", "http:///x", "unix:/x"} {
		require.ErrorContains(t, connector.Config{MeshProxyURL: proxy}.Validate(), "must be like http://127.0.0.1:15001")
	}
}
