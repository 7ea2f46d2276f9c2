package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// confidingCode tells browsers of a stranger's page that they may read it, and
// tells everything that a request brought, trailers included.
const confidingCode = `package confiding

import (
	"encoding/json"
	"io"
	"net/http"
)

func Main(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Access-Control-Allow-Origin", "https://stranger.example")
	w.Header().Set("Access-Control-Allow-Credentials", "true")
	w.Header().Set("Access-Control-Expose-Headers", "x-secret")
	w.Header().Set("Server", "theirs")
	_ = json.NewEncoder(w).Encode(map[string]any{"header": r.Header, "trailer": r.Trailer})
}
`

// No client, and no APIRule, says by a header who calls: the headers that tell
// it are the mesh's own, however they are spelled and wherever they stand.
func TestHostileIdentity(t *testing.T) {
	m, issuer := hostile(t)
	const namespace = "identity"
	m.apply(t, echo(namespace, "confiding", confidingCode)+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: told, namespace: identity}
spec:
  hosts: [told]
  cors: {allowOrigins: [{exact: "https://shop.example"}]}
  rules:
    - {path: /private, lambda: confiding, jwt: {authentications: [{issuer: %[1]q, jwksUri: %[2]q}]}}
    - {path: "/{**}", lambda: confiding, noAuth: true}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: untold, namespace: identity}
spec:
  hosts: [untold]
  rules: [{path: "/*", lambda: confiding, noAuth: true}]
