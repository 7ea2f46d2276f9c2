package dev

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAProxyGetsTheSocketSetAsideAndGetsItAgainAfterClosingIt(t *testing.T) {
	cfg := DefaultConfig()
	for _, address := range []*string{&cfg.GatewayAddress, &cfg.GatewayTLSAddress, &cfg.EventBusAddress, &cfg.EventBusAdminAddress, &cfg.ConnectorAddress} {
		*address = "127.0.0.1:0"
	}
	s, err := bind(t.Context(), &cfg)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.close()) }()

	listen := newHandOut(map[string]net.Listener{"80": s.gateway}).listen(byPort)
	first, err := listen(t.Context(), "tcp", "0.0.0.0:80")
	require.NoError(t, err)
	require.Same(t, s.gateway, first)
	address := first.Addr().String()
	require.NoError(t, first.Close())

	second, err := listen(t.Context(), "tcp", "0.0.0.0:80")
	require.NoError(t, err)
	require.Equal(t, address, second.Addr().String())
	require.NoError(t, second.Close())

	_, err = listen(t.Context(), "tcp", "0.0.0.0:81")
	require.ErrorContains(t, err, "0.0.0.0:81")
}

func TestAPortInUseNamesTheFlag(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer busy.Close()
	cfg := DefaultConfig()
	cfg.GatewayAddress = busy.Addr().String()
	_, err = bind(t.Context(), &cfg)
	require.ErrorContains(t, err, busy.Addr().String())
	require.ErrorContains(t, err, "--gateway-address")
}
