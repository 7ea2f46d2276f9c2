package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestHostileBudgets: a gateway that is full. Whoever asks for too much is told
// the number and nobody else notices, over a restart, too.
func TestHostileBudgets(t *testing.T) {
	dir := t.TempDir()
	limits := []string{"--allow-target", "127.0.0.1"}
	for _, limit := range []string{"apirule.hosts=4", "namespace.hosts=6", "gateway.hosts=6", "keyset.bytes=2097152"} {
		limits = append(limits, "--limit", limit)
	}
	m := start(t, dir, limits...)
	set := func(yaml string) { m.mustKubectl(t, yaml, "apply", "-f", "-") }
	neighbors := func() {
		t.Helper()
		m.requireBody(t, "till", "till")
		m.requireBody(t, "fill-3", "till")
	}
	status := func(host string, want int) {
		t.Helper()
		eventually(t, startTimeout, func() error {
			r, err := m.get(t.Context(), host+".lambdas.localhost", "/")
			if err == nil && r.status != want {
				err = errorf("%s answers %d %s", host, r.status, r.body)
			}
			return err
		})
	}
	set(plainBackend(t, "bank", "vault"))
	set(plainBackend(t, "shop", "till"))
	set(openRule("bank", "vault", "vault", "vault", "safe"))
	set(openRule("shop", "till", "till", "till"))
	set(openRule("shop", "fill", "till", "fill-1", "fill-2", "fill-3"))
	for _, rule := range []string{"bank apirule/vault", "shop apirule/till", "shop apirule/fill"} {
		namespace, name, _ := strings.Cut(rule, " ")
		m.waitFor(t, namespace, name, "Ready")
	}

	// The younger tenant waits for room.
	late := func() {
		t.Helper()
		require.Regexp(t, `^TooLarge: spec: it needs 1 hosts, and other APIRules of Gateway lambdamesh-system/\S+ have 6 of the 6`,
			m.requireRefused(t, "shop", "apirule/late", "Accepted"))
	}
	set(openRule("shop", "late", "till", "late"))
	late()
	status("late", http.StatusNotFound)
	neighbors()

	t.Run("a regex costs what it compiles to", func(t *testing.T) {
		set(strings.Replace(openRule("shop", "regex", "till", "regex"), "noAuth", `headers: [{name: x, regex: ".{0,1000}.{0,1000}.{0,1000}"}], noAuth`, 1))
		require.Regexp(t, `^TooLarge: spec: the regex of spec.rules\[0\].headers\[0\] compiles to some 6\d{3} instructions and one may have 1000`,
			m.requireRefused(t, "shop", "apirule/regex", "Accepted"))
		neighbors()
	})
	t.Run("a key set costs what each server repeats", func(t *testing.T) {
		// Of 2 MiB, twice, for HTTP and HTTPS: 16 MiB and the rule.
		set(strings.Replace(openRule("shop", "keys", "till", "keys"), "noAuth: true", `jwt: {authentications: [
			{issuer: "https://a.test", jwksUri: "https://a.test/keys"}, {issuer: "https://b.test", jwksUri: "https://b.test/keys"}]}`, 1))
		require.Regexp(t, `^TooLarge: spec: it needs 167\d{5} bytes, and other APIRules of namespace shop at Gateway lambdamesh-system/\S+ have \d+ of the 16777216`,
			m.requireRefused(t, "shop", "apirule/keys", "Accepted"))
		neighbors()
	})

	charged := func() (all map[string]any) {
		t.Helper()
		raw := m.mustKubectl(t, "", "get", "-n", "bank", "apirule/vault", "-o", "jsonpath={.status.charged}")
		require.NoError(t, json.Unmarshal([]byte(raw), &all), raw)
		return all
	}
	letInWith := charged()
	require.EqualValues(t, 2, letInWith["hosts"])
	require.Greater(t, letInWith["bytes"], letInWith["routeBytes"])

	// Harmless edits lose nothing to who waits.
	set(strings.Replace(openRule("bank", "vault", "vault", "vault", "safe"), "hosts:", "timeout: 31s\n  hosts:", 1))
	m.waitFor(t, "bank", "apirule/vault", "Ready")
	late()

	// Who grows keeps what it had, closed, and for no one else.
	set(openRule("bank", "vault", "vault", "vault", "safe", "third"))
	require.Regexp(t, `^TooLarge: spec: it needs 3 hosts, and other APIRules of Gateway lambdamesh-system/\S+ have 4 of the 6`,
		m.requireRefused(t, "bank", "apirule/vault", "Accepted"))
	grown := func() {
		t.Helper()
		status("vault", http.StatusServiceUnavailable)
		status("safe", http.StatusServiceUnavailable)
		status("third", http.StatusNotFound)
		require.Equal(t, letInWith, charged())
		late()
		neighbors()
	}
	grown()
	m.stop(t)
	m = start(t, dir, limits...)
	neighbors()
	grown()

	set(openRule("bank", "vault", "vault", "vault", "safe"))
	m.waitFor(t, "bank", "apirule/vault", "Ready")
	m.requireBody(t, "safe", "vault")
	require.Equal(t, letInWith, charged())
	late()

	// Room that somebody gives up is the next one's.
	set(openRule("shop", "fill", "till", "fill-2", "fill-3"))
	m.waitFor(t, "shop", "apirule/late", "Ready")
	m.requireBody(t, "late", "till")
	require.Contains(t, m.mustKubectl(t, "", "get", "-n", "shop", "apirule/late", "-o", "jsonpath={.status.charged}"), `"hosts":1`)
}
