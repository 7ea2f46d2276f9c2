package dev

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"

	"github.com/lambdamesh/lambdamesh/lambdas/place"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/proxyauth"
)

// sockets are all listeners of the mesh, bound before anything is started: a
// port in use is known at once, and :0 has become a number that every part can
// be told.
type sockets struct {
	gateway, gatewayTLS, eventBus, eventBusAdmin, connector, xds net.Listener
}

func bind(ctx context.Context, cfg *Config) (*sockets, error) {
	s := &sockets{}
	var err error
	for _, b := range []struct {
		to            *net.Listener
		address, flag string
	}{
		{&s.gateway, cfg.GatewayAddress, "--gateway-address"},
		{&s.gatewayTLS, cfg.GatewayTLSAddress, "--gateway-tls-address"},
		{&s.eventBus, cfg.EventBusAddress, "--eventbus-address"},
		{&s.eventBusAdmin, cfg.EventBusAdminAddress, "--eventbus-admin-address"},
		{&s.connector, cfg.ConnectorAddress, "--connector-address"},
		{&s.xds, cfg.XDSAddress, "--xds-address"},
	} {
		if *b.to, err = httpserver.Listen(ctx, b.address, b.flag); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// close closes what no component has closed.
func (s *sockets) close() {
	for _, l := range []net.Listener{s.gateway, s.gatewayTLS, s.eventBus, s.eventBusAdmin, s.connector, s.xds} {
		if l != nil {
			_ = l.Close() // a component may have done it
		}
	}
}

// connectorNames are what the connector's certificate is for.
func (s *sockets) connectorNames() []string {
	names := []string{"127.0.0.1", "::1", "connector." + Domain}
	if host, _, err := net.SplitHostPort(s.connector.Addr().String()); err == nil && !slices.Contains(names, host) {
		names = append(names, host)
	}
	return names
}

// lambdasSocket is that of the developer's own calls, no longer a name than the
// members'.
const lambdasSocket = "lambdas.sock"

// webhookNames are those under which the connector takes webhooks: one that every
// client on this machine finds, and one as on a cluster.
func webhookNames() []string { return []string{"localhost", "webhooks." + Domain} }

// socketDir is the directory for the sockets of members.
func socketDir(dataDir string) (string, error) {
	return place.SocketDir(filepath.Join(dataDir, "run", "members"), v1alpha1.ServiceAccountConnector+".sock")
}

// handOut gives bound listeners to a proxy that asks for the addresses of its
// configuration. A listener that the proxy closed and asks for again (its
// Gateway was deleted and made anew) is bound again where it was.
type handOut struct {
	mu    sync.Mutex
	bound map[string]net.Listener // by key, until handed out
	again map[string]func(context.Context) (net.Listener, error)
}

func newHandOut(listeners map[string]net.Listener) *handOut {
	h := &handOut{bound: listeners, again: map[string]func(context.Context) (net.Listener, error){}}
	for key, l := range listeners {
		if own, ok := l.(*proxyauth.Listener); ok {
			h.again[key] = own.Again // with the same secret
			continue
		}
		address := l.Addr().String()
		h.again[key] = func(ctx context.Context) (net.Listener, error) { return httpserver.Listen(ctx, address, "") }
	}
	return h
}

// listen is the proxy's Listen option. key maps the address it asks for to what
// the listener was stored under.
func (h *handOut) listen(key func(address string) string) func(context.Context, string, string) (net.Listener, error) {
	return func(ctx context.Context, network, address string) (net.Listener, error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		k := key(address)
		if l, ok := h.bound[k]; ok {
			delete(h.bound, k)
			return l, nil
		}
		again, ok := h.again[k]
		if !ok {
			return nil, fmt.Errorf("no socket is set aside for %s %s: `lambdamesh dev` serves a Gateway's ports %d and %d", network, address, gatewayPort, gatewayTLSPort)
		}
		return again(ctx)
	}
}

// byPort is the key of gateways: servers differ by port, whatever they bind to.
func byPort(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// byAddress is the key of sidecars.
func byAddress(address string) string { return address }
