package connector

import (
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
)

// contact knows when the API server last answered. While it does not, all goes on
// with what was read before: revocations and bindings as old as that. A replica
// that may lead asks every few seconds.
type contact struct{ last atomic.Int64 } // Unix milliseconds

// of returns a config whose answers are noted.
func (c *contact) of(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return noted{next, c} })
	return config
}

// metric tells of it.
func (c *contact) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "lambdamesh_connector_api_server_contact_timestamp_seconds",
		Help: "When the API server last answered this replica, in Unix time: what it knows of revocations, bindings and services may be as old.",
	}, func() float64 { return float64(c.last.Load()) / 1e3 })
}

type noted struct {
	http.RoundTripper
	contact *contact
}

// RoundTrip implements http.RoundTripper.
func (n noted) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := n.RoundTripper.RoundTrip(r)
	if err == nil {
		n.contact.last.Store(time.Now().UnixMilli())
	}
	return response, err
}
