package bootstrap_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/bootstrap"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

// shipped is the bootstrap that the control plane gives to proxies, with the paths
// of its files in dir.
func shipped(t *testing.T, dir string) string {
	t.Helper()
	data, err := members.ConfigMaps{XDSAddress: "controlplane.lambdamesh-system.svc:15010"}.Data()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "xds-token.yaml"), []byte(replace(t, data["xds-token.yaml"], sidecar.MeshDir, dir)), 0o600))
	return replace(t, data["envoy.yaml"], sidecar.MeshDir, dir)
}

func replace(t *testing.T, text, old, with string) string {
	t.Helper()
	require.Contains(t, text, old)
	return strings.ReplaceAll(text, old, with)
}

func TestTheShippedBootstrapIsUnderstood(t *testing.T) {
	dir := t.TempDir()
	b, err := bootstrap.Read([]byte(shipped(t, dir)), nil, false)
	require.NoError(t, err)
	require.Equal(t, &bootstrap.Bootstrap{
		Admin: "127.0.0.1:15000",
		Listeners: []bootstrap.Listener{{
			Name: "ready", Address: "0.0.0.0:15021", Routes: []bootstrap.Route{{Path: bootstrap.PathReady}, {Path: bootstrap.PathMetrics}},
		}},
		ControlPlane: bootstrap.ControlPlane{
			Address: "controlplane.lambdamesh-system.svc:15010", ServerName: "controlplane.lambdamesh-system.svc",
			CAFile: filepath.Join(dir, "ca.crt"), TokenFile: filepath.Join(dir, "token"),
		},
	}, b)
}

func TestTheOverlayIsMerged(t *testing.T) {
	b, err := bootstrap.Read([]byte(shipped(t, t.TempDir())), []byte("node: {id: pod~shop~tax-1, cluster: tax}\n"), false)
	require.NoError(t, err)
	require.Equal(t, "pod~shop~tax-1", b.NodeID)
	require.Equal(t, "tax", b.Cluster)
}

// What Envoy would do and this proxy would not is refused by its name.
func TestWhatIsNotImplementedIsRefusedByName(t *testing.T) {
	for name, test := range map[string]struct{ overlay, old, with, refused string }{
		"a field of the bootstrap":   {overlay: "stats_sinks: [{name: envoy.stat_sinks.dog_statsd}]", refused: "stats_sinks is not supported"},
		"an access log of the admin": {overlay: "admin: {access_log: [{name: stdout}]}", refused: "admin.access_log[stdout] is not supported"},
		"several at once": {
			overlay: "overload_manager: {refresh_interval: 1s}\nwatchdogs: {main_thread_watchdog: {miss_timeout: 1s}}",
			refused: "overload_manager.refresh_interval is not supported\nwatchdogs is not supported",
		},
		"a setting of the runtime": {
			old: "re2.max_program_size.error_level: 32768", with: "envoy.reloadable_features.anything: true",
			refused: "layered_runtime.layers.static_layer[envoy.reloadable_features.anything] is not supported",
		},
		"admin on every address":                {old: "{address: 127.0.0.1, port_value: 15000}", with: "{address: 0.0.0.0, port_value: 15000}", refused: "admin.address: 0.0.0.0:15000 is not on loopback"},
		"other paths of the admin":              {old: "match: {path: /stats/prometheus}", with: "match: {path: /quitquitquit}", refused: `listener "ready": path "/quitquitquit": listeners may lead to /ready and /stats/prometheus of the admin interface only`},
		"prefixes":                              {old: "match: {path: /ready}", with: "match: {prefix: /}", refused: `path "/": listeners may lead to /ready`},
		"routes to elsewhere":                   {old: "route: {cluster: admin}", with: "route: {cluster: xds}", refused: `cluster "xds" is not one address in plain HTTP/1.1`},
		"a cluster that nobody uses":            {overlay: "static_resources: {clusters: [{name: other}]}", refused: `cluster "other": nothing that is supported uses it`},
		"REST":                                  {old: "api_type: DELTA_GRPC", with: "api_type: REST", refused: "write api_type: DELTA_GRPC or GRPC"},
		"an extension it has not":               {old: "envoy.extensions.filters.http.router.v3.Router", with: "envoy.extensions.filters.http.lua.v3.Lua", refused: "Lua"},
		"a control plane in plain":              {old: "transport_socket:", with: "metadata: {}\n      typed_dns_resolver_config:", refused: "static_resources.clusters.metadata is not supported"},
		"anybody's control plane":               {old: "              trusted_ca: {filename:", with: "              watched_directory: {path:", refused: "validation_context.watched_directory is not supported"},
		"two names":                             {old: "sni: controlplane.lambdamesh-system.svc", with: "sni: elsewhere.example", refused: `sni "elsewhere.example" is not the name`},
		"a name by prefix":                      {old: "matcher: {exact:", with: "matcher: {prefix:", refused: "match_typed_subject_alt_names.matcher.prefix is not supported"},
		"a token that is no bearer's":           {old: `header_value_prefix: "Bearer "`, with: `header_value_prefix: "Basic "`, refused: `header_value_prefix "Basic ": only "Bearer " is supported`},
		"a token in another header":             {old: `header_value_prefix: "Bearer "`, with: "header: x-token\n                    header_value_prefix: \"Bearer \"", refused: "credential.typed_config(Generic).header is not supported"},
		"a token from a control plane":          {old: "path_config_source: {path:", with: "ads: {} #", refused: "credential.sds_config.ads is not supported"},
		"a configuration to wait for no longer": {overlay: "dynamic_resources: {lds_config: {initial_fetch_timeout: 5s}}", refused: "initial_fetch_timeout: only 0s is supported"},
		"a word that is none":                   {overlay: "admn: {}", refused: `unknown field "admn"`},
		"a word said twice":                     {old: "admin:\n", with: "admin: {}\nadmin:\n", refused: "already set"},
	} {
		t.Run(name, func(t *testing.T) {
			text := shipped(t, t.TempDir())
			if test.old != "" {
				text = replace(t, text, test.old, test.with)
			}
			_, err := bootstrap.Read([]byte(text), []byte(test.overlay), false)
			require.ErrorContains(t, err, test.refused)
		})
	}
}

