package xds

import (
	"cmp"
	"fmt"
	"iter"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	proxyprotocolv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// Names of HTTP filters; per-route configurations are found by them.
const (
	filterCORS   = "envoy.filters.http.cors"
	filterJWT    = "envoy.filters.http.jwt_authn"
	filterRBAC   = "envoy.filters.http.rbac"
	filterRouter = "envoy.filters.http.router"
)

// Limits at the edge (Envoy's edge practices).
const (
	headersTimeout    = 5 * time.Second
	requestTimeout    = 300 * time.Second
	streamIdleTimeout = 300 * time.Second
	idleTimeout       = 3600 * time.Second
	// certificateTimeout is how long a listener waits for a certificate of its
	// Gateway that is missing, before its other servers serve without it.
	certificateTimeout = 2 * time.Second

	http2Streams          = 100
	http2StreamWindow     = 64 << 10
	http2ConnectionWindow = 1 << 20
)

// gateway adds a listener per port and a route configuration per server.
func (b *builder) gateway(g *ir.Gateway) {
	demands := make([]*Demands, 0, len(g.VirtualHosts))
	for _, vh := range g.VirtualHosts {
		demands = append(demands, DemandsOf(vh))
		for _, key := range DestinationsOf(vh) {
			b.cluster(key)
		}
	}
	b.listeners(g, b.mesh.KeySets, slices.Values(demands))
	for _, table := range Tables(g) {
		config := table.Empty()
		for _, vh := range g.VirtualHosts {
			host, err := table.Host(vh)
			b.note(err)
			if host != nil {
				config.VirtualHosts = append(config.VirtualHosts, host)
			}
		}
		slices.SortFunc(config.VirtualHosts, byName)
		b.out.Routes = append(b.out.Routes, config)
	}
}

// listeners adds those of a gateway.
func (b *builder) listeners(g *ir.Gateway, keySets []ir.KeySet, demands iter.Seq[*Demands]) {
	listeners := map[string]*listenerv3.Listener{}
	auth := b.jwtFilter(keySets, demands)
	for i := range g.Servers {
		s := &g.Servers[i]
		bind := s.Bind
		if bind == "" {
			bind = "0.0.0.0"
		}
		name := fmt.Sprintf("%s_%d", bind, s.Port)
		l, exists := listeners[name]
		if !exists {
			l = listener(name, bind, s.Port)
			if g.ProxyProtocol {
				l.ListenerFilters = append(l.ListenerFilters, b.listenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocolv3.ProxyProtocol{
					// The text of version 1 ends where a client could go on writing it.
					DisallowedVersions: []corev3.ProxyProtocolConfig_Version{corev3.ProxyProtocolConfig_V1},
				}))
			}
			listeners[name] = l
			b.out.Listeners = append(b.out.Listeners, l)
		}
		filters := slices.Concat([]*hcmv3.HttpFilter{
			b.filter(filterCORS, &corsv3.Cors{}),
			b.filter(filterJWT, auth),
			b.filter(filterRBAC, &rbacv3.RBAC{}),
		}, b.askedFor(demands), []*hcmv3.HttpFilter{b.router()})
		if s.Protocol == ir.HTTP {
			if !exists { // servers of one plain port share its routes
				l.FilterChains = []*listenerv3.FilterChain{b.httpChain(b.edge(g, tableName(s), filters))}
			}
			continue
		}
		routes := tableName(s)
		chain := b.httpChain(b.edge(g, routes, filters))
		if names := serverNames(s); len(names) > 0 {
			chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: names}
		}
		chain.TransportSocket = b.downstreamTLS(&tlsv3.DownstreamTlsContext{
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsParams:                      tlsParameters(s),
				TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: secretName(s.TLSSecret), SdsConfig: adsWithin(certificateTimeout)}},
				AlpnProtocols:                  []string{"h2", "http/1.1"},
			},
		})
		chain.Name = s.Name
		l.FilterChains = append(l.FilterChains, chain)
		if len(l.FilterChains) == 1 {
			l.ListenerFilters = append(l.ListenerFilters, b.listenerFilter("envoy.filters.listener.tls_inspector", &inspectorv3.TlsInspector{}))
		}
	}
}

