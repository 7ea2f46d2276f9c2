package outbound_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

func TestWhoMayCall(t *testing.T) {
	w := newWorld(t)
	id := func(namespace, name string) string {
		return "URI=" + v1alpha1.SPIFFEID("cluster.local", namespace, name)
	}
	for name, tc := range map[string]struct {
		caller, path string
		want         int
		detail       string
	}{
		"a lambda bound by name":                          {id("shop", "last-order"), "/commerce/open/", 200, ""},
		"a lambda bound by its labels":                    {id("shop", "labeled"), "/commerce/stock/", 200, ""},
		"a service that the binding does not list":        {id("shop", "labeled"), "/commerce/open/", 403, "shop/labeled is not bound to commerce/open"},
		"a lambda that nobody bound":                      {id("shop", "other"), "/commerce/open/", 403, "an ApplicationBinding in the namespace shop has to name both"},
		"a namesake in a namespace bound for events":      {id("elsewhere", "last-order"), "/commerce/open/", 403, "not bound"},
		"a namespace without bindings":                    {id("nowhere", "last-order"), "/commerce/open/", 403, "not bound"},
		"a workload with the labels that is no lambda":    {id("shop", "stranger"), "/commerce/stock/", 403, "not bound"},
		"another trust domain":                            {"URI=spiffe://evil/ns/shop/sa/last-order", "/commerce/open/", 403, "no workload of the trust domain"},
		"no identity":                                     {"", "/commerce/open/", 403, "call through the mesh"},
		"an unknown application":                          {id("shop", "last-order"), "/erp/open/", 404, `no application \"erp\"`},
		"no application":                                  {id("shop", "last-order"), "/", 404, "call /<application>/<service>/<path>"},
		"an unknown service":                              {id("shop", "last-order"), "/commerce/returns/", 404, `the application commerce has no API \"returns\"`},
		"a service without an API":                        {id("shop", "last-order"), "/commerce/events-only/", 404, "no API"},
		"no service":                                      {id("shop", "last-order"), "/commerce", 404, "no API"},
		"an escaped spelling of an application's name":    {id("shop", "last-order"), "/comm%65rce/open/", 404, "no application"},
		"an unbound lambda does not learn about services": {id("shop", "other"), "/commerce/returns/", 403, "not bound"},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.request(http.MethodGet, tc.path, nil)
			r.Header.Del("X-Forwarded-Client-Cert")
			if tc.caller != "" {
				r.Header.Set("X-Forwarded-Client-Cert", tc.caller)
			}
			response, body := w.do(r)
			require.Equal(t, tc.want, response.StatusCode, body)
			if tc.want != http.StatusOK {
				require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
				require.Contains(t, body, tc.detail)
			}
		})
	}
}

func TestADeletedBindingEndsAccessAtOnce(t *testing.T) {
	w := newWorld(t)
	response, _ := w.get("/commerce/orders/1")
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.NoError(t, w.client.Delete(t.Context(), binding("shop", "commerce", v1alpha1.ApplicationBindingSpec{})))
	response, _ = w.get("/commerce/orders/1")
	require.Equal(t, http.StatusForbidden, response.StatusCode)
}