`, issuer.name, issuer.url))
	m.waitFor(t, namespace, "lambda/confiding", "Ready")
	m.waitFor(t, namespace, "apirule/told", "Ready")
	m.waitFor(t, namespace, "apirule/untold", "Ready")
	gateway := address(t, m.Gateway)
	const host = "told.lambdas.localhost"

	names := []string{"X-Forwarded-Client-Cert", "X-Lambdamesh-Rule", "X-Lambdamesh-Token", "X-Lambdamesh-Claims", "X-Api-Client"}
	lines := func(spell func(string) string) string {
		var b strings.Builder
		for _, name := range names {
			fmt.Fprintf(&b, "%s: %s\r\n", spell(name), forged)
		}
		return b.String()
	}
	type sent struct {
		path, header, body string
		want               int
	}
	bearer := "Authorization: Bearer " + issuer.token(t, map[string]any{"sub": "alice"}) + "\r\n"
	chunked := "1\r\na\r\n0\r\n" + lines(strings.ToLower) + "X-Sum: 7\r\n\r\n"
	cases := map[string]sent{}
	for path, credentials := range map[string]string{"/open": "", "/private": bearer} {
		for name, c := range map[string]sent{
			"as they are written":         {header: lines(func(n string) string { return n })},
			"in lower case":               {header: lines(strings.ToLower)},
			"in upper case":               {header: lines(strings.ToUpper)},
			"twice, in two cases":         {header: lines(strings.ToLower) + lines(strings.ToUpper)},
			"named in Connection":         {header: lines(strings.ToLower) + "Connection: " + strings.Join(names, ", ") + "\r\n"},
			"as announced trailers":       {header: "Transfer-Encoding: chunked\r\nTrailer: x-sum, " + strings.Join(names, ", ") + "\r\n", body: chunked},
			"as trailers, not announced":  {header: "Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n", body: chunked},
			"with underscores":            {header: lines(func(n string) string { return strings.ReplaceAll(n, "-", "_") }), want: http.StatusBadRequest},
			"with a blank before the ':'": {header: lines(func(n string) string { return n + " " }), want: http.StatusBadRequest},
		} {
			c.path, c.header = path, c.header+credentials
			cases[path+" "+name] = c
		}
	}
	each(t, cases, func(c sent) (answer, error) {
		return exchange(gateway, "POST "+c.path+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n"+c.header+"\r\n"+c.body, false)
	}, func(t *testing.T, c sent, a answer) {
		if c.want != 0 {
			require.Equal(t, c.want, a.status(t), "%v", a)
			return
		}
		require.Equal(t, http.StatusOK, a.status(t), "%v", a)
		require.NotContains(t, a.bodies[0], forged)
		var saw struct{ Header, Trailer http.Header }
		require.NoError(t, json.Unmarshal([]byte(a.bodies[0]), &saw))
		if c.body != "" {
			require.Equal(t, "7", saw.Trailer.Get("X-Sum"), "other trailers pass: %v", a)
		}
		require.Empty(t, saw.Header.Values("X-Api-Client"))
		if c.path == "/open" {
			require.Empty(t, saw.Header.Values("X-Lambdamesh-Claims"), "nothing is claimed without a token rule")
		}
	})

	t.Run("a rule with cors decides alone which origins are told", func(t *testing.T) {
		resp, err := m.get(t.Context(), host, "/open", "Origin", "https://shop.example")
		require.NoError(t, err)
		require.Equal(t, "https://shop.example", resp.header.Get("Access-Control-Allow-Origin"))
		for _, origin := range []string{"https://stranger.example", "null", ""} {
			header := []string{"Origin", origin}
			if origin == "" {
				header = nil
			}
			resp, err := m.get(t.Context(), host, "/open", header...)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, resp.status, resp.body)
			for name := range resp.header {
				require.False(t, strings.HasPrefix(name, "Access-Control-"), "%s is told to %q", name, origin)
			}
		}
		resp, err = m.get(t.Context(), "untold.lambdas.localhost", "/open", "Origin", "https://stranger.example")
		require.NoError(t, err)
		require.Equal(t, "https://stranger.example", resp.header.Get("Access-Control-Allow-Origin"), "without cors the lambda decides")
	})
	t.Run("the proxy is no Envoy, and the lambda is not the server", func(t *testing.T) {
		for _, path := range []string{"/open", "/private", "/%2f"} {
			resp, err := m.get(t.Context(), host, path)
			require.NoError(t, err)
			require.Equal(t, []string{"lambdamesh"}, resp.header.Values("Server"), path)
		}
	})
	t.Run("the lambda's network policy names the gateway and nobody else", func(t *testing.T) {
		peers := m.mustKubectl(t, "", "get", "networkpolicy", "-n", namespace, "lambda-confiding", "-o",
			`jsonpath={.spec.policyTypes} {.spec.ingress[?(@.ports[0].port=="http")].from[*].podSelector.matchLabels}`)
		require.Equal(t, `["Ingress"] {"app.kubernetes.io/name":"gateway"}`, peers)
	})
}

// What an APIRule may not say is said to its writer, and nothing opens.
func TestHostileIdentityInRules(t *testing.T) {
	m, _ := hostile(t)
	const rule = "apiVersion: lambdamesh.dev/v1alpha1\nkind: APIRule\nmetadata: {name: bad-identity, namespace: hostile}\nspec: {hosts: [bad-identity], %s rules: [{path: /, lambda: reflect, %s}]}\n"
	jwt := func(authentication, more string) string {
		return fmt.Sprintf(rule, "", "jwt: {authentications: [{issuer: i, jwksSecret: s"+authentication+"}]"+more+"}")
	}
	for name, c := range map[string]struct{ object, message string }{
		"no scopes":                {jwt("", ", authorizations: [{requiredScopes: []}]"), "requiredScopes is empty and asks nothing; list the scopes that a token must have or remove the field"},
		"no audiences":             {jwt("", ", authorizations: [{audiences: []}]"), "audiences is empty and asks nothing"},
		"no audiences of issuers":  {jwt(", audiences: []", ""), "list the audiences of which the token must name one, or remove the field to take any"},
		"an audience that is none": {jwt(", audiences: ['']", ""), "should be at least 1 chars long"},
		"no claims":                {jwt("", ", authorizations: [{claims: []}]"), "claims is empty and asks nothing"},
		"a claim without values":   {jwt("", ", authorizations: [{claims: [{name: role, values: []}]}]"), "should have at least 1 items"},
		"an empty authorization":   {jwt("", ", authorizations: [{requiredScopes: [a]}, {}]"), "an authorization that asks nothing lets every valid token in; write requiredScopes, audiences or claims"},
		"no authorizations":        {jwt("", ", authorizations: []"), "or remove the field to let every valid token in"},
		"no methods":               {fmt.Sprintf(rule, "", "noAuth: true, methods: []"), "list methods or remove the field"},
		"no headers":               {fmt.Sprintf(rule, "", "noAuth: true, headers: []"), "list headers that must match or remove the field"},
		"everybody's credentials":  {fmt.Sprintf(rule, "cors: {allowOrigins: [{exact: '*'}], allowCredentials: true},", "noAuth: true"), "allowCredentials needs named origins"},
		"retries on true":          {fmt.Sprintf(rule, "", "noAuth: true, retries: {attempts: 1, on: [5xx]}"), `unknown field "spec.rules[0].retries.true"`},
	} {
		t.Run("refused: "+name, func(t *testing.T) {
			out, err := m.kubectl(t, c.object, "create", "--dry-run=server", "-f", "-")
			require.Error(t, err, out)
			require.Contains(t, out, c.message)
		})
	}
	taken, err := m.kubectl(t, fmt.Sprintf(rule, "", "noAuth: true, retries: {attempts: 1, retryOn: [5xx]}"), "create", "--dry-run=server", "-f", "-")
	require.NoError(t, err, taken)

	for name, c := range map[string]struct{ cors, rule, message string }{
		"set the caller":         {"", "noAuth: true, request: {setHeaders: {X-Forwarded-Client-Cert: 'URI=spiffe://cluster.local/ns/lambdamesh-system/sa/eventbus'}}", "cannot be edited"},
		"set claims":             {"", "noAuth: true, request: {setHeaders: {x-lambdamesh-claims: e30}}", "cannot be edited"},
		"set a client's name":    {"", "noAuth: true, request: {setHeaders: {X-API-Client: shop}}", "cannot be edited"},
		"set an address":         {"", "noAuth: true, request: {setHeaders: {X-Forwarded-Port: '1'}}", "cannot be edited"},
		"remove the rule":        {"", "noAuth: true, request: {removeHeaders: [X-Lambdamesh-Rule]}", "cannot be edited"},
		"match a client's name":  {"", "noAuth: true, headers: [{name: x-api-client, exact: shop}]", "a client's copy is removed before rules are tried"},
		"let pages send claims":  {"cors: {allowOrigins: [{exact: 'https://a.example'}], allowHeaders: [X-Lambdamesh-Claims]},", "noAuth: true", "no page sends or reads it"},
		"say cors another way":   {"cors: {allowOrigins: [{exact: 'https://a.example'}]},", "noAuth: true, response: {setHeaders: {Access-Control-Allow-Origin: '*'}}", "is decided by spec.cors alone"},
		"tell a client of rules": {"", "noAuth: true, response: {setHeaders: {X-Lambdamesh-Rule: x}}", "cannot be edited"},
	} {
		t.Run("not accepted: "+name, func(t *testing.T) {
			m.apply(t, fmt.Sprintf(rule, c.cors, c.rule))
			eventually(t, startTimeout, func() error {
				out, err := m.kubectl(t, "", "get", "apirule", "-n", hostileNamespace, "bad-identity", "-o",
					`jsonpath={.metadata.generation}={.status.conditions[?(@.type=="Accepted")].observedGeneration} {.status.conditions[?(@.type=="Accepted")].status} {.status.conditions[?(@.type=="Accepted")].message}`)
				if err != nil {
					return err
				}
				generations, rest, _ := strings.Cut(out, " ")
				wanted, observed, _ := strings.Cut(generations, "=")
				if wanted != observed || !strings.HasPrefix(rest, "False ") || !strings.Contains(rest, c.message) {
					return errorf("%s", out)
				}
				return nil
			})
		})
	}
}
