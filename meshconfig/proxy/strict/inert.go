package strict

import (
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// inertTypes are the extensions that change no answer (statistics, exchange of
// metadata between Istio's proxies, ALPN values of their own, tracing). They are
// accepted and ignored; every other unknown type is refused.
var inertTypes = map[string]bool{ //nolint:gochecknoglobals // read only
	// Istio's exchange of peer metadata: HTTP, network and upstream filter.
	"type.googleapis.com/io.istio.http.peer_metadata.Config":                        true,
	"type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange":        true,
	"type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": true,
	// Statistics.
	"type.googleapis.com/stats.PluginConfig":                                       true,
	"type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig": true,
	// Detectors of protocols that our server detects itself.
	"type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":   true,
	"type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector": true,
	// Tracing of upstream requests.
	"type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec": true,
}

// typedStruct is how extensions without a protobuf type are packed; its inner
// type URL says what it is.
const typedStruct = "type.googleapis.com/udpa.type.v1.TypedStruct"

const (
	faultType = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
	// RawBuffer is the type of a transport socket without TLS.
	RawBuffer = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
)

// Inert tells whether an extension may be ignored.
func Inert(config *anypb.Any) bool {
	typeURL := config.GetTypeUrl()
	switch typeURL {
	case faultType:
		return len(config.GetValue()) == 0 // an empty fault filter injects none
	case typedStruct, "type.googleapis.com/xds.type.v3.TypedStruct":
		inner, ok := typedStructURL(config.GetValue())
		return ok && inertTypes[inner]
	}
	return inertTypes[typeURL]
}

// typedStructURL reads field 1 (type_url) of a serialized TypedStruct.
func typedStructURL(b []byte) (string, bool) {
	if len(b) < 2 || b[0] != 0x0a || b[1] >= 0x80 || int(b[1]) > len(b)-2 {
		return "", false
	}
	return string(b[2 : 2+int(b[1])]), true
}

// InertAccessLogs tells whether the logs go to a file or stdout; what is
// written there changes no answer.
func InertAccessLogs(logs []*accesslogv3.AccessLog) bool {
	for _, l := range logs {
		switch l.GetTypedConfig().GetTypeUrl() {
		case "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
			"type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
			"type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog":
		default:
			return false
		}
	}
	return true
}
