package outbound_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

const (
	clientSecret = "s3cret&with=signs"
	password     = "pass-word-9"
	apiKey       = "key-in-the-query"
)

// commerce is a third-party system: a token endpoint at /oauth/token and an API
// below /api.
type commerce struct {
	*httptest.Server
	handle func(w http.ResponseWriter, r *http.Request) // the API, when set

	mu        sync.Mutex
	issued    int             // tokens
	valid     map[string]bool // tokens that the API takes
	expiresIn any
	tokenForm []string
	got       []*http.Request
	bodies    []string
}

func newCommerce(t *testing.T) *commerce {
	t.Helper()
	c := &commerce{valid: map[string]bool{}, expiresIn: 3600}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Server.Close)
	return c
}

func (c *commerce) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/oauth/token" {
		c.token(w, r)
		return
	}
	if c.handle != nil {
		c.handle(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got, c.bodies = append(c.got, r), append(c.bodies, string(body))
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && !c.valid[token] {
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "expired")
		return
	}
	w.Header().Set("X-Commerce", "yes")
	_, _ = io.WriteString(w, "order")
}

func (c *commerce) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	id, secret, _ := r.BasicAuth()
	if r.Form.Get("client_id") != "" {
		id, secret = r.Form.Get("client_id"), r.Form.Get("client_secret")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokenForm = append(c.tokenForm, r.Form.Encode())
	w.Header().Set("Content-Type", "application/json")
	if unescaped := strings.NewReplacer("%26", "&", "%3D", "=").Replace(secret); id != "lambdamesh" || unescaped != clientSecret {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"error":"invalid_client","error_description":"secret %s is wrong"}`, secret)
		return
	}
	c.issued++
	token := fmt.Sprintf("token-%d", c.issued)
	c.valid[token] = true
	answer := map[string]any{"access_token": token, "token_type": "bearer"}
	if c.expiresIn != nil {
		answer["expires_in"] = c.expiresIn
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (c *commerce) tokens() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.issued
}

// revoke makes the API refuse all tokens so far.
func (c *commerce) revoke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.valid = map[string]bool{}
}

// last is the last request that the API got.
func (c *commerce) last(t *testing.T) *http.Request {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	require.NotEmpty(t, c.got)
	return c.got[len(c.got)-1]
}

// world is a gateway between a bound lambda and the commerce system.
type world struct {
	t        *testing.T
	commerce *commerce
	gateway  *httptest.Server
	client   client.Client
	logs     *syncBuffer
	metrics  *prometheus.Registry
}

type syncBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func secret(name string, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: name}, Data: map[string][]byte{}}
	for key, value := range data {
		s.Data[key] = []byte(value)
	}
	return s
}

func lambda(namespace, name string, labels map[string]string) *v1alpha1.Lambda {
	return &v1alpha1.Lambda{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
}

func binding(namespace, name string, spec v1alpha1.ApplicationBindingSpec) *v1alpha1.ApplicationBinding {
	return &v1alpha1.ApplicationBinding{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
}

func service(name string, api *v1alpha1.ServiceAPI) v1alpha1.InlineService {
	return v1alpha1.InlineService{Name: name, ServiceDefinition: v1alpha1.ServiceDefinition{API: api}}
}

// newWorld makes the application commerce with the services orders (OAuth2),
// stock (basic), prices (header and query parameter), open (nothing).
func newWorld(t *testing.T, change ...func(*v1alpha1.Application)) *world {
	t.Helper()
	w := &world{t: t, commerce: newCommerce(t), logs: &syncBuffer{}, metrics: prometheus.NewRegistry()}
	api := func(auth *v1alpha1.APIAuth) *v1alpha1.ServiceAPI {
		return &v1alpha1.ServiceAPI{TargetURL: w.commerce.URL + "/api", Auth: auth, Timeout: &metav1.Duration{Duration: 10 * time.Second}}
	}
	app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "commerce"}, Spec: v1alpha1.ApplicationSpec{Services: []v1alpha1.InlineService{
		service("orders", api(&v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{
			TokenURL: w.commerce.URL + "/oauth/token", Secret: v1alpha1.SecretRef{Name: "oauth"}, Scopes: []string{"read", "write"},
		}})),
		service("stock", api(&v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: "basic"}}})),
		service("prices", api(&v1alpha1.APIAuth{
			Headers:         []v1alpha1.AddedValue{{Name: "X-Tenant", Value: "acme"}},
			QueryParameters: []v1alpha1.AddedValue{{Name: "api key", Secret: &v1alpha1.SecretKeyRef{Name: "key", Key: "key"}}},
		})),
		service("open", api(nil)),
		{Name: "events-only", ServiceDefinition: v1alpha1.ServiceDefinition{Events: &v1alpha1.ServiceEvents{}}},
	}}}
	for _, f := range change {
		f(app)
	}
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	w.client = fake.NewClientBuilder().WithScheme(scheme).WithIndex(&v1alpha1.ApplicationBinding{}, catalog.ByApplication, catalog.Bound).WithObjects(app,
		secret("oauth", map[string]string{"clientId": "lambdamesh", "clientSecret": clientSecret + "\n"}),
		secret("basic", map[string]string{"username": "ada", "password": password}),
		secret("key", map[string]string{"key": apiKey}),
		secret("no-certificate", map[string]string{"tls.crt": "x", "tls.key": "y"}),
		lambda("shop", "last-order", nil), lambda("shop", "labeled", map[string]string{"tier": "back"}), lambda("shop", "other", nil),
		lambda("elsewhere", "last-order", nil),
		binding("shop", "commerce", v1alpha1.ApplicationBindingSpec{
			Application: "commerce", Lambdas: &v1alpha1.LambdaSelection{Names: []string{"last-order"}},
		}),
		binding("shop", "only-stock", v1alpha1.ApplicationBindingSpec{
			Application: "commerce", Services: []string{"stock"},
			Lambdas: &v1alpha1.LambdaSelection{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "back"}}},
		}),
		binding("elsewhere", "events-only", v1alpha1.ApplicationBindingSpec{Application: "commerce"}),
	).Build()
	policy, err := targets.New(targets.Config{Allow: []string{strings.TrimPrefix(w.commerce.URL, "http://")}})
	require.NoError(t, err)
	gateway, err := outbound.New(outbound.Config{
		Objects: w.client, Targets: policy, TrustDomain: "cluster.local", Registry: w.metrics,
		Log: slog.New(slog.NewTextHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	require.NoError(t, err)
	w.gateway = httptest.NewServer(gateway)
	t.Cleanup(w.gateway.Close)
	t.Cleanup(func() {
		for _, word := range []string{clientSecret, "s3cret", password, apiKey, "token-1", "token-2", "own-token"} {
			require.NotContains(t, w.logs.String(), word, "secrets do not belong in logs")
		}
	})
	return w
}

func (w *world) request(method, path string, body io.Reader) *http.Request {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.gateway.URL+path, body)
	require.NoError(w.t, err)
	r.Header.Set("X-Forwarded-Client-Cert", "Hash=1;URI="+v1alpha1.SPIFFEID("cluster.local", "shop", "last-order"))
	return r
}

// do returns the answer with its body read.
func (w *world) do(r *http.Request) (*http.Response, string) {
	w.t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(r)
	require.NoError(w.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(w.t, err)
	return response, string(body)
}

func (w *world) get(path string) (*http.Response, string) {
	w.t.Helper()
	return w.do(w.request(http.MethodGet, path, nil))
}
