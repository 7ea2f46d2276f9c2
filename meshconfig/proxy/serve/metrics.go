package serve

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	active     prometheus.GaugeFunc
	refused    prometheus.Counter
	handshakes prometheus.Counter
}

func newMetrics(srv *Server, registry prometheus.Registerer) *metrics {
	labels := prometheus.Labels{"node": srv.config.NodeID}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels})
	}
	m := &metrics{
		active: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "lambdamesh_proxy_active_requests", Help: "Requests under way.", ConstLabels: labels},
			func() float64 { return float64(srv.active.Load()) }),
		refused:    counter("lambdamesh_proxy_refused_connections_total", "Connections beyond the limit of a listener."),
		handshakes: counter("lambdamesh_proxy_failed_handshakes_total", "Failed TLS handshakes."),
	}
	if registry != nil {
		registry.MustRegister(m.active, m.refused, m.handshakes)
	}
	return m
}
