package bootstrap

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/brotli/compressor/v3" // types that Istio's bootstrap names
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/zstd/compressor/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// known are the fields that may be set, by path. A typed extension is part of
// the path by the name of its message.
func known() []string {
	const (
		connection = "static_resources.listeners.filter_chains.filters.typed_config(HttpConnectionManager)."
		cluster    = "static_resources.clusters."
		endpoint   = cluster + "load_assignment.endpoints.lb_endpoints.endpoint.address."
		tls        = cluster + "transport_socket.typed_config(UpstreamTlsContext)."
		http       = cluster + "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions](HttpProtocolOptions)."
		injector   = http + "http_filters.typed_config(CredentialInjector)."
		credential = injector + "credential.typed_config(Generic)."
	)
	return []string{
		"node.id", "node.cluster", "node.metadata",
		"node.locality", "node.locality.region", "node.locality.zone", "node.locality.sub_zone",
		"admin.address.socket_address.address", "admin.address.socket_address.port_value",
		"admin.access_log.name", "admin.access_log.typed_config(FileAccessLog).path",
		"layered_runtime.layers.name", "layered_runtime.layers.static_layer", "layered_runtime.layers.admin_layer",
		"overload_manager.resource_monitors.name",
		"overload_manager.resource_monitors.typed_config(DownstreamConnectionsConfig).max_active_downstream_connections",
		"dynamic_resources.ads_config.api_type", "dynamic_resources.ads_config.transport_api_version",
		"dynamic_resources.ads_config.set_node_on_first_message_only", "dynamic_resources.ads_config.grpc_services.envoy_grpc.cluster_name",
		"dynamic_resources.cds_config.resource_api_version", "dynamic_resources.cds_config.ads", "dynamic_resources.cds_config.initial_fetch_timeout",
		"dynamic_resources.lds_config.resource_api_version", "dynamic_resources.lds_config.ads", "dynamic_resources.lds_config.initial_fetch_timeout",

		"static_resources.listeners.name", "static_resources.listeners.address.socket_address.address",
		"static_resources.listeners.address.socket_address.port_value", "static_resources.listeners.address.socket_address.protocol",
		"static_resources.listeners.filter_chains.filters.name",
		"static_resources.listeners.ignore_global_conn_limit", "static_resources.listeners.bypass_overload_manager",
		connection + "stat_prefix", connection + "codec_type", connection + "route_config.virtual_hosts.routes.match.prefix", connection + "route_config.name", connection + "route_config.virtual_hosts.name",
		connection + "route_config.virtual_hosts.domains", connection + "route_config.virtual_hosts.routes.match.path",
		connection + "route_config.virtual_hosts.routes.route.cluster", connection + "http_filters.name",
		connection + "http_filters.typed_config(Router)",

		cluster + "name", cluster + "type", cluster + "connect_timeout", cluster + "load_assignment.cluster_name",
		endpoint + "socket_address.address", endpoint + "socket_address.port_value",
		endpoint + "socket_address.protocol", endpoint + "pipe.path", cluster + "alt_stat_name", cluster + "lb_policy",
		// There is one connection with one stream to what speaks gRPC; keepalive is
		// the proxy's own.
		cluster + "circuit_breakers.thresholds.priority", cluster + "circuit_breakers.thresholds.max_connections",
		cluster + "circuit_breakers.thresholds.max_pending_requests", cluster + "circuit_breakers.thresholds.max_requests",
		cluster + "upstream_connection_options.tcp_keepalive.keepalive_time", cluster + "max_requests_per_connection",
		cluster + "transport_socket.name", tls + "sni", tls + "common_tls_context.alpn_protocols",
		tls + "common_tls_context.validation_context.trusted_ca.filename",
		tls + "common_tls_context.validation_context.match_typed_subject_alt_names.san_type",
		tls + "common_tls_context.validation_context.match_typed_subject_alt_names.matcher.exact",
		http + "explicit_http_config.http2_protocol_options", http + "explicit_http_config.http2_protocol_options.connection_keepalive.interval",
		http + "explicit_http_config.http2_protocol_options.connection_keepalive.timeout",
		http + "http_filters.name", http + "http_filters.typed_config(UpstreamCodec)",
		injector + "overwrite", injector + "credential.name", credential + "header_value_prefix", credential + "credential.name",
		credential + "credential.sds_config.resource_api_version", credential + "credential.sds_config.path_config_source.path",
	}
}

// inert are the paths whose content changes nothing that this proxy does: Envoy's
// statistics, its own log, its profiler; listeners of Envoy's process to itself,
// which are refused where something names one; and compression of metrics.
func inert() []string {
	return []string{
		"stats_config", "stats_flush_interval", "deferred_stat_options", "application_log_config", "admin.profile_path", "bootstrap_extensions",
		"static_resources.listeners.filter_chains.filters.typed_config(HttpConnectionManager).http_filters.typed_config(Compressor)",
	}
}

