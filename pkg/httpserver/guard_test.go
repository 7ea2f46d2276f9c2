package httpserver_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

func TestBrowserGuard(t *testing.T) {
	guarded := httpserver.BrowserGuard(
		httpserver.GuardConfig{Hosts: []string{"bus.test"}, Origins: []string{"http://localhost:3000"}},
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	const admitted = http.StatusNoContent
	for name, tc := range map[string]struct {
		host   string
		header http.Header
		want   int
	}{
		"a program on loopback":              {"127.0.0.1:8081", nil, admitted},
		"loopback of IPv6":                   {"[::1]:8081", nil, admitted},
		"loopback of IPv6 without a port":    {"[::1]", nil, admitted},
		"localhost":                          {"LocalHost:8081", nil, admitted},
		"an allowed name":                    {"bus.test", nil, admitted},
		"an allowed name with a dot":         {"bus.test.:80", nil, admitted},
		"a rebound name":                     {"evil.example:8081", nil, http.StatusMisdirectedRequest},
		"a name that begins with loopback":   {"127.0.0.1.evil.example", nil, http.StatusMisdirectedRequest},
		"localhost as a label":               {"localhost.evil.example", nil, http.StatusMisdirectedRequest},
		"no host":                            {"", nil, http.StatusMisdirectedRequest},
		"another machine's address":          {"192.0.2.1", nil, http.StatusMisdirectedRequest},
		"an allowed page":                    {"localhost", http.Header{"Origin": {"http://localhost:3000"}}, admitted},
		"a foreign page":                     {"localhost", http.Header{"Origin": {"https://evil.example"}}, http.StatusForbidden},
		"a sandboxed page":                   {"localhost", http.Header{"Origin": {"null"}}, http.StatusForbidden},
		"an empty origin":                    {"localhost", http.Header{"Origin": {""}}, http.StatusForbidden},
		"two origins":                        {"localhost", http.Header{"Origin": {"http://localhost:3000", "x"}}, http.StatusForbidden},
		"an image on a foreign page":         {"localhost", http.Header{"Sec-Fetch-Site": {"cross-site"}}, http.StatusForbidden},
		"a page of another port":             {"localhost", http.Header{"Sec-Fetch-Site": {"same-site"}}, http.StatusForbidden},
		"an address typed by the developer":  {"localhost", http.Header{"Sec-Fetch-Site": {"none"}}, admitted},
		"a page of ours asking for its data": {"localhost", http.Header{"Sec-Fetch-Site": {"same-origin"}}, admitted},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
			r.Host = tc.host
			for key, values := range tc.header {
				r.Header[key] = values
			}
			w := httptest.NewRecorder()
			guarded.ServeHTTP(w, r)
			require.Equal(t, tc.want, w.Code)
		})
	}
}

func TestClientIdentity(t *testing.T) {
	const id = "spiffe://cluster.local/ns/shop/sa/last-order"
	for name, tc := range map[string]struct {
		headers []string
		want    string
	}{
		"as Envoy writes it": {[]string{`By=spiffe://cluster.local/ns/s/sa/c;Hash=468e;Subject="CN=a,O=b;c";URI=` + id}, id},
		"only the URI":       {[]string{"URI=" + id}, id},
		"keys in lower case": {[]string{"hash=1;uri=" + id}, id},
		"the last element, the nearest proxy's, counts": {[]string{"URI=spiffe://evil/ns/x/sa/y,Hash=1;URI=" + id}, id},
		"the last header counts":                        {[]string{"URI=spiffe://evil/ns/x/sa/y", "URI=" + id}, id},
		"separators inside quotes are text":             {[]string{`URI=` + id + `;Subject="x,URI=spiffe://evil/ns/x/sa/y"`}, id},
		"an escaped quote does not end a value":         {[]string{`Subject="\",URI=spiffe://evil/ns/x/sa/y";URI=` + id}, id},
		"a quoted URI":                                  {[]string{`URI="` + id + `"`}, id},
		"the last element without a URI":                {[]string{"URI=" + id + ",Hash=1"}, ""},
		"two URIs":                                      {[]string{"URI=" + id + ";URI=spiffe://evil/ns/x/sa/y"}, ""},
		"no SPIFFE ID":                                  {[]string{"URI=https://cluster.local/ns/shop/sa/last-order"}, ""},
		"no header":                                     {nil, ""},
		"empty":                                         {[]string{""}, ""},
		"an open quote":                                 {[]string{`Subject="x;URI=` + id}, ""},
		"text after a quote":                            {[]string{`Subject="x"y;URI=` + id}, ""},
		"a lone backslash":                              {[]string{`Subject="x\`}, ""},
		"no key":                                        {[]string{"=x;URI=" + id}, ""},
		"no value":                                      {[]string{"URI"}, ""},
		"a trailing comma":                              {[]string{"URI=" + id + ","}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
			for _, value := range tc.headers {
				r.Header.Add("X-Forwarded-Client-Cert", value)
			}
			got, ok := httpserver.ClientIdentity(r)
			require.Equal(t, tc.want != "", ok)
			if ok {
				require.Equal(t, tc.want, got)
			}
		})
	}
}

func TestWorkload(t *testing.T) {
	namespace, account, ok := httpserver.Workload("cluster.local", "spiffe://cluster.local/ns/shop/sa/last-order")
	require.True(t, ok)
	require.Equal(t, []string{"shop", "last-order"}, []string{namespace, account})
	for _, id := range []string{
		"", "spiffe://other/ns/shop/sa/x", "spiffe://cluster.local/ns/shop", "spiffe://cluster.local/ns//sa/x",
		"spiffe://cluster.local/ns/shop/sa/", "spiffe://cluster.local/ns/a/b/sa/x", "spiffe://cluster.local/ns/shop/sa/x/y",
		"spiffe://cluster.local.evil/ns/shop/sa/x", "SPIFFE://cluster.local/ns/shop/sa/x",
	} {
		_, _, ok := httpserver.Workload("cluster.local", id)
		require.False(t, ok, id)
	}
}