func TestOnlyWhatConcernsTheCallIsPassedOn(t *testing.T) {
	w := newWorld(t)
	r := w.request(http.MethodGet, "/commerce/open/1", nil)
	for name, value := range map[string]string{
		"Authorization": "Bearer of the caller", "X-Lambdamesh-Rule": "1", "X-Lambdamesh-Token": "t", "X-Envoy-Attempt-Count": "1",
		"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "http", "Forwarded": "for=10.0.0.1", "Proxy-Authorization": "x",
		"Connection": "X-Drop-Me, Upgrade", "X-Drop-Me": "1", "Upgrade": "websocket", "Keep-Alive": "1", "Target-System-Status": "1",
		"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Accept": "text/x", "X-Mine": "1",
	} {
		r.Header.Set(name, value)
	}
	response, _ := w.do(r)
	require.Equal(t, http.StatusOK, response.StatusCode)
	got := w.commerce.last(t)
	for _, name := range []string{
		"Authorization", "X-Forwarded-Client-Cert", "X-Lambdamesh-Rule", "X-Lambdamesh-Token", "X-Envoy-Attempt-Count", "X-Forwarded-For",
		"X-Forwarded-Proto", "Forwarded", "Proxy-Authorization", "Connection", "X-Drop-Me", "Upgrade", "Keep-Alive",
	} {
		require.Empty(t, got.Header.Get(name), name)
	}
	require.Equal(t, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", got.Header.Get("Traceparent"))
	require.Equal(t, "text/x", got.Header.Get("Accept"))
	require.Equal(t, "1", got.Header.Get("X-Mine"))
	require.Equal(t, strings.TrimPrefix(w.commerce.URL, "http://"), got.Host)
}

func TestPathsStayBelowTheTarget(t *testing.T) {
	w := newWorld(t)
	for path, want := range map[string]string{
		"/commerce/open":                    "/api",
		"/commerce/open/":                   "/api/",
		"/commerce/open/a/b":                "/api/a/b",
		"/commerce/open//a//b/":             "/api//a//b/",
		"/commerce/open/a%2Fb%20c/%C3%A4":   "/api/a%2Fb%20c/%C3%A4",
		"/commerce/open/a;v=1/x.y/...":      "/api/a;v=1/x.y/...",
		"/commerce/open/%7Euser/100%25":     "/api/%7Euser/100%25",
		"/commerce/open/a?b=/../c":          "/api/a?b=/../c",
		"/commerce/open/..":                 "",
		"/commerce/open/../admin":           "",
		"/commerce/open/a/../../admin":      "",
		"/commerce/open/./a":                "",
		"/commerce/open/%2e%2e/admin":       "",
		"/commerce/open/.%2E/admin":         "",
		"/commerce/open/..%2fadmin":         "",
		"/commerce/open/a%2f..%2fadmin":     "",
		"/commerce/open/..%5cadmin":         "",
		"/commerce/open/%252e%252e/admin":   "",
		"/commerce/open/%25252e%25252e/a":   "",
		"/commerce/open/..;/admin":          "",
		"/commerce/open/..%3b/admin":        "",
		"/commerce/open/%00":                "",
		"/commerce/open/a%0d%0aX-Evil:%201": "",
		"/commerce/open/%2525252525":        "",
	} {
		t.Run(path, func(t *testing.T) {
			response, body := w.get(path)
			if want == "" {
				require.Equal(t, http.StatusBadRequest, response.StatusCode, body)
				return
			}
			require.Equal(t, http.StatusOK, response.StatusCode, body)
			require.Equal(t, want, w.commerce.last(t).RequestURI)
		})
	}
}

func TestAnswersAreStreamed(t *testing.T) {
	w := newWorld(t)
	next := make(chan struct{})
	w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first,")
		_ = http.NewResponseController(w).Flush()
		<-next
		_, _ = io.WriteString(w, "second")
	}
	response, err := http.DefaultClient.Do(w.request(http.MethodGet, "/commerce/orders/feed", nil)) //nolint:forbidigo // a test
	require.NoError(t, err)
	defer response.Body.Close()
	first := make([]byte, 6)
	_, err = io.ReadFull(response.Body, first)
	require.NoError(t, err)
	require.Equal(t, "first,", string(first), "it is here before the second was written")
	close(next)
	rest, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, "second", string(rest))
}

func TestRequestsAreStreamed(t *testing.T) {
	w := newWorld(t)
	arrived := make(chan string, 1)
	w.commerce.handle = func(w http.ResponseWriter, r *http.Request) {
		first := make([]byte, 5)
		_, _ = io.ReadFull(r.Body, first)
		arrived <- string(first)
		_, _ = io.Copy(w, r.Body)
	}
	reader, writer := io.Pipe()
	go func() {
		_, _ = io.WriteString(writer, "first")
		<-arrived // only then is the rest written
		_, _ = io.WriteString(writer, "second")
		writer.Close()
	}()
	_, body := w.do(w.request(http.MethodPost, "/commerce/orders/import", reader))
	require.Equal(t, "second", body)
}

func TestLargeBodiesPassUnchanged(t *testing.T) {
	w := newWorld(t)
	w.commerce.handle = func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }
	large := make([]byte, 20<<20)
	_, err := rand.Read(large)
	require.NoError(t, err)
	response, body := w.do(w.request(http.MethodPut, "/commerce/orders/big", bytes.NewReader(large)))
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.True(t, body == string(large))
}