func TestTheTokensFileIsRefusedWhenItSaysSomethingElse(t *testing.T) {
	for name, test := range map[string]struct{ file, refused string }{
		"another secret":   {"resources: []", "there is no such secret"},
		"a value":          {"resources: [{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: xds-token, generic_secret: {secret: {inline_string: abc}}}]", "only a generic_secret with the filename"},
		"another resource": {"resources: [{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: xds-token}]", "mismatched message type"},
		"no YAML":          {"\t", "xds-token.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			text := shipped(t, dir)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "xds-token.yaml"), []byte(test.file), 0o600))
			_, err := bootstrap.Read([]byte(text), nil, false)
			require.ErrorContains(t, err, test.refused)
		})
	}
}

func TestFilesAreReadAgainEachTime(t *testing.T) {
	dir := t.TempDir()
	b, err := bootstrap.Read([]byte(shipped(t, dir)), nil, false)
	require.NoError(t, err)
	control := b.ControlPlane

	_, err = control.Token(t.Context())
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(control.TokenFile, []byte(" \n"), 0o600))
	_, err = control.Token(t.Context())
	require.ErrorContains(t, err, "is empty")
	for _, want := range []string{"one", "two"} {
		require.NoError(t, os.WriteFile(control.TokenFile, []byte(want+"\n"), 0o600))
		got, err := control.Token(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, got)
	}

	require.NoError(t, os.WriteFile(control.CAFile, []byte("no certificate"), 0o600))
	_, err = control.RootCAs()
	require.ErrorContains(t, err, "holds no certificate")
	for range 2 {
		authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(control.CAFile, authority.Root(), 0o600))
		pool, err := control.RootCAs()
		require.NoError(t, err)
		require.True(t, authority.Pool().Equal(pool))
	}
}

// istio is what Istio's agent makes for its Envoy, of the module that hack/istio
// builds.
func istio(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "istio.json"))
	require.NoError(t, err)
	return string(text)
}

