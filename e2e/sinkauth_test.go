package e2e

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// hook is an endpoint outside of the mesh that keeps what it was sent.
type hook struct {
	*httptest.Server
	got    chan received
	tokens atomic.Int64 // that it has given out
	refuse atomic.Bool  // the first token
}

type received struct {
	path   string
	header http.Header
	body   []byte
	who    string // of a client certificate
}

func newHook(t testing.TB, secured *tls.Config) *hook {
	t.Helper()
	h := &hook{got: make(chan received, 100)}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/oauth" {
			id, secret, _ := r.BasicAuth()
			if id != "bus" || secret != "s3cret-of-the-client" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":3600}`, h.tokens.Add(1))
			return
		}
		if h.refuse.Load() && r.Header.Get("Authorization") == "Bearer token-1" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		body, _ := io.ReadAll(r.Body)
		got := received{path: r.URL.Path, header: r.Header, body: body}
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			got.who = r.TLS.PeerCertificates[0].DNSNames[0]
		}
		h.got <- got
	}))
	if secured != nil {
		h.TLS = secured
		h.StartTLS()
	} else {
		h.Start()
	}
	t.Cleanup(h.Close)
	return h
}

func (h *hook) next(t testing.TB) received {
	t.Helper()
	select {
	case r := <-h.got:
		return r
	case <-time.After(time.Minute):
		t.Fatal("nothing was pushed within a minute")
		return received{}
	}
}

func opaque(namespace, name string, data ...string) string {
	values := map[string]string{}
	for i := 0; i+1 < len(data); i += 2 {
		values[data[i]] = data[i+1]
	}
	text, _ := json.Marshal(values)
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\nstringData: %s\n---\n", name, namespace, text)
}

