package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/bootstrap"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// options are what the flags set.
type options struct {
	configPath, configYAML string
	cluster, node          string
	drainSeconds           uint32
	concurrency            int
	logLevel, logFormat    string
}

func run(ctx context.Context, stderr io.Writer, o *options) error {
	log, err := o.logger(stderr)
	if err != nil {
		return err
	}
	settings, err := o.bootstrap()
	if err != nil {
		return err
	}
	if o.concurrency > 0 {
		runtime.GOMAXPROCS(o.concurrency)
	}
	registry := telemetry.Registry()
	drain := time.Duration(o.drainSeconds) * time.Second
	dataPlane, err := proxy.New(proxy.Config{
		NodeID: settings.NodeID, ADSAddress: settings.ControlPlane.Address, ADSServerName: settings.ControlPlane.ServerName,
		RootCAs: settings.ControlPlane.RootCAs, Token: settings.ControlPlane.Token,
		DrainTimeout: max(drain, time.Millisecond), Log: log, Registry: registry,
	})
	if err != nil {
		return err
	}
	log.Info("the proxy starts", "version", version, "node", settings.NodeID, "cluster", settings.Cluster, "controlPlane", settings.ControlPlane.Address)

	// The proxy comes last: while it drains, those who ask are told.
	var parts []component.Component
	for _, l := range adminListeners(settings) {
		listener, err := httpserver.Listen(ctx, l.Address, "")
		if err != nil {
			return fmt.Errorf("listener %s of the bootstrap: %w", l.Name, err)
		}
		log.Info("a listener of the bootstrap serves", "listener", l.Name, "address", listener.Addr().String())
		parts = append(parts, httpserver.New(httpserver.Config{
			Name: l.Name, Listener: listener, Handler: adminHandler(l.Paths, ready(ctx, dataPlane), registry), Log: log,
		}))
	}
	parts = append(parts, draining{dataPlane, drain})
	return component.NewGroup("proxy", component.GroupConfig{}, parts...).Run(ctx)
}

// bootstrap reads the file, where the command line says more.
func (o *options) bootstrap() (*bootstrap.Bootstrap, error) {
	if o.configPath == "" && o.configYAML == "" {
		return nil, errors.New("pass --config-path with the bootstrap file")
	}
	file, more, source := []byte(o.configYAML), []byte(nil), "--config-yaml"
	if o.configPath != "" {
		text, err := os.ReadFile(o.configPath)
		if err != nil {
			return nil, fmt.Errorf("read the bootstrap: %w", err)
		}
		file, more, source = text, []byte(o.configYAML), o.configPath
	}
	b, err := bootstrap.Read(file, more)
	if err != nil {
		return nil, fmt.Errorf("the bootstrap %s: %w", source, err)
	}
	if o.node != "" {
		b.NodeID = o.node
	}
	if o.cluster != "" {
		b.Cluster = o.cluster
	}
	if b.NodeID == "" {
		return nil, errors.New("pass --service-node with the node id")
	}
	return b, nil
}

// adminListeners are the admin interface and those that lead there.
func adminListeners(b *bootstrap.Bootstrap) []bootstrap.Listener {
	if b.Admin == "" {
		return b.Listeners
	}
	admin := bootstrap.Listener{Name: "admin", Address: b.Admin, Paths: []string{bootstrap.PathReady, bootstrap.PathMetrics}}
	return append([]bootstrap.Listener{admin}, b.Listeners...)
}

func adminHandler(paths []string, ready http.HandlerFunc, registry *prometheus.Registry) http.Handler {
	mux := http.NewServeMux()
	if slices.Contains(paths, bootstrap.PathReady) {
		mux.HandleFunc("GET "+bootstrap.PathReady, ready)
	}
	if slices.Contains(paths, bootstrap.PathMetrics) {
		mux.Handle("GET "+bootstrap.PathMetrics, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	}
	mux.HandleFunc("/", httpserver.NotFound)
	return mux
}

// ready answers as Envoy's /ready does. ctx ends when the proxy is told to stop.
func ready(ctx context.Context, p *proxy.Proxy) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		status, text := http.StatusServiceUnavailable, "INITIALIZING\n"
		select {
		case <-p.Ready():
			status, text = http.StatusOK, "LIVE\n"
		default:
		}
		if ctx.Err() != nil {
			status, text = http.StatusServiceUnavailable, "DRAINING\n"
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-cache, max-age=0")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

// draining is the proxy with the time that its requests may take.
type draining struct {
	*proxy.Proxy
	drain time.Duration
}

// StopTimeout is for component.Group.
func (d draining) StopTimeout() time.Duration { return d.drain + 5*time.Second }

// logger takes Envoy's names of levels.
func (o *options) logger(stderr io.Writer) (*slog.Logger, error) {
	level := o.logLevel
	switch level {
	case "trace":
		level = "debug"
	case "warning":
		level = "warn"
	case "critical":
		level = "error"
	case "off":
		stderr, level = io.Discard, "error"
	}
	return telemetry.Logger(stderr, telemetry.LogConfig{Level: level, Format: o.logFormat})
}
