package outbound_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// memory is a cache as controller-runtime's: it hands out what it keeps.
type memory struct {
	applications map[string]*v1alpha1.Application
	services     map[string]*v1alpha1.ApplicationService
	secrets      map[string]*corev1.Secret
	bindings     map[string][]v1alpha1.ApplicationBinding // by application, as the cache's index has them
}

// bind has the lambda last-order call all services of an application.
func (m *memory) bind(application string) {
	m.bindings[application] = []v1alpha1.ApplicationBinding{*binding("shop", application, v1alpha1.ApplicationBindingSpec{
		Application: application, Lambdas: &v1alpha1.LambdaSelection{Names: []string{"last-order"}},
	})}
}

func (m *memory) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	found := false
	switch obj := obj.(type) {
	case *v1alpha1.Application:
		if kept, ok := m.applications[key.Name]; ok {
			*obj, found = *kept, true
		}
	case *v1alpha1.ApplicationService:
		if kept, ok := m.services[key.Name]; ok {
			*obj, found = *kept, true
		}
	case *corev1.Secret:
		if kept, ok := m.secrets[key.Name]; ok {
			*obj, found = *kept, true
		}
	}
	if !found {
		return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
	}
	return nil
}

func (m *memory) List(_ context.Context, list client.ObjectList, options ...client.ListOption) error {
	asked := (&client.ListOptions{}).ApplyOptions(options)
	if list, ok := list.(*v1alpha1.ApplicationBindingList); ok && asked.Namespace == "shop" {
		application, _ := asked.FieldSelector.RequiresExactMatch(catalog.ByApplication)
		list.Items = m.bindings[application]
	}
	return nil
}

// fill makes a catalog: applications, each with services that have documents of a
// usual size.
func (m *memory) fill(tb testing.TB, applications, services int, target string) {
	tb.Helper()
	slim := catalog.Slim()
	m.applications, m.services = map[string]*v1alpha1.Application{}, map[string]*v1alpha1.ApplicationService{}
	m.secrets = map[string]*corev1.Secret{}
	document := `{"openapi":"3.0.3","info":{"title":"x","version":"1"},"x":"` + strings.Repeat("x", 32<<10) + `"}`
	for i := range applications {
		app := fmt.Sprintf("app-%d", i)
		m.applications[app] = &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: app, UID: types.UID(app), Generation: 1}}
		for j := range services {
			name := fmt.Sprintf("service-%d", j)
			key := v1alpha1.ServiceObjectName(app, name)
			service := &v1alpha1.ApplicationService{
				ObjectMeta: metav1.ObjectMeta{
					Name: key, UID: types.UID(key), Generation: 1, ResourceVersion: "1",
					ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl", FieldsV1: metav1.NewFieldsV1(strings.Repeat("x", 2<<10))}},
				},
				Spec: v1alpha1.ApplicationServiceSpec{Application: app, Name: name, ServiceDefinition: v1alpha1.ServiceDefinition{
					Provider: "provider", Description: "a description of some words", Labels: map[string]string{"team": "shop"},
					API: &v1alpha1.ServiceAPI{TargetURL: target + "/api", OpenAPI: strings.Clone(document), Auth: &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{
						TokenURL: target + "/oauth/token", Secret: v1alpha1.SecretRef{Name: key},
					}}},
				}},
				Status: v1alpha1.ApplicationServiceStatus{CommonStatus: v1alpha1.CommonStatus{Conditions: make([]metav1.Condition, 2)}},
			}
			kept, err := slim(service)
			require.NoError(tb, err)
			m.services[key], _ = kept.(*v1alpha1.ApplicationService)
			m.secrets[key] = secret(key, map[string]string{"clientId": "lambdamesh", "clientSecret": clientSecret})
			m.secrets[key].ResourceVersion = "1"
		}
	}
	m.bindings = map[string][]v1alpha1.ApplicationBinding{}
	m.bind("app-0")
}

func newBench(tb testing.TB, applications, services int) (gateway *outbound.Gateway, target *httptest.Server, m *memory) {
	tb.Helper()
	target = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/oauth/token" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"access_token":"t","token_type":"bearer","expires_in":3600}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"code":"4711","total":12.5}`)
	}))
	tb.Cleanup(target.Close)
	policy, err := targets.New(targets.Config{Allow: []string{strings.TrimPrefix(target.URL, "http://")}})
	require.NoError(tb, err)
	m = &memory{}
	m.fill(tb, applications, services, target.URL)
	gateway, err = outbound.New(outbound.Config{Objects: m, Targets: policy, TrustDomain: "cluster.local", MaxCallsPerLambda: 1 << 20})
	require.NoError(tb, err)
	return gateway, target, m
}

