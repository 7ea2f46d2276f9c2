package dev

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/proxyauth"
)

func TestAProxyGetsTheSocketSetAsideAndGetsItAgainAfterClosingIt(t *testing.T) {
	cfg := DefaultConfig()
	for _, address := range []*string{&cfg.GatewayAddress, &cfg.GatewayTLSAddress, &cfg.EventBusAddress, &cfg.EventBusAdminAddress, &cfg.ConnectorAddress} {
		*address = "127.0.0.1:0"
	}
	s, err := bind(t.Context(), &cfg)
	require.NoError(t, err)
	defer s.close()

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

// An egress listener that is asked for again must not be everybody's then.
func TestAListenerWithASecretAsksForItAgain(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := inner.Addr().String()
	listen := newHandOut(map[string]net.Listener{address: proxyauth.Listen(inner, proxyauth.NewSecret())}).listen(byAddress)
	first, err := listen(t.Context(), "tcp", address)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	second, err := listen(t.Context(), "tcp", address)
	require.NoError(t, err)
	defer second.Close()
	go func() { _, _ = second.Accept() }() // nobody comes through
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", http.NoBody)
	require.NoError(t, err)
	response, err := (&http.Client{}).Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusProxyAuthRequired, response.StatusCode)
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

func TestSocketsOfMembersFitWhateverTheDataDirectory(t *testing.T) {
	short, err := os.MkdirTemp("", "d")
	require.NoError(t, err)
	defer os.RemoveAll(short)
	long := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	for name, dataDir := range map[string]string{"short": short, "long": long} {
		t.Run(name, func(t *testing.T) {
			dir, err := socketDir(dataDir)
			require.NoError(t, err)
			defer os.RemoveAll(dir)
			info, err := os.Stat(dir)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
			l, err := net.Listen("unix", filepath.Join(dir, "connector.sock"))
			require.NoError(t, err)
			require.NoError(t, l.Close())
		})
	}
}

func TestSocketsOfAKilledRunAreCleared(t *testing.T) {
	dataDir, err := os.MkdirTemp("", "d")
	require.NoError(t, err)
	defer os.RemoveAll(dataDir)
	dir, err := socketDir(dataDir)
	require.NoError(t, err)
	left := filepath.Join(dir, "eventbus.sock")
	require.NoError(t, os.WriteFile(left, nil, 0o600))
	_, err = socketDir(dataDir)
	require.NoError(t, err)
	require.NoFileExists(t, left)
}
