package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"
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
