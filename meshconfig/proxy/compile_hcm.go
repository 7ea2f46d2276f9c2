package proxy

import (
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"
)

// hcm is a compiled HttpConnectionManager.
type hcm struct {
	routeName string      // of RDS
	routes    *routeTable // inline
	filters   []filterEntry
	early     mutation // before a route is looked for

	stripPort        bool
	stripMatching    bool
	stripDot         bool
	normalizePath    bool
	mergeSlashes     bool
	rejectEscaped    bool
	edge             bool // use_remote_address
	skipXFF          bool
	appendPort       bool
	rejectUnderscore bool
	dropUnderscore   bool
	maxHeaders       int
	xfcc             hcmv3.HttpConnectionManager_ForwardClientCertDetails
	xfccURI          bool
	xfccSubject      bool
	xfccDNS          bool
	serverName       string
	serverHeader     hcmv3.HttpConnectionManager_ServerHeaderTransformation
	requestID        bool
	keepRequestID    bool
	returnRequestID  bool
	via              string
	upgrades         map[string]bool
	localReply       *localReply
	http10           bool
	scheme           string

	streamIdle     time.Duration
	requestTimeout time.Duration
	server         serverSettings
}

// serverSettings are what the HTTP server itself needs to know; a change of
// them starts a new one for new connections.
type serverSettings struct {
	http1, http2   bool
	headerTimeout  time.Duration
	idleTimeout    time.Duration
	maxHeaderBytes int
	maxStreams     int
	maxAge         time.Duration
}

const (
	// defaultHeaderTimeout bounds how long a client may take to send a header.
	// Envoy has no bound of its own; ours ends slow-header attacks.
	defaultHeaderTimeout = 5 * time.Second
	defaultIdleTimeout   = time.Hour
	defaultStreamIdle    = 5 * time.Minute
	defaultHeaderKB      = 60
	defaultMaxHeaders    = 100
	defaultMaxStreams    = 100
	// defaultServerName is what Server says when the configuration names nobody:
	// an Envoy says envoy there.
	defaultServerName = "lambdamesh"
)

