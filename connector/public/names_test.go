package public_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/connector/public"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// hooks notes which webhook was called.
type hooks struct{}

func (hooks) Webhook(w http.ResponseWriter, _ *http.Request, application, name string) {
	w.Header().Set("X-Served", application+"/"+name)
	w.WriteHeader(http.StatusNoContent)
}

const (
	pairedName  = "connector.example.com"
	webhookName = "hooks.example.com"
)

// servePort serves both names at an address, with certificates that tell them
// apart.
func servePort(t *testing.T, nameless bool) (address string, roots *x509.CertPool) {
	t.Helper()
	ca := testkit.NewAuthority(t)
	certificate := func(names ...string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		chain, key := ca.Issue(t, names...)
		pair, err := tls.X509KeyPair(chain, key)
		require.NoError(t, err)
		return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	clients, _ := paired(t)
	port := public.Config{
		Clients: clients, Certificate: certificate(pairedName, "127.0.0.1"), Pairing: &behind{}, Registry: &behind{}, Events: &behind{},
		Webhooks: &public.WebhookConfig{Names: []string{webhookName}, Certificate: certificate(webhookName), Handler: hooks{}, Nameless: nameless},
	}
	require.NoError(t, port.Webhooks.Validate())
	listener, err := httpserver.Listen(t.Context(), "127.0.0.1:0", "")
	require.NoError(t, err)
	server := httpserver.New(httpserver.Config{Name: "public", Listener: clients.Listener(listener), Handler: port.Handler(), TLS: port.TLS()})
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() { stop(); require.NoError(t, <-done) })
	return listener.Addr().String(), ca.Pool()
}

// dial makes a connection to a name; asks tells whether the server asked for a
// client certificate.
func dial(t *testing.T, address, name string, roots *x509.CertPool, protocols ...string) (conn *tls.Conn, asks bool, err error) {
	t.Helper()
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { raw.Close() })
	config := &tls.Config{ServerName: name, RootCAs: roots, NextProtos: protocols, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asks = true
		return &tls.Certificate{}, nil
	}}
	conn = tls.Client(raw, config)
	err = conn.HandshakeContext(t.Context())
	return conn, asks, err
}

func ask(t *testing.T, conn *tls.Conn, method, host, path string) *http.Response {
	t.Helper()
	_, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", method, path, host)
	require.NoError(t, err)
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	answer.Body.Close()
	return answer
}

func TestNamesAreServedApart(t *testing.T) {
	const hook, pair, events = "/webhooks/shop/orders", "/v1/applications/certificates", "/shop/events"
	for _, c := range []struct {
		nameless         bool
		server           string // of the handshake
		host, path       string
		asks             bool
		status           int
		certificateNames string
	}{
		{false, webhookName, webhookName, hook, false, 204, webhookName},
		{false, "HOOKS.example.com", webhookName + ".:443", hook, false, 204, webhookName},
		{false, webhookName, webhookName, pair, false, 404, webhookName},
		{false, webhookName, webhookName, events, false, 404, webhookName},
		{false, webhookName, webhookName, "/webhooks/v1/events", false, 204, webhookName}, // a webhook of that name
		{false, pairedName, pairedName, hook, true, 404, pairedName},
		{false, pairedName, pairedName + ":8443", pair, true, 204, pairedName},
		{false, pairedName, pairedName, events, true, 403, pairedName},
		// The names of handshake and request differ, as with a coalesced connection.
		{false, pairedName, webhookName, hook, true, 421, pairedName},
		{false, webhookName, pairedName, pair, false, 421, webhookName},
		{false, webhookName, "elsewhere.example.com", hook, false, 421, webhookName},
		{false, webhookName, "127.0.0.1", hook, false, 421, webhookName},
		{false, pairedName, "elsewhere.example.com", pair, true, 421, pairedName},
		// A client that names no server.
		{false, "", "127.0.0.1", pair, true, 204, pairedName},
		{false, "", "127.0.0.1", hook, true, 404, pairedName},
		{false, "", webhookName, hook, true, 421, pairedName},
		{true, "", "127.0.0.1", hook, true, 204, pairedName},
		{true, "", "127.0.0.1", pair, true, 204, pairedName},
		{true, "", "127.0.0.1", events, true, 403, pairedName},
		{true, pairedName, pairedName, hook, true, 404, pairedName},
	} {
		what := fmt.Sprintf("%+v", c)
		address, roots := servePort(t, c.nameless)
		name := c.server
		if name == "" {
			name = "127.0.0.1" // which no client sends as a server's name
		}
		conn, asks, err := dial(t, address, name, roots)
		require.NoError(t, err, what)
		require.Equal(t, c.asks, asks, what)
		require.Equal(t, c.certificateNames, conn.ConnectionState().PeerCertificates[0].DNSNames[0], what)
		require.Equal(t, c.status, ask(t, conn, http.MethodPost, c.host, c.path).StatusCode, what)
	}
}

// HTTP/2 clients send requests for several names over one connection, where the
// certificate is good for them. There is none to share.
func TestConnectionsAreOfOneNameAndHTTP1(t *testing.T) {
	address, roots := servePort(t, false)
	for _, name := range []string{pairedName, webhookName} {
		conn, _, err := dial(t, address, name, roots, "h2", "http/1.1")
		require.NoError(t, err)
		require.Equal(t, "http/1.1", conn.ConnectionState().NegotiatedProtocol)
		_, _, err = dial(t, address, name, roots, "h2")
		require.Error(t, err)
	}
	// A certificate that is good for both names would not help.
	conn, _, err := dial(t, address, webhookName, roots)
	require.NoError(t, err)
	require.Equal(t, http.StatusNoContent, ask(t, conn, http.MethodPost, webhookName, "/webhooks/shop/orders").StatusCode)
	require.Equal(t, http.StatusMisdirectedRequest, ask(t, conn, http.MethodPost, pairedName, "/v1/applications/certificates").StatusCode)
}

func TestWebhookNamesAreChecked(t *testing.T) {
	certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	for _, name := range []string{"", "127.0.0.1", "::1", "https://hooks.example.com", "hooks.example.com:443", "*.example.com", "a b"} {
		config := public.WebhookConfig{Names: []string{name}, Certificate: certificate, Handler: hooks{}}
		require.ErrorContains(t, config.Validate(), "webhooks", strings.ToUpper(name))
	}
	require.Error(t, (&public.WebhookConfig{Names: []string{"a"}, Handler: hooks{}}).Validate())
	require.Error(t, (&public.WebhookConfig{Certificate: certificate, Handler: hooks{}}).Validate())
}
