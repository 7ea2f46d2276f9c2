package compile

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// Listener is a compiled Listener.
type Listener struct {
	Name          string
	Network, Addr string
	Bind          bool
	// ProxyProtocol: connections begin with a header of version 2.
	ProxyProtocol bool
	Chains        []*Chain
	byName        map[string]*Chain // by server name, "*.x" for suffixes
	fallback      *Chain            // for any other name or none
}

// Chain is a compiled FilterChain.
type Chain struct {
	Key           string // changes with everything that is decided per connection
	HCM           *HCM
	TLS           *tlsContext // nil: plain text
	RequireClient bool
	RequireSNI    bool
	Timeout       time.Duration // of the handshake
}

func compileListener(l *listenerv3.Listener) (*Listener, error) {
	at := fmt.Sprintf("Listener %q", l.GetName())
	if err := strict.Allow(at, l, "name", "address", "stat_prefix", "filter_chains", "default_filter_chain", "per_connection_buffer_limit_bytes",
		"metadata", "drain_type", "listener_filters", "listener_filters_timeout", "continue_on_listener_filters_timeout", "traffic_direction",
		"enable_reuse_port", "access_log", "tcp_backlog_size", "bind_to_port", "connection_balance_config", "ignore_global_conn_limit",
		"bypass_overload_manager", "max_connections_to_accept_per_socket_event", "deprecated_v1", "transparent", "freebind"); err != nil {
		return nil, err
	}
	if l.GetTransparent().GetValue() || l.GetFreebind().GetValue() {
		return nil, fmt.Errorf("%s: transparent and freebind are not supported", at)
	}
	if !strict.InertAccessLogs(l.GetAccessLog()) {
		return nil, fmt.Errorf("%s.access_log: only logs to files, stdout and stderr are accepted (and not written)", at)
	}
	c := &Listener{Name: l.GetName(), Bind: true, byName: map[string]*Chain{}}
	if b := l.GetBindToPort(); b != nil {
		c.Bind = b.GetValue()
	}
	if b := l.GetDeprecatedV1().GetBindToPort(); b != nil {
		c.Bind = b.GetValue()
	}
	if !c.Bind {
		// Nothing connects to it; Envoy uses it for redirected connections,
		// which are refused with use_original_dst.
		return c, nil
	}
	var err error
	if c.Network, c.Addr, err = strict.Address(at+".address", l.GetAddress()); err != nil {
		return nil, err
	}
	for _, f := range l.GetListenerFilters() {
		if f.GetTypedConfig().GetTypeUrl() == "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" {
			if err := compileProxyProtocol(fmt.Sprintf("%s.listener_filters[%s]", at, f.GetName()), f.GetTypedConfig()); err != nil {
				return nil, err
			}
			c.ProxyProtocol = true
			continue
		}
		if !strict.Inert(f.GetTypedConfig()) {
			return nil, fmt.Errorf("%s.listener_filters[%s]: %s is not supported", at, f.GetName(), f.GetTypedConfig().GetTypeUrl())
		}
	}
	var errs []error
	for i, chain := range l.GetFilterChains() {
		where := fmt.Sprintf("%s.filter_chains[%d]", at, i)
		if chain.GetName() != "" {
			where = fmt.Sprintf("%s.filter_chains[%s]", at, chain.GetName())
		}
		errs = append(errs, c.addChain(where, chain))
	}
	if chain := l.GetDefaultFilterChain(); chain != nil {
		if c.fallback != nil {
			errs = append(errs, fmt.Errorf("%s.default_filter_chain: another filter chain matches everything already", at))
		} else {
			errs = append(errs, c.addChain(at+".default_filter_chain", chain))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(c.Chains) == 0 {
		return nil, fmt.Errorf("%s: has no filter chain", at)
	}
	for _, chain := range c.Chains {
		chain.HCM.Inbound = l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND
		if (chain.TLS == nil) != (c.Chains[0].TLS == nil) {
			return nil, fmt.Errorf("%s: filter chains with and without TLS on one listener are not supported", at)
		}
	}
	if c.Chains[0].TLS == nil && len(c.Chains) > 1 {
		return nil, fmt.Errorf("%s: several filter chains without TLS are not supported", at)
	}
	return c, nil
}

func (c *Listener) addChain(at string, f *listenerv3.FilterChain) error {
	if err := strict.Allow(at, f, "filter_chain_match", "filters", "transport_socket", "transport_socket_connect_timeout", "name", "metadata"); err != nil {
		return err
	}
	match := f.GetFilterChainMatch()
	if err := strict.Allow(at+".filter_chain_match", match, "server_names", "transport_protocol", "application_protocols", "destination_port"); err != nil {
		return err
	}
	if port := match.GetDestinationPort(); port != nil && (c.Network != "tcp" || !strings.HasSuffix(c.Addr, fmt.Sprintf(":%d", port.GetValue()))) {
		// Connections come to the listener's own port; none is redirected here.
		return fmt.Errorf("%s.filter_chain_match: destination_port %d is not the listener's, the only one that is supported", at, port.GetValue())
	}
	chain := &Chain{Timeout: strict.Duration(f.GetTransportSocketConnectTimeout(), 0)}
	if chain.Timeout == 0 {
		chain.Timeout = defaultHeaderTimeout
	}
	if socket := f.GetTransportSocket(); socket != nil && socket.GetTypedConfig().GetTypeUrl() != strict.RawBuffer {
		var d tlsv3.DownstreamTlsContext
		if err := strict.Unmarshal(at+".transport_socket", socket.GetTypedConfig(), &d); err != nil {
			return err
		}
		if err := chain.compileTLS(at+".transport_socket", &d); err != nil {
			return err
		}
	}
	switch p := match.GetTransportProtocol(); {
	case p == "" || p == "tls" && chain.TLS != nil || p == "raw_buffer" && chain.TLS == nil:
	default:
		return fmt.Errorf("%s.filter_chain_match: transport_protocol %q is not supported here", at, p)
	}
	for _, p := range match.GetApplicationProtocols() {
		// Istio's own ALPN values say mutual TLS, which is required then.
		if chain.TLS == nil || !chain.RequireClient || p != "h2" && p != "http/1.1" && !strings.HasPrefix(p, "istio") {
			return fmt.Errorf("%s.filter_chain_match: application_protocols %q is not supported", at, p)
		}
	}
	for _, filter := range f.GetFilters() {
		where := fmt.Sprintf("%s.filters[%s]", at, filter.GetName())
		if strict.Inert(filter.GetTypedConfig()) {
			continue
		}
		var h hcmv3.HttpConnectionManager
		if err := strict.Unmarshal(where, filter.GetTypedConfig(), &h); err != nil {
			return err
		}
		if chain.HCM != nil {
			return fmt.Errorf("%s: there is another connection manager before", where)
		}
		if details := h.GetSetCurrentClientCertDetails(); details != nil && !chain.asksClients() {
			// Nobody shows a certificate here. istiod asks for it all the same.
			details.Cert, details.Chain = false, false
		}
		var err error
		if chain.HCM, err = compileHCM(where, &h); err != nil {
			return err
		}
	}
	if chain.HCM == nil {
		return fmt.Errorf("%s: has no http_connection_manager; other network filters are not supported", at)
	}
	sum := sha256.New()
	for _, m := range []proto.Message{match, f.GetTransportSocket()} {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return fmt.Errorf("%s: %w", at, err)
		}
		sum.Write(b)
	}
	fmt.Fprintf(sum, "%+v %v", chain.HCM.Server, c.ProxyProtocol)
	chain.Key = hex.EncodeToString(sum.Sum(nil)[:12])
	c.Chains = append(c.Chains, chain)

	if len(match.GetServerNames()) == 0 {
		if c.fallback != nil {
			return fmt.Errorf("%s: another filter chain matches everything already", at)
		}
		c.fallback = chain
		return nil
	}
	if chain.TLS == nil {
		return fmt.Errorf("%s.filter_chain_match: server_names without TLS are not supported", at)
	}
	for _, name := range match.GetServerNames() {
		name = strings.ToLower(name)
		if name == "*" {
			if c.fallback != nil {
				return fmt.Errorf("%s: another filter chain matches everything already", at)
			}
			c.fallback = chain
			continue
		}
		if _, double := c.byName[name]; double {
			return fmt.Errorf("%s.filter_chain_match: the server name %q is taken by another filter chain", at, name)
		}
		c.byName[name] = chain
	}
	return nil
}

// asksClients tells whether clients are asked for a certificate.
func (c *Chain) asksClients() bool {
	return c.TLS != nil && (c.TLS.Validation != nil || c.TLS.ValidationSecret != "")
}

func (c *Chain) compileTLS(at string, d *tlsv3.DownstreamTlsContext) error {
	if err := strict.Allow(at, d, "common_tls_context", "require_client_certificate", "require_sni", "disable_stateful_session_resumption",
		"disable_stateless_session_resumption", "session_timeout", "full_scan_certs_on_sni_mismatch", "ocsp_staple_policy"); err != nil {
		return err
	}
	c.RequireClient, c.RequireSNI = d.GetRequireClientCertificate().GetValue(), d.GetRequireSni().GetValue()
	var err error
	if c.TLS, err = compileTLSContext(at+".common_tls_context", d.GetCommonTlsContext()); err != nil {
		return err
	}
	if len(c.TLS.certificates)+len(c.TLS.certificateSecrets) == 0 {
		return fmt.Errorf("%s.common_tls_context: has no certificate", at)
	}
	if c.RequireClient && c.TLS.Validation == nil && c.TLS.ValidationSecret == "" {
		return fmt.Errorf("%s.common_tls_context: require_client_certificate needs a validation context", at)
	}
	return nil
}

// Chain returns the filter chain for a server name: exact, then the longest
// wildcard, then the one for all.
func (c *Listener) Chain(serverName string) *Chain {
	name := strings.ToLower(serverName)
	if chain, ok := c.byName[name]; ok {
		return chain
	}
	for rest := name; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return c.fallback
		}
		if chain, ok := c.byName["*"+rest[i:]]; ok {
			return chain
		}
		rest = rest[i+1:]
	}
}

// compileProxyProtocol takes version 2 alone, on every connection.
func compileProxyProtocol(at string, config *anypb.Any) error {
	var c proxyprotocolv3.ProxyProtocol
	if err := strict.Unmarshal(at, config, &c); err != nil {
		return err
	}
	if err := strict.Allow(at, &c, "disallowed_versions", "stat_prefix"); err != nil {
		return err
	}
	if !slices.Equal(c.GetDisallowedVersions(), []corev3.ProxyProtocolConfig_Version{corev3.ProxyProtocolConfig_V1}) {
		return fmt.Errorf("%s: version 1 of the PROXY protocol is not supported; name it in disallowed_versions", at)
	}
	return nil
}

// Address is where it listens, network included.
func (c *Listener) Address() string { return c.Network + "|" + c.Addr }
