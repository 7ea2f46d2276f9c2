package ingress_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/ingress"
	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
)

// store keeps what is published, or fails.
type store struct {
	err    error
	limit  int
	events []event.Event
}

func (s *store) Publish(_ context.Context, events []event.Event) ([]broker.Receipt, error) {
	if s.err != nil {
		return nil, s.err
	}
	receipts := []broker.Receipt{}
	for _, e := range events {
		s.events = append(s.events, e)
		receipts = append(receipts, broker.Receipt{ID: e.ID, Sequence: uint64(len(s.events))})
	}
	return receipts, nil
}

func (s *store) MaxEventBytes() int {
	if s.limit > 0 {
		return s.limit
	}
	return event.MaxEventBytes
}

func (s *store) Check() error { return s.err }

// caller is an authorizer that knows everybody as one caller.
type caller struct {
	ingress.Caller
	err error
}

func (c caller) Authorize(*http.Request) (ingress.Caller, error) { return c.Caller, c.err }

type request struct {
	method, path, body string
	header             map[string]string
}

func call(t *testing.T, s *store, a ingress.Authorizer, r request) *httptest.ResponseRecorder {
	t.Helper()
	h := ingress.New(ingress.Config{
		Publisher: s, Authorizer: a,
		Subscribed: func(application string) []string { return []string{application + ".order.v1"} },
		Metrics:    ingress.NewMetrics(prometheus.NewRegistry()),
		Log:        slog.New(slog.DiscardHandler),
	})
	method := r.method
	if method == "" {
		method = http.MethodPost
	}
	q := httptest.NewRequest(method, r.path, strings.NewReader(r.body))
	for name, value := range r.header {
		q.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, q)
	return w
}

