package compile

import (
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// Cluster is a compiled Cluster.
type Cluster struct {
	Name      string
	EDSName   string // "" when the endpoints are part of the cluster
	Endpoints []*Endpoint
	DNS       bool

	Sockets        []Socket // candidates by endpoint metadata, the last is the default
	ConnectTimeout time.Duration
	LB             clusterv3.Cluster_LbPolicy
	Choices        int
	Protocol       protocol
	IdleTimeout    time.Duration
	Source         net.IP // that TCP connections come from; nil: any

	MaxConnections, MaxPending, MaxRequests, MaxRetries int64

	Ejection Ejection
}

// Ejection leaves endpoints alone that take no connections. (Those that answer 5xx
// stay, whatever outlier_detection says.)
type Ejection struct {
	// After so many failures in a row; 0: never.
	After int
	// For this long, times the number of ejections, but not longer than AtMost.
	For, AtMost time.Duration
	// Percent of the endpoints that may be ejected before another one is.
	Percent int
}

type protocol int

// Protocols of a cluster; those without a constant of their own leave it to the
// request.
const (
	// ProtocolHTTP1 is HTTP/1.1.
	ProtocolHTTP1 protocol = iota
	// ProtocolHTTP2 is HTTP/2, also without TLS.
	ProtocolHTTP2
	// protocolDownstream is that of the request.
	protocolDownstream
)

// Socket is one way to connect to an endpoint: in plain text (tls is nil)
// or with TLS.
type Socket struct {
	Match   map[string]*structpb.Value
	Always  bool
	TLS     *tlsContext
	SNI     string
	autoSNI bool
}

// Endpoint is one address of a cluster.
type Endpoint struct {
	network, Addr string
	Hostname      string
	Weight        uint32
	Priority      uint32
	Healthy       bool
	SocketMeta    map[string]*structpb.Value
	Key           string // host of the URLs by which transports pool
}

const (
	defaultConnectTimeout = 5 * time.Second
	defaultUpstreamIdle   = time.Hour
)

func compileCluster(c *clusterv3.Cluster) (*Cluster, error) {
	at := fmt.Sprintf("Cluster %q", c.GetName())
	if err := strict.Allow(at, c, "name", "alt_stat_name", "type", "eds_cluster_config", "connect_timeout", "per_connection_buffer_limit_bytes",
		"lb_policy", "load_assignment", "circuit_breakers", "typed_extension_protocol_options", "dns_refresh_rate", "respect_dns_ttl",
		"dns_lookup_family", "outlier_detection", "common_lb_config", "transport_socket", "transport_socket_matches", "metadata",
		"upstream_connection_options", "filters", "wait_for_warm_on_init", "ignore_health_on_host_removal", "least_request_lb_config",
		"track_cluster_stats", "dns_jitter", "dns_failure_refresh_rate", "close_connections_on_host_health_failure", "http2_protocol_options", "upstream_bind_config"); err != nil {
		return nil, err
	}
	k := &Cluster{
		Name: c.GetName(), ConnectTimeout: strict.Duration(c.GetConnectTimeout(), defaultConnectTimeout), LB: c.GetLbPolicy(), Choices: 2,
		IdleTimeout: defaultUpstreamIdle,
	}
	switch c.GetType() {
	case clusterv3.Cluster_EDS:
		where := at + ".eds_cluster_config"
		if err := strict.Allow(where, c.GetEdsClusterConfig(), "eds_config", "service_name"); err != nil {
			return nil, err
		}
		if err := strict.OverADS(where+".eds_config", c.GetEdsClusterConfig().GetEdsConfig()); err != nil {
			return nil, err
		}
		if k.EDSName = c.GetEdsClusterConfig().GetServiceName(); k.EDSName == "" {
			k.EDSName = c.GetName()
		}
	case clusterv3.Cluster_STATIC, clusterv3.Cluster_STRICT_DNS, clusterv3.Cluster_LOGICAL_DNS:
		k.DNS = c.GetType() != clusterv3.Cluster_STATIC
		var err error
		if k.Endpoints, err = compileEndpoints(at+".load_assignment", c.GetLoadAssignment()); err != nil {
			return nil, err
		}
	case clusterv3.Cluster_ORIGINAL_DST:
		// Where a redirected connection was going. None is here, so that there is no
		// endpoint, as in Envoy, for any other.
		if k.LB == clusterv3.Cluster_CLUSTER_PROVIDED {
			k.LB = clusterv3.Cluster_ROUND_ROBIN
		}
	default:
		return nil, fmt.Errorf("%s: type %s is not supported", at, c.GetType())
	}
	switch k.LB {
	case clusterv3.Cluster_ROUND_ROBIN, clusterv3.Cluster_RANDOM:
	case clusterv3.Cluster_LEAST_REQUEST:
		if err := strict.Allow(at+".least_request_lb_config", c.GetLeastRequestLbConfig(), "choice_count"); err != nil {
			return nil, err
		}
		if n := c.GetLeastRequestLbConfig().GetChoiceCount(); n != nil {
			k.Choices = int(n.GetValue())
		}
	default:
		return nil, fmt.Errorf("%s: lb_policy %s is not supported", at, k.LB)
	}
	// A panic threshold of zero is what we do: an unhealthy endpoint is never
	// used. Locality weights would change the spread.
	if err := strict.Allow(at+".common_lb_config", c.GetCommonLbConfig(), "healthy_panic_threshold", "update_merge_window", "ignore_new_hosts_until_first_hc", "close_connections_on_host_set_change"); err != nil {
		return nil, err
	}
	for _, f := range c.GetFilters() {
		if !strict.Inert(f.GetTypedConfig()) {
			return nil, fmt.Errorf("%s.filters[%s]: %s is not supported", at, f.GetName(), f.GetTypedConfig().GetTypeUrl())
		}
	}
	if err := k.compileSource(at+".upstream_bind_config", c.GetUpstreamBindConfig()); err != nil {
		return nil, err
	}
	if err := k.compileSockets(at, c); err != nil {
		return nil, err
	}
	if err := k.compileProtocol(at, c); err != nil {
		return nil, err
	}
	k.Ejection = compileEjection(c.GetOutlierDetection())
	return k, k.compileLimits(at, c.GetCircuitBreakers())
}

// compileEjection with Envoy's defaults. Without split_external_local_origin_errors
// a connection that fails would count as an answer.
func compileEjection(o *clusterv3.OutlierDetection) Ejection {
	enforced := o.GetEnforcingConsecutiveLocalOriginFailure() == nil || o.GetEnforcingConsecutiveLocalOriginFailure().GetValue() > 0
	if !o.GetSplitExternalLocalOriginErrors() || !enforced {
		return Ejection{}
	}
	e := Ejection{After: 5, For: strict.Duration(o.GetBaseEjectionTime(), 30*time.Second), Percent: 10}
	e.AtMost = max(e.For, strict.Duration(o.GetMaxEjectionTime(), 300*time.Second))
	if n := o.GetConsecutiveLocalOriginFailure(); n != nil {
		e.After = int(n.GetValue())
	}
	if n := o.GetMaxEjectionPercent(); n != nil {
		e.Percent = int(n.GetValue())
	}
	return e
}

// compileSource reads the address that connections come from.
func (k *Cluster) compileSource(at string, b *corev3.BindConfig) error {
	if b == nil {
		return nil
	}
	if err := strict.Allow(at, b, "source_address"); err != nil {
		return err
	}
	if err := strict.Allow(at+".source_address", b.GetSourceAddress(), "address", "port_value"); err != nil {
		return err
	}
	k.Source = net.ParseIP(b.GetSourceAddress().GetAddress())
	if k.Source == nil || b.GetSourceAddress().GetPortValue() != 0 {
		return fmt.Errorf("%s: only an IP address with port 0 is supported", at)
	}
	return nil
}

func (k *Cluster) compileSockets(at string, c *clusterv3.Cluster) error {
	for _, m := range c.GetTransportSocketMatches() {
		where := fmt.Sprintf("%s.transport_socket_matches[%s]", at, m.GetName())
		socket, err := compileUpstreamSocket(where, m.GetTransportSocket())
		if err != nil {
			return err
		}
		socket.Match = m.GetMatch().GetFields()
		k.Sockets = append(k.Sockets, socket)
	}
	socket, err := compileUpstreamSocket(at+".transport_socket", c.GetTransportSocket())
	socket.Always = true
	k.Sockets = append(k.Sockets, socket)
	return err
}

func compileUpstreamSocket(at string, s *corev3.TransportSocket) (Socket, error) {
	if s == nil || s.GetTypedConfig().GetTypeUrl() == strict.RawBuffer {
		return Socket{}, nil
	}
	var c tlsv3.UpstreamTlsContext
	if err := strict.Unmarshal(at, s.GetTypedConfig(), &c); err != nil {
		return Socket{}, err
	}
	if err := strict.Allow(at, &c, "common_tls_context", "sni", "max_session_keys", "auto_host_sni"); err != nil {
		return Socket{}, err
	}
	t, err := compileTLSContext(at+".common_tls_context", c.GetCommonTlsContext())
	if err != nil {
		return Socket{}, err
	}
	if t.Validation == nil && t.ValidationSecret == "" {
		// Envoy would trust anyone here.
		return Socket{}, fmt.Errorf("%s.common_tls_context: a validation context is required", at)
	}
	return Socket{TLS: t, SNI: c.GetSni(), autoSNI: c.GetAutoHostSni()}, nil
}

const httpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func (k *Cluster) compileProtocol(at string, c *clusterv3.Cluster) error {
	if c.GetHttp2ProtocolOptions() != nil { // the deprecated way to say so
		k.Protocol = ProtocolHTTP2
	}
	for name, config := range c.GetTypedExtensionProtocolOptions() {
		where := fmt.Sprintf("%s.typed_extension_protocol_options[%s]", at, name)
		var o upstreamsv3.HttpProtocolOptions
		if err := strict.Unmarshal(where, config, &o); err != nil {
			return err
		}
		if name != httpProtocolOptions {
			return fmt.Errorf("%s: is not supported", where)
		}
		if err := strict.Allow(where, &o, "common_http_protocol_options", "explicit_http_config", "use_downstream_protocol_config"); err != nil {
			return err
		}
		if err := strict.Allow(where+".common_http_protocol_options", o.GetCommonHttpProtocolOptions(), "idle_timeout", "max_requests_per_connection", "max_connection_duration"); err != nil {
			return err
		}
		k.IdleTimeout = strict.Duration(o.GetCommonHttpProtocolOptions().GetIdleTimeout(), k.IdleTimeout)
		switch p := o.GetUpstreamProtocolOptions().(type) {
		case *upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_:
			switch p.ExplicitHttpConfig.GetProtocolConfig().(type) {
			case *upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions:
				k.Protocol = ProtocolHTTP1
			case *upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions:
				k.Protocol = ProtocolHTTP2
			default:
				return fmt.Errorf("%s.explicit_http_config: only http_protocol_options and http2_protocol_options are supported", where)
			}
		case *upstreamsv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
			k.Protocol = protocolDownstream
		}
	}
	return nil
}

// defaultLimit is Envoy's for connections, pending requests and requests of a
// cluster without circuit breakers; for retries it is defaultMaxRetries.
const (
	defaultLimit      = 1024
	defaultMaxRetries = 3
)

func (k *Cluster) compileLimits(at string, c *clusterv3.CircuitBreakers) error {
	k.MaxConnections, k.MaxPending, k.MaxRequests, k.MaxRetries = defaultLimit, defaultLimit, defaultLimit, defaultMaxRetries
	if err := strict.Allow(at+".circuit_breakers", c, "thresholds"); err != nil {
		return err
	}
	for _, t := range c.GetThresholds() {
		if err := strict.Allow(at+".circuit_breakers.thresholds", t, "priority", "max_connections", "max_pending_requests", "max_requests", "max_retries", "track_remaining"); err != nil {
			return err
		}
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue // routes with another priority are refused
		}
		if v := t.GetMaxConnections(); v != nil {
			k.MaxConnections = int64(v.GetValue())
		}
		if v := t.GetMaxPendingRequests(); v != nil {
			k.MaxPending = int64(v.GetValue())
		}
		if v := t.GetMaxRequests(); v != nil {
			k.MaxRequests = int64(v.GetValue())
		}
		if v := t.GetMaxRetries(); v != nil {
			k.MaxRetries = int64(v.GetValue())
		}
	}
	return nil
}

