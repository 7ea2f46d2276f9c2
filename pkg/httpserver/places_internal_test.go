package httpserver

import (
	"math"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAsManyConnectionsAsFitIntoAQuarterOfTheMemory(t *testing.T) {
	require.Equal(t, 1840, connsFor(460<<20))
	require.Equal(t, unlimitedConns, connsFor(math.MaxInt64))
	require.Equal(t, unlimitedConns, connsFor(64<<30))
	require.Equal(t, minConns, connsFor(1<<20))
}

type from struct {
	net.Conn
	addr net.Addr
}

func (c from) RemoteAddr() net.Addr { return c.addr }

func TestRemotes(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32", "2001:db8::1:2:3:4": "2001:db8::/64",
	} {
		require.Equal(t, want, remoteOf(from{addr: &net.TCPAddr{IP: net.ParseIP(addr), Port: 1}}).String())
	}
	require.False(t, remoteOf(from{addr: &net.UnixAddr{Name: "@"}}).IsValid())
}
