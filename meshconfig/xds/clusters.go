package xds

import (
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// SDS names of the node's own certificate and of the roots it trusts, as istiod
// calls them.
const (
	secretOwn  = "default"
	secretRoot = "ROOTCA"
)

const (
	connectTimeout = 5 * time.Second
	// bufferBytes a connection may hold before it pushes back (Envoy's edge
	// practices).
	bufferBytes = 32 << 10
	// maxUpstream connections, requests and waiting requests of a cluster. Envoy's
	// default of 1024 would refuse work that the lambda's own limits allow.
	maxUpstream = 16384
	maxRetries  = 256
	// hostSelections is how often a retry looks for a host that was not tried.
	hostSelections = 5
)

func clusterName(d *ir.Destination) string { return clusterNameOf(d.Key()) }

// cluster adds the cluster of a destination (a key) once and returns its name.
func (b *builder) cluster(key string) string {
	d := b.destination(key)
	name := clusterName(d)
	if b.clusters[name] {
		return name
	}
	b.clusters[name] = true
	c, assignment := b.clusterOf(d)
	b.out.Clusters, b.out.Endpoints = append(b.out.Clusters, c), append(b.out.Endpoints, assignment)
	return name
}

// clusterOf a destination.
func (b *builder) clusterOf(d *ir.Destination) (*clusterv3.Cluster, *endpointv3.ClusterLoadAssignment) {
	name := clusterName(d)
	c := &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:              &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		LbPolicy:                      clusterv3.Cluster_LEAST_REQUEST,
		ConnectTimeout:                durationpb.New(connectTimeout),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferBytes),
		CircuitBreakers:               circuitBreakers(),
		OutlierDetection:              ejection(),
	}
	if len(d.Identities) > 0 {
		c.TransportSocket = b.upstreamTLS(d)
	}
	assignment := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	if len(d.Endpoints) > 0 {
		locality := &endpointv3.LocalityLbEndpoints{}
		for _, e := range d.Endpoints {
			locality.LbEndpoints = append(locality.LbEndpoints, lbEndpoint(socketAddress(e.Address, e.Port)))
		}
		assignment.Endpoints = []*endpointv3.LocalityLbEndpoints{locality}
	}
	return c, assignment
}

func circuitBreakers() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     wrapperspb.UInt32(maxUpstream),
		MaxPendingRequests: wrapperspb.UInt32(maxUpstream),
		MaxRequests:        wrapperspb.UInt32(maxUpstream),
		MaxRetries:         wrapperspb.UInt32(maxRetries),
	}}}
}

// ejection leaves endpoints alone that take no connections, as those of a node that
// is away do until the cluster knows; and never for what they answer, which is
// theirs. No more than half of them: what is wrong with all is not theirs.
func ejection() *clusterv3.OutlierDetection {
	none := wrapperspb.UInt32(0)
	return &clusterv3.OutlierDetection{
		SplitExternalLocalOriginErrors:  true,
		ConsecutiveLocalOriginFailure:   wrapperspb.UInt32(ir.EjectAfter),
		Interval:                        durationpb.New(ir.EjectInterval),
		BaseEjectionTime:                durationpb.New(ir.EjectFor),
		MaxEjectionTime:                 durationpb.New(ir.EjectForAtMost),
		MaxEjectionPercent:              wrapperspb.UInt32(ir.EjectPercent),
		EnforcingConsecutive_5Xx:        none,
		EnforcingSuccessRate:            none,
		EnforcingLocalOriginSuccessRate: none,
	}
}

// upstreamTLS proves our identity and takes no other answer than from one of
// the destination's identities.
func (b *builder) upstreamTLS(d *ir.Destination) *corev3.TransportSocket {
	validation := &tlsv3.CertificateValidationContext{}
	for _, id := range d.Identities {
		validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
			SanType: tlsv3.SubjectAltNameMatcher_URI,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: id}},
		})
	}
	return &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.any(&tlsv3.UpstreamTlsContext{
			CommonTlsContext: mutualTLS(validation),
			Sni:              d.Hostname(),
		})},
	}
}

// mutualTLS is the context of both ends of a connection inside the mesh.
func mutualTLS(validation *tlsv3.CertificateValidationContext) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: secretOwn, SdsConfig: ads()}},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext:         validation,
				ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: secretRoot, SdsConfig: ads()},
			},
		},
	}
}

// staticCluster goes to one address: "unix:///path" or "address:port".
func (b *builder) staticCluster(name, endpoint string) {
	b.out.Clusters = append(b.out.Clusters, &clusterv3.Cluster{
		Name:                          name,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LbPolicy:                      clusterv3.Cluster_ROUND_ROBIN,
		ConnectTimeout:                durationpb.New(connectTimeout),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferBytes),
		CircuitBreakers:               circuitBreakers(),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{lbEndpoint(b.endpointAddress(endpoint))},
			}},
		},
	})
}

func lbEndpoint(address *corev3.Address) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}}}
}

func socketAddress(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       address,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
