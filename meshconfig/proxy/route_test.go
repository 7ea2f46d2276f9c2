package proxy_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRouteMatching(t *testing.T) {
	addr := backend(t, echo)
	_, _, gateway := serve(t, config{hcm: "normalize_path: true", clusters: map[string]string{"backend": addr}, hosts: `
- name: exact
  domains: [shop.example, "shop.example:8080"]
  routes:
  - {match: {path: /exact}, direct_response: {status: 201}}
  - {match: {path: /FOLD, case_sensitive: false}, direct_response: {status: 202}}
  - {match: {path_separated_prefix: /sep}, direct_response: {status: 203}}
  - {match: {safe_regex: {regex: "/re/[^/]+"}}, direct_response: {status: 206}}
  - {match: {prefix: /h, headers: [{name: x-a, string_match: {exact: "1"}}, {name: x-b, present_match: true}]}, direct_response: {status: 207}}
  - {match: {prefix: /h, headers: [{name: x-a, string_match: {contains: z}}]}, direct_response: {status: 208}}
  - {match: {prefix: /h, headers: [{name: x-c, present_match: true, invert_match: true}, {name: ":method", string_match: {exact: POST}}]}, direct_response: {status: 210}}
  - {match: {prefix: /q, query_parameters: [{name: a, string_match: {exact: "b c"}}]}, direct_response: {status: 211}}
  - {match: {prefix: /q, query_parameters: [{name: d, present_match: true}]}, direct_response: {status: 212}}
- name: suffix
  domains: ["*.shop.example"]
  routes: [{match: {prefix: /}, direct_response: {status: 220}}]
- name: longer suffix
  domains: ["*.eu.shop.example"]
  routes: [{match: {prefix: /}, direct_response: {status: 221}}]
- name: prefix
  domains: ["api.*"]
  routes: [{match: {prefix: /}, direct_response: {status: 222}}]
`})
	type r = func(*http.Request)
	post := func(r *http.Request) { r.Method = http.MethodPost }
	for _, test := range []struct {
		name, path string
		change     []r
		code       int
	}{
		{"exact", "/exact?x", nil, 201},
		{"not longer", "/exact/", nil, 404},
		{"case matters", "/Exact", nil, 404},
		{"case does not", "/fold", nil, 202},
		{"separated", "/sep", nil, 203},
		{"separated below", "/sep/x", nil, 203},
		{"not within a segment", "/separate", nil, 404},
		{"regex", "/re/x", nil, 206},
		{"regex is for the whole path", "/re/x/y", nil, 404},
		{"two headers", "/h", []r{header("X-A", "1"), header("X-B", "")}, 207},
		{"one of two", "/h", []r{header("X-A", "1")}, 404},
		{"contains", "/h", []r{header("X-A", "xzx")}, 208},
		{"absent and method", "/h", []r{post}, 210},
		{"present", "/h", []r{post, header("X-C", "1")}, 404},
		{"query", "/q?x=1&a=b%20c", nil, 211},
		{"query present", "/q?d", nil, 212},
		{"other query", "/q?a=b", nil, 404},
		{"suffix", "/", []r{host("a.b.shop.example")}, 220},
		{"longer suffix", "/", []r{host("a.EU.shop.example")}, 221},
		{"prefix", "/", []r{host("api.other.example")}, 222},
		{"the suffix alone", "/", []r{host(".shop.example")}, 404},
		{"nobody's", "/", []r{host("other.example")}, 404},
		{"a port of its own", "/exact", []r{host("shop.example:8080")}, 201},
		{"another port", "/exact", []r{host("shop.example:81")}, 404},
	} {
		t.Run(test.name, func(t *testing.T) {
			change := append([]r{host("shop.example")}, test.change...)
			require.Equal(t, test.code, get(t, gateway, test.path, change...).code)
		})
	}
}