// runtimeKeys that a static layer may hold: how large a regular expression may
// be, which ours need not be told, and what Istio sets: how Envoy counts memory,
// spreads updates, reads an old field that is refused here, and that it cuts
// fragments off paths, which this proxy refuses (400).
func runtimeKeys() []string {
	return []string{
		"re2.max_program_size.error_level",
		"envoy.deprecated_features:envoy.config.listener.v3.Listener.hidden_envoy_deprecated_use_original_dst",
		"envoy.reloadable_features.coalesce_lb_rebuilds_on_batch_update", "envoy.reloadable_features.fixed_heap_use_allocated",
		"envoy.reloadable_features.http_reject_path_with_fragment",
	}
}

// unlimited is how Istio says that there is no limit.
const unlimited = math.MaxInt32

// checkInert refuses what is inert with some values only.
func checkInert(m *bootstrapv3.Bootstrap) error {
	var errs []error
	for _, extension := range m.GetBootstrapExtensions() {
		packed := &udpav1.TypedStruct{}
		const internal = "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
		if extension.GetTypedConfig().UnmarshalTo(packed) != nil || packed.GetTypeUrl() != internal {
			errs = append(errs, fmt.Errorf("bootstrap_extensions[%s] is not supported", extension.GetName()))
		}
	}
	for _, log := range m.GetAdmin().GetAccessLog() {
		file := &filev3.FileAccessLog{}
		if log.GetTypedConfig().UnmarshalTo(file) != nil || file.GetPath() != os.DevNull {
			errs = append(errs, fmt.Errorf("admin.access_log[%s] is not supported: nothing is written there, so only %s may be named", log.GetName(), os.DevNull))
		}
	}
	for _, monitor := range m.GetOverloadManager().GetResourceMonitors() {
		limit := &connectionsv3.DownstreamConnectionsConfig{}
		if monitor.GetTypedConfig().UnmarshalTo(limit) != nil || limit.GetMaxActiveDownstreamConnections() < unlimited {
			errs = append(errs, fmt.Errorf("overload_manager.resource_monitors[%s]: a limit is not supported; each listener has its own", monitor.GetName()))
		}
	}
	return errors.Join(errs...)
}

// checkFields returns an error that names every field that is set and not known.
func checkFields(m protoreflect.Message) error {
	w := walker{known: known()}
	w.message("", m)
	slices.SortFunc(w.errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(w.errs...)
}

type walker struct {
	known []string
	errs  []error
}

func (w *walker) refuse(path string) {
	err := fmt.Errorf("%s is not supported", path)
	if !slices.ContainsFunc(w.errs, func(e error) bool { return e.Error() == err.Error() }) {
		w.errs = append(w.errs, err)
	}
}

func (w *walker) leaf(path string) {
	if !slices.Contains(inert(), path) && !slices.Contains(w.known, path) {
		w.refuse(path)
	}
}

func (w *walker) message(path string, m protoreflect.Message) {
	if slices.Contains(inert(), path) {
		return
	}
	switch v := m.Interface().(type) {
	case *anypb.Any:
		inner, err := v.UnmarshalNew()
		if err != nil {
			w.refuse(path + "(" + string(v.MessageName()) + ")")
			return
		}
		w.message(path+"("+string(inner.ProtoReflect().Descriptor().Name())+")", inner.ProtoReflect())
		return
	case *structpb.Struct:
		w.leaf(path)
		if path == "node.metadata" {
			return // for the control plane
		}
		for _, key := range slices.Sorted(maps.Keys(v.GetFields())) {
			if !slices.Contains(runtimeKeys(), key) {
				w.refuse(path + "[" + key + "]")
			}
		}
		return
	case *durationpb.Duration, *wrapperspb.UInt32Value:
		w.leaf(path)
		return
	}
	if path != "" && !slices.ContainsFunc(w.known, func(k string) bool { return strings.HasPrefix(k, path) }) {
		w.refuse(path)
		return
	}
	empty := true
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		empty = false
		at := string(field.Name())
		if path != "" {
			at = path + "." + at
		}
		w.field(at, field, value)
		return true
	})
	if empty && path != "" {
		w.leaf(path)
	}
}

func (w *walker) field(path string, field protoreflect.FieldDescriptor, value protoreflect.Value) {
	switch {
	case field.IsMap():
		value.Map().Range(func(key protoreflect.MapKey, v protoreflect.Value) bool {
			if at := path + "[" + key.String() + "]"; field.MapValue().Message() != nil {
				w.message(at, v.Message())
			} else {
				w.leaf(at)
			}
			return true
		})
	case field.IsList() && field.Message() != nil:
		for i := range value.List().Len() {
			w.message(path, value.List().Get(i).Message())
		}
	case field.Message() != nil:
		w.message(path, value.Message())
	default:
		w.leaf(path)
	}
}
