package connector

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"

	"sigs.k8s.io/controller-runtime/pkg/certwatcher"

	"github.com/lambdamesh/lambdamesh/connector/inbound"
	"github.com/lambdamesh/lambdamesh/connector/pairing"
	"github.com/lambdamesh/lambdamesh/connector/public"
	"github.com/lambdamesh/lambdamesh/connector/registry"
	"github.com/lambdamesh/lambdamesh/connector/webhooks"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// outside is what third-party systems reach, and how to ask what they did.
type outside struct {
	parts    []component.Component
	events   func() map[string]inbound.Activity
	webhooks func() map[string]map[string]webhooks.Activity
}

// public makes the port of third-party systems.
func (c Config) public(known *objects, server func(string, net.Listener, http.Handler) httpserver.Config) (out outside, err error) {
	clients := public.NewClients()
	if err := c.Registry.Register(clients); err != nil {
		return out, fmt.Errorf("connector: %w", err)
	}
	paired := pairing.New(pairing.Config{
		Objects: known.client, Live: known.live, Clients: clients, PublicURL: c.PublicURL, Log: c.Log,
	})
	if err := known.inform(c, clients, paired.SetAuthority); err != nil {
		return out, err
	}
	settings := inbound.Config{Log: c.Log, Registry: c.Registry}
	if c.MeshProxyURL != "" {
		if settings.MeshProxy, err = c.meshProxy(); err != nil {
			return out, err
		}
	}
	events, err := inbound.New(settings)
	if err != nil {
		return out, err
	}
	out.events = events.TakeActivity
	services := registry.New(registry.Config{Objects: known.client, Live: known.live, Client: known.client, Targets: c.Targets, Log: c.Log})
	port := public.Config{Clients: clients, Pairing: paired, Registry: services, Events: events}
	if port.Certificate, err = out.certificate("connector-certificate", c.Certificate, c.CertFile, c.KeyFile); err != nil {
		return out, err
	}
	if len(c.Webhooks.Names) > 0 {
		hooks, err := webhooks.New(webhooks.Config{Objects: known.client, Publisher: events, Log: c.Log, Registry: c.Registry})
		if err != nil {
			return out, err
		}
		out.webhooks = hooks.TakeActivity
		port.Webhooks = &public.WebhookConfig{Names: c.Webhooks.Names, Nameless: c.Webhooks.Nameless, Handler: hooks}
		port.Webhooks.Certificate, err = out.certificate("webhooks-certificate", c.Webhooks.Certificate, c.Webhooks.CertFile, c.Webhooks.KeyFile)
		if err != nil {
			return out, err
		}
		if err := port.Webhooks.Validate(); err != nil {
			return out, fmt.Errorf("connector: %w", err)
		}
	}
	listener := server("connector-public", clients.Listener(c.Public), port.Handler())
	listener.TLS, listener.ReadTimeout, listener.MaxConnsPerRemote = port.TLS(), publicReadTimeout, max(listener.MaxConns/2, 1)
	out.parts = append(out.parts, httpserver.New(listener))
	return out, nil
}

// certificate is the one that is given, or that of two files, which are read again
// when they change.
func (o *outside) certificate(name string, given func(*tls.ClientHelloInfo) (*tls.Certificate, error), certFile, keyFile string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	if given != nil {
		return given, nil
	}
	watcher, err := certwatcher.New(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("connector: reading the certificate of the public listener: %w", err)
	}
	o.parts = append(o.parts, component.New(name, func(ctx context.Context, ready func()) error {
		ready()
		return watcher.Start(ctx)
	}))
	return watcher.GetCertificate, nil
}