func TestRewritesHeadersAndRedirects(t *testing.T) {
	_, _, gateway := serve(t, config{
		hcm:      "server_name: lambdamesh",
		clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Upstream", "1"); echo(w, r) })},
		table: `
request_headers_to_add: [{header: {key: x-level, value: table}}]
response_headers_to_add: [{header: {key: x-host, value: "%REQ(:authority)%"}}]`,
		hosts: `
- name: all
  domains: ["*"]
  request_headers_to_remove: [x-secret]
  request_headers_to_add: [{header: {key: x-level, value: vhost}}]
  response_headers_to_remove: [x-upstream]
  routes:
  - {match: {prefix: /old/}, route: {cluster: backend, prefix_rewrite: /new/, host_rewrite_literal: inner.example}}
  - {match: {safe_regex: {regex: "/u/[^/]+/.*"}}, route: {cluster: backend, regex_rewrite: {pattern: {regex: "^/u/([^/]+)/(.*)$"}, substitution: '/\2?\1'}}}
  - {match: {prefix: /https}, redirect: {https_redirect: true}}
  - {match: {prefix: /moved}, redirect: {host_redirect: other.example, path_redirect: /here, response_code: TEMPORARY_REDIRECT}}
  - {match: {prefix: /cut/}, redirect: {prefix_rewrite: /, strip_query: true, response_code: PERMANENT_REDIRECT}}
  - match: {prefix: /}
    route: {cluster: backend}
    request_headers_to_add:
    - {header: {key: x-level, value: route}}
    - {header: {key: x-over, value: ours}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}
    - {header: {key: x-absent, value: ours}, append_action: ADD_IF_ABSENT}
    - {header: {key: x-exists, value: ours}, append_action: OVERWRITE_IF_EXISTS}
    - {header: {key: x-copy, value: "<%REQ(X-None?X-Given):3%> 100%%"}}
    - {header: {key: x-empty, value: "%REQ(x-none)%"}}
`,
	})
	got := get(t, gateway, "/x", host("shop.example"), header("X-Secret", "s"), header("X-Over", "theirs"), header("X-Absent", "theirs"), header("X-Given", "abcdef"), header("X-Level", "theirs"))
	require.Equal(t, []string{"theirs", "route", "vhost", "table"}, got.header.Values("Got-X-Level"))
	require.Empty(t, got.header.Values("Got-X-Secret"))
	require.Equal(t, []string{"ours"}, got.header.Values("Got-X-Over"))
	require.Equal(t, []string{"theirs"}, got.header.Values("Got-X-Absent"))
	require.Empty(t, got.header.Values("Got-X-Exists"))
	require.Equal(t, "<abc> 100%", got.header.Get("Got-X-Copy"))
	require.Empty(t, got.header.Values("Got-X-Empty"))
	require.Empty(t, got.header.Values("X-Upstream"))
	require.Equal(t, "shop.example", got.header.Get("X-Host"))
	require.Equal(t, "lambdamesh", got.header.Get("Server"))

	got = get(t, gateway, "/old/a%2Fb?q=1", host("shop.example"))
	require.Equal(t, "/new/a%2Fb?q=1", got.header.Get("Got-Path"))
	require.Equal(t, "inner.example", got.header.Get("Got-Host"))

	for path, want := range map[string]struct {
		code     int
		location string
	}{
		"/https?a": {301, "https://shop.example/https?a"},
		"/moved?a": {307, "http://other.example/here?a"},
		"/cut/x?a": {308, "http://shop.example/x"},
	} {
		got := get(t, gateway, path, host("shop.example"))
		require.Equal(t, want.code, got.code)
		require.Equal(t, want.location, got.header.Get("Location"))
	}
}

func TestWeightedClusters(t *testing.T) {
	name := func(s string) string {
		return backend(t, func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(s + r.Header.Get("X-Which"))) })
	}
	_, _, gateway := serve(t, config{clusters: map[string]string{"a": name("a"), "b": name("b"), "c": name("c")}, hosts: `
- name: all
  domains: ["*"]
  routes: [{match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: a, weight: 3, request_headers_to_add: [{header: {key: x-which, value: "!"}}]}, {name: b, weight: 1}, {name: c, weight: 0}]}}}]`})
	count := map[string]int{}
	for range 200 {
		count[get(t, gateway, "/").body]++
	}
	require.InDelta(t, 150, count["a!"], 40)
	require.InDelta(t, 50, count["b"], 40)
	require.Zero(t, count["c"])
}

func TestLocalReplies(t *testing.T) {
	_, _, gateway := serve(t, config{
		hcm: `
local_reply_config:
  mappers:
  - filter: {status_code_filter: {comparison: {op: EQ, value: {default_value: 418, runtime_key: x}}}}
    status_code: 400
    body: {inline_string: teapot}
    headers_to_add: [{header: {key: x-mapped, value: "yes"}}]
    body_format_override: {text_format_source: {inline_string: "%RESPONSE_CODE%: %LOCAL_REPLY_BODY% at %REQ(:path)%"}, content_type: text/x}
  body_format:
    content_type: application/problem+json
    json_format: {type: "about:blank", status: "%RESPONSE_CODE%", title: "%LOCAL_REPLY_BODY%", code: "%RESPONSE_CODE_DETAILS%", instance: "%REQ(:path)%", none: "%REQ(x-none)%", mixed: "a %REQ(x-none)%"}
`,
		clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "its own", 503) })},
		hosts: `
- name: all
  domains: [shop.example]
  routes:
  - {match: {path: /tea}, direct_response: {status: 418}}
  - {match: {path: /direct}, direct_response: {status: 409, body: {inline_string: "no \"way\""}}}
  - {match: {path: /own}, route: {cluster: backend}}
  - {match: {path: /missing}, route: {cluster: nothing}}
`,
	})
	got := get(t, gateway, "/direct", host("shop.example"))
	require.Equal(t, 409, got.code)
	require.Equal(t, "application/problem+json", got.header.Get("Content-Type"))
	var body map[string]any
	require.NoError(t, json.Unmarshal([]byte(got.body), &body))
	require.Equal(t, map[string]any{"type": "about:blank", "status": 409.0, "title": `no "way"`, "code": "direct_response", "instance": "/direct", "none": nil, "mixed": "a -"}, body)

	got = get(t, gateway, "/tea?x", host("shop.example"))
	require.Equal(t, 400, got.code)
	require.Equal(t, "400: teapot at /tea?x", got.body)
	require.Equal(t, "text/x", got.header.Get("Content-Type"))
	require.Equal(t, "yes", got.header.Get("X-Mapped"))

	got = get(t, gateway, "/nowhere")
	require.Equal(t, 404, got.code)
	require.Contains(t, got.body, `"code":"route_not_found"`)

	got = get(t, gateway, "/missing", host("shop.example"))
	require.Equal(t, 503, got.code)
	require.Contains(t, got.body, "cluster_not_found")

	require.Equal(t, "its own\n", get(t, gateway, "/own", host("shop.example")).body, "answers of the upstream stay")
}

