package ads

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Config of a Server.
type Config struct {
	// Listener is where the server listens; it is closed when Run returns.
	// Required.
	Listener net.Listener
	// CA issues the server's own certificate and the nodes' secrets. Required.
	CA *ca.CA
	// ServerNames are the DNS names and IP addresses of the server's
	// certificate. Default: localhost, 127.0.0.1 and ::1.
	ServerNames []string
	// TrustDomain of the nodes' identities. Default: cluster.local.
	TrustDomain string
	// Authenticator checks the clients' tokens. Required.
	Authenticator Authenticator
	// NodeIdentity returns the service account that the node with this id must
	// run as and, for the node of a pod, the pod its token must be bound to; it is
	// false for a node that is not known. Required.
	NodeIdentity func(ctx context.Context, nodeID string) (Identity, bool)
	// OnChange is called when what Status tells about a target has changed: a
	// node came, went, acknowledged or refused. It must not block. Optional.
	OnChange func(target string)
	// MaxConnectionAge ends streams after a while, so that clients authenticate
	// again; they keep their configuration. Default: 30 minutes.
	MaxConnectionAge time.Duration
	// MaxUnproven connections have shown no good token yet; beyond it the oldest of
	// the remote that has most is closed. Default: 512.
	MaxUnproven int
	// MaxUnprovenPerRemote of them are of one address, and MaxConnsPerRemote of all
	// connections: on the nodes of some networks all pods have one address for
	// others. Default: 128 and 512.
	MaxUnprovenPerRemote, MaxConnsPerRemote int
	// MaxResponseBytes is what every receiver takes in one message. The embedded
	// proxy takes 64 MiB; Envoy's own gRPC client sets no limit. Default: 60 MiB.
	MaxResponseBytes int
	// Log is where the server writes; default slog.Default().
	Log *slog.Logger
	// Registry takes the server's metrics. Optional.
	Registry prometheus.Registerer
}

func (c *Config) setDefaults() {
	if len(c.ServerNames) == 0 {
		c.ServerNames = []string{"localhost", "127.0.0.1", "::1"}
	}
	if c.TrustDomain == "" {
		c.TrustDomain = v1alpha1.DefaultTrustDomain
	}
	if c.OnChange == nil {
		c.OnChange = func(string) {}
	}
	if c.MaxConnectionAge <= 0 {
		c.MaxConnectionAge = 30 * time.Minute
	}
	for bound, otherwise := range map[*int]int{&c.MaxUnproven: 512, &c.MaxUnprovenPerRemote: 128, &c.MaxConnsPerRemote: 512} {
		if *bound <= 0 {
			*bound = otherwise
		}
	}
	if c.MaxResponseBytes <= 0 {
		c.MaxResponseBytes = 60 << 20
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// Validate tells what is missing.
func (c *Config) Validate() error {
	var errs []error
	if c.Listener == nil {
		errs = append(errs, errors.New("Listener is required"))
	}
	if c.CA == nil {
		errs = append(errs, errors.New("CA is required"))
	}
	if c.Authenticator == nil {
		errs = append(errs, errors.New("Authenticator is required"))
	}
	if c.NodeIdentity == nil {
		errs = append(errs, errors.New("NodeIdentity is required"))
	}
	return errors.Join(errs...)
}

type metrics struct {
	streams prometheus.Gauge
	pushes  *prometheus.CounterVec
	answers *prometheus.CounterVec
	refused *prometheus.CounterVec
	closed  *prometheus.CounterVec
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{Name: "lambdamesh_ads_streams", Help: "Connected data planes."}),
		pushes:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lambdamesh_ads_responses_total", Help: "Responses sent, by resource type."}, []string{"type"}),
		answers: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lambdamesh_ads_answers_total", Help: "Answers to responses, by resource type and result (ack, nack)."}, []string{"type", "result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "lambdamesh_ads_refused_streams_total", Help: "Streams refused, by gRPC code."}, []string{"code"}),
		closed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_ads_closed_connections_total",
			Help: "Connections closed before they had shown a token: remote (their address had its share), evicted (they made room for others).",
		}, []string{"reason"}),
	}
	if registry != nil {
		registry.MustRegister(m.streams, m.pushes, m.answers, m.refused, m.closed)
	}
	return m
}
