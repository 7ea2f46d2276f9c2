package meshtest_test

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func gatewayAccount() ads.Identity {
	return ads.Identity{Namespace: v1alpha1.SystemNamespace, ServiceAccount: v1alpha1.ServiceAccountGateway}
}

// plane is a real ADS server with embedded proxies.
type plane struct {
	ca     *ca.CA
	server *ads.Server

	mu    sync.Mutex
	nodes map[string]ads.Identity
}

func newPlane(t testing.TB) *plane {
	t.Helper()
	p := &plane{nodes: map[string]ads.Identity{}}
	var err error
	p.ca, err = ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.server, err = ads.New(ads.Config{
		Listener: listener, CA: p.ca, Authenticator: p, Log: slog.New(slog.DiscardHandler),
		NodeIdentity: func(_ context.Context, node string) (ads.Identity, bool) {
			p.mu.Lock()
			defer p.mu.Unlock()
			id, found := p.nodes[node]
			return id, found
		},
	})
	require.NoError(t, err)
	start(t, p.server)
	return p
}

// Authenticate takes "namespace/serviceaccount" as a token.
func (p *plane) Authenticate(_ context.Context, token string) (ads.Identity, error) {
	namespace, account, found := strings.Cut(token, "/")
	if !found {
		return ads.Identity{}, ads.ErrUnauthenticated
	}
	return ads.Identity{Namespace: namespace, ServiceAccount: account}, nil
}

// run serves a node until the test ends. Its listeners are at ports of the
// system's choice: the result is the real address by the port in the resources.
// Nothing of the resources may be refused.
func (p *plane) run(t testing.TB, node, target string, id ads.Identity, resources xds.Resources, bound ...net.Listener) map[string]string {
	t.Helper()
	p.mu.Lock()
	p.nodes[node] = id
	p.mu.Unlock()
	version, err := p.server.SetResources(target, resources.ByType())
	require.NoError(t, err)
	var mu sync.Mutex
	addresses := map[string]string{}
	dataPlane, err := proxy.New(proxy.Config{
		NodeID: node, ADSAddress: p.server.Addr(), RootCAs: p.ca.Roots, Log: slog.New(slog.DiscardHandler),
		Token: func(context.Context) (string, error) { return id.String(), nil },
		Listen: func(_ context.Context, _, address string) (net.Listener, error) {
			mu.Lock()
			defer mu.Unlock()
			for _, l := range bound {
				if l.Addr().String() == address {
					return l, nil
				}
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				_, port, _ := net.SplitHostPort(address)
				addresses[port] = l.Addr().String()
			}
			return l, err
		},
	})
	require.NoError(t, err)
	start(t, dataPlane)
	select {
	case <-dataPlane.Ready():
	case <-time.After(time.Minute):
		t.Fatalf("node %s did not become ready: %+v", node, p.server.Status(target))
	}
	for _, n := range p.server.Status(target).Nodes {
		require.Empty(t, n.Nacks, "version %s", version)
	}
	return addresses
}

func start(t testing.TB, c interface {
	Run(ctx context.Context) error
},
) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}
