package meshtest_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// The table of each case against the embedded proxy, served by the real ADS
// server. Backends are plain servers here: mutual TLS has tests of its own.
func TestEmbeddedProxyAnswersTheTable(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		requests := c.Requests(t)
		if len(requests) == 0 {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			mesh := c.Mesh(t)
			withBackends(t, mesh)
			addresses := serve(t, mesh)
			for _, r := range requests {
				if r.Only != "" && r.Only != "envoy" {
					continue
				}
				t.Run(r.Name, func(t *testing.T) {
					address, found := addresses[fmt.Sprintf("%s %d", r.Gateway, r.Port)]
					require.True(t, found, "gateway %s has no listener at %d", r.Gateway, r.Port)
					check(t, r, send(t, address, r))
				})
			}
		})
	}
}

// seen is what a backend saw, which it answers with.
type seen struct {
	Backend, Path, Host string
	Headers             http.Header
}

// echoHeader of a response, since HEAD has no body.
const echoHeader = "X-Echo"

// backendCORS is what every backend tells browsers by itself.
func backendCORS() http.Header {
	return http.Header{
		"Access-Control-Allow-Origin":      {"https://backend.example"},
		"Access-Control-Allow-Credentials": {"true"},
		"Access-Control-Expose-Headers":    {"x-secret"},
	}
}

// withBackends starts a server for each destination that could have endpoints.
func withBackends(t *testing.T, mesh *ir.Mesh) {
	t.Helper()
	for i := range mesh.Destinations {
		d := mesh.Destinations[i]
		if d.Workload == "" && len(d.Endpoints) == 0 {
			continue // a Service that has none, on purpose
		}
		key := d.Key()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			echo, _ := json.Marshal(seen{Backend: key, Path: r.RequestURI, Host: r.Host, Headers: r.Header})
			w.Header().Set(echoHeader, string(echo))
			for name, value := range backendCORS() {
				w.Header()[name] = value
			}
		}))
		t.Cleanup(server.Close)
		host, port, err := net.SplitHostPort(server.Listener.Addr().String())
		require.NoError(t, err)
		number, err := strconv.ParseUint(port, 10, 16)
		require.NoError(t, err)
		d.Endpoints, d.Identities = []ir.Endpoint{{Address: host, Port: uint32(number)}}, nil
	}
}

// serve runs a proxy for each gateway; the result is the address of each
// "<gateway> <port>".
func serve(t testing.TB, mesh *ir.Mesh) map[string]string {
	t.Helper()
	p := newPlane(t)
	addresses := map[string]string{}
	for _, g := range mesh.Gateways {
		resources, err := xds.GatewayResources(mesh, g.Namespace, g.Name)
		require.NoError(t, err)
		listeners := p.run(t, ads.GatewayNodeID(g.Namespace, g.Name, "test"), g.Key(), gatewayAccount(), resources)
		for port, address := range listeners {
			addresses[fmt.Sprintf("%s %s", g.Key(), port)] = address
		}
	}
	return addresses
}

// answer is what a client gets, and what the backend saw if one was asked.
type answer struct {
	status int
	header http.Header
	echo   seen
}

func check(t *testing.T, r meshtest.Request, got answer) {
	t.Helper()
	echo := got.echo
	want := r.Want
	require.Equal(t, want.Status, got.status, "answered by %q", echo.Backend)
	if want.Backend != "" {
		require.Equal(t, want.Backend, echo.Backend)
	}
	if len(want.OneOf) > 0 {
		require.Contains(t, want.OneOf, echo.Backend)
	}
	if want.Path != "" {
		require.Equal(t, want.Path, echo.Path)
	}
	if want.Host != "" {
		require.Equal(t, want.Host, echo.Host)
	}
	for name, value := range want.RequestHeaders {
		require.Equal(t, []string{value}, echo.Headers.Values(name), name)
	}
	if len(want.Claims) > 0 {
		require.Len(t, echo.Headers.Values(headers.Claims), 1)
		payload, err := base64.RawURLEncoding.DecodeString(echo.Headers.Get(headers.Claims))
		require.NoError(t, err)
		told := map[string]any{}
		require.NoError(t, json.Unmarshal(payload, &told))
		require.Subset(t, told, want.Claims)
	}
	for _, name := range want.Absent {
		require.Empty(t, echo.Headers.Values(name), name)
	}
	for name, value := range want.Headers {
		require.Equal(t, value, got.header.Get(name), name)
	}
	for _, name := range want.Present {
		require.NotEmpty(t, slices.Concat(got.header.Values(name), echo.Headers.Values(name)), name)
	}
	for _, name := range want.AbsentResponse {
		require.Empty(t, got.header.Values(name), name)
	}
	if echo.Backend != "" {
		require.Len(t, echo.Headers.Values(headers.Rule), 1, "the gateway sets the rule")
		for name, forged := range r.Headers {
			if strings.EqualFold(name, headers.Rule) {
				require.NotEqual(t, forged, echo.Headers.Get(headers.Rule), "the client chose the rule")
			}
		}
	}
}

// send writes the request as the row has it: a client library would clean the
// path and the headers first.
func send(t *testing.T, address string, r meshtest.Request) answer {
	t.Helper()
	token := ""
	if r.Token != nil {
		token = r.Token.Mint(t, time.Now())
		switch {
		case r.Token.Header != "":
			r.Headers = maps.Clone(r.Headers)
			if r.Headers == nil {
				r.Headers = map[string]string{}
			}
			r.Headers[r.Token.Header], token = r.Token.Prefix+token, ""
		case r.Token.Param != "":
			r.URL, token = r.URL+"?"+r.Token.Param+"="+token, ""
		}
	}
	got, err := exchange(t.Context(), address, r, token)
	require.NoError(t, err)
	return got
}

func exchange(ctx context.Context, address string, r meshtest.Request, token string) (answer, error) {
	target, err := url.Parse(r.URL)
	if err != nil {
		return answer{}, err
	}
	uri := strings.TrimPrefix(r.URL, target.Scheme+"://"+target.Host)
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", r.Method, uri, target.Host)
	for name, value := range r.Headers {
		fmt.Fprintf(&text, "%s: %s\r\n", name, value)
	}
	if token != "" {
		fmt.Fprintf(&text, "Authorization: Bearer %s\r\n", token)
	}
	switch body := strings.Repeat("x", r.Body); {
	case r.Chunked:
		fmt.Fprintf(&text, "Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", r.Body, body)
	case r.Body > 0:
		fmt.Fprintf(&text, "Content-Length: %d\r\n\r\n%s", r.Body, body)
	default:
		text.WriteString("\r\n")
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return answer{}, err
	}
	if _, err := conn.Write([]byte(text.String())); err != nil {
		return answer{}, err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: r.Method})
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	got := answer{status: response.StatusCode, header: response.Header}
	if response.Header.Get("Content-Type") == "application/problem+json" {
		var problem struct {
			Status int
			Title  string
		}
		if err := json.NewDecoder(response.Body).Decode(&problem); err != nil || problem.Status != response.StatusCode || problem.Title == "" {
			return got, fmt.Errorf("a refusal with status %d that says %+v: %w", response.StatusCode, problem, err)
		}
		return got, nil
	}
	if text := response.Header.Get(echoHeader); text != "" {
		return got, json.Unmarshal([]byte(text), &got.echo)
	}
	return got, nil
}
