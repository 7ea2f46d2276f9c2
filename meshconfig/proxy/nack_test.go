package proxy_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
)

const typePrefix = `"@type": type.googleapis.com/envoy.extensions.`

// what is refused, and what the message names.
func TestUnsupportedConfigurationIsRefused(t *testing.T) {
	m := newMesh(t)
	n := m.node(gatewayNode)
	good := config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}
	m.mustSet(target, good.resources(t))
	n.waitReady(t)

	route := func(fields string) ads.Resources {
		c := good
		c.hosts = "- name: all\n  domains: ['*']\n  routes: [" + fields + "]"
		return c.resources(t)
	}
	manager := func(fields string) ads.Resources { c := good; c.hcm = fields; return c.resources(t) }
	filter := func(fields string) ads.Resources { c := good; c.filters = fields; return c.resources(t) }
	clusters := func(fields string) ads.Resources {
		out := good.resources(t)
		out[resource.ClusterType] = append(out[resource.ClusterType], resources(t, "clusters:\n- "+indent(2, fields))[resource.ClusterType]...)
		return out
	}
	listener := func(fields string) ads.Resources {
		out := good.resources(t)
		out[resource.ListenerType] = append(out[resource.ListenerType], resources(t, "listeners:\n- "+indent(2, fields))[resource.ListenerType]...)
		return out
	}
	for name, test := range map[string]struct {
		resources ads.Resources
		names     []string
	}{
		"hash policy":              {route(`{match: {prefix: /}, route: {cluster: backend, hash_policy: [{header: {header_name: x}}]}}`), []string{`RouteConfiguration "http"`, `virtual host "all"`, `route "0"`, "hash_policy"}},
		"early append":             {manager(`early_header_mutation_extensions: [{name: early, typed_config: {` + typePrefix + `http.early_header_mutation.header_mutation.v3.HeaderMutation, mutations: [{append: {header: {key: x, value: "1"}}}]}}]`), []string{"early_header_mutation_extensions[0].mutations[0]", "only remove"}},
		"rate limits":              {route(`{match: {prefix: /}, route: {cluster: backend, rate_limits: [{actions: [{remote_address: {}}]}]}}`), []string{"rate_limits"}},
		"mirroring by header":      {route(`{match: {prefix: /}, route: {cluster: backend, request_mirror_policies: [{cluster_header: x}]}}`), []string{"request_mirror_policies"}},
		"priority":                 {route(`{match: {prefix: /}, route: {cluster: backend, priority: HIGH}}`), []string{"priority"}},
		"cluster header":           {route(`{match: {prefix: /}, route: {cluster_header: x}}`), []string{"cluster"}},
		"header range":             {route(`{match: {prefix: /, headers: [{name: x, range_match: {start: 1, end: 2}}]}, route: {cluster: backend}}`), []string{"headers[x]", "range_match"}},
		"runtime fraction":         {route(`{match: {prefix: /, runtime_fraction: {default_value: {numerator: 1}}}, route: {cluster: backend}}`), []string{"runtime_fraction"}},
		"gRPC match":               {route(`{match: {prefix: /, grpc: {}}, route: {cluster: backend}}`), []string{"grpc"}},
		"connect match":            {route(`{match: {connect_matcher: {}}, route: {cluster: backend}}`), []string{"connect_matcher"}},
		"unknown retry":            {route(`{match: {prefix: /}, route: {cluster: backend, retry_policy: {retry_on: "5xx,moon"}}}`), []string{`retry_on "moon"`}},
		"unknown operator":         {route(`{match: {prefix: /}, route: {cluster: backend}, request_headers_to_add: [{header: {key: x, value: "%CEL(1)%"}}]}`), []string{"request_headers_to_add[x]", "%CEL(1)%"}},
		"non-forwarding":           {route(`{match: {prefix: /}, non_forwarding_action: {}}`), []string{"non_forwarding_action"}},
		"unknown per-route config": {route(`{match: {prefix: /}, route: {cluster: backend}, typed_per_filter_config: {lua: {` + typePrefix + `filters.http.lua.v3.LuaPerRoute, disabled: true}}}`), []string{"typed_per_filter_config[lua]", "LuaPerRoute"}},
		"bad regex":                {route(`{match: {safe_regex: {regex: "(?<!a)b"}}, route: {cluster: backend}}`), []string{"safe_regex"}},

		"lua":                {filter(`- {name: lua, typed_config: {` + typePrefix + `filters.http.lua.v3.Lua}}`), []string{"http_filters[lua]", "Lua"}},
		"local rate limit":   {filter(`- {name: rl, typed_config: {` + typePrefix + `filters.http.local_ratelimit.v3.LocalRateLimit, stat_prefix: x, stage: 1}}`), []string{"http_filters[rl]", "stage"}},
		"a fault":            {filter(`- {name: fault, typed_config: {` + typePrefix + `filters.http.fault.v3.HTTPFault, abort: {http_status: 503, percentage: {numerator: 100}}}}`), []string{"http_filters[fault]"}},
		"remote key set":     {filter(`- {name: jwt, typed_config: {` + typePrefix + `filters.http.jwt_authn.v3.JwtAuthentication, providers: {p: {remote_jwks: {http_uri: {uri: "https://x", cluster: c, timeout: 1s}}}}}}`), []string{"providers[p]", "remote_jwks"}},
		"broken key set":     {filter(`- {name: jwt, typed_config: {` + typePrefix + `filters.http.jwt_authn.v3.JwtAuthentication, providers: {p: {local_jwks: {inline_string: "{"}}}}}`), []string{"providers[p].local_jwks"}},
		"missing provider":   {filter(`- {name: jwt, typed_config: {` + typePrefix + `filters.http.jwt_authn.v3.JwtAuthentication, requirement_map: {r: {provider_name: p}}}}`), []string{"requirement_map[r]", `"p"`}},
		"subjects":           {filter(`- {name: jwt, typed_config: {` + typePrefix + `filters.http.jwt_authn.v3.JwtAuthentication, providers: {p: {subjects: {exact: x}, local_jwks: {inline_string: '{"keys":[]}'}}}}}`), []string{"subjects"}},
		"rbac condition":     {filter(`- {name: rbac, typed_config: {` + typePrefix + `filters.http.rbac.v3.RBAC, rules: {policies: {p: {permissions: [{any: true}], principals: [{any: true}], condition: {const_expr: {bool_value: true}}}}}}}`), []string{"policies[p]", "condition"}},
		"rbac log":           {filter(`- {name: rbac, typed_config: {` + typePrefix + `filters.http.rbac.v3.RBAC, rules: {action: LOG}}}`), []string{"LOG"}},
		"rbac filter state":  {filter(`- {name: rbac, typed_config: {` + typePrefix + `filters.http.rbac.v3.RBAC, rules: {policies: {p: {permissions: [{any: true}], principals: [{filter_state: {key: x, string_match: {exact: value}}}]}}}}}`), []string{"principals[0]", "FilterState"}},
		"unescaping slashes": {manager(`path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD`), []string{`Listener "http"`, "UNESCAPE_AND_FORWARD"}},
		"HTTP/1.0 host":      {manager(`http_protocol_options: {default_host_for_http_10: x}`), []string{"default_host_for_http_10"}},
		"CONNECT upgrade":    {manager(`upgrade_configs: [{upgrade_type: CONNECT}]`), []string{"CONNECT"}},
		"response flags":     {manager(`local_reply_config: {mappers: [{filter: {response_flag_filter: {}}}]}`), []string{"mappers[0].filter"}},
		"gRPC access log":    {manager(`access_log: [{name: x}]`), []string{"access_log"}},

		"original destination": {clusters("name: x\ntype: ORIGINAL_DST\nlb_policy: CLUSTER_PROVIDED\noriginal_dst_lb_config: {use_http_header: true}"), []string{`Cluster "x"`, "original_dst_lb_config"}},
		"ring hash":            {clusters("name: x\ntype: STATIC\nlb_policy: RING_HASH\nload_assignment: {cluster_name: x}"), []string{"RING_HASH"}},
		"health checks":        {clusters("name: x\ntype: STATIC\nload_assignment: {cluster_name: x}\nhealth_checks: [{timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1, tcp_health_check: {}}]"), []string{"health_checks"}},
		"locality weights":     {clusters("name: x\ntype: STATIC\nload_assignment: {cluster_name: x}\ncommon_lb_config: {locality_weighted_lb_config: {}}"), []string{"locality_weighted_lb_config"}},
		"unverified TLS":       {clusters("name: x\ntype: STATIC\nload_assignment: {cluster_name: x}\ntransport_socket: {name: tls, typed_config: {" + typePrefix + "transport_sockets.tls.v3.UpstreamTlsContext}}"), []string{"transport_socket", "validation context"}},
		"EDS by REST":          {clusters("name: x\ntype: EDS\neds_cluster_config: {eds_config: {api_config_source: {api_type: GRPC, grpc_services: [{google_grpc: {target_uri: x, stat_prefix: x}}]}}}"), []string{"eds_config", "api_config_source"}},

		"TCP proxy":            {listener("name: tcp\naddress: {socket_address: {address: 10.0.0.9, port_value: 1}}\nfilter_chains: [{filters: [{name: tcp, typed_config: {" + typePrefix + "filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: x, cluster: backend}}]}]"), []string{`Listener "tcp"`, "TcpProxy"}},
		"original dst":         {listener("name: od\naddress: {socket_address: {address: 10.0.0.9, port_value: 1}}\nuse_original_dst: true"), []string{`Listener "od"`, "use_original_dst"}},
		"proxy protocol":       {listener("name: pp\naddress: {socket_address: {address: 10.0.0.9, port_value: 1}}\nlistener_filters: [{name: pp, typed_config: {" + typePrefix + "filters.listener.proxy_protocol.v3.ProxyProtocol}}]"), []string{"listener_filters[pp]"}},
		"UDP":                  {listener("name: udp\naddress: {socket_address: {protocol: UDP, address: 10.0.0.9, port_value: 1}}"), []string{"UDP"}},
		"no chain":             {listener("name: none\naddress: {socket_address: {address: 10.0.0.9, port_value: 1}}"), []string{"no filter chain"}},
		"destination matching": {listener("name: d\naddress: {socket_address: {address: 10.0.0.9, port_value: 1}}\nfilter_chains: [{filter_chain_match: {destination_port: 80}}]"), []string{"destination_port"}},
	} {
		t.Run(name, func(t *testing.T) {
			status := m.set(target, test.resources)
			require.Len(t, status.Nodes, 1)
			require.Len(t, status.Nodes[0].Nacks, 1)
			for _, want := range test.names {
				require.Contains(t, status.Nodes[0].Nacks[0].Message, want)
			}
			require.Equal(t, http.StatusOK, get(t, n.addr("10.0.0.1:80"), "/").code, "the last good configuration stays")
			m.mustSet(target, good.resources(t))
		})
	}
}

