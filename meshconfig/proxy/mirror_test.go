package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMirrorsGetCopiesAndNobodySeesTheirAnswers(t *testing.T) {
	copies := make(chan string, 10)
	mirror := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		copies <- r.Method + " " + r.Host + r.RequestURI + " " + r.Header.Get("X-Added") + " " + string(body)
		w.WriteHeader(http.StatusTeapot)
	})
	_, _, addr := serve(t, config{
		hosts: `
- name: all
  domains: ["*"]
  routes:
  - match: {prefix: /}
    request_headers_to_add: [{header: {key: x-added, value: "yes"}}]
    route: {cluster: backend, prefix_rewrite: /new/, request_mirror_policies: [{cluster: mirror, runtime_fraction: {default_value: {numerator: 100}}}]}
`,
		clusters: map[string]string{"backend": backend(t, echo), "mirror": mirror},
	})
	next := func() string {
		select {
		case c := <-copies:
			return c
		case <-time.After(patience):
			t.Fatal("no copy came")
			return ""
		}
	}
	got := get(t, addr, "/a?b=c", host("shop.example"))
	require.Equal(t, http.StatusOK, got.code)
	require.Equal(t, "shop.example", got.header.Get("Got-Host"))
	require.Equal(t, "GET shop.example-shadow/new/a?b=c yes ", next())

	req := request(t, http.MethodPost, addr, "/post", host("shop.example"), func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader("hello")), 5
	})
	got = do(t, http.DefaultClient, req)
	require.Equal(t, "hello", got.body)
	require.Equal(t, "POST shop.example-shadow/new/post yes hello", next())
}

func TestMirrorsGetTheHostWhenToldSo(t *testing.T) {
	hosts := make(chan string, 1)
	mirror := backend(t, func(_ http.ResponseWriter, r *http.Request) { hosts <- r.Host })
	_, _, addr := serve(t, config{
		hosts: `
- name: all
  domains: ["*"]
  routes: [{match: {prefix: /}, route: {cluster: backend, request_mirror_policies: [{cluster: mirror, disable_shadow_host_suffix_append: true}]}}]
`,
		clusters: map[string]string{"backend": backend(t, echo), "mirror": mirror},
	})
	require.Equal(t, http.StatusOK, get(t, addr, "/", host("shop.example")).code)
	select {
	case got := <-hosts:
		require.Equal(t, "shop.example", got)
	case <-time.After(patience):
		t.Fatal("no copy came")
	}
}

func TestAMirrorThatIsAwayHarmsNobody(t *testing.T) {
	_, _, addr := serve(t, config{
		hosts: `
- name: all
  domains: ["*"]
  routes: [{match: {prefix: /}, route: {cluster: backend, request_mirror_policies: [{cluster: away}, {cluster: unknown}]}}]
`,
		clusters: map[string]string{"backend": backend(t, echo), "away": "127.0.0.1:1"},
	})
	for range 5 {
		require.Equal(t, http.StatusOK, get(t, addr, "/").code)
	}
}
