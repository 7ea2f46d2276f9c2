package bootstrap

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// known are the fields that may be set, by path. A typed extension is part of
// the path by the name of its message.
func known() []string {
	const (
		connection = "static_resources.listeners.filter_chains.filters.typed_config(HttpConnectionManager)."
		cluster    = "static_resources.clusters."
		tls        = cluster + "transport_socket.typed_config(UpstreamTlsContext)."
		http       = cluster + "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions](HttpProtocolOptions)."
		injector   = http + "http_filters.typed_config(CredentialInjector)."
		credential = injector + "credential.typed_config(Generic)."
	)
	return []string{
		"node.id", "node.cluster",
		"admin.address.socket_address.address", "admin.address.socket_address.port_value",
		"layered_runtime.layers.name", "layered_runtime.layers.static_layer",
		"dynamic_resources.ads_config.api_type", "dynamic_resources.ads_config.transport_api_version",
		"dynamic_resources.ads_config.set_node_on_first_message_only", "dynamic_resources.ads_config.grpc_services.envoy_grpc.cluster_name",
		"dynamic_resources.cds_config.resource_api_version", "dynamic_resources.cds_config.ads",
		"dynamic_resources.lds_config.resource_api_version", "dynamic_resources.lds_config.ads",

		"static_resources.listeners.name", "static_resources.listeners.address.socket_address.address",
		"static_resources.listeners.address.socket_address.port_value", "static_resources.listeners.filter_chains.filters.name",
		connection + "stat_prefix", connection + "route_config.name", connection + "route_config.virtual_hosts.name",
		connection + "route_config.virtual_hosts.domains", connection + "route_config.virtual_hosts.routes.match.path",
		connection + "route_config.virtual_hosts.routes.route.cluster", connection + "http_filters.name",
		connection + "http_filters.typed_config(Router)",

		cluster + "name", cluster + "type", cluster + "connect_timeout", cluster + "load_assignment.cluster_name",
		cluster + "load_assignment.endpoints.lb_endpoints.endpoint.address.socket_address.address",
		cluster + "load_assignment.endpoints.lb_endpoints.endpoint.address.socket_address.port_value",
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

// runtimeKeys that a static layer may hold.
func runtimeKeys() []string { return []string{"re2.max_program_size.error_level"} }

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
	if !slices.Contains(w.known, path) {
		w.refuse(path)
	}
}

func (w *walker) message(path string, m protoreflect.Message) {
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
		for _, key := range slices.Sorted(maps.Keys(v.GetFields())) {
			if !slices.Contains(runtimeKeys(), key) {
				w.refuse(path + "[" + key + "]")
			}
		}
		return
	case *durationpb.Duration:
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