// BenchmarkOutbound compares the gateway, with a cached token and behind the server
// that it has in the product, with a bare ReverseProxy of the standard library to
// the same target, one that uses its buffers again, and with no proxy. All are sent the same request on as many
// kept connections by a client that does next to nothing.
func BenchmarkOutbound(b *testing.B) {
	gateway, target, _ := newBench(b, 1, 20)
	u, err := url.Parse(target.URL)
	require.NoError(b, err)
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	defer transport.CloseIdleConnections()
	rewrite := func(p *httputil.ProxyRequest) {
		p.SetURL(u)
		p.Out.Header.Set("Authorization", "Bearer t")
	}
	bare := httptest.NewServer(&httputil.ReverseProxy{Transport: transport, Rewrite: rewrite})
	defer bare.Close()
	pooled := httptest.NewServer(&httputil.ReverseProxy{Transport: transport, Rewrite: rewrite, BufferPool: &pool{}})
	defer pooled.Close()
	listener, err := httpserver.Listen(b.Context(), "127.0.0.1:0", "")
	require.NoError(b, err)
	server := httpserver.New(httpserver.Config{Name: "outbound", Listener: listener, Handler: gateway})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	defer func() {
		cancel()
		require.NoError(b, <-done)
	}()
	request := []byte("GET /app-0/service-1/orders/4711 HTTP/1.1\r\nHost: connector-outbound\r\nUser-Agent: node\r\nAccept: */*\r\n" +
		"X-Forwarded-Client-Cert: Hash=1;URI=" + v1alpha1.SPIFFEID("cluster.local", "shop", "last-order") + "\r\n\r\n")
	way := func(name, address string) testkit.Way {
		w := testkit.Way{Name: name}
		for range 16 {
			conn, err := (&net.Dialer{}).DialContext(b.Context(), "tcp", address)
			require.NoError(b, err)
			b.Cleanup(func() { conn.Close() })
			wire := testkit.NewWire(conn)
			w.Callers = append(w.Callers, func() error { return wire.Do(request, http.StatusOK) })
		}
		return w
	}
	testkit.Compare(b, 20, way("bare", bare.Listener.Addr().String()), way("pooled", pooled.Listener.Addr().String()), way("gateway", server.Addr().String()), way("none", u.Host))
}

// pool is what a ReverseProxy that does not allocate a buffer for each answer has.
type pool struct{ sync.Pool }

func (p *pool) Get() []byte {
	if b, ok := p.Pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}

func (p *pool) Put(b []byte) { p.Pool.Put(&b) }

// BenchmarkLookup is what finding an endpoint costs in catalogs of several sizes,
// the refusal of the path included: nothing is sent.
func BenchmarkLookup(b *testing.B) {
	for _, applications := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("applications=%d", applications), func(b *testing.B) {
			gateway, _, m := newBench(b, applications, 20)
			for i := range applications { // all are bound by the caller's namespace
				m.bind(fmt.Sprintf("app-%d", i))
			}
			runtime.GC() // of the documents, which nobody keeps
			r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/app-0/service-19/..", nil)
			r.Header.Set("X-Forwarded-Client-Cert", "URI="+v1alpha1.SPIFFEID("cluster.local", "shop", "last-order"))
			for b.Loop() {
				gateway.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}

// A catalog's documents are on disk; in memory a service is some kilobytes.
func TestACatalogOfTwentyThousandServicesIsSmall(t *testing.T) {
	const applications, services = 1000, 20
	before := heap()
	gateway, _, m := newBench(t, applications, services)
	for i := range applications { // resolve all, as if all were called
		m.bind(fmt.Sprintf("app-%d", i))
		for j := range services {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("/app-%d/service-%d/..", i, j), nil)
			r.Header.Set("X-Forwarded-Client-Cert", "URI="+v1alpha1.SPIFFEID("cluster.local", "shop", "last-order"))
			recorder := httptest.NewRecorder()
			gateway.ServeHTTP(recorder, r)
			require.Equal(t, http.StatusBadRequest, recorder.Code, recorder.Body.String())
		}
	}
	each := (heap() - before) / (applications * services)
	t.Logf("%d bytes a service", each)
	require.Less(t, each, int64(10<<10))
	runtime.KeepAlive(gateway)
	runtime.KeepAlive(m)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
