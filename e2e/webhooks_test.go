package e2e

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const webhookObjects = `apiVersion: v1
kind: Secret
metadata: {name: hooked-github, namespace: lambdamesh-system}
stringData: {secret: hush}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: hooked}
spec:
  webhooks:
    - {name: code, provider: github, secretName: hooked-github, types: [push]}
`

// caller calls webhooks of a mesh under a name, as a third-party system without a
// client certificate does; it believes the mesh's own authority.
func (m *mesh) caller(t testing.TB) *http.Client {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(m.dataDir, "ca", "root.pem"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(raw))
	at, err := url.Parse(m.Connector)
	require.NoError(t, err)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		// Every name is the local connector's.
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, at.Host)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

func sendHook(t testing.TB, client *http.Client, url, event, body, secret string) int {
	t.Helper()
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(body))
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-GitHub-Event", event)
	req.Header.Set("X-GitHub-Delivery", h64(url+event))
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(h.Sum(nil)))
	r, err := do(client, req)
	require.NoError(t, err)
	return r.status
}

func h64(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:8])
}

// A signed call without a client certificate becomes an event that a lambda hears
// once, under the name of webhooks and no other.
func TestWebhooks(t *testing.T) {
	m := shared(t)
	m.apply(t, webhookObjects+`---
apiVersion: v1
kind: Namespace
metadata: {name: hooked}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: hooked, namespace: hooked}
spec: {application: hooked}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: hears, namespace: hooked}
spec: {source: hooked, types: ["com.github.**"], sink: {lambda: hears}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: hears, namespace: hooked}
spec:
  runtime: nodejs
  source: {inline: {code: "const heard = []; export const main = (event) => event.isEvent ? void heard.push([event.source, event.type, event.data.after].join(' ')) : heard"}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: hears, namespace: hooked}
spec:
  hosts: [hooked-heard]
  rules: [{path: "/*", lambda: hears, noAuth: true}]
`)
	m.waitFor(t, "hooked", "application/hooked", "Ready")
	for _, object := range []string{"lambda/hears", "subscription/hears", "apirule/hears"} {
		m.waitFor(t, "hooked", object, "Ready")
	}
	client := m.caller(t)
	hook := m.Webhooks + "/webhooks/hooked/code"
	for range 3 { // as providers do that have not heard the answer
		require.Equal(t, http.StatusOK, sendHook(t, client, hook, "push", `{"after":"1"}`, "hush"))
	}
	require.Equal(t, http.StatusOK, sendHook(t, client, hook, "issues", `{"after":"not taken"}`, "hush"))
	require.Equal(t, http.StatusUnauthorized, sendHook(t, client, hook, "push", `{"after":"forged"}`, "guess"))
	require.Equal(t, http.StatusNotFound, sendHook(t, client, m.Webhooks+"/webhooks/hooked/other", "push", "{}", "hush"))
	require.Equal(t, http.StatusNotFound, sendHook(t, client, m.Webhooks+"/hooked/events", "push", "{}", "hush"), "no path of paired systems")
	require.Equal(t, http.StatusOK, sendHook(t, client, m.Connector+"/webhooks/hooked/code", "push", `{"after":"2"}`, "hush"), "by address")
	paired := "https://connector.lambdas.localhost:" + port(t, m.Connector)
	require.Equal(t, http.StatusNotFound, sendHook(t, client, paired+"/webhooks/hooked/code", "push", `{"after":"3"}`, "hush"), "under the name of paired systems")
	eventually(t, time.Minute, func() error {
		r, err := m.get(t.Context(), "hooked-heard.lambdas.localhost", "/")
		if err != nil {
			return err
		}
		if r.body != `["hooked com.github.push 1","hooked com.github.push 2"]` && r.body != `["hooked com.github.push 2","hooked com.github.push 1"]` {
			return errorf("heard %s", r.body)
		}
		return nil
	})
	eventually(t, time.Minute, func() error {
		out, _ := m.cli(t, "status", "-A")
		for _, want := range []string{"last event", "webhook code refused 1"} {
			if !strings.Contains(out, want) {
				return errorf("no %q in %s", want, out)
			}
		}
		return nil
	})
}

func port(t testing.TB, at string) string {
	t.Helper()
	u, err := url.Parse(at)
	require.NoError(t, err)
	return u.Port()
}