func compileHCM(at string, c *hcmv3.HttpConnectionManager) (*hcm, error) {
	if err := allow(at, c, "codec_type", "stat_prefix", "rds", "route_config", "http_filters", "tracing", "common_http_protocol_options",
		"http_protocol_options", "http2_protocol_options", "server_name", "server_header_transformation", "scheme_header_transformation",
		"max_request_headers_kb", "stream_idle_timeout", "request_timeout", "request_headers_timeout", "drain_timeout", "delayed_close_timeout",
		"access_log", "access_log_options", "use_remote_address", "internal_address_config", "skip_xff_append", "via", "generate_request_id",
		"preserve_external_request_id", "always_set_request_id_in_response", "forward_client_cert_details", "set_current_client_cert_details",
		"proxy_100_continue", "upgrade_configs", "normalize_path", "merge_slashes", "path_with_escaped_slashes_action", "request_id_extension",
		"local_reply_config", "strip_matching_host_port", "strip_any_host_port", "stream_error_on_invalid_http_message",
		"strip_trailing_host_dot", "append_x_forwarded_port", "http3_protocol_options",
		"early_header_mutation_extensions"); err != nil {
		return nil, err
	}
	if c.GetHttp3ProtocolOptions() != nil && c.GetCodecType() == hcmv3.HttpConnectionManager_HTTP3 {
		return nil, fmt.Errorf("%s: codec_type HTTP3 is not supported", at)
	}
	h := &hcm{
		stripPort: c.GetStripAnyHostPort(), stripMatching: c.GetStripMatchingHostPort(), stripDot: c.GetStripTrailingHostDot(),
		normalizePath: c.GetNormalizePath().GetValue(), mergeSlashes: c.GetMergeSlashes(),
		edge: c.GetUseRemoteAddress().GetValue(), skipXFF: c.GetSkipXffAppend(), appendPort: c.GetAppendXForwardedPort(),
		xfcc: c.GetForwardClientCertDetails(), serverName: c.GetServerName(), serverHeader: c.GetServerHeaderTransformation(),
		requestID: c.GetGenerateRequestId() == nil || c.GetGenerateRequestId().GetValue(), keepRequestID: c.GetPreserveExternalRequestId(),
		returnRequestID: c.GetAlwaysSetRequestIdInResponse(), via: c.GetVia(), maxHeaders: defaultMaxHeaders,
		streamIdle:     duration(c.GetStreamIdleTimeout(), defaultStreamIdle),
		requestTimeout: duration(c.GetRequestTimeout(), 0),
		server: serverSettings{
			headerTimeout: duration(c.GetRequestHeadersTimeout(), 0), idleTimeout: defaultIdleTimeout,
			maxHeaderBytes: defaultHeaderKB << 10, maxStreams: defaultMaxStreams,
		},
	}
	if h.server.headerTimeout == 0 {
		h.server.headerTimeout = defaultHeaderTimeout
	}
	if h.serverName == "" {
		h.serverName = defaultServerName
	}
	if kb := c.GetMaxRequestHeadersKb(); kb != nil {
		h.server.maxHeaderBytes = int(kb.GetValue()) << 10
	}
	h.server.http1 = c.GetCodecType() != hcmv3.HttpConnectionManager_HTTP2
	h.server.http2 = c.GetCodecType() != hcmv3.HttpConnectionManager_HTTP1
	if !inertAccessLogs(c.GetAccessLog()) {
		return nil, fmt.Errorf("%s.access_log: only logs to files, stdout and stderr are accepted (and not written)", at)
	}
	if i := c.GetInternalAddressConfig(); i.GetUnixSockets() {
		return nil, fmt.Errorf("%s.internal_address_config: unix_sockets is not supported", at)
	}
	if ext := c.GetRequestIdExtension(); ext != nil {
		var u uuidv3.UuidRequestIdConfig
		if err := unmarshal(at+".request_id_extension", ext.GetTypedConfig(), &u); err != nil {
			return nil, err
		}
	}
	switch s := c.GetSchemeHeaderTransformation(); {
	case s == nil:
	case s.GetMatchUpstream():
		return nil, fmt.Errorf("%s.scheme_header_transformation: match_upstream is not supported", at)
	default:
		h.scheme = s.GetSchemeToOverwrite()
	}
	switch a := c.GetPathWithEscapedSlashesAction(); a {
	case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
	case hcmv3.HttpConnectionManager_REJECT_REQUEST:
		h.rejectEscaped = true
	default:
		return nil, fmt.Errorf("%s: path_with_escaped_slashes_action %s is not supported", at, a)
	}
	switch h.xfcc {
	case hcmv3.HttpConnectionManager_SANITIZE, hcmv3.HttpConnectionManager_SANITIZE_SET, hcmv3.HttpConnectionManager_APPEND_FORWARD,
		hcmv3.HttpConnectionManager_FORWARD_ONLY, hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
	}
	details := c.GetSetCurrentClientCertDetails()
	if err := allow(at+".set_current_client_cert_details", details, "subject", "uri", "dns"); err != nil {
		return nil, err
	}
	h.xfccURI, h.xfccSubject, h.xfccDNS = details.GetUri(), details.GetSubject().GetValue(), details.GetDns()

	if err := h.compileProtocols(at, c); err != nil {
		return nil, err
	}
	for _, u := range c.GetUpgradeConfigs() {
		if err := allow(at+".upgrade_configs", u, "upgrade_type", "enabled"); err != nil {
			return nil, err
		}
		if !strings.EqualFold(u.GetUpgradeType(), "websocket") {
			return nil, fmt.Errorf("%s.upgrade_configs: upgrade_type %q is not supported", at, u.GetUpgradeType())
		}
		if h.upgrades == nil {
			h.upgrades = map[string]bool{}
		}
		h.upgrades["websocket"] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	var err error
	switch s := c.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		if err := overADS(at+".rds.config_source", s.Rds.GetConfigSource()); err != nil {
			return nil, err
		}
		h.routeName = s.Rds.GetRouteConfigName()
	case *hcmv3.HttpConnectionManager_RouteConfig:
		if h.routes, err = compileRouteTable(s.RouteConfig); err != nil {
			return nil, fmt.Errorf("%s.route_config: %w", at, err)
		}
	default:
		return nil, fmt.Errorf("%s: only rds and route_config are supported", at)
	}
	if h.localReply, err = compileLocalReply(at+".local_reply_config", c.GetLocalReplyConfig()); err != nil {
		return nil, err
	}
	if h.early, err = compileEarly(at+".early_header_mutation_extensions", c.GetEarlyHeaderMutationExtensions()); err != nil {
		return nil, err
	}
	h.filters, err = compileFilters(at+".http_filters", c.GetHttpFilters())
	return h, err
}

