package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const edgeHCM = `
use_remote_address: true
normalize_path: true
merge_slashes: true
path_with_escaped_slashes_action: REJECT_REQUEST
strip_any_host_port: true
common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST}
`

// twoPolicies has a public part and a private path that nothing reaches; both as
// the control plane writes them, a literal as the whole path.
const twoPolicies = `
- name: shop
  domains: [shop.example]
  routes:
  - {match: {path: /private}, direct_response: {status: 403}}
  - {match: {prefix: /a/}, route: {cluster: backend}}
  - {match: {prefix: /}, route: {cluster: backend}}
- name: other
  domains: [other.example]
  routes: [{match: {prefix: /}, direct_response: {status: 418}}]
`

// raw sends bytes and reads the answers until the server closes.
func raw(t testing.TB, addr, text string) (codes []int, closed bool) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, text)
	require.NoError(t, err)
	r := bufio.NewReader(conn)
	for {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
		if _, err := r.Peek(1); err != nil {
			return codes, err == io.EOF
		}
		resp, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		codes = append(codes, resp.StatusCode)
	}
}

func TestPathsAreDecidedInTheirCanonicalForm(t *testing.T) {
	addr := backend(t, echo)
	_, _, gateway := serve(t, config{hcm: edgeHCM, hosts: twoPolicies, clusters: map[string]string{"backend": addr}})
	for path, want := range map[string]int{
		"/private":                         403,
		"/a/../private":                    403,
		"/a/./../private":                  403,
		"//private":                        403,
		"/a/..//private":                   403,
		"/%2e%2e/private":                  403,
		"/a/%2E%2e/private":                403,
		"/%70rivate":                       403,
		`\private`:                         400,
		`/\private`:                        403,
		`/a\..\private`:                    403,
		"/a%2f..%2fprivate":                400,
		"/a%2F..%2Fprivate":                400,
		"/a%5c..%5cprivate":                400,
		"/private;x":                       200, // another path to Envoy; the control plane's first route refuses it
		"/private/":                        200,
		"/ö":                               200,
		"/a/\xff":                          400,
		"/private#f":                       400,
		"/#/../private":                    400,
		"/a/%00":                           400,
		"/a/%zz":                           400,
		"/a/\x00":                          400,
		"/../../../private":                403,
		"/a/b":                             200,
		"/a/b/..":                          200,
		"/..;/private":                     200, // a segment of its own; nothing decodes it
		"/a/%3b":                           200,
		"/caf%C3%A9":                       200,
		"/a?x=/../private%2f":              200,
		"http://shop.example/private":      403,
		"http://shop.example/a/../private": 403,
		"http://shop.example":              200,
		"http://shop.example?x=1":          200,
		"http://shop.example:8080/private": 403,
		"http://other.example/private":     418, // absolute form wins over Host
		"HTTP://SHOP.example/private":      403,
		"ftp:private":                      400,
		"*":                                400, // for OPTIONS only
	} {
		t.Run(strings.ReplaceAll(path, "/", "|"), func(t *testing.T) {
			codes, _ := raw(t, gateway, "GET "+path+" HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
			require.Equal(t, []int{want}, codes)
		})
	}
}

// The server itself is asked, which no rule is for; net/http would say 200.
func TestOptionsOfTheServerAreNobodys(t *testing.T) {
	_, _, gateway := serve(t, config{hcm: edgeHCM, hosts: twoPolicies, clusters: map[string]string{"backend": backend(t, echo)}})
	codes, _ := raw(t, gateway, "OPTIONS * HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")
	require.Equal(t, []int{404}, codes)
}

func TestUpstreamSeesTheCanonicalPath(t *testing.T) {
	_, _, gateway := serve(t, config{hcm: edgeHCM, hosts: twoPolicies, clusters: map[string]string{"backend": backend(t, echo)}})
	for path, want := range map[string]string{
		"/a/../b":         "/b",
		"//b//c":          "/b/c",
		"/%61/b%20c?q=%2": "/a/b%20c?q=%2",
		"/a/b/..":         "/a/",
		"/a/.":            "/a/",
		"/a/ö|":           "/a/%C3%B6%7C",
		"/a/%c3%b6%3a:;":  "/a/%c3%b6%3a:;",
	} {
		conn, err := net.Dial("tcp", gateway)
		require.NoError(t, err)
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.Equal(t, want, resp.Header.Get("Got-Path"), path)
		conn.Close()
	}
}

func TestHostsAreDecidedInTheirCanonicalForm(t *testing.T) {
	_, _, gateway := serve(t, config{hcm: edgeHCM, hosts: twoPolicies, clusters: map[string]string{"backend": backend(t, echo)}})
	for name, test := range map[string]struct {
		lines string
		want  int
	}{
		"plain":          {"Host: shop.example", 403},
		"upper case":     {"Host: SHOP.Example", 403},
		"with a port":    {"Host: shop.example:8080", 403},
		"trailing dot":   {"Host: shop.example.", 404},
		"unknown":        {"Host: nowhere.example", 404},
		"empty":          {"Host:", 400},
		"none":           {"X: y", 400},
		"two":            {"Host: shop.example\r\nHost: other.example", 400},
		"two of a kind":  {"Host: shop.example\r\nHost: shop.example", 400},
		"with a path":    {"Host: shop.example/private", 400},
		"with user info": {"Host: other.example@shop.example", 400},
	} {
		t.Run(name, func(t *testing.T) {
			codes, _ := raw(t, gateway, "GET /private HTTP/1.1\r\n"+test.lines+"\r\nConnection: close\r\n\r\n")
			require.Equal(t, []int{test.want}, codes)
		})
	}
}

func TestAmbiguousFramingIsRefusedAndTheConnectionClosed(t *testing.T) {
	_, _, gateway := serve(t, config{hcm: edgeHCM, hosts: twoPolicies, clusters: map[string]string{"backend": backend(t, echo)}})
	smuggled := "GET /private HTTP/1.1\r\nHost: shop.example\r\n\r\n"
	for name, test := range map[string]struct {
		text string
		want []int
	}{
		"content-length and chunked": {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, []int{400}},
		"chunked and content-length": {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + smuggled, []int{400}},
		"after another request":      {"GET /a/ HTTP/1.1\r\nHost: shop.example\r\n\r\nPOST /a/ HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, nil},
		"chunked, identity":          {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled, []int{400}},
		"two encodings":              {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + smuggled, nil},
		"a chunk without a length":   {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + smuggled, []int{400}},
		"a chunk's length in C":      {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n" + smuggled, []int{400}},
		"two lengths":                {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + smuggled, []int{400}},
		"negative length":            {"POST /a/ HTTP/1.1\r\nHost: shop.example\r\nContent-Length: -4\r\n\r\nabcd", []int{400}},
		"bare LF":                    {"GET /a/ HTTP/1.1\nHost: shop.example\n\n" + smuggled, []int{400}},
		"one bare LF":                {"GET /a/ HTTP/1.1\r\nHost: shop.example\nX: y\r\n\r\n" + smuggled, []int{400}},
		"folded line":                {"GET /a/ HTTP/1.1\r\nHost: shop.example\r\nX: y\r\n z\r\n\r\n" + smuggled, []int{400}},
		"space before the colon":     {"GET /a/ HTTP/1.1\r\nHost: shop.example\r\nContent-Length : 4\r\n\r\nabcd" + smuggled, []int{400}},
		"NUL in a header":            {"GET /a/ HTTP/1.1\r\nHost: shop.example\r\nX: \x00\r\n\r\n" + smuggled, []int{400}},
		"underscore":                 {"GET /a/ HTTP/1.1\r\nHost: shop.example\r\nX_Y: z\r\n\r\n" + smuggled, []int{400}},
		"HTTP/1.0":                   {"GET /a/ HTTP/1.0\r\nHost: shop.example\r\n\r\n", []int{426}},
		"CONNECT":                    {"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\nConnection: close\r\n\r\n", []int{405}},
	} {
		t.Run(name, func(t *testing.T) {
			codes, closed := raw(t, gateway, test.text)
			require.True(t, closed, "the connection is closed, answers %v", codes)
			require.NotContains(t, codes, 403, "the smuggled request was seen")
			if test.want != nil {
				require.Equal(t, test.want, codes)
			}
			require.NotEmpty(t, codes)
			require.GreaterOrEqual(t, codes[len(codes)-1], 400)
		})
	}
}

func TestLargeHeadersAreRefused(t *testing.T) {
	_, _, gateway := serve(t, config{hcm: edgeHCM, hosts: twoPolicies, clusters: map[string]string{"backend": backend(t, echo)}})
	codes, closed := raw(t, gateway, "GET /a/ HTTP/1.1\r\nHost: shop.example\r\nX: "+strings.Repeat("x", 70<<10)+"\r\n\r\n")
	require.Equal(t, []int{431}, codes)
	require.True(t, closed)
	var many strings.Builder
	for i := range 150 {
		fmt.Fprintf(&many, "X-%d: y\r\n", i)
	}
	codes, _ = raw(t, gateway, "GET /a/ HTTP/1.1\r\nHost: shop.example\r\n"+many.String()+"\r\n")
	require.Equal(t, []int{431}, codes)
}

func TestSlowHeadersEndTheConnection(t *testing.T) {
	_, _, gateway := serve(t, config{hcm: edgeHCM + "\nrequest_headers_timeout: 0.2s", hosts: twoPolicies})
	conn, err := net.Dial("tcp", gateway)
	require.NoError(t, err)
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /a/ HTTP/1.1\r\nHost: shop") // which may be too late already
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = io.ReadAll(conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "closed by the server")
}

// What is removed early is not there for a route's match either.
func TestHeadersRemovedEarlyDecideNothing(t *testing.T) {
	_, _, gateway := serve(t, config{
		hcm: edgeHCM + `
early_header_mutation_extensions:
- name: early
  typed_config: {` + typePrefix + `http.early_header_mutation.header_mutation.v3.HeaderMutation, mutations: [{remove: x-lambdamesh-rule}, {remove: x-api-client}]}`,
		hosts: `
- name: all
  domains: ["*"]
  routes:
  - {match: {prefix: /, headers: [{name: x-lambdamesh-rule, present_match: true}]}, direct_response: {status: 418}}
  - {match: {prefix: /}, route: {cluster: backend}}`,
		clusters: map[string]string{"backend": backend(t, echo)},
	})
	forged := func(r *http.Request) {
		r.Header["x-lambdamesh-RULE"] = []string{"a", "b"}
		r.Header["X-Api-Client"] = []string{"a"}
		r.Header["Connection"] = []string{"x-lambdamesh-rule, x-api-client"}
	}
	got := get(t, gateway, "/", forged)
	require.Equal(t, 200, got.code)
	require.Empty(t, got.header.Values("Got-X-Lambdamesh-Rule"))
	require.Empty(t, got.header.Values("Got-X-Api-Client"))
}

func TestForgedHeadersDoNotArrive(t *testing.T) {
	_, _, gateway := serve(t, config{hcm: edgeHCM, hosts: twoPolicies, clusters: map[string]string{"backend": backend(t, echo)}})
	got := get(t, gateway, "/a/", host("shop.example"), func(r *http.Request) {
		for name, value := range map[string]string{
			"X-Envoy-Original-Path": "/private", "X-Envoy-Upstream-Rq-Timeout-Ms": "1", "X-Forwarded-For": "1.2.3.4", "X-Forwarded-Proto": "https",
			"X-Forwarded-Host": "evil.example", "X-Forwarded-Client-Cert": "URI=spiffe://cluster.local/ns/a/sa/b", "Proxy-Authorization": "Basic x",
			"Keep-Alive": "timeout=5", "Te": "gzip", "Authorization": "Bearer t", "X-Private-Hop": "1", "X-HTTP-Method-Override": "DELETE",
		} {
			r.Header.Set(name, value)
		}
		r.Header["Connection"] = []string{"keep-alive, Authorization, X-Forwarded-For, X-Private-Hop, Content-Length"}
	})
	require.Equal(t, 200, got.code)
	for _, gone := range []string{"X-Envoy-Original-Path", "X-Envoy-Upstream-Rq-Timeout-Ms", "X-Forwarded-Host", "X-Forwarded-Client-Cert", "Proxy-Authorization", "Keep-Alive", "Te", "X-Private-Hop", "Connection"} {
		require.Empty(t, got.header.Values("Got-"+gone), gone)
	}
	require.Equal(t, "Bearer t", got.header.Get("Got-Authorization"))
	require.Equal(t, "1.2.3.4,127.0.0.1", got.header.Get("Got-X-Forwarded-For"))
	require.Equal(t, "http", got.header.Get("Got-X-Forwarded-Proto"))
	require.Equal(t, "GET", got.header.Get("Got-Method"))
	require.Equal(t, []string{"lambdamesh"}, got.header.Values("Server"), "it is no Envoy")
	require.NotEmpty(t, got.header.Get("Got-X-Request-Id"))
}