func ce(more ...string) map[string]string {
	h := map[string]string{"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "commerce", "Ce-Type": "order.created.v1", "Content-Type": "application/json"}
	for i := 0; i+1 < len(more); i += 2 {
		h[more[i]] = more[i+1]
		if more[i+1] == "" {
			delete(h, more[i])
		}
	}
	return h
}

const legacy = `{"source-id":"commerce","event-type":"order.created","event-type-version":"v1","event-time":"2018-11-02T22:08:41+00:00","data":{"orderCode":"1"}}`

func TestAccepted(t *testing.T) {
	structured := map[string]string{"Content-Type": "application/cloudevents+json"}
	one := `{"specversion":"1.0","id":"1","source":"commerce","type":"t","data":1}`
	for name, tt := range map[string]struct {
		request request
		status  int
		body    string
		source  string
	}{
		"binary":                 {request{path: "/publish", header: ce(), body: "{}"}, 202, `{"events":[{"id":"1","sequence":1}]}`, "commerce"},
		"structured":             {request{path: "/publish", header: structured, body: one}, 202, `{"events":[{"id":"1","sequence":1}]}`, "commerce"},
		"batch":                  {request{path: "/publish", header: map[string]string{"Content-Type": "application/cloudevents-batch+json"}, body: "[" + one + "," + one + "]"}, 202, `{"events":[{"id":"1","sequence":1},{"id":"1","sequence":2}]}`, "commerce"},
		"empty batch":            {request{path: "/publish", header: map[string]string{"Content-Type": "application/cloudevents-batch+json"}, body: "[]"}, 202, `{"events":[]}`, ""},
		"of an application":      {request{path: "/erp/events", header: ce("Ce-Source", "")}, 202, `{"events":[{"id":"1","sequence":1}]}`, "erp"},
		"its source counts":      {request{path: "/erp/events", header: ce()}, 202, `{"events":[{"id":"1","sequence":1}]}`, "erp"},
		"one MiB of data":        {request{path: "/publish", header: ce(), body: strings.Repeat("x", event.MaxEventBytes)}, 202, `{"events":[{"id":"1","sequence":1}]}`, "commerce"},
		"legacy":                 {request{path: "/v1/events", body: strings.Replace(legacy, `{`, `{"event-id":"31109198-4d69-4ae0-972d-76117f3748c8",`, 1)}, 200, `{"event-id":"31109198-4d69-4ae0-972d-76117f3748c8"}`, "commerce"},
		"legacy, an application": {request{path: "/erp/v1/events", body: legacy}, 200, "", "erp"},
		"subscribed types":       {request{method: "GET", path: "/erp/v1/events/subscribed"}, 200, `{"eventsInfo":[{"name":"erp.order","version":"v1"}]}`, ""},
		"ready":                  {request{method: "GET", path: "/v1/status/ready"}, 200, `{"status":"ready"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &store{}
			w := call(t, s, ingress.Open{}, tt.request)
			require.Equal(t, tt.status, w.Code, w.Body)
			require.Equal(t, "application/json", w.Header().Get("Content-Type"))
			if tt.body != "" {
				require.JSONEq(t, tt.body, w.Body.String())
			}
			for _, e := range s.events {
				require.Equal(t, tt.source, e.Source)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		request request
		store   store
		caller  caller
		status  int
		header  map[string]string
		fields  []string
	}{
		"invalid":             {request: request{path: "/publish", header: ce("Ce-Id", "", "Ce-Time", "now")}, status: 400, fields: []string{"id", "time"}},
		"wrong method":        {request: request{method: "GET", path: "/publish"}, status: 405, header: map[string]string{"Allow": "POST"}},
		"wrong method, ready": {request: request{path: "/v1/status/ready"}, status: 405, header: map[string]string{"Allow": "GET"}},
		"no such path":        {request: request{path: "/nowhere"}, status: 404},
		"reserved name":       {request: request{path: "/webhooks/events", header: ce()}, status: 404},
		"bad name":            {request: request{path: "/UPPER/events", header: ce()}, status: 404},
		"body too large":      {request: request{path: "/publish", header: ce(), body: strings.Repeat("x", event.MaxEventBytes+1)}, status: 413},
		"event too large": {
			request: request{path: "/publish", header: map[string]string{"Content-Type": "application/cloudevents+json"}, body: `{"specversion":"1.0","id":"1","source":"commerce","type":"t","data":"` + strings.Repeat("x", 2000) + `"}`},
			store:   store{limit: 1000}, status: 413,
		},
		"media type":       {request: request{path: "/publish", header: map[string]string{"Content-Type": "application/cloudevents+xml"}}, status: 415},
		"broker away":      {request: request{path: "/publish", header: ce()}, store: store{err: broker.ErrUnavailable}, status: 503, header: map[string]string{"Retry-After": "2"}},
		"storage full":     {request: request{path: "/publish", header: ce()}, store: store{err: broker.ErrFull}, status: 507, header: map[string]string{"Retry-After": "30"}},
		"backlog":          {request: request{path: "/publish", header: ce()}, store: store{err: broker.ErrBacklog}, status: 429, header: map[string]string{"Retry-After": "1"}},
		"broker says size": {request: request{path: "/publish", header: ce()}, store: store{err: event.ErrTooLarge}, status: 413},
		"a fault of ours":  {request: request{path: "/publish", header: ce()}, store: store{err: errors.New("secret detail")}, status: 500},
		"not ready":        {request: request{method: "GET", path: "/v1/status/ready"}, store: store{err: broker.ErrUnavailable}, status: 503},
		"too many tokens":  {request: request{path: "/publish", header: ce()}, caller: caller{err: tokens.ErrTooMany}, status: 429, header: map[string]string{"Retry-After": "1"}},
		"unknown caller":   {request: request{path: "/publish", header: ce()}, caller: caller{err: tokens.ErrUnauthenticated}, status: 401, header: map[string]string{"Www-Authenticate": "Bearer"}},
		"another's source": {request: request{path: "/publish", header: ce()}, caller: caller{Caller: ingress.Caller{Name: "x", Source: "/shop/cart"}}, status: 403},
		"an application":   {request: request{path: "/erp/events", header: ce()}, caller: caller{Caller: ingress.Caller{Name: "x", Source: "/shop/cart"}}, status: 403},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.caller.Name == "" && tt.caller.err == nil {
				tt.caller.Everything = true
			}
			w := call(t, &tt.store, tt.caller, tt.request)
			require.Equal(t, tt.status, w.Code, w.Body)
			require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			for name, value := range tt.header {
				require.Equal(t, value, w.Header().Get(name))
			}
			require.Empty(t, tt.store.events)
			require.NotContains(t, w.Body.String(), "secret")
			var problem struct {
				Title  string
				Status int
				Errors []struct{ Field, Detail string }
			}
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &problem))
			require.Equal(t, tt.status, problem.Status)
			var fields []string
			for _, e := range problem.Errors {
				fields = append(fields, e.Field)
			}
			require.Equal(t, tt.fields, fields)
		})
	}
}

func TestLegacyErrorsHaveTheLegacyForm(t *testing.T) {
	for name, tt := range map[string]struct {
		request request
		err     error
		status  int
		kind    string
		details int
	}{
		"no JSON":       {request{path: "/v1/events", body: "{"}, nil, 400, "bad_payload_syntax", 0},
		"missing":       {request{path: "/v1/events", body: "{}"}, nil, 400, "validation_violation", 5},
		"too large":     {request{path: "/v1/events", body: strings.Repeat("x", event.MaxEventBytes+1)}, nil, 413, "request_body_too_large", 0},
		"XML":           {request{path: "/v1/events", header: map[string]string{"Content-Type": "text/xml"}}, nil, 415, "bad_request", 0},
		"a CloudEvent":  {request{path: "/v1/events", header: map[string]string{"Content-Type": "application/cloudevents+json"}}, nil, 415, "bad_request", 0},
		"wrong method":  {request{method: "PUT", path: "/v1/events"}, nil, 405, "bad_request", 0},
		"broker away":   {request{path: "/v1/events", body: legacy}, broker.ErrUnavailable, 503, "internal_server_error", 0},
		"storage full":  {request{path: "/v1/events", body: legacy}, broker.ErrFull, 507, "internal_server_error", 0},
		"reserved name": {request{path: "/admin/v1/events", body: legacy}, nil, 404, "bad_request", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := call(t, &store{err: tt.err}, ingress.Open{}, tt.request)
			require.Equal(t, tt.status, w.Code, w.Body)
			require.Equal(t, "application/json", w.Header().Get("Content-Type"))
			var body struct {
				Status   int
				Type     string
				Message  string
				MoreInfo *string
				Details  []struct {
					Field, Type, Message string
					MoreInfo             *string
				}
			}
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
			require.Equal(t, tt.status, body.Status)
			require.Equal(t, tt.kind, body.Type)
			require.NotEmpty(t, body.Message)
			require.NotNil(t, body.MoreInfo)
			require.Len(t, body.Details, tt.details)
		})
	}
}

func TestWorkloadPublishesItsOwnSource(t *testing.T) {
	own := caller{Caller: ingress.Caller{Name: "cart", Source: "/shop/cart"}}
	for _, source := range []string{"", "/shop/cart"} {
		s := &store{}
		w := call(t, s, own, request{path: "/publish", header: ce("Ce-Source", source)})
		require.Equal(t, 202, w.Code, w.Body)
		require.Equal(t, "/shop/cart", s.events[0].Source)
	}
}

func TestASourceThatNobodyOwnsIsRefused(t *testing.T) {
	s := &store{}
	h := ingress.New(ingress.Config{
		Publisher: s, Authorizer: ingress.Open{}, Owned: func(source string) bool { return source == "erp" }, Log: slog.New(slog.DiscardHandler),
	})
	for source, want := range map[string]int{"erp": 202, "/shop/x/y": 403, "urn:nobody": 403} {
		q := httptest.NewRequest(http.MethodPost, "/publish", strings.NewReader("{}"))
		for name, value := range ce("Ce-Source", source) {
			q.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, q)
		require.Equal(t, want, w.Code, "%s: %s", source, w.Body)
	}
	require.Len(t, s.events, 1)
}

func TestTraceIsCarried(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for name, tt := range map[string]struct {
		header map[string]string
		want   map[string]string
	}{
		"of the request":        {ce("Traceparent", parent, "Tracestate", "a=1"), map[string]string{"traceparent": parent, "tracestate": "a=1"}},
		"the event's own wins":  {ce("Traceparent", parent, "Ce-Traceparent", "own"), map[string]string{"traceparent": "own"}},
		"a malformed one is no": {ce("Traceparent", "00-x"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := &store{}
			require.Equal(t, 202, call(t, s, ingress.Open{}, request{path: "/publish", header: tt.header}).Code)
			require.Equal(t, tt.want, s.events[0].Extensions)
		})
	}
}

func TestMemoryForBodiesIsBounded(t *testing.T) {
	h := ingress.New(ingress.Config{Publisher: &store{}, Authorizer: ingress.Open{}, Budget: ingress.NewBudget(10), Log: slog.New(slog.DiscardHandler)})
	q := httptest.NewRequest(http.MethodPost, "/publish", strings.NewReader(strings.Repeat("x", 11)))
	for name, value := range ce() {
		q.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, q)
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
}

func TestMeshIdentity(t *testing.T) {
	mesh := ingress.Mesh{
		TrustDomain: "cluster.local", Everything: []string{"spiffe://cluster.local/ns/ops/sa/root"},
		Publishers: func(application, namespace, account string) bool {
			return slices.Contains([]string{"erp", "urn:erp", "/other/cart"}, application) && namespace == "shop" && account == "adapter"
		},
	}
	for name, tt := range map[string]struct {
		xfcc     string
		may, not []string
		unknown  bool
	}{
		"a lambda":           {xfcc: "By=spiffe://x;Hash=ab;URI=spiffe://cluster.local/ns/shop/sa/cart", may: []string{"/shop/cart"}, not: []string{"/shop/other", "/other/cart", "commerce", "erp"}},
		"the connector":      {xfcc: "URI=spiffe://cluster.local/ns/lambdamesh-system/sa/connector", may: []string{"commerce", "erp"}, not: []string{"/shop/cart", "v1", "https://x/", ""}},
		"a publisher":        {xfcc: "URI=spiffe://cluster.local/ns/shop/sa/adapter", may: []string{"erp", "urn:erp", "/shop/adapter"}, not: []string{"commerce", "/other/cart", ""}},
		"a configured one":   {xfcc: "URI=spiffe://cluster.local/ns/ops/sa/root", may: []string{"commerce", "/shop/cart", "urn:x"}},
		"no header":          {unknown: true},
		"other trust domain": {xfcc: "URI=spiffe://evil/ns/shop/sa/cart", unknown: true},
		"no SPIFFE ID":       {xfcc: "Subject=\"CN=x\"", unknown: true},
		"other connector":    {xfcc: "URI=spiffe://cluster.local/ns/shop/sa/connector", not: []string{"commerce"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			if tt.xfcc != "" {
				r.Header.Set("X-Forwarded-Client-Cert", tt.xfcc)
			}
			c, err := mesh.Authorize(r)
			if tt.unknown {
				require.ErrorIs(t, err, tokens.ErrUnauthenticated)
				return
			}
			require.NoError(t, err)
			for _, source := range tt.may {
				require.True(t, c.MayPublish(source), source)
			}
			for _, source := range tt.not {
				require.False(t, c.MayPublish(source), source)
			}
		})
	}
}

// reviewer knows two tokens.
type reviewer struct {
	calls int
	err   error
}

func (r *reviewer) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	r.calls++
	review.Status.Audiences = review.Spec.Audiences
	switch review.Spec.Token {
	case "cart":
		review.Status.Authenticated, review.Status.User.Username = true, "system:serviceaccount:shop:cart"
	case "person":
		review.Status.Authenticated, review.Status.User.Username = true, "jane"
	}
	return review, r.err
}

func TestServiceAccountTokens(t *testing.T) {
	api := &reviewer{}
	authorizer := ingress.Tokens{Reviews: tokens.New(api, nil)}
	authorize := func(values ...string) (ingress.Caller, error) {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		for _, v := range values {
			r.Header.Add("Authorization", v)
		}
		return authorizer.Authorize(r)
	}
	for range 3 {
		c, err := authorize("Bearer cart")
		require.NoError(t, err)
		require.True(t, c.MayPublish("/shop/cart"))
		require.False(t, c.MayPublish("commerce"))
	}
	require.Equal(t, 1, api.calls, "the answer is remembered for a while")
	for _, bad := range [][]string{nil, {"Bearer "}, {"Basic x"}, {"Bearer unknown"}, {"Bearer person"}, {"Bearer cart", "Bearer cart"}} {
		_, err := authorize(bad...)
		require.ErrorIs(t, err, tokens.ErrUnauthenticated, "%v", bad)
	}
	api.err = io.ErrUnexpectedEOF
	_, err := authorize("Bearer new")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotErrorIs(t, err, tokens.ErrUnauthenticated, "an API server that is away is no verdict")
}