func TestACallerThatGoesAwayCancelsTheCall(t *testing.T) {
	w := newWorld(t)
	entered, canceled := make(chan struct{}), make(chan struct{})
	w.commerce.handle = func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
		close(canceled)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-entered
		cancel()
	}()
	_, err := http.DefaultClient.Do(w.request(http.MethodGet, "/commerce/orders/1", nil).WithContext(ctx)) //nolint:forbidigo // a test
	require.ErrorIs(t, err, context.Canceled)
	select {
	case <-canceled:
	case <-time.After(time.Minute):
		t.Fatal("the target still works for nobody")
	}
}

func TestASlowTargetIsAnswered504(t *testing.T) {
	w := newWorld(t, func(a *v1alpha1.Application) {
		a.Spec.Services[3].API.Timeout = &metav1.Duration{Duration: 100 * time.Millisecond}
	})
	w.commerce.handle = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	response, body := w.get("/commerce/open/1")
	require.Equal(t, http.StatusGatewayTimeout, response.StatusCode)
	require.Contains(t, body, "commerce/open did not answer within 100ms")
}

func TestFailuresOfTheTargetCanBeToldFromOurs(t *testing.T) {
	w := newWorld(t)
	var status atomic.Int64
	w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Target-System-Status", "999")
		w.WriteHeader(int(status.Load()))
		_, _ = io.WriteString(w, "what the target says")
	}
	for code, want := range map[int]int{500: 502, 503: 502, 599: 502, 404: 404, 409: 409, 201: 201} {
		status.Store(int64(code))
		response, body := w.get("/commerce/open/1")
		require.Equal(t, want, response.StatusCode)
		require.Equal(t, "what the target says", body)
		if code >= 500 {
			require.Equal(t, fmt.Sprint(code), response.Header.Get("Target-System-Status"))
		} else {
			require.Empty(t, response.Header.Get("Target-System-Status"))
		}
	}
	w.commerce.Close()
	response, body := w.get("/commerce/open/1")
	require.Equal(t, http.StatusBadGateway, response.StatusCode)
	require.Empty(t, response.Header.Get("Target-System-Status"))
	require.Contains(t, body, "commerce/open could not be reached")
}

func TestRedirectsLeadBackThroughTheGateway(t *testing.T) {
	w := newWorld(t)
	for location, want := range map[string]string{
		"/api/orders/2":                       "/commerce/prices/orders/2",
		"/api":                                "/commerce/prices",
		"next?page=2#top":                     "/commerce/prices/a/next?page=2#top",
		w.commerce.URL + "/api/x?y=z":         "/commerce/prices/x?y=z",
		"/login":                              w.commerce.URL + "/login",
		"/apix":                               w.commerce.URL + "/apix",
		"https://elsewhere.example/x":         "https://elsewhere.example/x",
		"#top":                                "/commerce/prices/a/b#top",
		"/api/c?api%20key=" + apiKey + "&d=e": "/commerce/prices/c?d=e",
	} {
		w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", location)
			w.WriteHeader(http.StatusFound)
		}
		response, _ := w.get("/commerce/prices/a/b?q=1")
		require.Equal(t, http.StatusFound, response.StatusCode, "it is not followed")
		require.Equal(t, want, response.Header.Get("Location"), location)
	}
}

