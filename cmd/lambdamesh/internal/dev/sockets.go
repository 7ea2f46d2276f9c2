package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// sockets are all listeners of the mesh, bound before anything is started: a
// port in use is known at once, and :0 has become a number that every part can
// be told.
type sockets struct {
	gateway, gatewayTLS, eventBus, eventBusAdmin, connector, xds net.Listener
	// private holds Unix sockets that only this user reaches. It lies in the
	// system's temporary directory because a socket's path is limited to about
	// 100 bytes and a data directory's is not.
	private string
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
			return nil, errors.Join(err, s.close())
		}
	}
	if s.private, err = os.MkdirTemp("", "lambdamesh-"); err != nil {
		return nil, errors.Join(fmt.Errorf("make a directory for sockets: %w", err), s.close())
	}
	return s, nil
}

// close closes what no component has closed, and removes the sockets.
func (s *sockets) close() error {
	for _, l := range []net.Listener{s.gateway, s.gatewayTLS, s.eventBus, s.eventBusAdmin, s.connector, s.xds} {
		if l != nil {
			_ = l.Close() // a component may have done it
		}
	}
	if s.private == "" {
		return nil
	}
	return os.RemoveAll(s.private)
}

// handOut gives bound listeners to a proxy that asks for the addresses of its
// configuration. A listener that the proxy closed and asks for again (its
// Gateway was deleted and made anew) is bound again where it was.
type handOut struct {
	mu    sync.Mutex
	bound map[string]net.Listener // by key, until handed out
	at    map[string]string       // by key, the real address
}

func newHandOut(listeners map[string]net.Listener) *handOut {
	h := &handOut{bound: listeners, at: map[string]string{}}
	for key, l := range listeners {
		h.at[key] = l.Addr().String()
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
		at, ok := h.at[k]
		if !ok {
			return nil, fmt.Errorf("no socket is set aside for %s %s: `lambdamesh dev` serves a Gateway's ports %d and %d", network, address, gatewayPort, gatewayTLSPort)
		}
		return httpserver.Listen(ctx, at, "")
	}
}

// byPort is the key of gateways: servers differ by port, whatever they bind to.
func byPort(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// byAddress is the key of sidecars.
func byAddress(address string) string { return address }