func TestIstiosBootstrapIsUnderstood(t *testing.T) {
	b, err := bootstrap.Read([]byte(istio(t)), nil, true)
	require.NoError(t, err)
	require.Equal(t, "sidecar~10.0.0.9~p.ns~ns.svc.cluster.local", b.NodeID)
	require.Equal(t, "istio-proxy.ns", b.Cluster)
	require.Equal(t, "NONE", b.Metadata.GetFields()["INTERCEPTION_MODE"].GetStringValue(), "the control plane is told all of it")
	require.Equal(t, "127.0.0.1:15000", b.Admin)
	require.Equal(t, bootstrap.ControlPlane{Address: "unix:./etc/istio/proxy/XDS", WholeState: true}, b.ControlPlane)
	require.True(t, b.ControlPlane.Agent())
	require.Equal(t, map[string]string{"sds-grpc": "unix:./var/run/secrets/workload-spiffe-uds/socket"}, b.SecretServers)
	require.Equal(t, []bootstrap.Listener{
		{Name: "0.0.0.0_15090", Address: "0.0.0.0:15090", Routes: []bootstrap.Route{{Path: bootstrap.PathMetrics, Prefix: true}}},
		{Name: "0.0.0.0_15021", Address: "0.0.0.0:15021", Routes: []bootstrap.Route{{Path: "/healthz/ready", Prefix: true, Upstream: "127.0.0.1:15020"}}},
	}, b.Listeners)
}

// What of Istio's may be passed over is passed over with its values only.
func TestWhatIstioMaySetAndIsNotDoneIsRefusedByName(t *testing.T) {
	for name, test := range map[string]struct{ overlay, old, with, refused string }{
		"incremental ADS":                  {old: `"api_type": "GRPC"`, with: `"api_type": "DELTA_GRPC"`, refused: "write api_type: GRPC"},
		"a limit of connections":           {old: "2147483647", with: "1000", refused: "overload_manager.resource_monitors[envoy.resource_monitors.global_downstream_max_connections]: a limit is not supported"},
		"another monitor":                  {overlay: "overload_manager: {resource_monitors: [{name: heap}]}", refused: "overload_manager.resource_monitors[heap]"},
		"an access log of the admin":       {old: "/dev/null", with: "/var/log/admin", refused: "admin.access_log[envoy.access_loggers.file] is not supported"},
		"another extension of the process": {overlay: "bootstrap_extensions: [{name: wasm}]", refused: "bootstrap_extensions[wasm] is not supported"},
		"tracing":                          {overlay: "tracing: {http: {name: envoy.tracers.zipkin}}", refused: "tracing is not supported"},
		"statistics to elsewhere":          {overlay: "stats_sinks: [{name: envoy.stat_sinks.statsd}]", refused: "stats_sinks is not supported"},
		"a tracer's cluster":               {overlay: "static_resources: {clusters: [{name: zipkin, type: STRICT_DNS, load_assignment: {cluster_name: zipkin, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: zipkin.istio, port_value: 9411}}}}]}]}}]}", refused: `cluster "zipkin": nothing that is supported uses it, and it is no SDS server: zipkin.istio:9411 is no Unix socket`},
		"a way to elsewhere":               {old: `"port_value": 15020`, with: `"port_value": 15020}}}}, {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 1`, refused: `cluster "agent" is not one address`},
		"a way out of the pod":             {old: "\"address\": \"127.0.0.1\",\n            \"port_value\": 15020", with: "\"address\": \"10.0.0.1\", \"port_value\": 15020", refused: `cluster "agent" is neither the admin address`},
		"another address of a listener":    {overlay: "static_resources: {listeners: [{name: x, additional_addresses: [{}]}]}", refused: "static_resources.listeners.additional_addresses is not supported"},
		"another codec":                    {old: `"codec_type": "AUTO"`, with: `"codec_type": "HTTP3"`, refused: "codec_type HTTP3 is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			text := istio(t)
			if test.old != "" {
				text = replace(t, text, test.old, test.with)
			}
			_, err := bootstrap.Read([]byte(text), []byte(test.overlay), true)
			require.ErrorContains(t, err, test.refused)
		})
	}
}

func TestUnknownFieldsAreIgnoredOnlyWhenToldTo(t *testing.T) {
	for allow, text := range map[bool]string{false: shipped(t, t.TempDir()), true: istio(t)} {
		_, err := bootstrap.Read([]byte(text), []byte("field_of_tomorrow: {x: 1}"), allow)
		if allow {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, `unknown field "field_of_tomorrow"`)
		}
	}
}
