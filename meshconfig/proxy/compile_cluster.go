package proxy

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// clusterConfig is a compiled Cluster.
type clusterConfig struct {
	name      string
	edsName   string // "" when the endpoints are part of the cluster
	endpoints []*endpoint
	dns       bool

	sockets        []socketConfig // candidates by endpoint metadata, the last is the default
	connectTimeout time.Duration
	lb             clusterv3.Cluster_LbPolicy
	choices        int
	protocol       protocol
	idleTimeout    time.Duration

	maxConnections, maxPending, maxRequests, maxRetries int64
}

type protocol int

const (
	protocolHTTP1 protocol = iota
	protocolHTTP2
	protocolDownstream
)

// socketConfig is one way to connect to an endpoint: in plain text (tls is nil)
// or with TLS.
type socketConfig struct {
	match   map[string]*structpb.Value
	always  bool
	tls     *tlsContext
	sni     string
	autoSNI bool
}

// endpoint is one address of a cluster.
type endpoint struct {
	network, addr string
	hostname      string
	weight        uint32
	priority      uint32
	healthy       bool
	socketMeta    map[string]*structpb.Value
	key           string // host of the URLs by which transports pool
}

const (
	defaultConnectTimeout = 5 * time.Second
	defaultUpstreamIdle   = time.Hour
)

func compileCluster(c *clusterv3.Cluster) (*clusterConfig, error) {
	at := fmt.Sprintf("Cluster %q", c.GetName())
	if err := allow(at, c, "name", "alt_stat_name", "type", "eds_cluster_config", "connect_timeout", "per_connection_buffer_limit_bytes",
		"lb_policy", "load_assignment", "circuit_breakers", "typed_extension_protocol_options", "dns_refresh_rate", "respect_dns_ttl",
		"dns_lookup_family", "outlier_detection", "common_lb_config", "transport_socket", "transport_socket_matches", "metadata",
		"upstream_connection_options", "filters", "wait_for_warm_on_init", "ignore_health_on_host_removal", "least_request_lb_config",
		"track_cluster_stats", "dns_jitter", "dns_failure_refresh_rate", "close_connections_on_host_health_failure", "http2_protocol_options"); err != nil {
		return nil, err
	}
	k := &clusterConfig{
		name: c.GetName(), connectTimeout: duration(c.GetConnectTimeout(), defaultConnectTimeout), lb: c.GetLbPolicy(), choices: 2,
		idleTimeout: defaultUpstreamIdle,
	}
	switch c.GetType() {
	case clusterv3.Cluster_EDS:
		where := at + ".eds_cluster_config"
		if err := allow(where, c.GetEdsClusterConfig(), "eds_config", "service_name"); err != nil {
			return nil, err
		}
		if err := overADS(where+".eds_config", c.GetEdsClusterConfig().GetEdsConfig()); err != nil {
			return nil, err
		}
		if k.edsName = c.GetEdsClusterConfig().GetServiceName(); k.edsName == "" {
			k.edsName = c.GetName()
		}
	case clusterv3.Cluster_STATIC, clusterv3.Cluster_STRICT_DNS, clusterv3.Cluster_LOGICAL_DNS:
		k.dns = c.GetType() != clusterv3.Cluster_STATIC
		var err error
		if k.endpoints, err = compileEndpoints(at+".load_assignment", c.GetLoadAssignment()); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%s: type %s is not supported", at, c.GetType())
	}
	switch k.lb {
	case clusterv3.Cluster_ROUND_ROBIN, clusterv3.Cluster_RANDOM:
	case clusterv3.Cluster_LEAST_REQUEST:
		if err := allow(at+".least_request_lb_config", c.GetLeastRequestLbConfig(), "choice_count"); err != nil {
			return nil, err
		}
		if n := c.GetLeastRequestLbConfig().GetChoiceCount(); n != nil {
			k.choices = int(n.GetValue())
		}
	default:
		return nil, fmt.Errorf("%s: lb_policy %s is not supported", at, k.lb)
	}
	// A panic threshold of zero is what we do: an unhealthy endpoint is never
	// used. Locality weights would change the spread.
	if err := allow(at+".common_lb_config", c.GetCommonLbConfig(), "healthy_panic_threshold", "update_merge_window", "ignore_new_hosts_until_first_hc", "close_connections_on_host_set_change"); err != nil {
		return nil, err
	}
	for _, f := range c.GetFilters() {
		if !inert(f.GetTypedConfig()) {
			return nil, fmt.Errorf("%s.filters[%s]: %s is not supported", at, f.GetName(), f.GetTypedConfig().GetTypeUrl())
		}
	}
	if err := k.compileSockets(at, c); err != nil {
		return nil, err
	}
	if err := k.compileProtocol(at, c); err != nil {
		return nil, err
	}
	return k, k.compileLimits(at, c.GetCircuitBreakers())
}

func (k *clusterConfig) compileSockets(at string, c *clusterv3.Cluster) error {
	for _, m := range c.GetTransportSocketMatches() {
		where := fmt.Sprintf("%s.transport_socket_matches[%s]", at, m.GetName())
		socket, err := compileUpstreamSocket(where, m.GetTransportSocket())
		if err != nil {
			return err
		}
		socket.match = m.GetMatch().GetFields()
		k.sockets = append(k.sockets, socket)
	}
	socket, err := compileUpstreamSocket(at+".transport_socket", c.GetTransportSocket())
	socket.always = true
	k.sockets = append(k.sockets, socket)
	return err
}