func TestWhatCannotBeCalledSaysWhy(t *testing.T) {
	api := func(a *v1alpha1.Application) *v1alpha1.ServiceAPI { return a.Spec.Services[3].API }
	for name, tc := range map[string]struct {
		change func(a *v1alpha1.Application)
		status int
		detail string
	}{
		"a target that the policy refuses": {func(a *v1alpha1.Application) {
			api(a).TargetURL = "http://127.0.0.1:1/"
		}, 503, "TargetRefused: targetUrl http://127.0.0.1:1/ is refused: 127.0.0.1 is a loopback address; if that is meant, add it with --allow-target 127.0.0.1:1"},
		"a token URL that the policy refuses": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{TokenURL: "http://169.254.169.254/token", Secret: v1alpha1.SecretRef{Name: "oauth"}}}
		}, 503, "TargetRefused: auth.oauth2.tokenUrl"},
		"a name that resolves to where the policy refuses it": {func(a *v1alpha1.Application) {
			api(a).TargetURL = "http://unresolvable.invalid/"
		}, 502, "could not be reached"},
		"a missing Secret": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: "gone"}}}
		}, 503, "SecretNotFound: Secret lambdamesh-system/gone does not exist: create it with username and password"},
		"a missing key": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: "oauth"}}}
		}, 503, "SecretInvalid: Secret lambdamesh-system/oauth has no key username"},
		"mtls without TLS": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{MTLS: &v1alpha1.MTLSAuth{Secret: v1alpha1.SecretRef{Name: "oauth"}}}
		}, 503, "Invalid: mtls needs a targetUrl with https"},
		"mtls with something else than a certificate": {func(a *v1alpha1.Application) {
			api(a).TargetURL = "https://shop.example.com"
			api(a).Auth = &v1alpha1.APIAuth{MTLS: &v1alpha1.MTLSAuth{Secret: v1alpha1.SecretRef{Name: "no-certificate"}}}
		}, 503, "SecretInvalid: Secret lambdamesh-system/no-certificate: tls.crt and tls.key are no PEM certificate and its key"},
		"a CSRF token URL of somebody else": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{CSRF: &v1alpha1.CSRFAuth{TokenURL: "https://x.example"}}
		}, 503, "Invalid: auth.csrf.tokenUrl must have the scheme, host and port of targetUrl"},
		"a CSRF token with credentials of others": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{AllowCallerToken: true, CSRF: &v1alpha1.CSRFAuth{TokenURL: api(a).TargetURL}}
		}, 503, "Invalid: auth.allowCallerToken and auth.csrf do not go together"},
		"a header of the connection": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{Headers: []v1alpha1.AddedValue{{Name: "transfer-encoding", Value: "x"}}}
		}, 503, "Invalid: auth.headers: transfer-encoding is set by the connector itself"},
		"a header of an event": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{Headers: []v1alpha1.AddedValue{{Name: "cE-source", Value: "others"}}}
		}, 503, "Invalid: auth.headers: cE-source would make the call an event"},
		"a header value that cannot be sent": {func(a *v1alpha1.Application) {
			api(a).Auth = &v1alpha1.APIAuth{Headers: []v1alpha1.AddedValue{{Name: "X-A", Value: "a\nb"}}}
		}, 503, "Invalid: auth.headers: the value of X-A cannot be sent"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.change)
			response, body := w.get("/commerce/open/1")
			require.Equal(t, tc.status, response.StatusCode, body)
			var problem struct{ Detail string }
			require.NoError(t, json.Unmarshal([]byte(body), &problem))
			require.Contains(t, problem.Detail, tc.detail)
		})
	}
}

func TestTheGatewayBehindOurServerTellsOfHalfAnswers(t *testing.T) {
	w := newWorld(t)
	w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	listener, err := httpserver.Listen(t.Context(), "127.0.0.1:0", "")
	require.NoError(t, err)
	server := httpserver.New(httpserver.Config{Name: "outbound", Listener: listener, Handler: w.gateway.Config.Handler})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	r := w.request(http.MethodGet, "/commerce/open/1", nil)
	r.URL.Host = server.Addr().String()
	response, err := http.DefaultClient.Do(r) //nolint:forbidigo // a test
	require.NoError(t, err)
	defer response.Body.Close()
	_, err = io.ReadAll(response.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	cancel()
	require.NoError(t, <-done)
}

func TestMetricsCountCalls(t *testing.T) {
	w := newWorld(t)
	w.get("/commerce/orders/1")
	w.get("/unknown/x/")
	families, err := w.metrics.Gather()
	require.NoError(t, err)
	var names []string
	for _, family := range families {
		names = append(names, family.GetName())
	}
	require.Equal(t, []string{"lambdamesh_connector_outbound_duration_seconds", "lambdamesh_connector_outbound_refused_total"}, names)
}

// A target says what it likes: it makes no series of its own.
func TestStatusesThatHTTPDoesNotKnowShareASeries(t *testing.T) {
	w := newWorld(t)
	var status atomic.Int64
	w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) }
	for _, code := range []int64{200, 404, 299, 298, 470, 471, 700, 999} {
		status.Store(code)
		w.get("/commerce/orders/1")
	}
	families, err := w.metrics.Gather()
	require.NoError(t, err)
	var statuses []string
	for _, family := range families {
		if family.GetName() != "lambdamesh_connector_outbound_duration_seconds" {
			continue
		}
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "status" {
					statuses = append(statuses, label.GetValue())
				}
			}
		}
	}
	require.ElementsMatch(t, []string{"200", "404", "2xx", "4xx", "other"}, statuses)
}