// tlsParameters of a server. Envoy's own choice would end at TLS 1.3 as well, and
// begin at 1.2.
func tlsParameters(s *ir.Server) *tlsv3.TlsParameters {
	versions := map[ir.TLSVersion]tlsv3.TlsParameters_TlsProtocol{
		ir.TLS12: tlsv3.TlsParameters_TLSv1_2, ir.TLS13: tlsv3.TlsParameters_TLSv1_3,
	}
	return &tlsv3.TlsParameters{
		TlsMinimumProtocolVersion: versions[cmp.Or(s.MinTLS, ir.TLS12)],
		TlsMaximumProtocolVersion: versions[s.MaxTLS], // 0 is TLS_AUTO
		CipherSuites:              s.CipherSuites,
	}
}

// serverNames of a TLS server for SNI; none when it takes every name.
func serverNames(s *ir.Server) []string {
	var names []string
	seen := map[string]bool{}
	for _, h := range s.Hosts {
		_, pattern, _ := strings.Cut(h, "/")
		if pattern == "*" {
			return nil
		}
		if !seen[pattern] {
			seen[pattern] = true
			names = append(names, pattern)
		}
	}
	return names
}

func listener(name, bind string, port uint32) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name:                          name,
		Address:                       socketAddress(bind, port),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferBytes),
	}
}

func (b *builder) httpChain(manager *hcmv3.HttpConnectionManager) *listenerv3.FilterChain {
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{
		Name:       "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.any(manager)},
	}}}
}

func (b *builder) filter(name string, config proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.any(config)}}
}

func (b *builder) listenerFilter(name string, config proto.Message) *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{Name: name, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: b.any(config)}}
}

func (b *builder) router() *hcmv3.HttpFilter { return b.filter(filterRouter, &routerv3.Router{}) }

func (b *builder) downstreamTLS(config *tlsv3.DownstreamTlsContext) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.any(config)},
	}
}

func rds(routes string) *hcmv3.HttpConnectionManager_Rds {
	return &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: routes}}
}

// edge is the connection manager of a gateway: it trusts nothing a client says
// about itself and refuses what two parsers could read differently.
func (b *builder) edge(g *ir.Gateway, routes string, filters []*hcmv3.HttpFilter) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:       routes,
		RouteSpecifier:   rds(routes),
		HttpFilters:      filters,
		UseRemoteAddress: wrapperspb.Bool(true),
		// Of what X-Forwarded-For says, the part that trusted proxies wrote.
		XffNumTrustedHops: g.TrustedProxies,
		// Before a route is looked for and a filter asked: neither sees a client's copy.
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{{
			Name:        "envoy.http.early_header_mutation.header_mutation",
			TypedConfig: b.any(removeHeaders(untrustedHeaders())),
		}},
		NormalizePath: wrapperspb.Bool(true),
		MergeSlashes:  true,
		// Both %2f and %5c: a backend may read them as slashes.
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
		StripPortMode:                &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		StripTrailingHostDot:         true, // "host." is the same host (RFC 1034, section 3.1)
		ForwardClientCertDetails:     hcmv3.HttpConnectionManager_SANITIZE,
		RequestHeadersTimeout:        durationpb.New(headersTimeout),
		RequestTimeout:               durationpb.New(requestTimeout),
		StreamIdleTimeout:            durationpb.New(streamIdleTimeout),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(idleTimeout),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(http2Streams),
			InitialStreamWindowSize:     wrapperspb.UInt32(http2StreamWindow),
			InitialConnectionWindowSize: wrapperspb.UInt32(http2ConnectionWindow),
		},
		LocalReplyConfig: problemReplies(),
	}
}

