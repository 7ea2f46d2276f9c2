package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Publishers that announce much and send little, or nothing, hold no memory of
// the bus: others publish meanwhile.
func TestHostileSlowPublishers(t *testing.T) {
	m := shared(t)
	for range 40 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(m.EventBus, "http://"))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		_, err = io.WriteString(conn, "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/cloudevents-batch+json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n")
		require.NoError(t, err)
	}
	for i := range 20 {
		publishOne(t, m, "hostile-slow", fmt.Sprint("healthy-", i))
	}
}

// A sink that is not the Subscription's own is refused however it is named, and
// the one that it names gets nothing: the victim is a lambda that the bus reaches
// with its own events, and tells how many it got.
func TestHostileSinks(t *testing.T) {
	m := shared(t)
	r := newReceiver(t, nil)
	const victim = "victim.hostile-victim"
	sinks := map[string]struct{ sink, reason string }{
		"short":        {`{uri: "http://` + victim + `/"}`, "NotPermitted"},
		"svc":          {`{uri: "http://` + victim + `.svc/"}`, "NotPermitted"},
		"whole":        {`{uri: "http://` + victim + `.svc.cluster.local/"}`, "NotPermitted"},
		"final-dot":    {`{uri: "http://` + victim + `.svc.cluster.local./"}`, "NotPermitted"},
		"upper-case":   {`{uri: "http://` + strings.ToUpper(victim) + `.SVC/"}`, "NotPermitted"},
		"service":      {`{service: {name: victim, namespace: hostile-victim}}`, "NotPermitted"},
		"connector":    {`{uri: "http://connector-outbound.lambdamesh-system/"}`, "NotPermitted"},
		"the-bus":      {`{uri: "http://eventbus.lambdamesh-system.svc/publish"}`, "NotPermitted"},
		"external":     {`{service: {name: external}}`, "TargetRefused"},
		"external-uri": {`{uri: "http://external.hostile-sinks.svc/"}`, "TargetRefused"},
		"hand-made":    {`{service: {name: hand-made}}`, "TargetRefused"},
		"forged":       {`{service: {name: forged}}`, "TargetRefused"},
		"nat64":        {`{uri: "http://[64:ff9b::a0b:c0d]/"}`, "TargetRefused"},
	}
	m.apply(t, bound("hostile-victim")+echo("hostile-victim", "victim", countCode)+`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: victim, namespace: hostile-victim}
spec: {hosts: [hostile-victim], rules: [{path: /, methods: [GET], lambda: victim, noAuth: true}]}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: own, namespace: hostile-victim}
spec: {source: hostile-victim, types: ["**"], sink: {lambda: victim}}
`)
	m.waitFor(t, "hostile-victim", "subscription/own", "Ready")
	objects := bound("hostile-sinks") + `
apiVersion: v1
kind: Service
metadata: {name: external, namespace: hostile-sinks}
spec: {type: ExternalName, externalName: localhost, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: hand-made, namespace: hostile-sinks}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: hand-made, namespace: hostile-sinks, labels: {kubernetes.io/service-name: hand-made}}
addressType: IPv4
endpoints: [{addresses: [10.11.12.13]}]
ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: forged, namespace: hostile-sinks}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: forged
  namespace: hostile-sinks
  labels: {kubernetes.io/service-name: forged, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}
addressType: IPv4
endpoints: [{addresses: [10.9.9.9]}]
ports: [{name: http, port: 80}]
`
	subscription := `---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: %s, namespace: hostile-sinks}
spec: {source: hostile-sinks, types: ["**"], sink: %s}
`
	for name, s := range sinks {
		objects += fmt.Sprintf(subscription, name, s.sink)
	}
	m.apply(t, objects+fmt.Sprintf(subscription, "control", `{uri: "`+r.url+`/"}`))
	m.waitFor(t, "hostile-sinks", "subscription/control", "Subscribed")
	for name, s := range sinks {
		eventually(t, time.Minute, func() error {
			got := m.mustKubectl(t, "", "get", "subscription", "-n", "hostile-sinks", name, "-o",
				`jsonpath={.status.conditions[?(@.type=="SinkReady")].status} {.status.conditions[?(@.type=="SinkReady")].reason}`)
			if got != "False "+s.reason {
				return errorf("SinkReady of %s is %q", name, got)
			}
			return nil
		})
	}
	publishOne(t, m, "hostile-sinks", "1")
	require.Equal(t, "1", r.next(t).ID())
	require.Equal(t, "0", strings.Join(uniq(strings.Fields(m.mustKubectl(t, "", "get", "subscriptions", "-n", "hostile-sinks",
		"--field-selector", "metadata.name!=control", "-o", "jsonpath={.items[*].status.delivered}"))), " "))

	publishOne(t, m, "hostile-victim", "own")
	eventually(t, time.Minute, func() error {
		got, err := m.get(t.Context(), "hostile-victim.lambdas.localhost", "/")
		if err == nil && got.body != "got 1" { // its own, and no other before
			err = errorf("the victim answers %d %q", got.status, got.body)
		}
		return err
	})
}

