package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echo is a lambda that tells what reached it.
func echo(namespace, name, code string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  runtime: go
  source:
    inline:
      code: |
%[3]s
---
`, namespace, name, indent(code))
}

func indent(code string) string {
	var b strings.Builder
	for line := range strings.Lines(code) {
		b.WriteString("        " + line)
	}
	return b.String()
}

const echoCode = `package echo

import (
	"fmt"
	"net/http"
)

func Main(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s token=%q rule=%q", r.Method, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("X-Lambdamesh-Rule"))
}
`

func TestRules(t *testing.T) {
	m := shared(t)
	dir := t.TempDir()
	private, public := filepath.Join(dir, "key.jwk"), filepath.Join(dir, "jwks.json")
	out, code := m.cli(t, "token", "new-key", "--private", private, "--public", public)
	require.Equal(t, 0, code, out)
	set, err := os.ReadFile(public)
	require.NoError(t, err)
	m.apply(t, echo("rules", "echo", echoCode)+fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: rules}
stringData:
  jwks.json: |
%s
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: echo, namespace: rules}
spec:
  hosts: [echo-rules]
  rules:
    - {path: /open, methods: [GET], lambda: echo, noAuth: true}
    - {path: "/one/{*}/end", lambda: echo, noAuth: true}
    - {path: "/deep/{**}", lambda: echo, noAuth: true}
    - {path: /v0.0.1+(x), lambda: echo, noAuth: true}
    - {path: /missing, lambda: not-there, noAuth: true}
    - path: /secret/{*}
      lambda: echo
      jwt:
        authentications: [{issuer: "https://issuer.test", jwksSecret: keys}]
        authorizations: [{requiredScopes: [read], audiences: [shop]}]
`, indent(string(set))))
	m.waitFor(t, "rules", "lambda/echo", "Ready")
	m.waitFor(t, "rules", "apirule/echo", "Programmed")

	token := func(args ...string) string {
		out, code := m.cli(t, append([]string{"token", "--key", private}, args...)...)
		require.Equal(t, 0, code, out)
		return "Bearer " + strings.TrimSpace(out)
	}
	good := token("--issuer", "https://issuer.test", "--audience", "shop", "--scope", "read")
	_, other := filepath.Split(private)
	foreignKey := filepath.Join(t.TempDir(), other)
	_, code = m.cli(t, "token", "new-key", "--private", foreignKey, "--public", foreignKey+".pub")
	require.Equal(t, 0, code)
	foreign, code := m.cli(t, "token", "--key", foreignKey, "--issuer", "https://issuer.test", "--audience", "shop", "--scope", "read")
	require.Equal(t, 0, code)

	const host = "echo-rules.lambdas.localhost"
	tests := map[string]struct {
		method, host, path, token string
		status                    int
		want                      string
	}{
		"an open path":                      {path: "/open", status: 200, want: "GET /open"},
		"a host with a port":                {host: host + ":8080", path: "/open", status: 200},
		"a host in another case":            {host: strings.ToUpper(host), path: "/open", status: 200},
		"another method":                    {method: "POST", path: "/open", status: 404},
		"no rule":                           {path: "/nothing", status: 404},
		"an unknown host":                   {host: "unknown.lambdas.localhost", path: "/open", status: 404},
		"one segment":                       {path: "/one/x/end", status: 200, want: "/one/x/end"},
		"no segment where one must be":      {path: "/one//end", status: 404},
		"two segments where one must be":    {path: "/one/x/y/end", status: 404},
		"below a prefix":                    {path: "/deep/a/b", status: 200},
		"the prefix with a slash":           {path: "/deep/", status: 200},
		"the prefix without a slash":        {path: "/deep", status: 404},
		"dots are literal":                  {path: "/v0x0x1+(x)", status: 404},
		"plus signs and parentheses too":    {path: "/v0.0.1+(x)", status: 200},
		"a missing lambda is closed":        {path: "/missing", status: 503},
		"no token":                          {path: "/secret/1", status: 401},
		"a good token":                      {path: "/secret/1", token: good, status: 200, want: "/secret/1"},
		"a token signed by somebody else":   {path: "/secret/1", token: "Bearer " + strings.TrimSpace(foreign), status: 401},
		"an expired token":                  {path: "/secret/1", token: token("--issuer", "https://issuer.test", "--audience", "shop", "--scope", "read", "--expires-in", "-10m"), status: 401},
		"another issuer's token":            {path: "/secret/1", token: token("--issuer", "https://other.test", "--audience", "shop", "--scope", "read"), status: 401},
		"a token without the scope":         {path: "/secret/1", token: token("--issuer", "https://issuer.test", "--audience", "shop", "--scope", "write"), status: 403},
		"a token for another audience":      {path: "/secret/1", token: token("--issuer", "https://issuer.test", "--audience", "bank", "--scope", "read"), status: 403},
		"a token without a subject":         {path: "/secret/1", token: token("--issuer", "https://issuer.test", "--audience", "shop", "--scope", "read", "--subject", ""), status: 403},
		"garbage as a token":                {path: "/secret/1", token: "Bearer x.y.z", status: 401},
		"dot segments do not lead around":   {path: "/open/../secret/1", status: 401},
		"encoded dot segments neither":      {path: "/open/%2e%2e/secret/1", status: 401},
		"an escaped slash is refused":       {path: "/secret%2f1", status: 400},
		"an escaped backslash is refused":   {path: "/secret%5c1", status: 400},
		"merged slashes do not lead around": {path: "//secret//1", status: 401},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.method == "" {
				tt.method = http.MethodGet
			}
			if tt.host == "" {
				tt.host = host
			}
			header := []string{}
			if tt.token != "" {
				header = []string{"Authorization", tt.token}
			}
			resp, err := m.request(t.Context(), tt.method, tt.host, tt.path, "", header...)
			require.NoError(t, err)
			require.Equal(t, tt.status, resp.status, resp.body)
			require.Contains(t, resp.body, tt.want)
			if resp.status >= 400 {
				require.Contains(t, resp.header.Get("Content-Type"), "application/problem+json", resp.body)
			}
			if resp.status == 401 {
				require.Contains(t, resp.header.Get("WWW-Authenticate"), "Bearer")
			}
		})
	}
}