func removeHeaders(names []string) *earlyv3.HeaderMutation {
	out := &earlyv3.HeaderMutation{}
	for _, name := range names {
		out.Mutations = append(out.Mutations, &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: name}})
	}
	return out
}

// sidecar adds the listeners of a replica.
func (b *builder) sidecar(s *ir.Sidecar) {
	var allow []ir.Allow
	if w, found := b.mesh.Workload(s.Workload); found {
		allow = w.Allow
	}
	for _, in := range s.Inbound {
		cluster := fmt.Sprintf("inbound|%d", in.Port)
		b.staticCluster(cluster, in.Endpoint)
		l := listener(fmt.Sprintf("inbound_%s_%d", in.Bind, in.Port), in.Bind, in.Port)
		manager := &hcmv3.HttpConnectionManager{
			StatPrefix:     cluster,
			RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: inboundRoutes(cluster, allow)},
			HttpFilters: []*hcmv3.HttpFilter{
				b.filter(filterRBAC, &rbacv3.RBAC{Rules: principals(allow)}),
				b.router(),
			},
			// The application learns who calls from this header and nothing else.
			ForwardClientCertDetails:    hcmv3.HttpConnectionManager_SANITIZE_SET,
			SetCurrentClientCertDetails: &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true},
			StreamIdleTimeout:           durationpb.New(0), // the caller's timeout ends a request
			LocalReplyConfig:            problemReplies(),
		}
		chain := b.httpChain(manager)
		chain.TransportSocket = b.downstreamTLS(&tlsv3.DownstreamTlsContext{
			CommonTlsContext:         mutualTLS(&tlsv3.CertificateValidationContext{}),
			RequireClientCertificate: wrapperspb.Bool(true),
		})
		l.FilterChains = []*listenerv3.FilterChain{chain}
		b.out.Listeners = append(b.out.Listeners, l)
	}
	for _, out := range s.Egress {
		routes := fmt.Sprintf("egress.%d", out.Port)
		l := listener(fmt.Sprintf("egress_%s_%d", out.Bind, out.Port), out.Bind, out.Port)
		l.FilterChains = []*listenerv3.FilterChain{b.httpChain(&hcmv3.HttpConnectionManager{
			StatPrefix:               routes,
			RouteSpecifier:           rds(routes),
			HttpFilters:              []*hcmv3.HttpFilter{b.router()},
			ForwardClientCertDetails: hcmv3.HttpConnectionManager_SANITIZE,
			StreamIdleTimeout:        durationpb.New(0),
			LocalReplyConfig:         problemReplies(),
		})}
		b.out.Listeners = append(b.out.Listeners, l)
		b.egressRoutes(routes, s.Namespace, out)
	}
}

// principals lets exactly these in; none lets nobody in.
func principals(allow []ir.Allow) *rbacconfigv3.RBAC {
	rules := &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_ALLOW, Policies: map[string]*rbacconfigv3.Policy{}}
	for _, a := range allow {
		policy, found := rules.Policies[string(a.Reason)]
		if !found {
			policy = &rbacconfigv3.Policy{Permissions: []*rbacconfigv3.Permission{anyPermission()}}
			rules.Policies[string(a.Reason)] = policy
		}
		policy.Principals = append(policy.Principals, &rbacconfigv3.Principal{
			Identifier: &rbacconfigv3.Principal_Authenticated_{Authenticated: &rbacconfigv3.Principal_Authenticated{
				PrincipalName: exact(a.Principal),
			}},
		})
	}
	return rules
}

func (b *builder) endpointAddress(endpoint string) *corev3.Address {
	if path, unix := strings.CutPrefix(endpoint, "unix://"); unix {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
	}
	host, portText, err := net.SplitHostPort(endpoint)
	b.note(err)
	port, err := strconv.ParseUint(portText, 10, 16)
	b.note(err)
	return socketAddress(host, uint32(port))
}