func TestCORS(t *testing.T) {
	_, _, gateway := serve(t, config{
		filters: `
- {name: cors, typed_config: {` + typePrefix + `filters.http.cors.v3.Cors}}
- {name: rbac, typed_config: {` + typePrefix + `filters.http.rbac.v3.RBAC, rules: {action: DENY, policies: {p: {permissions: [{url_path: {path: {prefix: /denied}}}], principals: [{any: true}]}}}}}`,
		clusters: map[string]string{"backend": backend(t, echo)},
		hosts: strings.Replace(toBackend, "domains:", `typed_per_filter_config:
    cors:
      `+typePrefix+`filters.http.cors.v3.CorsPolicy
      allow_origin_string_match: [{exact: "https://app.example"}]
      allow_methods: GET, POST
      allow_headers: authorization
      expose_headers: x-total
      max_age: "600"
      allow_credentials: true
      forward_not_matching_preflights: false
  domains:`, 1),
	})
	preflight := func(r *http.Request) {
		r.Method = http.MethodOptions
		r.Header.Set("Access-Control-Request-Method", "POST")
	}
	got := get(t, gateway, "/denied", preflight, header("Origin", "https://app.example"))
	require.Equal(t, 200, got.code, "a preflight carries no credentials: it is answered before they are asked for")
	require.Equal(t, "https://app.example", got.header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "GET, POST", got.header.Get("Access-Control-Allow-Methods"))
	require.Equal(t, "authorization", got.header.Get("Access-Control-Allow-Headers"))
	require.Equal(t, "600", got.header.Get("Access-Control-Max-Age"))
	require.Equal(t, "true", got.header.Get("Access-Control-Allow-Credentials"))
	require.Empty(t, got.body)

	got = get(t, gateway, "/", preflight, header("Origin", "https://evil.example"))
	require.Empty(t, got.header.Get("Access-Control-Allow-Origin"))
	require.Empty(t, got.header.Get("Got-Method"), "not forwarded")

	got = get(t, gateway, "/", header("Origin", "https://app.example"))
	require.Equal(t, "https://app.example", got.header.Get("Access-Control-Allow-Origin"))
	require.Equal(t, "x-total", got.header.Get("Access-Control-Expose-Headers"))

	got = get(t, gateway, "/denied", header("Origin", "https://app.example"))
	require.Equal(t, 403, got.code)
	require.Equal(t, "https://app.example", got.header.Get("Access-Control-Allow-Origin"), "scripts may read refusals too")

	require.Empty(t, get(t, gateway, "/", header("Origin", "https://evil.example")).header.Get("Access-Control-Allow-Origin"))
}

func TestEgressListenerRoutesByHost(t *testing.T) {
	_, _, egress := serve(t, config{clusters: map[string]string{"orders": backend(t, echo)}, hosts: `
- name: orders
  domains: [orders.shop.svc, orders.shop, orders]
  routes: [{match: {prefix: /}, route: {cluster: orders}}]`})
	codes, _ := raw(t, egress, "GET http://orders.shop.svc/x HTTP/1.1\r\nHost: orders.shop.svc\r\nConnection: close\r\n\r\n")
	require.Equal(t, []int{200}, codes)
	codes, _ = raw(t, egress, "GET /x HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
	require.Equal(t, []int{200}, codes)
	codes, _ = raw(t, egress, "GET http://example.com/ HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n")
	require.Equal(t, []int{404}, codes)
	codes, _ = raw(t, egress, "CONNECT orders:443 HTTP/1.1\r\nHost: orders:443\r\nConnection: close\r\n\r\n")
	require.Equal(t, []int{405}, codes)
}
