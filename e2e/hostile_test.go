package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The hostile tests send the programs what a stranger, a tenant or a broken
// third-party system may send: one table for each door, its cases named by
// outcome. They share one mesh and the objects below.
const (
	hostileNamespace = "hostile"
	hostileHost      = "hostile.lambdas.localhost"
	// forged marks values that a client made up and that nobody may believe.
	forged = "forged-by-the-client"
)

// reflectCode answers with what reached the lambda.
const reflectCode = `package reflect

import (
	"encoding/json"
	"io"
	"net/http"
)

func Main(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"method": r.Method, "host": r.Host, "uri": r.RequestURI, "path": r.URL.Path, "header": r.Header, "bytes": len(body),
	})
}
`

// reflected is what the lambda saw.
type reflected struct {
	Method, Host, URI, Path string

	Header http.Header
	Bytes  int
}

var target struct { //nolint:gochecknoglobals // as the common mesh
	once   sync.Once
	issuer *issuer
	ready  bool
}

// hostile returns the common mesh with a lambda behind a public and a private
// part, and the issuer whose tokens open the private one.
func hostile(t *testing.T) (*mesh, *issuer) {
	t.Helper()
	m := shared(t)
	target.once.Do(func() {
		target.issuer = newIssuer(t)
		m.mustKubectl(t, echo(hostileNamespace, "reflect", reflectCode)+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: hostile, namespace: hostile}
spec:
  hosts: [hostile]
  rules:
    - {path: /private, lambda: reflect, jwt: &jwt {authentications: [{issuer: %[1]q, jwksUri: %[2]q, audiences: [shop]}]}}
    - {path: "/private/{**}", lambda: reflect, jwt: *jwt}
    - {path: /only-get, methods: [GET], lambda: reflect, noAuth: true}
    - {path: /only-get, lambda: reflect, jwt: *jwt}
    - {path: "/{**}", lambda: reflect, noAuth: true}
`, target.issuer.name, target.issuer.url), "apply", "-f", "-")
		m.waitFor(t, hostileNamespace, "lambda/reflect", "Ready")
		m.waitFor(t, hostileNamespace, "apirule/hostile", "Ready")
		target.ready = true
	})
	if !target.ready {
		t.Fatal("the hostile tests' objects are not ready: see the first test that needed them")
	}
	return m, target.issuer
}

// answer is what a raw connection brought.
type answer struct {
	statuses []int
	bodies   []string
	closed   bool // by the server, once it had answered
}

func (a answer) String() string {
	return fmt.Sprintf("statuses %v, closed %t, bodies %.300q", a.statuses, a.closed, a.bodies)
}

// status is that of the only answer.
func (a answer) status(t *testing.T) int {
	t.Helper()
	require.Len(t, a.statuses, 1, "%v", a)
	return a.statuses[0]
}

// exchange writes bytes to an address and reads answers until the server closes
// the connection, or has been silent for some seconds.
func exchange(addr, text string, secure bool) (a answer, err error) {
	var conn net.Conn
	if secure {
		// A door with several names answers 421 to a request for another one than
		// the connection's.
		name := hostileHost
		if strings.Contains(text, "\r\nHost: localhost\r\n") {
			name = "localhost"
		}
		conn, err = tls.Dial("tcp", addr, &tls.Config{
			ServerName:         name,
			InsecureSkipVerify: true, //nolint:gosec // the door is tested, not its certificate
			NextProtos:         []string{"http/1.1"},
		})
	} else {
		conn, err = net.Dial("tcp", addr)
	}
	if err != nil {
		return a, err
	}
	defer conn.Close()
	// A server may answer and close before it has read all; then the rest cannot
	// be written, and the answer is there all the same.
	go func() { _, _ = io.WriteString(conn, text) }()
	r := bufio.NewReader(conn)
	silence := time.Minute // until the first answer
	for {
		if err := conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
			return a, err
		}
		silence = 3 * time.Second
		if _, err := r.Peek(1); err != nil {
			var waited net.Error
			a.closed = !errors.As(err, &waited) || !waited.Timeout()
			return a, nil
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return a, fmt.Errorf("after %v: %w", a, err)
		}
		body, _ := io.ReadAll(resp.Body)
		a.statuses, a.bodies = append(a.statuses, resp.StatusCode), append(a.bodies, string(body))
	}
}

// each sends all cases at once, as many of them wait for a connection's end, and
// gives each its answer.
func each[C any](t *testing.T, cases map[string]C, send func(C) (answer, error), check func(t *testing.T, c C, a answer)) {
	t.Helper()
	type outcome struct {
		answer
		err error
	}
	var (
		mu       sync.Mutex
		wg       sync.WaitGroup
		outcomes = map[string]outcome{}
		places   = make(chan struct{}, 16)
	)
	for name, c := range cases {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			a, err := send(c)
			mu.Lock()
			defer mu.Unlock()
			outcomes[name] = outcome{a, err}
		})
	}
	wg.Wait()
	for name, c := range cases {
		t.Run(strings.ReplaceAll(name, "/", "|"), func(t *testing.T) {
			require.NoError(t, outcomes[name].err)
			check(t, c, outcomes[name].answer)
		})
	}
}

// address of a URL in endpoints.json.
func address(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	return u.Host
}

// bypassed tells that a request without a token reached what needs one: any path
// that a backend may take for /private.
func bypassed(a answer) error {
	for i, status := range a.statuses {
		if status != http.StatusOK {
			continue
		}
		var saw reflected
		if err := json.Unmarshal([]byte(a.bodies[i]), &saw); err != nil {
			return fmt.Errorf("the lambda answered %q: %w", a.bodies[i], err)
		}
		asked, _, _ := strings.Cut(saw.URI, "?")
		if decoded, err := url.PathUnescape(asked); err == nil {
			asked = decoded
		}
		for _, spelling := range []string{saw.Path, asked} {
			spelling = strings.ReplaceAll(spelling, `\`, "/")
			var segments []string
			for segment := range strings.SplitSeq(spelling, "/") { // as servlet containers: without parameters
				segment, _, _ = strings.Cut(segment, ";")
				segments = append(segments, segment)
			}
			if clean := path.Clean("/" + strings.Join(segments, "/")); clean == "/private" || strings.HasPrefix(clean, "/private/") {
				return fmt.Errorf("the lambda was asked for %q (%q), which it may take for %s", saw.URI, saw.Path, clean)
			}
		}
	}
	return nil
}

func TestHostilePaths(t *testing.T) {
	m, _ := hostile(t)
	cases := map[string][]int{}
	// A backend may take these for the private part.
	for _, spelling := range []string{
		"/private", "/private/", "/private/x", "/private?x", "/x/../private", "/x/./../private", "//private", "/x/..//private", "///private///x",
		"/%2e%2e/private", "/x/%2E%2E/private", "/x/.%2e/private", "/%70rivate", "/%50rivate/../private", "/priv%61te/x", "/../../../private",
		`\private`, `/\private`, `/x\..\private`, "/x%5c..%5cprivate", "/x%2f..%2fprivate", "/x%2F..%2Fprivate", "/%2fprivate", "/private%2f", "/private%2fx",
		"/%252fprivate/../private", "/private;x", "/private;x=y/z", "/private;", "/;x/private", "/.;/private", "/..;/private", "/x/..;/private", "/x/..;y/private",
		"/private%3bx", "/private#f", "/#/../private", "/private%00", "/private%00.html", "/private/\x00", "/private\x7f",
		"/private/%zz", "/private/%", "/private/%1", "/private/\xff", "/private/\xc3\xb6",
		"http://" + hostileHost + "/private", "HTTP://" + strings.ToUpper(hostileHost) + "/private", "http://" + hostileHost + ":80/x/../private",
		"http://" + hostileHost + "//private", "http:///private", "http://user@" + hostileHost + "/private", "ftp://" + hostileHost + "/private",
	} {
		cases[spelling] = []int{http.StatusUnauthorized, http.StatusBadRequest}
	}
	// These are other paths to who decodes once, and nobody is to decode twice.
	for _, spelling := range []string{
		"/%252e%252e/private", "/private%23f", "/private%3fx", "/private%0a", "/private%0d%0a", "/%c0%afprivate", "/x/%c0%ae%c0%ae/private", "/%ef%bc%8fprivate",
		"//" + hostileHost + "/private", "http://",
	} {
		cases[spelling] = []int{http.StatusOK, http.StatusUnauthorized, http.StatusBadRequest}
	}
	// And these are what they look like.
	for spelling, status := range map[string]int{
		"/": 200, "/private2": 200, "/PRIVATE": 200, "/open/private": 200, "/x/../y": 200, "/x?y=/../private%2f": 200, "/caf%C3%A9": 200,
		"private": 400, "/x y": 400,
	} {
		cases[spelling] = []int{status}
	}
	for door, secure := range map[string]bool{m.Gateway: false, m.GatewayTLS: true} {
		t.Run(strings.SplitN(door, ":", 2)[0], func(t *testing.T) {
			type request struct {
				path string
				want []int
			}
			requests := map[string]request{}
			for path, want := range cases {
				requests[fmt.Sprintf("%q", path)] = request{path, want}
			}
			each(t, requests, func(r request) (answer, error) {
				return exchange(address(t, door), "GET "+r.path+" HTTP/1.1\r\nHost: "+hostileHost+"\r\nConnection: close\r\n\r\n", secure)
			}, func(t *testing.T, r request, a answer) {
				require.NoError(t, bypassed(a))
				require.Contains(t, r.want, a.status(t), "%v", a)
			})
		})
	}
}

func TestHostileHosts(t *testing.T) {
	m, _ := hostile(t)
	for name, c := range map[string]struct {
		line, header string
		want         []int
	}{
		"another case is the same host":          {"GET /private", "Host: HOSTILE.Lambdas.LocalHost", []int{401}},
		"a port is the same host":                {"GET /private", "Host: " + hostileHost + ":8080", []int{401}},
		"another port is the same host":          {"GET /private", "Host: " + hostileHost + ":1", []int{401}},
		"a trailing dot is the same host or 400": {"GET /private", "Host: " + hostileHost + ".", []int{400, 401}},
		"a dot and a port too":                   {"GET /private", "Host: " + hostileHost + ".:8080", []int{400, 401}},
		"two hosts are refused":                  {"GET /private", "Host: " + hostileHost + "\r\nHost: other.lambdas.localhost", []int{400}},
		"the same host twice is refused":         {"GET /private", "Host: " + hostileHost + "\r\nHost: " + hostileHost, []int{400}},
		"no host is refused":                     {"GET /private", "X-No: host", []int{400}},
		"an empty host is refused":               {"GET /private", "Host:", []int{400}},
		"a host with a path is refused":          {"GET /private", "Host: " + hostileHost + "/x", []int{400}},
		"user information is refused":            {"GET /private", "Host: other@" + hostileHost, []int{400}},
		"a blank inside is refused":              {"GET /private", "Host: " + hostileHost + " other", []int{400}},
		"a list is refused":                      {"GET /private", "Host: " + hostileHost + ",other", []int{400, 404}},
		"a port that is none is refused":         {"GET /private", "Host: " + hostileHost + ":80:80", []int{400, 404}},
		"NUL is refused":                         {"GET /private", "Host: " + hostileHost + "\x00", []int{400}},
		"an absolute target decides alone":       {"GET http://" + hostileHost + "/private", "Host: unknown.lambdas.localhost", []int{400, 401}},
		"the other way round too":                {"GET http://unknown.lambdas.localhost/private", "Host: " + hostileHost, []int{400, 404}},
		"an unknown host has no rules":           {"GET /private", "Host: unknown.lambdas.localhost", []int{404}},
		"an address has no rules":                {"GET /private", "Host: 127.0.0.1", []int{404}},
		"X-Forwarded-Host is no host":            {"GET /private", "Host: unknown.lambdas.localhost\r\nX-Forwarded-Host: " + hostileHost, []int{404}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := exchange(address(t, m.Gateway), c.line+" HTTP/1.1\r\n"+c.header+"\r\nConnection: close\r\n\r\n", false)
			require.NoError(t, err)
			require.Contains(t, c.want, a.status(t), "%v", a)
		})
	}
}

// No header of a client says who it is, what it asked, or how the mesh is to
// treat it.
func TestHostileHeaders(t *testing.T) {
	m, issuer := hostile(t)
	t.Run("what the mesh says of a request is not taken from the client", func(t *testing.T) {
		var header []string
		for _, name := range []string{
			"X-Forwarded-Client-Cert", "X-Lambdamesh-Rule", "X-Lambdamesh-Token", "X-Lambdamesh-Claims", "X-Envoy-Original-Path", "X-Envoy-Decorator-Operation",
			"X-Envoy-External-Address", "X-Envoy-Internal", "X-Envoy-Peer-Metadata", "X-Envoy-Attempt-Count", "X-Forwarded-Host", "Proxy-Authorization",
			"Proxy-Connection", "Keep-Alive", "X-Api-Client", "X-Hop",
		} {
			header = append(header, name, forged)
		}
		header = append(header, "Connection", "X-Hop, X-Forwarded-For")
		resp, err := m.get(t.Context(), hostileHost, "/", header...)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		require.NotContains(t, resp.body, forged)
	})
	t.Run("where a request comes from is what the gateway saw", func(t *testing.T) {
		resp, err := m.get(t.Context(), hostileHost, "/", "X-Forwarded-Proto", "https", "X-Forwarded-For", "203.0.113.7")
		require.NoError(t, err)
		var saw reflected
		require.NoError(t, json.Unmarshal([]byte(resp.body), &saw))
		require.Equal(t, "http", saw.Header.Get("X-Forwarded-Proto"))
		hops := strings.Split(saw.Header.Get("X-Forwarded-For"), ",")
		require.Equal(t, "127.0.0.1", strings.TrimSpace(hops[len(hops)-1]), "the last hop is the client's own address")
	})
	t.Run("limits of a request are not the client's to set", func(t *testing.T) {
		resp, err := m.get(t.Context(), hostileHost, "/", "X-Envoy-Upstream-Rq-Timeout-Ms", "0", "X-Envoy-Max-Retries", "1000", "X-Envoy-Retry-On", "2xx",
			"X-Envoy-Expected-Rq-Timeout-Ms", "1", "Grpc-Timeout", "1n")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		require.NotContains(t, strings.ToLower(resp.body), "x-envoy-upstream-rq-timeout-ms")
	})
	for name, c := range map[string]struct {
		method string
		header []string
		status int
	}{
		"a method in a header is no method":              {"POST", []string{"X-Http-Method-Override", "GET"}, 401},
		"by any of its names":                            {"POST", []string{"X-Method-Override", "GET", "X-Http-Method", "GET", "_method", ""}, 400},
		"a path in a header is no path":                  {"POST", []string{"X-Original-Url", "/open", "X-Rewrite-Url", "/open", "X-Envoy-Original-Path", "/open"}, 401},
		"a header with an underscore is refused":         {"GET", []string{"X_Forwarded_Client_Cert", forged}, 400},
		"a caller that is named by a header has no name": {"POST", []string{"X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/lambdamesh-system/sa/gateway"}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			resp, err := m.request(t.Context(), c.method, hostileHost, "/only-get", "", c.header...)
			require.NoError(t, err)
			require.Equal(t, c.status, resp.status, resp.body)
		})
	}
	t.Run("a token that Connection names is checked like any other", func(t *testing.T) {
		for token, want := range map[string]int{issuer.token(t, nil): 200, "nonsense": 401, "": 401} {
			a, err := exchange(address(t, m.Gateway), "GET /private HTTP/1.1\r\nHost: "+hostileHost+
				"\r\nAuthorization: Bearer "+token+"\r\nConnection: close, authorization, x-lambdamesh-rule, host\r\n\r\n", false)
			require.NoError(t, err)
			require.Equal(t, want, a.status(t), "%v", a)
		}
	})
	t.Run("a rule for GET is one for GET", func(t *testing.T) {
		resp, err := m.request(t.Context(), "GET", hostileHost, "/only-get", "", "X-Http-Method-Override", "DELETE")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		var saw reflected
		require.NoError(t, json.Unmarshal([]byte(resp.body), &saw))
		require.Equal(t, "GET", saw.Method)
	})
}