func compileUpstreamSocket(at string, s *corev3.TransportSocket) (socketConfig, error) {
	if s == nil || s.GetTypedConfig().GetTypeUrl() == rawBuffer {
		return socketConfig{}, nil
	}
	var c tlsv3.UpstreamTlsContext
	if err := unmarshal(at, s.GetTypedConfig(), &c); err != nil {
		return socketConfig{}, err
	}
	if err := allow(at, &c, "common_tls_context", "sni", "max_session_keys", "auto_host_sni"); err != nil {
		return socketConfig{}, err
	}
	t, err := compileTLSContext(at+".common_tls_context", c.GetCommonTlsContext())
	if err != nil {
		return socketConfig{}, err
	}
	if t.validation == nil && t.validationSecret == "" {
		// Envoy would trust anyone here.
		return socketConfig{}, fmt.Errorf("%s.common_tls_context: a validation context is required", at)
	}
	return socketConfig{tls: t, sni: c.GetSni(), autoSNI: c.GetAutoHostSni()}, nil
}

const httpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

func (k *clusterConfig) compileProtocol(at string, c *clusterv3.Cluster) error {
	if c.GetHttp2ProtocolOptions() != nil { // the deprecated way to say so
		k.protocol = protocolHTTP2
	}
	for name, config := range c.GetTypedExtensionProtocolOptions() {
		where := fmt.Sprintf("%s.typed_extension_protocol_options[%s]", at, name)
		var o upstreamsv3.HttpProtocolOptions
		if err := unmarshal(where, config, &o); err != nil {
			return err
		}
		if name != httpProtocolOptions {
			return fmt.Errorf("%s: is not supported", where)
		}
		if err := allow(where, &o, "common_http_protocol_options", "explicit_http_config", "use_downstream_protocol_config"); err != nil {
			return err
		}
		if err := allow(where+".common_http_protocol_options", o.GetCommonHttpProtocolOptions(), "idle_timeout", "max_requests_per_connection", "max_connection_duration"); err != nil {
			return err
		}
		k.idleTimeout = duration(o.GetCommonHttpProtocolOptions().GetIdleTimeout(), k.idleTimeout)
		switch p := o.GetUpstreamProtocolOptions().(type) {
		case *upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_:
			switch p.ExplicitHttpConfig.GetProtocolConfig().(type) {
			case *upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions:
				k.protocol = protocolHTTP1
			case *upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions:
				k.protocol = protocolHTTP2
			default:
				return fmt.Errorf("%s.explicit_http_config: only http_protocol_options and http2_protocol_options are supported", where)
			}
		case *upstreamsv3.HttpProtocolOptions_UseDownstreamProtocolConfig:
			k.protocol = protocolDownstream
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

func (k *clusterConfig) compileLimits(at string, c *clusterv3.CircuitBreakers) error {
	k.maxConnections, k.maxPending, k.maxRequests, k.maxRetries = defaultLimit, defaultLimit, defaultLimit, defaultMaxRetries
	if err := allow(at+".circuit_breakers", c, "thresholds"); err != nil {
		return err
	}
	for _, t := range c.GetThresholds() {
		if err := allow(at+".circuit_breakers.thresholds", t, "priority", "max_connections", "max_pending_requests", "max_requests", "max_retries", "track_remaining"); err != nil {
			return err
		}
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue // routes with another priority are refused
		}
		if v := t.GetMaxConnections(); v != nil {
			k.maxConnections = int64(v.GetValue())
		}
		if v := t.GetMaxPendingRequests(); v != nil {
			k.maxPending = int64(v.GetValue())
		}
		if v := t.GetMaxRequests(); v != nil {
			k.maxRequests = int64(v.GetValue())
		}
		if v := t.GetMaxRetries(); v != nil {
			k.maxRetries = int64(v.GetValue())
		}
	}
	return nil
}

func compileEndpoints(at string, a *endpointv3.ClusterLoadAssignment) ([]*endpoint, error) {
	if err := allow(at, a, "cluster_name", "endpoints", "policy"); err != nil {
		return nil, err
	}
	if err := allow(at+".policy", a.GetPolicy(), "overprovisioning_factor"); err != nil {
		return nil, err
	}
	var out []*endpoint
	for _, locality := range a.GetEndpoints() {
		// Weights of localities count only with locality_weighted_lb_config,
		// which is refused.
		if err := allow(at+".endpoints", locality, "locality", "lb_endpoints", "load_balancing_weight", "priority", "proximity", "metadata"); err != nil {
			return nil, err
		}
		for _, e := range locality.GetLbEndpoints() {
			if err := allow(at+".lb_endpoints", e, "endpoint", "health_status", "metadata", "load_balancing_weight"); err != nil {
				return nil, err
			}
			if err := allow(at+".lb_endpoints.endpoint", e.GetEndpoint(), "address", "hostname", "health_check_config"); err != nil {
				return nil, err
			}
			network, addr, err := address(at+".lb_endpoints.endpoint.address", e.GetEndpoint().GetAddress())
			if err != nil {
				return nil, err
			}
			weight := uint32(1)
			if w := e.GetLoadBalancingWeight(); w != nil {
				weight = w.GetValue()
			}
			status := e.GetHealthStatus()
			out = append(out, &endpoint{
				network: network, addr: addr, hostname: e.GetEndpoint().GetHostname(), weight: weight, priority: locality.GetPriority(),
				healthy:    status == corev3.HealthStatus_UNKNOWN || status == corev3.HealthStatus_HEALTHY || status == corev3.HealthStatus_DEGRADED,
				socketMeta: e.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"].GetFields(),
				key:        poolKey(network, addr),
			})
		}
	}
	return out, nil
}