func TestASinkOutsideKnowsTheBus(t *testing.T) {
	const shop = "sink-auth"
	m := shared(t)
	authority := testkit.NewAuthority(t)
	serverCert, serverKey := authority.Issue(t, "127.0.0.1")
	pair, err := tls.X509KeyPair(serverCert, serverKey)
	require.NoError(t, err)
	clientCert, clientKey := authority.Issue(t, "bus.example.com")
	hidden := []string{
		base64.StdEncoding.EncodeToString([]byte(strings.Repeat("1", 32))), base64.StdEncoding.EncodeToString([]byte(strings.Repeat("2", 32))),
		"s3cret-of-the-client", "s3cret-password", "s3cret-header",
	}
	plain := newHook(t, nil)
	certified := newHook(t, &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientCAs: authority.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	})
	subscription := func(name, uri, auth string) string {
		return fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  source: %[1]s
  types: ["%[2]s.**"]
  sink: {uri: "%[3]s/%[2]s", auth: %[4]s}
  delivery: {retry: {minBackoff: 50ms, maxBackoff: 100ms}}
---
`, shop, name, uri, auth)
	}
	publish := func(t testing.TB, kind, id string) {
		t.Helper()
		resp := post(t, m.EventBus+"/publish", "application/json", `{"order":1}`, "ce-specversion", "1.0", "ce-id", kind+id, "ce-source", shop, "ce-type", kind+".happened")
		require.Equal(t, http.StatusAccepted, resp.status, resp.body)
	}
	m.apply(t, bound(shop)+
		opaque(shop, "first", "secret", "whsec_"+hidden[0])+opaque(shop, "second", "secret", "whsec_"+hidden[1])+
		opaque(shop, "client", "clientId", "bus", "clientSecret", hidden[2])+
		opaque(shop, "user", "username", "bus", "password", hidden[3])+
		opaque(shop, "header", "key", hidden[4]+"\n")+
		opaque(shop, "certificate", "tls.crt", string(clientCert), "tls.key", string(clientKey), "ca.crt", string(authority.RootPEM()))+
		subscription("signed", plain.URL, `{signing: {secrets: [{name: first}]}}`)+
		subscription("token", plain.URL, fmt.Sprintf(`{oauth2: {tokenUrl: "%s/oauth", secret: {name: client}, scopes: [push]}}`, plain.URL))+
		subscription("basic", plain.URL, `{basic: {secret: {name: user}}, headers: [{name: X-Api-Key, secret: {name: header, key: key}}, {name: X-Tenant, value: shop}]}`)+
		subscription("mtls", certified.URL, `{mtls: {secret: {name: certificate}}}`)+
		subscription("late", plain.URL, `{basic: {secret: {name: late}}}`)+
		subscription("inside", plain.URL, `{oauth2: {tokenUrl: "http://169.254.169.254/token", secret: {name: client}}}`))
	for _, name := range []string{"signed", "token", "basic", "mtls"} {
		m.waitFor(t, shop, "subscription/"+name, "Ready")
	}

	verify := func(r received, key string) error {
		hook, err := standardwebhooks.NewWebhook("whsec_" + key)
		require.NoError(t, err)
		return hook.Verify(r.body, r.header)
	}
	t.Run("by a signature, also while its secret is replaced", func(t *testing.T) {
		publish(t, "signed", "one")
		got := plain.next(t)
		require.NoError(t, verify(got, hidden[0]))
		require.Error(t, verify(got, hidden[1]))
		require.JSONEq(t, `{"order":1}`, string(got.body))
		m.apply(t, subscription("signed", plain.URL, `{signing: {secrets: [{name: second}, {name: first}]}}`))
		eventually(t, time.Minute, func() error { // each event once signed by both
			publish(t, "signed", fmt.Sprintf("two-%d", time.Now().UnixNano()))
			got := plain.next(t)
			if err := verify(got, hidden[0]); err != nil {
				return err
			}
			return verify(got, hidden[1])
		})
	})
	t.Run("by an access token, which serves many and is replaced when it is refused", func(t *testing.T) {
		publish(t, "token", "a")
		require.Equal(t, "Bearer token-1", plain.next(t).header.Get("Authorization"))
		publish(t, "token", "b")
		require.Equal(t, "Bearer token-1", plain.next(t).header.Get("Authorization"))
		plain.refuse.Store(true)
		publish(t, "token", "c")
		require.Equal(t, "Bearer token-2", plain.next(t).header.Get("Authorization"))
		require.EqualValues(t, 2, plain.tokens.Load())
	})
	t.Run("by a password and headers", func(t *testing.T) {
		publish(t, "basic", "one")
		got := plain.next(t)
		user, password, _ := (&http.Request{Header: got.header}).BasicAuth()
		require.Equal(t, "bus "+hidden[3], user+" "+password)
		require.Equal(t, hidden[4], got.header.Get("X-Api-Key"))
		require.Equal(t, "shop", got.header.Get("X-Tenant"))
	})
	t.Run("by a certificate", func(t *testing.T) {
		publish(t, "mtls", "one")
		require.Equal(t, "bus.example.com", certified.next(t).who)
	})
	t.Run("a Secret that is not there is waited for", func(t *testing.T) {
		publish(t, "late", "one")
		eventually(t, time.Minute, func() error {
			if said := m.mustKubectl(t, "", "get", "subscription", "-n", shop, "late", "-o", `jsonpath={.status.conditions[?(@.type=="SinkReady")].reason}`); said != "SecretNotFound" {
				return errorf("SinkReady says %q", said)
			}
			return nil
		})
		m.apply(t, opaque(shop, "late", "username", "bus", "password", hidden[3]))
		require.Equal(t, "/late", plain.next(t).path)
	})
	t.Run("a token URL where none may be is refused", func(t *testing.T) {
		eventually(t, time.Minute, func() error {
			if said := m.mustKubectl(t, "", "get", "subscription", "-n", shop, "inside", "-o", `jsonpath={.status.conditions[?(@.type=="SinkReady")].reason}`); said != "TargetRefused" {
				return errorf("SinkReady says %q", said)
			}
			return nil
		})
	})
	t.Run("what cannot be is refused when it is written", func(t *testing.T) {
		for auth, says := range map[string]string{
			`{}`: "auth needs one of",
			`{basic: {secret: {name: a}}, signing: {secrets: [{name: a}]}}`:                      "at most one of signing, oauth2, basic, mtls",
			`{mtls: {secret: {name: a}}}`:                                                        "https://",
			`{headers: [{name: Host, value: a}]}`:                                                "the event bus sets this header itself",
			`{headers: [{name: Webhook-Id, value: a}]}`:                                          "the event bus sets this header itself",
			`{headers: [{name: X-A, value: "a\r\nb: c"}]}`:                                       "control characters",
			`{headers: [{name: X-A}]}`:                                                           "either value or secret",
			`{basic: {secret: {name: a}}, headers: [{name: authorization, value: a}]}`:           "Authorization",
			`{signing: {secrets: []}}`:                                                           "at least 1 items",
			`{oauth2: {tokenUrl: "http://user:password@login.example.com/", secret: {name: a}}}`: "without user information",
		} {
			out, err := m.kubectl(t, subscription("refused", "http://127.0.0.1:1", auth), "apply", "-f", "-")
			require.Error(t, err, auth)
			require.Contains(t, out, says)
		}
		out, err := m.kubectl(t, strings.ReplaceAll(subscription("refused", "", `{basic: {secret: {name: a}}}`), `uri: "/refused"`, `lambda: last-order`), "apply", "-f", "-")
		require.Error(t, err)
		require.Contains(t, out, "auth goes with uri")
	})
	seen := m.output.String() + m.mustKubectl(t, "", "get", "subscriptions", "-n", shop, "-o", "yaml")
	explained, _ := m.cli(t, "events", "explain", "tokenc", "-n", shop, "-o", "json")
	for _, secret := range append(hidden, "token-1", "token-2") {
		require.NotContains(t, seen+explained, secret)
	}
}
