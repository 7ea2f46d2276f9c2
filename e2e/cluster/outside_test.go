package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// testOutside publishes from beyond the cluster, with a service account's token.
func testOutside(t *testing.T, c *cluster) {
	c.apply(t, c.members("outside")+c.sink("outside", "recorder", "")+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: publisher, namespace: outside}
`+subscription("outside", "recorder", "/outside/publisher"))
	c.waitFor(t, "outside", "subscription/recorder", "Ready")
	bus := c.publisher(t, "")
	good := c.token(t, nil, "outside", "publisher", v1alpha1.EventBusTokenAudience)

	for name, test := range map[string]struct {
		token, source string
		want          int
	}{
		"with a token":           {good, "/outside/publisher", http.StatusAccepted},
		"without a token":        {"", "/outside/publisher", http.StatusUnauthorized},
		"a token for the API":    {c.token(t, nil, "outside", "publisher", "https://kubernetes.default.svc.cluster.local"), "/outside/publisher", http.StatusUnauthorized},
		"a token for the mesh":   {c.token(t, nil, "outside", "publisher", v1alpha1.XDSTokenAudience), "/outside/publisher", http.StatusUnauthorized},
		"in another's name":      {good, "/shop/last-order", http.StatusForbidden},
		"in an application's":    {good, "commerce", http.StatusForbidden},
		"a token with a changed": {good[:len(good)-6] + "AAAAAA", "/outside/publisher", http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			id := strings.ReplaceAll(name, " ", "-")
			resp, err := bus.publish(t.Context(), test.token, test.source, id)
			require.NoError(t, err)
			require.Equal(t, test.want, resp.status, resp.body)
			if test.want != http.StatusAccepted {
				return
			}
			eventually(t, patience, func() error {
				seen, err := c.seen(t, "outside", "recorder")
				if err == nil && seen[id] != 1 {
					err = fmt.Errorf("event %s came %d times: %v", id, seen[id], seen)
				}
				return err
			})
		})
	}
	t.Run("a paired system, with its certificate", func(t *testing.T) { testPaired(t, c) })
	t.Run("by the command line", func(t *testing.T) {
		out, err := c.cli(t, "publish", "--service-account", "outside/publisher", "--source", "/outside/publisher", "--type", "test.v1", "--id", "by-command", "--data", "{}")
		require.NoError(t, err)
		require.Contains(t, out, "stored")
		out, err = c.cli(t, "publish", "-n", "outside", "--service-account", "publisher", "--source", "/outside/publisher", "--type", "test.v1", "-o", "json")
		require.NoError(t, err)
		require.Contains(t, out, `"sequence"`)
	})
}

// testPaired pairs a third-party system by the command line, and publishes at the
// connector's public port with the certificate that it got.
func testPaired(t *testing.T, c *cluster) {
	c.apply(t, `apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: outside-shop}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: outside-other}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: outside-shop, namespace: outside}
spec: {application: outside-shop}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: paired, namespace: outside}
spec: {source: outside-shop, types: ["**"], sink: {service: {name: recorder, namespace: outside, port: 80, path: /events}}}
`)
	c.waitFor(t, "outside", "subscription/paired", "Ready")
	t.Cleanup(func() { c.mustKubectl(t, "", "delete", "application", "outside-shop", "outside-other") })
	dir := filepath.Join(t.TempDir(), "shop")
	out, err := c.cli(t, "pair", "outside-shop", "--out", dir, "-n", "outside")
	require.NoError(t, err)
	require.Contains(t, out, "outside-shop is paired until")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key"))
	require.NoError(t, err)
	trusted, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(trusted))

	address := c.forward(t, system, "service/connector-public", "443")
	for name, test := range map[string]struct {
		certificates []tls.Certificate
		application  string
		want         int
	}{
		"its own":               {[]tls.Certificate{pair}, "outside-shop", http.StatusAccepted},
		"of another":            {[]tls.Certificate{pair}, "outside-other", http.StatusForbidden},
		"without a certificate": {nil, "outside-shop", http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: test.certificates, MinVersion: tls.VersionTLS12},
				DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
				},
			}}
			defer client.CloseIdleConnections()
			p := &publisher{url: "https://connector-public." + system + ".svc/" + test.application + "/events", client: client, c: c}
			id := strings.ReplaceAll("paired "+name, " ", "-")
			resp, err := p.publish(t.Context(), "", "outside-shop", id)
			require.NoError(t, err)
			require.Equal(t, test.want, resp.status, resp.body)
			if test.want != http.StatusAccepted {
				return
			}
			eventually(t, patience, func() error {
				seen, err := c.seen(t, "outside", "recorder")
				if err == nil && seen[id] != 1 {
					err = fmt.Errorf("event %q came %d times: %v", id, seen[id], seen)
				}
				return err
			})
		})
	}
}

// sink is a member of the mesh that remembers events, and the Service to it.
func (c *cluster) sink(namespace, name, more string) string {
	target := "http"
	if c.mesh == "istio" {
		target = "8080"
	}
	return c.probe(namespace, name, true, more) + fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec: {selector: {app: %[2]s}, ports: [{name: http, port: 80, targetPort: %[3]s}]}
`, namespace, name, target)
}

func subscription(namespace, name, source string) string {
	return fmt.Sprintf(`---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  source: %[3]s
  types: ["**"]
  sink: {service: {name: %[2]s, namespace: %[1]s, port: 80, path: /events}}
  delivery: {retry: {minBackoff: 1s, maxBackoff: 5s}}
`, namespace, name, source)
}

// publisher is somebody outside who knows the mesh's root.
type publisher struct {
	url    string
	client *http.Client
	c      *cluster
}

func (c *cluster) publisher(t *testing.T, node string) *publisher {
	t.Helper()
	return &publisher{
		c: c, url: "https://" + c.nodePort(t, "eventbus-public", "https", node) + "/publish",
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			TLSClientConfig:     c.trusting("eventbus-public." + system + ".svc"),
			MaxIdleConnsPerHost: 16,
		}},
	}
}

func (p *publisher) publish(ctx context.Context, token, source, id string) (response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, strings.NewReader("{}"))
	if err != nil {
		return response{}, err
	}
	for name, value := range map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": id, "Ce-Source": source, "Ce-Type": "test.v1", "Content-Type": "application/json",
	} {
		req.Header.Set(name, value)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return p.c.send(p.client, req)
}