func TestReplacingTheSourceLosesNoRequest(t *testing.T) {
	m := shared(t)
	version := func(v string) string {
		return strings.ReplaceAll(echo("rolling", "echo", strings.Replace(echoCode, `"%s %s token`, `"`+v+` %s %s token`, 1)), "\t", "\t")
	}
	rule := `
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: echo, namespace: rolling}
spec: {hosts: [rolling], rules: [{path: "/*", lambda: echo, noAuth: true}]}
`
	m.apply(t, version("v1")+rule)
	m.waitFor(t, "rolling", "lambda/echo", "Ready")
	m.waitFor(t, "rolling", "apirule/echo", "Programmed")
	answers := func(ctx context.Context) (string, error) {
		resp, err := m.get(ctx, "rolling.lambdas.localhost", "/")
		if err != nil {
			return "", err
		}
		if resp.status != http.StatusOK {
			return "", errorf("%d %s", resp.status, resp.body)
		}
		return resp.body, nil
	}
	eventually(t, time.Minute, func() error { _, err := answers(t.Context()); return err })

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	failures := make(chan error, 100)
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := answers(t.Context()); err != nil {
					select {
					case failures <- err:
					default:
					}
				}
			}
		})
	}
	m.mustKubectl(t, version("v2"), "apply", "-f", "-")
	eventually(t, time.Minute, func() error {
		for range 20 { // until no replica of the first version answers
			body, err := answers(t.Context())
			if err != nil {
				return err
			}
			if !strings.HasPrefix(body, "v2") {
				return errorf("answered %q", body)
			}
		}
		return nil
	})
	cancel()
	wg.Wait()
	close(failures)
	for err := range failures {
		t.Errorf("a request failed during the change: %v", err)
	}
}

func TestASyntaxErrorShowsInTheConditionsWithItsLine(t *testing.T) {
	m := shared(t)
	m.apply(t, echo("broken", "broken", "package broken\n\nfunc Main( {\n"))
	eventually(t, time.Minute, func() error {
		message := m.mustKubectl(t, "", "get", "lambda", "-n", "broken", "broken", "-o",
			`jsonpath={.status.conditions[?(@.type=="SourceReady")].status} {.status.conditions[?(@.type=="SourceReady")].message}`)
		if !strings.HasPrefix(message, "False") || !strings.Contains(message, ":3:") {
			return errorf("SourceReady says %q", message)
		}
		return nil
	})
}

func TestACrashedReplicaIsStartedAgain(t *testing.T) {
	m := shared(t)
	m.apply(t, echo("crash", "crash", `package crash

import (
	"fmt"
	"net/http"
	"os"
)

func Main(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/crash" {
		os.Exit(3)
	}
	fmt.Fprint(w, os.Getpid())
}
`)+`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: crash, namespace: crash}
spec: {hosts: [crash], rules: [{path: "/*", lambda: crash, noAuth: true}]}
`)
	m.waitFor(t, "crash", "lambda/crash", "Ready")
	m.waitFor(t, "crash", "apirule/crash", "Programmed")
	pid := func() (string, error) {
		resp, err := m.get(t.Context(), "crash.lambdas.localhost", "/")
		if err == nil && resp.status != http.StatusOK {
			err = errorf("%d %s", resp.status, resp.body)
		}
		return resp.body, err
	}
	var before string
	eventually(t, time.Minute, func() (err error) { before, err = pid(); return err })
	_, err := m.get(t.Context(), "crash.lambdas.localhost", "/crash")
	require.NoError(t, err)
	eventually(t, time.Minute, func() error {
		after, err := pid()
		if err == nil && after == before {
			err = errorf("still process %s", after)
		}
		return err
	})
}