func compileEndpoints(at string, a *endpointv3.ClusterLoadAssignment) ([]*Endpoint, error) {
	if err := strict.Allow(at, a, "cluster_name", "endpoints", "policy"); err != nil {
		return nil, err
	}
	if err := strict.Allow(at+".policy", a.GetPolicy(), "overprovisioning_factor"); err != nil {
		return nil, err
	}
	var out []*Endpoint
	for _, locality := range a.GetEndpoints() {
		// Weights of localities count only with locality_weighted_lb_config,
		// which is refused.
		if err := strict.Allow(at+".endpoints", locality, "locality", "lb_endpoints", "load_balancing_weight", "priority", "proximity", "metadata"); err != nil {
			return nil, err
		}
		for _, e := range locality.GetLbEndpoints() {
			if err := strict.Allow(at+".lb_endpoints", e, "endpoint", "health_status", "metadata", "load_balancing_weight"); err != nil {
				return nil, err
			}
			if err := strict.Allow(at+".lb_endpoints.endpoint", e.GetEndpoint(), "address", "hostname", "health_check_config"); err != nil {
				return nil, err
			}
			network, addr, err := strict.Address(at+".lb_endpoints.endpoint.address", e.GetEndpoint().GetAddress())
			if err != nil {
				return nil, err
			}
			weight := uint32(1)
			if w := e.GetLoadBalancingWeight(); w != nil {
				weight = w.GetValue()
			}
			status := e.GetHealthStatus()
			out = append(out, &Endpoint{
				network: network, Addr: addr, Hostname: e.GetEndpoint().GetHostname(), Weight: weight, Priority: locality.GetPriority(),
				Healthy:    status == corev3.HealthStatus_UNKNOWN || status == corev3.HealthStatus_HEALTHY || status == corev3.HealthStatus_DEGRADED,
				SocketMeta: e.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"].GetFields(),
				Key:        poolKey(network, addr),
			})
		}
	}
	return out, nil
}

// Transports pool connections by the host of the URL, which cannot hold the path
// of a socket; it is encoded.
const pipeSuffix = ".pipe"

func poolKey(network, addr string) string {
	if network == "unix" {
		return hex.EncodeToString([]byte(addr)) + pipeSuffix
	}
	return addr
}

// DialAddress returns what to dial for the host of a URL of a transport.
func DialAddress(addr string) (network, target string) {
	host, _, err := net.SplitHostPort(addr)
	if err == nil {
		if encoded, ok := strings.CutSuffix(host, pipeSuffix); ok {
			if path, err := hex.DecodeString(encoded); err == nil {
				return "unix", string(path)
			}
		}
	}
	return "tcp", addr
}