func TestInertExtensionsAreIgnored(t *testing.T) {
	c := config{
		hcm: `
forward_client_cert_details: SANITIZE_SET
set_current_client_cert_details: {subject: true, cert: true, chain: true, dns: true, uri: true}
tracing: {client_sampling: {value: 100}, custom_tags: [{tag: x, literal: {value: z}}]}
access_log:
- {name: file, typed_config: {` + typePrefix + `access_loggers.file.v3.FileAccessLog, path: /dev/null}}
- {name: stdout, typed_config: {` + typePrefix + `access_loggers.stream.v3.StdoutAccessLog}}
`,
		filters: `
- {name: istio.metadata_exchange, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/io.istio.http.peer_metadata.Config, value: {x: z}}}
- {name: istio.alpn, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig, value: {}}}
- {name: istio.stats, typed_config: {"@type": type.googleapis.com/udpa.type.v1.TypedStruct, type_url: type.googleapis.com/stats.PluginConfig, value: {}}}
- {name: envoy.filters.http.grpc_stats, typed_config: {` + typePrefix + `filters.http.grpc_stats.v3.FilterConfig, emit_filter_state: true}}
- {name: envoy.filters.http.fault, typed_config: {` + typePrefix + `filters.http.fault.v3.HTTPFault}}
- {name: envoy.filters.http.lua, is_optional: true, typed_config: {` + typePrefix + `filters.http.lua.v3.Lua}}
`,
		hosts:    toBackend,
		clusters: map[string]string{"backend": backend(t, echo)},
	}
	_, _, addr := serve(t, c)
	require.Equal(t, 200, get(t, addr, "/").code)
}

func TestAPortInUseIsRefused(t *testing.T) {
	m := newMesh(t)
	n := m.node(gatewayNode)
	good := config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}
	n.mu.Lock()
	n.err = errors.New("address already in use")
	n.mu.Unlock()
	status := m.set(target, good.resources(t))
	require.Contains(t, status.Nodes[0].Nacks[0].Message, "address already in use")
	select {
	case <-n.Ready():
		t.Fatal("ready without a listener")
	default:
	}
}

func TestAnInvalidResourceIsNotServedAtAll(t *testing.T) {
	m := newMesh(t)
	bad := config{hosts: "- {name: all, domains: ['*'], routes: [{direct_response: {status: 200}}]}"}.resources(t)
	_, err := m.server.SetResources(target, bad)
	require.ErrorContains(t, err, `RouteConfiguration "http" is invalid`)
	require.Empty(t, m.server.Status(target).Version, "nothing is served")
}
