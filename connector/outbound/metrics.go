package outbound

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the gateway. Applications and services are labels only after they
// were found to exist.
type metrics struct {
	calls   *prometheus.HistogramVec
	refused *prometheus.CounterVec
	tokens  *prometheus.CounterVec
}

func newMetrics() metrics {
	return metrics{
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lambdamesh_connector_outbound_duration_seconds",
			Help:    "Time from a call to the headers of its answer, by application, service and the target's status (0: none; 2xx and the like: one that HTTP does not know).",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
		}, []string{"application", "service", "status"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_connector_outbound_refused_total",
			Help: "Calls that the gateway answered itself, by status.",
		}, []string{"status"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_connector_token_refused_total",
			Help: "Tokens that a target refused, by application and service.",
		}, []string{"application", "service"}),
	}
}

// statusLabel is a status, or the class of one that is not registered: a target may
// answer with a thousand of them, and each is a histogram.
func statusLabel(status int) string {
	switch {
	case status == 0 || http.StatusText(status) != "":
		return strconv.Itoa(status)
	case status >= 100 && status < 600:
		return strconv.Itoa(status/100) + "xx"
	default:
		return "other"
	}
}

func (m metrics) register(registry prometheus.Registerer) error {
	return errors.Join(registry.Register(m.calls), registry.Register(m.refused), registry.Register(m.tokens))
}
