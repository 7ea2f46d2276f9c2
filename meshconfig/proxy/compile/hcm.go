package compile

import (
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	uuidv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/request_id/uuid/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/filters"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// HCM is a compiled HttpConnectionManager.
type HCM struct {
	Inbound   bool        // the listener's direction
	RouteName string      // of RDS
	Routes    *RouteTable // inline
	Filters   []filters.Entry
	Early     request.Mutation // before a route is looked for

	StripPort        bool
	StripMatching    bool
	StripDot         bool
	NormalizePath    bool
	MergeSlashes     bool
	RejectEscaped    bool
	Edge             bool // use_remote_address
	TrustedHops      int  // proxies before this one whose X-Forwarded-For is believed
	SkipXFF          bool
	AppendPort       bool
	RejectUnderscore bool
	DropUnderscore   bool
	MaxHeaders       int
	XFCC             hcmv3.HttpConnectionManager_ForwardClientCertDetails
	XFCCURI          bool
	XFCCSubject      bool
	XFCCDNS          bool
	ServerName       string
	ServerHeader     hcmv3.HttpConnectionManager_ServerHeaderTransformation
	RequestID        bool
	KeepRequestID    bool
	ReturnRequestID  bool
	Via              string
	Upgrades         map[string]bool
	LocalReply       *localReply
	HTTP10           bool
	scheme           string

	StreamIdle     time.Duration
	RequestTimeout time.Duration
	Server         serverSettings
}

// serverSettings are what the HTTP server itself needs to know; a change of
// them starts a new one for new connections.
type serverSettings struct {
	HTTP1, HTTP2   bool
	HeaderTimeout  time.Duration
	IdleTimeout    time.Duration
	MaxHeaderBytes int
	MaxStreams     int
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

func compileHCM(at string, c *hcmv3.HttpConnectionManager) (*HCM, error) {
	if err := strict.Allow(at, c, "codec_type", "stat_prefix", "rds", "route_config", "http_filters", "tracing", "common_http_protocol_options",
		"http_protocol_options", "http2_protocol_options", "server_name", "server_header_transformation", "scheme_header_transformation",
		"max_request_headers_kb", "stream_idle_timeout", "request_timeout", "request_headers_timeout", "drain_timeout", "delayed_close_timeout",
		"access_log", "access_log_options", "use_remote_address", "xff_num_trusted_hops", "internal_address_config", "skip_xff_append", "via", "generate_request_id",
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
	h := &HCM{
		StripPort: c.GetStripAnyHostPort(), StripMatching: c.GetStripMatchingHostPort(), StripDot: c.GetStripTrailingHostDot(),
		NormalizePath: c.GetNormalizePath().GetValue(), MergeSlashes: c.GetMergeSlashes(),
		Edge: c.GetUseRemoteAddress().GetValue(), TrustedHops: int(min(c.GetXffNumTrustedHops(), 1<<10)), SkipXFF: c.GetSkipXffAppend(), AppendPort: c.GetAppendXForwardedPort(),
		XFCC: c.GetForwardClientCertDetails(), ServerName: c.GetServerName(), ServerHeader: c.GetServerHeaderTransformation(),
		RequestID: c.GetGenerateRequestId() == nil || c.GetGenerateRequestId().GetValue(), KeepRequestID: c.GetPreserveExternalRequestId(),
		ReturnRequestID: c.GetAlwaysSetRequestIdInResponse(), Via: c.GetVia(), MaxHeaders: defaultMaxHeaders,
		StreamIdle:     strict.Duration(c.GetStreamIdleTimeout(), defaultStreamIdle),
		RequestTimeout: strict.Duration(c.GetRequestTimeout(), 0),
		Server: serverSettings{
			HeaderTimeout: strict.Duration(c.GetRequestHeadersTimeout(), 0), IdleTimeout: defaultIdleTimeout,
			MaxHeaderBytes: defaultHeaderKB << 10, MaxStreams: defaultMaxStreams,
		},
	}
	if h.Server.HeaderTimeout == 0 {
		h.Server.HeaderTimeout = defaultHeaderTimeout
	}
	if h.ServerName == "" {
		h.ServerName = defaultServerName
	}
	if kb := c.GetMaxRequestHeadersKb(); kb != nil {
		h.Server.MaxHeaderBytes = int(kb.GetValue()) << 10
	}
	h.Server.HTTP1 = c.GetCodecType() != hcmv3.HttpConnectionManager_HTTP2
	h.Server.HTTP2 = c.GetCodecType() != hcmv3.HttpConnectionManager_HTTP1
	if !strict.InertAccessLogs(c.GetAccessLog()) {
		return nil, fmt.Errorf("%s.access_log: only logs to files, stdout and stderr are accepted (and not written)", at)
	}
	if i := c.GetInternalAddressConfig(); i.GetUnixSockets() {
		return nil, fmt.Errorf("%s.internal_address_config: unix_sockets is not supported", at)
	}
	if ext := c.GetRequestIdExtension(); ext != nil {
		var u uuidv3.UuidRequestIdConfig
		if err := strict.Unmarshal(at+".request_id_extension", ext.GetTypedConfig(), &u); err != nil {
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
		h.RejectEscaped = true
	default:
		return nil, fmt.Errorf("%s: path_with_escaped_slashes_action %s is not supported", at, a)
	}
	switch h.XFCC {
	case hcmv3.HttpConnectionManager_SANITIZE, hcmv3.HttpConnectionManager_SANITIZE_SET, hcmv3.HttpConnectionManager_APPEND_FORWARD,
		hcmv3.HttpConnectionManager_FORWARD_ONLY, hcmv3.HttpConnectionManager_ALWAYS_FORWARD_ONLY:
	}
	details := c.GetSetCurrentClientCertDetails()
	if err := strict.Allow(at+".set_current_client_cert_details", details, "subject", "uri", "dns"); err != nil {
		return nil, err
	}
	h.XFCCURI, h.XFCCSubject, h.XFCCDNS = details.GetUri(), details.GetSubject().GetValue(), details.GetDns()

	if err := h.compileProtocols(at, c); err != nil {
		return nil, err
	}
	for _, u := range c.GetUpgradeConfigs() {
		if err := strict.Allow(at+".upgrade_configs", u, "upgrade_type", "enabled"); err != nil {
			return nil, err
		}
		if !strings.EqualFold(u.GetUpgradeType(), "websocket") {
			return nil, fmt.Errorf("%s.upgrade_configs: upgrade_type %q is not supported", at, u.GetUpgradeType())
		}
		if h.Upgrades == nil {
			h.Upgrades = map[string]bool{}
		}
		h.Upgrades["websocket"] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	var err error
	switch s := c.GetRouteSpecifier().(type) {
	case *hcmv3.HttpConnectionManager_Rds:
		if err := strict.OverADS(at+".rds.config_source", s.Rds.GetConfigSource()); err != nil {
			return nil, err
		}
		h.RouteName = s.Rds.GetRouteConfigName()
	case *hcmv3.HttpConnectionManager_RouteConfig:
		if h.Routes, err = compileRouteTable(s.RouteConfig); err != nil {
			return nil, fmt.Errorf("%s.route_config: %w", at, err)
		}
	default:
		return nil, fmt.Errorf("%s: only rds and route_config are supported", at)
	}
	if h.LocalReply, err = compileLocalReply(at+".local_reply_config", c.GetLocalReplyConfig()); err != nil {
		return nil, err
	}
	if h.Early, err = compileEarly(at+".early_header_mutation_extensions", c.GetEarlyHeaderMutationExtensions()); err != nil {
		return nil, err
	}
	h.Filters, err = filters.Compile(at+".http_filters", c.GetHttpFilters())
	return h, err
}

// compileEarly takes removals only, so that their order means nothing.
func compileEarly(at string, extensions []*corev3.TypedExtensionConfig) (request.Mutation, error) {
	var names []string
	for i, ext := range extensions {
		where := fmt.Sprintf("%s[%d]", at, i)
		var c earlyv3.HeaderMutation
		if err := strict.Unmarshal(where, ext.GetTypedConfig(), &c); err != nil {
			return request.Mutation{}, err
		}
		for j, m := range c.GetMutations() {
			if m.GetRemove() == "" {
				return request.Mutation{}, fmt.Errorf("%s.mutations[%d]: only remove is supported", where, j)
			}
			names = append(names, m.GetRemove())
		}
	}
	return request.CompileMutation(at, nil, names)
}

func (h *HCM) compileProtocols(at string, c *hcmv3.HttpConnectionManager) error {
	common := c.GetCommonHttpProtocolOptions()
	if err := strict.Allow(at+".common_http_protocol_options", common, "idle_timeout", "headers_with_underscores_action", "max_headers_count", "max_connection_duration"); err != nil {
		return err
	}
	h.Server.IdleTimeout = strict.Duration(common.GetIdleTimeout(), h.Server.IdleTimeout)
	h.Server.maxAge = strict.Duration(common.GetMaxConnectionDuration(), 0)
	if n := common.GetMaxHeadersCount(); n != nil {
		h.MaxHeaders = int(n.GetValue())
	}
	switch common.GetHeadersWithUnderscoresAction() {
	case corev3.HttpProtocolOptions_REJECT_REQUEST:
		h.RejectUnderscore = true
	case corev3.HttpProtocolOptions_DROP_HEADER:
		h.DropUnderscore = true
	}
	one := c.GetHttpProtocolOptions()
	if err := strict.Allow(at+".http_protocol_options", one, "allow_absolute_url", "accept_http_10", "enable_trailers", "override_stream_error_on_invalid_http_message", "use_balsa_parser"); err != nil {
		return err
	}
	if a := one.GetAllowAbsoluteUrl(); a != nil && !a.GetValue() {
		return fmt.Errorf("%s.http_protocol_options: allow_absolute_url false is not supported", at)
	}
	h.HTTP10 = one.GetAcceptHttp_10()
	two := c.GetHttp2ProtocolOptions()
	if err := strict.Allow(at+".http2_protocol_options", two, "hpack_table_size", "max_concurrent_streams", "initial_stream_window_size",
		"initial_connection_window_size", "max_outbound_frames", "max_outbound_control_frames", "max_consecutive_inbound_frames_with_empty_payload",
		"max_inbound_priority_frames_per_stream", "max_inbound_window_update_frames_per_data_frame_sent", "stream_error_on_invalid_http_messaging",
		"override_stream_error_on_invalid_http_message", "connection_keepalive", "use_oghttp2_codec"); err != nil {
		return err
	}
	if n := two.GetMaxConcurrentStreams(); n != nil {
		h.Server.MaxStreams = int(min(n.GetValue(), 1<<16))
	}
	return nil
}

// SchemeOf is the scheme of what comes over a connection.
func (h *HCM) SchemeOf(c *request.Conn) string {
	switch {
	case h.scheme != "":
		return h.scheme
	case c.TLS != nil:
		return "https"
	default:
		return "http"
	}
}
