package outbound_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strings"
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
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// memory is a cache as controller-runtime's: it hands out what it keeps.
type memory struct {
	applications map[string]*v1alpha1.Application
	services     map[string]*v1alpha1.ApplicationService
	secrets      map[string]*corev1.Secret
	bindings     []v1alpha1.ApplicationBinding
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

func (m *memory) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if list, ok := list.(*v1alpha1.ApplicationBindingList); ok {
		list.Items = m.bindings
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
	m.bindings = []v1alpha1.ApplicationBinding{*binding("shop", "all", v1alpha1.ApplicationBindingSpec{
		Application: "app-0", Lambdas: &v1alpha1.LambdaSelection{Names: []string{"last-order"}},
	})}
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

// BenchmarkOutbound compares the gateway, with a cached token, with a bare
// ReverseProxy to the same target.
func BenchmarkOutbound(b *testing.B) {
	gateway, target, _ := newBench(b, 1, 20)
	u, err := url.Parse(target.URL)
	require.NoError(b, err)
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	defer transport.CloseIdleConnections()
	bare := &httputil.ReverseProxy{Transport: transport, Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(u) }}
	for name, handler := range map[string]http.Handler{"bare": bare, "gateway": gateway} {
		b.Run(name, func(b *testing.B) {
			server := httptest.NewServer(handler)
			defer server.Close()
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, server.URL+"/app-0/service-1/orders/4711", nil)
					r.Header.Set("X-Forwarded-Client-Cert", "Hash=1;URI="+v1alpha1.SPIFFEID("cluster.local", "shop", "last-order"))
					response, err := client.Do(r)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if response.StatusCode != http.StatusOK {
						b.Errorf("%d", response.StatusCode)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
		})
	}
}

// BenchmarkLookup is what finding an endpoint costs in catalogs of several sizes,
// the refusal of the path included: nothing is sent.
func BenchmarkLookup(b *testing.B) {
	for _, applications := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("applications=%d", applications), func(b *testing.B) {
			gateway, _, _ := newBench(b, applications, 20)
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
	bindings := m.bindings
	for i := range applications { // resolve all, as if all were called
		m.bindings = []v1alpha1.ApplicationBinding{*binding("shop", "all", v1alpha1.ApplicationBindingSpec{
			Application: fmt.Sprintf("app-%d", i), Lambdas: &v1alpha1.LambdaSelection{Names: []string{"last-order"}},
		})}
		for j := range services {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("/app-%d/service-%d/..", i, j), nil)
			r.Header.Set("X-Forwarded-Client-Cert", "URI="+v1alpha1.SPIFFEID("cluster.local", "shop", "last-order"))
			recorder := httptest.NewRecorder()
			gateway.ServeHTTP(recorder, r)
			require.Equal(t, http.StatusBadRequest, recorder.Code, recorder.Body.String())
		}
	}
	m.bindings = bindings
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
