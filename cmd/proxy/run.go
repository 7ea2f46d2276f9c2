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
	"time"

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

	// What of Envoy's command line Istio's agent sets besides.
	drainStrategy, ipVersion, componentLevels  string
	flushInterval                              uint32
	noHotRestart, allowUnknown, skipDeprecated bool
}

// validate refuses values that would mean something else to an Envoy.
func (o *options) validate() error {
	switch {
	case o.drainStrategy != "gradual" && o.drainStrategy != "immediate":
		return fmt.Errorf("--drain-strategy %q: write gradual or immediate", o.drainStrategy)
	case o.ipVersion != "v4" && o.ipVersion != "v6":
		return fmt.Errorf("--local-address-ip-version %q: write v4 or v6", o.ipVersion)
	case !o.noHotRestart:
		return errors.New("--disable-hot-restart=false: there is no hot restart")
	}
	return nil
}

func run(ctx context.Context, stderr io.Writer, o *options) error {
	log, err := o.logger(stderr)
	if err != nil {
		return err
	}
	if err := o.validate(); err != nil {
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
	config := proxy.Config{
		NodeID: settings.NodeID, NodeMetadata: settings.Metadata, NodeLocality: settings.Locality, ADSAddress: settings.ControlPlane.Address,
		WholeState: settings.ControlPlane.WholeState, SecretServers: settings.SecretServers, DrainTimeout: max(drain, time.Millisecond), Log: log, Registry: registry,
	}
	if control := &settings.ControlPlane; !control.Agent() {
		config.ADSServerName, config.RootCAs, config.Token = control.ServerName, control.RootCAs, control.Token
	}
	dataPlane, err := proxy.New(config)
	if err != nil {
		return err
	}
	log.Info("the proxy starts", "version", version, "node", settings.NodeID, "cluster", settings.Cluster, "controlPlane", settings.ControlPlane.Address)

	// The proxy comes last: while it drains, those who ask are told.
	var parts []component.Component
	admin := adminHandler(ready(ctx, dataPlane), registry)
	listeners := settings.Listeners
	if settings.Admin != "" {
		listeners = append([]bootstrap.Listener{{Name: "admin", Address: settings.Admin}}, listeners...)
	}
	for i, l := range listeners {
		handler := routes(l.Routes, admin, log)
		if i == 0 && settings.Admin != "" {
			handler = agentHandler(ctx, admin, dataPlane)
		}
		listener, err := httpserver.Listen(ctx, l.Address, "")
		if err != nil {
			return fmt.Errorf("listener %s of the bootstrap: %w", l.Name, err)
		}
		log.Info("a listener of the bootstrap serves", "listener", l.Name, "address", listener.Addr().String())
		parts = append(parts, httpserver.New(httpserver.Config{
			Name: l.Name, Listener: listener, Handler: handler, Log: log,
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
	b, err := bootstrap.Read(file, more, o.allowUnknown)
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
