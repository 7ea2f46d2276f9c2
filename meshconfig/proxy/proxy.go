package proxy

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/client"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/serve"
)

// Proxy is a data plane. It is a component.
type Proxy struct {
	config Config
	server *serve.Server
	client *client.Client
}

// New makes a Proxy; it connects and serves from Run on.
func New(config Config) (*Proxy, error) {
	config.setDefaults()
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("configure the proxy: %w", err)
	}
	log := config.Log.With("component", "proxy", "node", config.NodeID)
	server := serve.New(serve.Config{
		NodeID: config.NodeID, Listen: config.Listen, DrainTimeout: config.DrainTimeout, Log: log, Registry: config.Registry,
		SecretServers: slices.Sorted(maps.Keys(config.SecretServers)),
	})
	client := client.New(client.Config{
		NodeID: config.NodeID, Address: config.ADSAddress, ServerName: config.ADSServerName, RootCAs: config.RootCAs, Token: config.Token,
		NodeMetadata: config.NodeMetadata, NodeLocality: config.NodeLocality, SecretServers: config.SecretServers, WholeState: config.WholeState || config.agent(),
		Log: log, Registry: config.Registry,
	}, server)
	return &Proxy{config: config, server: server, client: client}, nil
}

// Name implements component.Component.
func (p *Proxy) Name() string { return "proxy " + p.config.NodeID }

// Ready is closed when all listeners of the first configuration with any serve;
// it implements component.Component.
func (p *Proxy) Ready() <-chan struct{} { return p.server.Ready() }

// ActiveRequests is how many requests are under way.
func (p *Proxy) ActiveRequests() int { return p.server.Active() }

// Updates are how many responses of the control plane with a type of resource
// came: Cluster, Listener, Secret...
func (p *Proxy) Updates(kind string) client.Updates { return p.client.Updates(kind) }

// Drain asks clients to go: every answer ends its connection, as Envoy's
// drain_listeners?graceful&skip_exit does. Connections are still taken. With
// inboundOnly the answers of other listeners end none. It lasts until Run ends.
func (p *Proxy) Drain(inboundOnly bool) { p.server.Drain(inboundOnly) }

// Run serves until ctx ends, then lets requests under way finish within
// DrainTimeout; it implements component.Component. Without a control plane it
// keeps the last good configuration.
func (p *Proxy) Run(ctx context.Context) error {
	err := p.client.Run(ctx)
	p.server.Stop()
	return err
}
