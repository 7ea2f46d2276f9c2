package ads_test

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
)

// knock connects from an address of loopback, up to TLS and no further.
func (f *fixture) knock(t *testing.T, from string) net.Conn {
	t.Helper()
	dialer := tls.Dialer{
		NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 20 * time.Second},
		Config:    &tls.Config{RootCAs: f.ca.Pool(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}},
	}
	c, err := dialer.DialContext(t.Context(), "tcp", f.Addr())
	if err != nil {
		return nil
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ended waits for the end of a connection.
func ended(c net.Conn, patience time.Duration) bool {
	if c == nil {
		return true
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, c)
	timeout, ok := err.(net.Error) //nolint:errorlint // io.Copy wraps nothing
	return !ok || !timeout.Timeout()
}

// letIn waits until the server knows that the client is the node.
func (c *client) letIn(f *fixture) {
	c.t.Helper()
	c.request(resource.ClusterType)
	select {
	case <-f.changed:
	case err := <-c.ended:
		c.t.Fatalf("the stream ended: %v", err)
	case <-time.After(time.Minute):
		c.t.Fatal("it is not let in")
	}
}

func bounds(unproven, perRemote, all int) func(*ads.Config) {
	return func(c *ads.Config) {
		c.MaxUnproven, c.MaxUnprovenPerRemote, c.MaxConnsPerRemote = unproven, perRemote, all
	}
}

func TestConnectionsWithoutATokenHaveAShareAndKeepNobodyOut(t *testing.T) {
	f := start(t, bounds(8, 4, 100))
	for _, attacker := range []string{"127.0.0.2", "127.0.0.3", "127.0.0.4"} {
		var conns []net.Conn
		for range 10 {
			conns = append(conns, f.knock(t, attacker))
		}
		closed := 0
		for _, c := range conns[4:] {
			if ended(c, 4*time.Second) {
				closed++
			}
		}
		require.Equal(t, 6, closed, "of %s more than its share", attacker)
	}
	f.connect(t, node, "authorization", "Bearer "+account).letIn(f)
}

func TestWhoShowedATokenTakesNoPlaceOfThoseWhoHaveNot(t *testing.T) {
	f := start(t, bounds(2, 2, 6))
	for range 6 {
		f.connect(t, node, "authorization", "Bearer "+account).letIn(f)
	}
	require.True(t, ended(f.knock(t, "127.0.0.1"), 10*time.Second), "a remote has a share of all")
	require.NotNil(t, f.knock(t, "127.0.0.2"))
}
