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
)

const pathsHost = "hostile-paths.lambdas.localhost"

// protectedPaths puts literals that have many spellings before a rule that is
// open to all, in front of the hostile tests' lambda.
func protectedPaths(t *testing.T) *mesh {
	t.Helper()
	m, issuer := hostile(t)
	m.apply(t, fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: paths, namespace: hostile}
spec:
  hosts: [hostile-paths]
  rules:
    - {path: "/orders:cancel", lambda: reflect, jwt: &jwt {authentications: [{issuer: %q, jwksUri: %q, audiences: [shop]}]}}
    - {path: /größe, lambda: reflect, jwt: *jwt}
    - {path: /a%%20b, lambda: reflect, jwt: *jwt}
    - {path: "/@me/{*}/x|y", lambda: reflect, jwt: *jwt}
    - {path: "/a,b/{**}", lambda: reflect, jwt: *jwt}
    - {path: "/{**}", lambda: reflect, noAuth: true}
`, issuer.name, issuer.url))
	m.waitFor(t, hostileNamespace, "apirule/paths", "Ready")
	return m
}

// spellings of paths and what they must meet; both are right where two are
// given.
func spellings() map[string][]int {
	all := map[string][]int{}
	for _, path := range []string{
		"/orders:cancel", "/orders%3Acancel", "/orders%3acancel", "//orders%3acancel", "/x/../orders%3Acancel", "/%2e/orders%3acancel", `/x\..\orders%3acancel`,
		"/%6frders%3acancel", "/orders%3acancel?x=1", "/gr%C3%B6%C3%9Fe", "/gr%c3%b6%c3%9fe", "/gr%C3%b6%c3%9Fe", "/a%20b", "/%61%20b",
		"/@me/7/x%7Cy", "/%40me/7/x%7cy", "/%40me/7/x|y", "/a,b/", "/a%2cb/c", "/a%2Cb/c/d", "/a%2Cb//c",
	} {
		all[path] = []int{http.StatusUnauthorized}
	}
	for _, path := range []string{"/größe", "/gr\xc3\xb6%c3%9fe"} {
		all[path] = []int{http.StatusUnauthorized, http.StatusBadRequest}
	}
	for _, path := range []string{
		"/orders:cancel;x", "/orders:cancel;", "/;x/orders:cancel", "/..;/orders:cancel", "/orders:cancel%3bx", "/orders:cancel%3Bx", "/orders:cancel%00",
		"/orders:cancel%0a", "/orders:cancel%0D%0Ax", "/orders:cancel%7f", "/orders:cancel%3f", "/orders:cancel%3Fx", "/orders:cancel%23", "/%2forders:cancel",
		"/orders:cancel%2F", "/%5Corders:cancel", "/orders:cancel#x", "/gr%f6%dfe", "/gr%c3%b6%c3", "/%c0%af", "/%c1%a1%20b", "/%e0%81%a1%20b", "/%f0%80%81%a1%20b",
		"/%ed%a0%80", "/%f4%90%80%80", "/gr\xf6\xdfe", "/%zz", "/%", "/a%2",
	} {
		all[path] = []int{http.StatusBadRequest}
	}
	for _, path := range []string{"/orders", "/orders%2bcancel", "/a+b", "/a%2520b", "/gr%C3%B6%C3%9F", "/@me//x%7Cy", "/a,b", "/caf%c3%a9/%7B%22x%22%7D"} {
		all[path] = []int{http.StatusOK}
	}
	return all
}

func TestNoSpellingOfAPathReachesALessProtectedRule(t *testing.T) {
	m := protectedPaths(t)
	type request struct {
		path string
		want []int
	}
	requests := map[string]request{}
	for path, want := range spellings() {
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
	all := spellings()
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
