package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/bootstrap"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// adminHandler is what listeners may lead to.
func adminHandler(ready http.HandlerFunc, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+bootstrap.PathReady, ready)
	mux.Handle("GET "+bootstrap.PathMetrics, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/", httpserver.NotFound)
	return mux
}

// agentHandler is the admin address, with what Istio's agent asks Envoy there.
func agentHandler(ctx context.Context, admin http.Handler, p *proxy.Proxy) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		filter, err := regexp.Compile(r.URL.Query().Get("filter"))
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, "filter is no regular expression\n")
			return
		}
		for _, s := range statistics(ctx, p) {
			if filter.MatchString(s.name) {
				fmt.Fprintf(w, "%s: %d\n", s.name, s.value)
			}
		}
	})
	mux.HandleFunc("POST /drain_listeners", func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if !query.Has("graceful") {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, "only graceful is supported\n")
			return
		}
		p.Drain(query.Has("inboundonly"))
		_, _ = io.WriteString(w, "OK\n")
	})
	mux.Handle("/", admin)
	return mux
}

type statistic struct {
	name  string
	value int
}

// States of server.state.
const (
	stateLive = iota
	stateDraining
	_
	stateInitializing
)

// statistics are those of Envoy's by which Istio's agent knows whether a proxy is
// ready.
func statistics(ctx context.Context, p *proxy.Proxy) []statistic {
	state, workers := stateInitializing, 0
	select {
	case <-p.Ready():
		state, workers = stateLive, 1
	default:
	}
	if ctx.Err() != nil {
		state = stateDraining
	}
	list := []statistic{{"listener_manager.workers_started", workers}, {"server.state", state}}
	for _, of := range []struct{ kind, name string }{{"Cluster", "cluster_manager.cds"}, {"Listener", "listener_manager.lds"}} {
		updates := p.Updates(of.kind)
		list = append(list, statistic{of.name + ".update_rejected", updates.Refused}, statistic{of.name + ".update_success", updates.Accepted})
	}
	return list
}

// routes leads paths to the admin interface and to ports of this machine.
func routes(list []bootstrap.Route, admin http.Handler, log *slog.Logger) http.Handler {
	type route struct {
		bootstrap.Route
		handler http.Handler
	}
	var table []route
	for _, r := range list {
		handler := admin
		if r.Upstream != "" {
			target := &url.URL{Scheme: "http", Host: r.Upstream}
			handler = &httputil.ReverseProxy{
				Rewrite:  func(p *httputil.ProxyRequest) { p.SetURL(target) },
				ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
				ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
					w.WriteHeader(http.StatusServiceUnavailable)
				},
			}
		}
		table = append(table, route{r, handler})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, one := range table {
			if r.URL.Path == one.Path || one.Prefix && strings.HasPrefix(r.URL.Path, one.Path) {
				one.handler.ServeHTTP(w, r)
				return
			}
		}
		httpserver.NotFound(w, r)
	})
}