// compileEarly takes removals only, so that their order means nothing.
func compileEarly(at string, extensions []*corev3.TypedExtensionConfig) (mutation, error) {
	var names []string
	for i, ext := range extensions {
		where := fmt.Sprintf("%s[%d]", at, i)
		var c earlyv3.HeaderMutation
		if err := unmarshal(where, ext.GetTypedConfig(), &c); err != nil {
			return mutation{}, err
		}
		for j, m := range c.GetMutations() {
			if m.GetRemove() == "" {
				return mutation{}, fmt.Errorf("%s.mutations[%d]: only remove is supported", where, j)
			}
			names = append(names, m.GetRemove())
		}
	}
	return compileMutation(at, nil, names)
}

func (h *hcm) compileProtocols(at string, c *hcmv3.HttpConnectionManager) error {
	common := c.GetCommonHttpProtocolOptions()
	if err := allow(at+".common_http_protocol_options", common, "idle_timeout", "headers_with_underscores_action", "max_headers_count", "max_connection_duration"); err != nil {
		return err
	}
	h.server.idleTimeout = duration(common.GetIdleTimeout(), h.server.idleTimeout)
	h.server.maxAge = duration(common.GetMaxConnectionDuration(), 0)
	if n := common.GetMaxHeadersCount(); n != nil {
		h.maxHeaders = int(n.GetValue())
	}
	switch common.GetHeadersWithUnderscoresAction() {
	case corev3.HttpProtocolOptions_REJECT_REQUEST:
		h.rejectUnderscore = true
	case corev3.HttpProtocolOptions_DROP_HEADER:
		h.dropUnderscore = true
	}
	one := c.GetHttpProtocolOptions()
	if err := allow(at+".http_protocol_options", one, "allow_absolute_url", "accept_http_10", "enable_trailers", "override_stream_error_on_invalid_http_message", "use_balsa_parser"); err != nil {
		return err
	}
	if a := one.GetAllowAbsoluteUrl(); a != nil && !a.GetValue() {
		return fmt.Errorf("%s.http_protocol_options: allow_absolute_url false is not supported", at)
	}
	h.http10 = one.GetAcceptHttp_10()
	two := c.GetHttp2ProtocolOptions()
	if err := allow(at+".http2_protocol_options", two, "hpack_table_size", "max_concurrent_streams", "initial_stream_window_size",
		"initial_connection_window_size", "max_outbound_frames", "max_outbound_control_frames", "max_consecutive_inbound_frames_with_empty_payload",
		"max_inbound_priority_frames_per_stream", "max_inbound_window_update_frames_per_data_frame_sent", "stream_error_on_invalid_http_messaging",
		"override_stream_error_on_invalid_http_message", "connection_keepalive", "use_oghttp2_codec"); err != nil {
		return err
	}
	if n := two.GetMaxConcurrentStreams(); n != nil {
		h.server.maxStreams = int(min(n.GetValue(), 1<<16))
	}
	return nil
}
