package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
)

const pathsHost = "hostile-paths.lambdas.localhost"

// protectedPaths puts literals that have many spellings before a rule that is
// open to all, in front of the hostile tests' lambda.
func protectedPaths(t *testing.T) *mesh {
	t.Helper()
	m, issuer := hostile(t)
	var rules strings.Builder
	for _, path := range meshtest.SpelledPaths() {
		fmt.Fprintf(&rules, "    - {path: %q, lambda: reflect, jwt: {authentications: [{issuer: %q, jwksUri: %q, audiences: [shop]}]}}\n", path, issuer.name, issuer.url)
	}
	m.apply(t, `
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: paths, namespace: hostile}
spec:
  hosts: [hostile-paths]
  rules:
`+rules.String()+`    - {path: "/{**}", lambda: reflect, noAuth: true}
`)
	m.waitFor(t, hostileNamespace, "apirule/paths", "Ready")
	return m
}

func TestNoSpellingOfAPathReachesALessProtectedRule(t *testing.T) {
	m := protectedPaths(t)
	type request struct {
		path string
		want []int
	}
	requests := map[string]request{}
	for path, want := range meshtest.Spellings() {
		requests[fmt.Sprintf("%q", path)] = request{path, want}
		requests[fmt.Sprintf("%q in absolute form", path)] = request{"http://" + pathsHost + path, want}
	}
	each(t, requests, func(r request) (answer, error) {
		return exchange(address(t, m.Gateway), "GET "+r.path+" HTTP/1.1\r\nHost: "+strings.ToUpper(pathsHost)+".:80\r\nConnection: close\r\n\r\n", false)
	}, func(t *testing.T, r request, a answer) {
		require.Contains(t, r.want, a.status(t), "%v", a)
	})
}

func TestNoSpellingOfAMethodReachesALessProtectedRule(t *testing.T) {
	m, issuer := hostile(t)
	const host = "hostile-methods.lambdas.localhost"
	m.apply(t, fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: methods, namespace: hostile}
spec:
  hosts: [hostile-methods]
  rules:
    - {path: /*, methods: [GET, PUT], lambda: reflect, jwt: {authentications: [{issuer: %q, jwksUri: %q, audiences: [shop]}]}}
    - {path: /*, lambda: reflect, noAuth: true}
`, issuer.name, issuer.url))
	m.waitFor(t, hostileNamespace, "apirule/methods", "Ready")
	all := map[string]int{"GET": http.StatusUnauthorized, "PUT": http.StatusUnauthorized, "POST": http.StatusOK, "PURGE": http.StatusOK}
	for _, method := range []string{"get", "Get", "GEt", "gET", "put", "post", "purge", "x-custom"} {
		all[method] = http.StatusBadRequest
	}
	type request struct {
		method string
		want   int
	}
	requests := map[string]request{}
	for method, want := range all {
		requests[method] = request{method, want}
	}
	each(t, requests, func(r request) (answer, error) {
		return exchange(address(t, m.Gateway), r.method+" / HTTP/1.1\r\nHost: "+host+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false)
	}, func(t *testing.T, r request, a answer) {
		require.Equal(t, r.want, a.status(t), "%v", a)
	})
}

// HTTP/2 carries the path in a header, blanks and all.
func TestNoSpellingOfAnHTTP2PathReachesALessProtectedRule(t *testing.T) {
	m := protectedPaths(t)
	all := meshtest.Spellings()
	for _, path := range []string{"/a b", "/ orders:cancel", "/orders:cancel ", "/orders:cancel\t", "/orders:cancel\x00", "/orders:cancel\n", "/x y/../a b"} {
		all[path] = []int{http.StatusUnauthorized, http.StatusBadRequest}
	}
	// These are blanks that belong to the path: another one.
	all["/ orders:cancel"], all["/orders:cancel "] = []int{http.StatusOK, http.StatusBadRequest}, []int{http.StatusOK, http.StatusBadRequest}
	for path, want := range all {
		t.Run(strings.ReplaceAll(fmt.Sprintf("%q", path), "/", "|"), func(t *testing.T) {
			status, err := http2Status(address(t, m.Gateway), pathsHost, path)
			require.NoError(t, err)
			if status == 0 { // the stream or the connection was refused
				status = http.StatusBadRequest
			}
			require.Contains(t, want, status)
		})
	}
}

// http2Status sends a GET with exactly this :path, with prior knowledge. A stream
// or connection that was reset has the status 0.
func http2Status(addr, authority, path string) (status int, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return 0, err
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		return 0, err
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", authority}, {":path", path}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			return 0, err
		}
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		return 0, err
	}
	for {
		frame, err := framer.ReadFrame()
		var waited net.Error
		if errors.As(err, &waited) && waited.Timeout() {
			return 0, err
		}
		if err != nil {
			return 0, nil // the server closed the connection
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			_, err := fmt.Sscan(f.PseudoValue("status"), &status)
			return status, err
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0, nil
		}
	}
}
