package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// BenchmarkPublishToLambda measures from just before an event is posted until
// the handler of a Go lambda has it: ingress, disk, push, two sidecars with
// mutual TLS, and the runtime. Both ends read this machine's clock. Its baseline
// is jetstream-to-consumer of eventbus's BenchmarkLatency, in the same run.
func BenchmarkPublishToLambda(b *testing.B) {
	m := start(b, b.TempDir())
	m.apply(b, bound("latency")+echo("latency", "clock", `package clock

import (
	"context"
	"slices"
	"sync"
	"time"

	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

var (
	mu   sync.Mutex
	took []time.Duration
)

func Main(ctx context.Context, event *lambda.Event) (any, error) {
	now := time.Now()
	mu.Lock()
	defer mu.Unlock()
	if !event.IsEvent {
		slices.Sort(took)
		n := len(took)
		if n == 0 {
			return map[string]int64{"n": 0}, nil
		}
		return map[string]int64{"n": int64(n), "p50": took[n/2].Microseconds(), "p99": took[n*99/100].Microseconds()}, nil
	}
	var sent struct{ At int64 }
	if err := event.Decode(&sent); err != nil {
		return nil, err
	}
	took = append(took, now.Sub(time.Unix(0, sent.At)))
	return nil, nil
}
`)+`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: clock, namespace: latency}
spec: {source: latency, types: ["**"], sink: {lambda: clock}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: clock, namespace: latency}
spec: {hosts: [clock], rules: [{path: /, lambda: clock, noAuth: true}]}
`)
	m.waitFor(b, "latency", "lambda/clock", "Ready")
	m.waitFor(b, "latency", "apirule/clock", "Programmed")
	m.waitFor(b, "latency", "subscription/clock", "Ready")

	var seen struct{ N, P50, P99 int64 }
	n := int64(0)
	for b.Loop() {
		n++
		resp := post(b, m.EventBus+"/publish", "application/json", fmt.Sprintf(`{"at":%d}`, time.Now().UnixNano()),
			"ce-specversion", "1.0", "ce-id", fmt.Sprint(n), "ce-source", "latency", "ce-type", "tick.v1")
		if resp.status != http.StatusAccepted {
			b.Fatal(resp.status, resp.body)
		}
	}
	eventually(b, time.Minute, func() error {
		resp, err := m.get(b.Context(), "clock.lambdas.localhost", "/")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(resp.body), &seen); err != nil {
			return err
		}
		if seen.N < n {
			return errorf("%d of %d events have arrived", seen.N, n)
		}
		return nil
	})
	b.ReportMetric(float64(seen.P50), "p50-us")
	b.ReportMetric(float64(seen.P99), "p99-us")
}

// callingCode calls as often as it is told, on so many connections that it keeps,
// and does next to nothing besides: what it takes is the other end's.
const callingCode = `package calling

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
)

var (
	mu   sync.Mutex
	kept = map[string]*wire{}
)

type wire struct {
	net.Conn
	r *bufio.Reader
}

func open(host string, i int) (*wire, error) {
	mu.Lock()
	defer mu.Unlock()
	key := host + strconv.Itoa(i)
	if w := kept[key]; w != nil {
		return w, nil
	}
	c, err := net.Dial("tcp", host)
	if err != nil {
		return nil, err
	}
	kept[key] = &wire{c, bufio.NewReader(c)}
	return kept[key], nil
}

func Main(w http.ResponseWriter, r *http.Request) {
	via := r.URL.Query().Get("via")
	if via == "" {
		via = os.Getenv("APPLICATION_CALLING_URL") + "/orders/4711"
	}
	u, err := url.Parse(via)
	if err != nil || u.Host == "" {
		http.Error(w, fmt.Sprint("not bound: ", via, err), 500)
		return
	}
	callers, _ := strconv.Atoi(r.URL.Query().Get("callers"))
	times, _ := strconv.Atoi(r.URL.Query().Get("times"))
	failed := make(chan error, callers)
	for i := range callers {
		go func() {
			failed <- func() error {
				c, err := open(u.Host, i)
				if err != nil {
					return err
				}
				for range times {
					if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", u.RequestURI(), u.Host); err != nil {
						return err
					}
					answer, err := http.ReadResponse(c.r, nil)
					if err != nil {
						return err
					}
					body, err := io.ReadAll(answer.Body)
					if err != nil || answer.StatusCode != 200 {
						return fmt.Errorf("%d %s %v", answer.StatusCode, body, err)
					}
				}
				return nil
			}()
		}()
	}
	for range callers {
		if err := <-failed; err != nil {
			mu.Lock()
			kept = map[string]*wire{} // whatever is in them
			mu.Unlock()
			http.Error(w, err.Error(), 500)
			return
		}
	}
}
`

// BenchmarkCalling compares calls of a lambda to an application, through its
// sidecar, the connector's sidecar and the connector, which adds a cached OAuth2
// token, with calls of the same lambda through a bare ReverseProxy to the same
// target.
func BenchmarkCalling(b *testing.B) {
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token":"t","token_type":"Bearer","expires_in":3600}`)
			return
		}
		if r.Header.Get("Authorization") != "Bearer t" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"code":"4711","total":12.5}`)
	}))
	defer shop.Close()
	target, err := url.Parse(shop.URL)
	require.NoError(b, err)
	bare := httptest.NewServer(&httputil.ReverseProxy{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Header.Set("Authorization", "Bearer t")
		},
	})
	defer bare.Close()
	m := start(b, b.TempDir(), "--allow-target", "127.0.0.1/32")
	m.apply(b, bound("calling")+echo("calling", "caller", callingCode)+fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: calling, namespace: lambdamesh-system}
stringData: {clientId: caller, clientSecret: s3cret-of-the-benchmark}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationService
metadata: {name: calling.orders}
spec:
  application: calling
  name: orders
  api: {targetUrl: %[1]s, auth: {oauth2: {tokenUrl: %[1]s/token, secret: {name: calling}}}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: caller, namespace: calling}
spec: {application: calling, lambdas: {names: [caller]}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: caller, namespace: calling}
spec: {hosts: [calling], rules: [{path: /, lambda: caller, noAuth: true}]}
`, shop.URL))
	m.waitFor(b, "calling", "lambda/caller", "Ready")
	m.waitFor(b, "calling", "apirule/caller", "Programmed")
	const callers, times = 16, 50
	ask := func(via string) error {
		resp, err := m.get(b.Context(), "calling.lambdas.localhost", fmt.Sprintf("/?callers=%d&times=%d&via=%s", callers, times, url.QueryEscape(via)))
		if err != nil || resp.status != http.StatusOK {
			return errorf("%d %s %v", resp.status, resp.body, err)
		}
		return nil
	}
	way := func(name, via string) testkit.Way {
		return testkit.Way{Name: name, Each: callers * times, Callers: []func() error{func() error { return ask(via) }}}
	}
	eventually(b, demoTimeout, func() error { return ask("") })
	testkit.Compare(b, 1, way("bare", bare.URL+"/orders/4711"), way("mesh", ""))
}
