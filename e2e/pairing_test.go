package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// shop is a third-party system that was paired: it holds the files that
// `lambdamesh pair` wrote.
type shop struct {
	dir  string
	http *http.Client
	urls map[string]string
}

// openShop reads the files of a paired system.
func openShop(t testing.TB, dir string) *shop {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	raw, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	require.NoError(t, err)
	require.True(t, roots.AppendCertsFromPEM(raw))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, MaxIdleConnsPerHost: 64, ExpectContinueTimeout: time.Minute}
	t.Cleanup(transport.CloseIdleConnections)
	var about struct{ URLs map[string]string }
	raw, err = os.ReadFile(filepath.Join(dir, "connection.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &about))
	return &shop{dir: dir, http: &http.Client{Transport: transport, Timeout: 30 * time.Second}, urls: about.URLs}
}

func (s *shop) send(ctx context.Context, method, url, body string, header ...string) (response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return response{}, err
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return do(s.http, req)
}

func pairingObjects(namespace string, applications ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", namespace)
	for _, name := range applications {
		fmt.Fprintf(&b, "---\napiVersion: lambdamesh.dev/v1alpha1\nkind: Application\nmetadata: {name: %s}\n", name)
	}
	return b.String()
}

// A third-party system pairs, publishes, renews and is revoked, by the built
// programs and with nothing but HTTP.
func TestPairing(t *testing.T) {
	m := shared(t)
	m.apply(t, pairingObjects("pairing", "paired-shop", "other-shop")+`---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: shop, namespace: pairing}
spec: {application: paired-shop}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: hears, namespace: pairing}
spec:
  runtime: nodejs
  source: {inline: {code: "const heard = []; export const main = (event) => event.isEvent ? void heard.push([event.source, event.type, event.data.orderCode].join(' ')) : heard"}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: hears, namespace: pairing}
spec: {source: paired-shop, types: ["**"], sink: {lambda: hears}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: hears, namespace: pairing}
spec:
  hosts: [paired-heard]
  rules: [{path: "/*", lambda: hears, noAuth: true}]
`)
	for _, object := range []string{"lambda/hears", "subscription/hears", "apirule/hears"} {
		m.waitFor(t, "pairing", object, "Ready")
	}
	dir := filepath.Join(t.TempDir(), "shop")
	out, code := m.cli(t, "pair", "paired-shop", "--out", dir)
	require.Zero(t, code, out)
	require.Contains(t, out, "paired-shop is paired until")
	for _, file := range []string{"client.key", "client.crt", "ca.crt", "connection.json"} {
		info, err := os.Stat(filepath.Join(dir, file))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), file)
	}
	left := m.mustKubectl(t, "", "get", "tokenrequests", "-A", "-o", "name")
	require.NotContains(t, left, "pair-paired-shop", "the token's request goes with it")
	m.waitFor(t, "pairing", "application/paired-shop", "Paired")
	s := openShop(t, dir)
	base := m.Connector + "/paired-shop"
	require.Equal(t, base+"/v1/events", s.urls["eventsUrl"])

	t.Run("its events arrive as its own", func(t *testing.T) {
		legacy, err := s.send(t.Context(), http.MethodPost, s.urls["eventsUrl"],
			`{"event-type":"order.created","event-type-version":"v1","event-time":"2026-01-02T03:04:05Z","data":{"orderCode":"legacy"}}`)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, legacy.status, legacy.body)
		require.Contains(t, legacy.body, `"event-id"`)
		cloud, err := s.send(t.Context(), http.MethodPost, base+"/events", `{"orderCode":"cloud"}`,
			"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "other-shop", "Ce-Type", "order.created.v1")
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, cloud.status, cloud.body)
		eventually(t, time.Minute, func() error {
			r, err := m.get(t.Context(), "paired-heard.lambdas.localhost", "/")
			if err != nil {
				return err
			}
			for _, want := range []string{"paired-shop order.created.v1 legacy", "paired-shop order.created.v1 cloud"} {
				if !strings.Contains(r.body, want) {
					return errorf("heard %s", r.body)
				}
			}
			return nil
		})
		asked, err := s.send(t.Context(), http.MethodGet, base+"/v1/events/subscribed", "")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, asked.status)
		require.Contains(t, asked.body, `"eventsInfo":[`)
	})

	t.Run("the bus's refusals are passed on", func(t *testing.T) {
		legacy, err := s.send(t.Context(), http.MethodPost, s.urls["eventsUrl"], `{"event-type":"order created"}`)
		require.NoError(t, err)
		require.Equal(t, http.StatusBadRequest, legacy.status)
		require.Contains(t, legacy.body, "validation_violation")
		large, err := s.send(t.Context(), http.MethodPost, base+"/events", strings.Repeat(" ", 2<<20), "Expect", "100-continue",
			"Ce-Specversion", "1.0", "Ce-Id", "2", "Ce-Source", "x", "Ce-Type", "order.created.v1")
		require.NoError(t, err)
		require.Equal(t, http.StatusRequestEntityTooLarge, large.status)
	})

	t.Run("nobody else is let in", func(t *testing.T) {
		for path, want := range map[string]int{"/other-shop/v1/events": 403, "/other-shop/events": 403, "/nobody/v1/events": 404} {
			r, err := s.send(t.Context(), http.MethodPost, m.Connector+path, "{}")
			require.NoError(t, err)
			require.Equal(t, want, r.status, path)
		}
		stranger := openShop(t, dir)
		transport, ok := stranger.http.Transport.(*http.Transport)
		require.True(t, ok)
		transport.TLSClientConfig.Certificates = nil
		r, err := stranger.send(t.Context(), http.MethodPost, base+"/events", "{}")
		require.NoError(t, err)
		require.Equal(t, http.StatusForbidden, r.status, "without a certificate")
		other := filepath.Join(t.TempDir(), "other")
		out, code := m.cli(t, "pair", "other-shop", "--out", other, "--key", "ecdsa-p256")
		require.Zero(t, code, out)
		r, err = openShop(t, other).send(t.Context(), http.MethodPost, base+"/events", "{}")
		require.NoError(t, err)
		require.Equal(t, http.StatusForbidden, r.status, "with another's certificate")
		out, code = m.cli(t, "pair", "nobody", "--out", other)
		require.Equal(t, 1, code)
		require.Contains(t, out, "there is no Application nobody")
	})

	t.Run("a token is good once", func(t *testing.T) {
		m.apply(t, "apiVersion: lambdamesh.dev/v1alpha1\nkind: TokenRequest\nmetadata: {name: once, namespace: pairing}\nspec: {application: paired-shop}\n")
		m.waitFor(t, "pairing", "tokenrequest/once", "Ready")
		secret := m.mustKubectl(t, "", "get", "-n", "pairing", "tokenrequest/once", "-o", "jsonpath={.status.secretName}")
		encoded := m.mustKubectl(t, "", "get", "-n", "pairing", "secret", secret, "-o", "jsonpath={.data.url}")
		url, err := base64.StdEncoding.DecodeString(encoded)
		require.NoError(t, err)
		first := filepath.Join(t.TempDir(), "first")
		out, code := m.cli(t, "pair", "paired-shop", "--out", first, "--url", string(url), "--ca", filepath.Join(dir, "ca.crt"))
		require.Zero(t, code, out)
		out, code = m.cli(t, "pair", "paired-shop", "--out", first, "--url", string(url), "--ca", filepath.Join(dir, "ca.crt"))
		require.Equal(t, 1, code)
		require.Contains(t, out, "request another")
		require.NotContains(t, out, string(url))
		eventually(t, time.Minute, func() error {
			if _, err := m.kubectl(t, "", "get", "-n", "pairing", "secret", secret); err == nil {
				return errorf("the Secret %s is still there", secret)
			}
			return nil
		})
	})

	t.Run("it renews and is revoked", func(t *testing.T) {
		before, err := os.ReadFile(filepath.Join(dir, "client.key"))
		require.NoError(t, err)
		out, code := m.cli(t, "pair", "paired-shop", "--out", dir, "--renew")
		require.Zero(t, code, out)
		after, err := os.ReadFile(filepath.Join(dir, "client.key"))
		require.NoError(t, err)
		require.NotEqual(t, before, after)
		renewed := openShop(t, dir)
		for _, good := range []*shop{s, renewed} {
			r, err := good.send(t.Context(), http.MethodGet, base+"/v1/events/subscribed", "")
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, r.status)
		}
		r, err := s.send(t.Context(), http.MethodPost, s.urls["revokeCertUrl"], "")
		require.NoError(t, err)
		require.Equal(t, http.StatusCreated, r.status)
		again := openShop(t, dir) // the renewed one stays good, the revoked one is out
		again.http.Transport.(*http.Transport).TLSClientConfig.Certificates = s.http.Transport.(*http.Transport).TLSClientConfig.Certificates
		if r, err := again.send(t.Context(), http.MethodPost, base+"/events", "{}"); err == nil {
			require.Equal(t, http.StatusForbidden, r.status)
		}
		r, err = renewed.send(t.Context(), http.MethodGet, base+"/v1/events/subscribed", "")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, r.status)
	})

	t.Run("a certificate of one's own making is none", func(t *testing.T) {
		forged := openShop(t, dir)
		transport, ok := forged.http.Transport.(*http.Transport)
		require.True(t, ok)
		transport.TLSClientConfig.Certificates = []tls.Certificate{forgedFor(t, forged)}
		r, err := forged.send(t.Context(), http.MethodGet, base+"/v1/events/subscribed", "")
		if err == nil {
			require.Equal(t, http.StatusForbidden, r.status)
		}
	})
}