const countCode = `package victim

import (
	"fmt"
	"net/http"
	"sync/atomic"
)

var got atomic.Int64

func Main(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		got.Add(1)
		return
	}
	fmt.Fprintf(w, "got %d", got.Load())
}
`

func uniq(words []string) (all []string) {
	seen := map[string]bool{}
	for _, w := range words {
		if !seen[w] {
			seen[w] = true
			all = append(all, w)
		}
	}
	return all
}

// In a local mesh every namespace may read what nobody owns, and still nothing
// that another has.
func TestHostileReadersOfEverything(t *testing.T) {
	m := shared(t)
	r := newReceiver(t, nil)
	m.apply(t, bound("hostile-reader")+`
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: hostile-other}
spec: {sources: ["urn:hostile-other"]}
`+fmt.Sprintf(`---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: everything, namespace: hostile-reader}
spec: {source: "*", types: ["hostile.reading.v1"], sink: {uri: "%s/"}}
`, r.url))
	m.waitFor(t, "hostile-reader", "subscription/everything", "Subscribed")
	for _, source := range []string{"hostile-other", "urn:hostile-other", "/shop/last-order", "urn:nobody-in-particular"} {
		out, code := m.cli(t, "publish", "--source", source, "--type", "hostile.reading.v1", "--id", source)
		require.Zero(t, code, out)
	}
	require.Equal(t, "urn:nobody-in-particular", r.next(t).ID(), "what came before belongs to others")
}

// A target that forbids one call, or takes no token at all, costs the other
// callers none.
func TestHostileTargetsCostNobodyATokenPerCall(t *testing.T) {
	m := shared(t)
	var issued atomic.Int64
	var authorization atomic.Value
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]any{"access_token": fmt.Sprint("token-", issued.Add(1)), "token_type": "bearer", "expires_in": 3600})
		case r.URL.Path == "/forbidden":
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/never":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			authorization.Store(r.Header.Get("Authorization"))
		}
	}))
	t.Cleanup(api.Close)
	const namespace = "hostile-tokens"
	m.apply(t, echo(namespace, "caller", callerCode)+fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: hostile-target, namespace: lambdamesh-system}
stringData: {clientId: a, clientSecret: b}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: hostile-target}
spec:
  services:
    - {name: api, api: {targetUrl: "%[1]s", auth: {oauth2: {tokenUrl: "%[1]s/token", secret: {name: hostile-target}}}}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: hostile-target, namespace: %[2]s}
spec: {application: hostile-target, lambdas: {names: [caller]}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: caller, namespace: %[2]s}
spec: {hosts: [hostile-target], rules: [{path: "/*", lambda: caller, noAuth: true}]}
`, api.URL, namespace))
	m.waitFor(t, namespace, "lambda/caller", "Ready")
	m.waitFor(t, namespace, "apirule/caller", "Ready")
	call := func(o task) (c called) {
		o.Application, o.Service = "hostile-target", "api"
		body, err := json.Marshal(o)
		require.NoError(t, err)
		resp, err := m.request(t.Context(), http.MethodPost, "hostile-target.lambdas.localhost", "/", string(body), "Content-Type", "application/json")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		require.NoError(t, json.Unmarshal([]byte(resp.body), &c), resp.body)
		return c
	}
	eventually(t, time.Minute, func() error {
		if c := call(task{Path: "/orders"}); c.Status != http.StatusOK {
			return errorf("the API answers %+v", c)
		}
		return nil
	})
	before := issued.Load()
	for range 10 {
		require.Equal(t, http.StatusForbidden, call(task{Path: "/forbidden"}).Status)
	}
	require.Equal(t, before, issued.Load(), "a 403 is about the call")
	for range 10 {
		require.Equal(t, http.StatusUnauthorized, call(task{Path: "/never"}).Status)
	}
	require.LessOrEqual(t, issued.Load(), before+2, "once in 30 s")
	require.Equal(t, http.StatusOK, call(task{Path: "/orders", Header: http.Header{"Access-Token": {forged}}}).Status, "the service does not allow a token of the caller's")
	require.Equal(t, fmt.Sprint("Bearer token-", issued.Load()), authorization.Load())
}
