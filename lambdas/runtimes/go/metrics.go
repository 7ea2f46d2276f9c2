package lambda

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// bucketBounds are the duration histogram's upper bounds in seconds; the same
// in every language.
func bucketBounds() []float64 {
	return []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180}
}

// metrics counts invocations and writes them in the Prometheus text format
// 0.0.4. By hand, because the SDK has no dependencies.
type metrics struct {
	labels string

	mu       sync.Mutex
	inFlight int
	byStatus map[int]uint64
	errors   uint64
	bounds   []float64
	buckets  []uint64
	count    uint64
	sum      float64
}

func newMetrics(namespace, lambda string) *metrics {
	bounds := bucketBounds()
	return &metrics{
		labels: fmt.Sprintf("namespace=%q,lambda=%q", namespace, lambda), byStatus: map[int]uint64{},
		bounds: bounds, buckets: make([]uint64, len(bounds)),
	}
}

func (m *metrics) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight++
}

func (m *metrics) end(status int, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	m.byStatus[status]++
	if status >= 500 {
		m.errors++
	}
	m.count++
	m.sum += took.Seconds()
	for i, bound := range m.bounds {
		if took.Seconds() <= bound {
			m.buckets[i]++
		}
	}
}

func (m *metrics) serve(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	fmt.Fprintln(w, "# TYPE lambdamesh_lambda_invocations_total counter")
	for status, count := range m.byStatus {
		fmt.Fprintf(w, "lambdamesh_lambda_invocations_total{%s,status=\"%d\"} %d\n", m.labels, status, count)
	}
	fmt.Fprintln(w, "# TYPE lambdamesh_lambda_errors_total counter")
	fmt.Fprintf(w, "lambdamesh_lambda_errors_total{%s} %d\n", m.labels, m.errors)
	fmt.Fprintln(w, "# TYPE lambdamesh_lambda_invocations_in_flight gauge")
	fmt.Fprintf(w, "lambdamesh_lambda_invocations_in_flight{%s} %d\n", m.labels, m.inFlight)
	fmt.Fprintln(w, "# TYPE lambdamesh_lambda_duration_seconds histogram")
	for i, bound := range m.bounds {
		fmt.Fprintf(w, "lambdamesh_lambda_duration_seconds_bucket{%s,le=\"%g\"} %d\n", m.labels, bound, m.buckets[i])
	}
	fmt.Fprintf(w, "lambdamesh_lambda_duration_seconds_bucket{%s,le=\"+Inf\"} %d\n", m.labels, m.count)
	fmt.Fprintf(w, "lambdamesh_lambda_duration_seconds_sum{%s} %g\n", m.labels, m.sum)
	fmt.Fprintf(w, "lambdamesh_lambda_duration_seconds_count{%s} %d\n", m.labels, m.count)
}