// forgedFor says about itself what the certificate of a shop says.
func forgedFor(t *testing.T, s *shop) tls.Certificate {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.dir, "client.crt"))
	require.NoError(t, err)
	block, _ := pem.Decode(raw)
	real, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &x509.Certificate{
		SerialNumber: real.SerialNumber, RawSubject: real.RawIssuer, Subject: pkix.Name{}, NotBefore: real.NotBefore, NotAfter: real.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: real.SerialNumber, RawSubject: real.RawSubject, NotBefore: real.NotBefore, NotAfter: real.NotAfter,
		ExtKeyUsage: real.ExtKeyUsage, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// BenchmarkPublishing compares who publishes as a paired system, over mutual TLS
// and through the mesh, with who publishes in plain text at the bus: the same
// events on as many kept connections, by a client that does next to nothing but,
// where there is TLS, encrypt.
func BenchmarkPublishing(b *testing.B) {
	m := start(b, b.TempDir())
	if out, err := m.kubectl(b, pairingObjects("pairing", "bench-shop"), "apply", "-f", "-"); err != nil {
		b.Fatal(err, out)
	}
	dir := filepath.Join(b.TempDir(), "shop")
	if out, code := m.cli(b, "pair", "bench-shop", "--out", dir); code != 0 {
		b.Fatal(out)
	}
	transport, ok := openShop(b, dir).http.Transport.(*http.Transport)
	require.True(b, ok)
	way := func(name, base string, dial func(address string) (net.Conn, error)) testkit.Way {
		address := strings.TrimPrefix(strings.TrimPrefix(base, "https://"), "http://")
		w := testkit.Way{Name: name}
		for range 16 {
			conn, err := dial(address)
			require.NoError(b, err)
			b.Cleanup(func() { conn.Close() })
			wire := testkit.NewWire(conn)
			const event = "POST /bench-shop/events HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: 20\r\n" +
				"Ce-Specversion: 1.0\r\nCe-Id: %s\r\nCe-Source: x\r\nCe-Type: order.created.v1\r\n\r\n" + `{"orderCode":"4711"}`
			w.Callers = append(w.Callers, func() error {
				return wire.Do(fmt.Appendf(nil, event, address, rand.Text()), http.StatusAccepted)
			})
		}
		return w
	}
	dialer := &net.Dialer{}
	secure := &tls.Dialer{Config: transport.TLSClientConfig}
	testkit.Compare(b, 20,
		way("plain", m.EventBus, func(address string) (net.Conn, error) { return dialer.DialContext(b.Context(), "tcp", address) }),
		way("paired", m.Connector, func(address string) (net.Conn, error) { return secure.DialContext(b.Context(), "tcp", address) }))
}
