package httpserver_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// secured adds TLS to config, and to connections what clients need for it.
func secured(t *testing.T, config *httpserver.Config) (over func(*client) *client) {
	t.Helper()
	authority := testkit.NewAuthority(t)
	certificate, key := authority.Issue(t, "localhost")
	pair, err := tls.X509KeyPair(certificate, key)
	require.NoError(t, err)
	config.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	return func(c *client) *client {
		over := tls.Client(c.Conn, &tls.Config{RootCAs: authority.Pool(), ServerName: "localhost"})
		return &client{over, bufio.NewReader(over)}
	}
}

// Who gets no place never begins a handshake that somebody would wait for.
func TestASilentConnectionBeyondItsShareHoldsUpNobodysHandshake(t *testing.T) {
	config := httpserver.Config{MaxConns: 4, MaxConnsPerRemote: 2}
	over := secured(t, &config)
	s := startCrowd(t, config)
	const stranger = "127.0.0.2"
	for range 2 {
		c := over(dialFrom(t, stranger, s.url))
		c.send(t, "GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
		<-s.held
	}
	silent := dialFrom(t, stranger, s.url)
	_, err := silent.r.ReadByte()
	var late net.Error
	require.False(t, errors.As(err, &late) && late.Timeout(), "it is closed, without a word: %v", err)
	require.Equal(t, http.StatusOK, over(dialHere(t, s.url)).ask(t, "/"))
	s.metric(t, `lambdamesh_http_connections_refused_total{reason="remote",server="test"} 1`)
}

func TestConnectionsOverTLSMakeRoomWhateverTheyWaitFor(t *testing.T) {
	config := httpserver.Config{MaxConns: 3}
	over := secured(t, &config)
	s := startCrowd(t, config)
	shaking := dialHere(t, s.url)
	s.metric(t, `lambdamesh_http_connections{server="test"} 1`)
	idle := over(dialHere(t, s.url))
	require.Equal(t, http.StatusOK, idle.ask(t, "/"))
	for range 3 {
		c := over(dialHere(t, s.url))
		c.send(t, "GET /held HTTP/1.1\r\nHost: x\r\n\r\n")
		<-s.held
	}
	for _, gone := range []*client{shaking, idle} {
		status, _ := gone.answer(t)
		require.Zero(t, status)
	}
	s.metric(t, `lambdamesh_http_connections_evicted_total{server="test"} 2`)
}

// What a handler knows of TLS, such as the client's certificate, it has from its
// request.
func TestARequestTellsItsConnectionsTLS(t *testing.T) {
	for name, encrypted := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			var seen []bool
			config := httpserver.Config{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				seen = append(seen, r.TLS != nil && r.TLS.HandshakeComplete)
			})}
			over := func(c *client) *client { return c }
			if encrypted {
				over = secured(t, &config)
			}
			url, _, _ := start(t, config)
			c := over(dialHere(t, url))
			for range 2 {
				require.Equal(t, http.StatusOK, c.ask(t, "/"))
			}
			require.Equal(t, []bool{encrypted, encrypted}, seen)
		})
	}
}
