package meshtest

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// GatewayNode is a gateway's proxy to istiod: one that Gateways with the selector
// istio: <name> choose.
func GatewayNode(t testing.TB, name string) *corev3.Node {
	t.Helper()
	// An address of documentation: with that of a WorkloadEntry istiod would take
	// the gateway for the entry's workload, and its ports for the Service's.
	return istioNode(t, "router~192.0.2.1~gw", v1alpha1.SystemNamespace, map[string]any{
		"LABELS": map[string]any{"istio": name},
	})
}

// SidecarNode is the proxy beside a WorkloadEntry to istiod.
func SidecarNode(t testing.TB, namespace, entry string, labels map[string]string) *corev3.Node {
	t.Helper()
	told := map[string]any{}
	for k, v := range labels {
		told[k] = v
	}
	return istioNode(t, "sidecar~127.0.0.1~"+entry, namespace, map[string]any{"LABELS": told, "INTERCEPTION_MODE": "NONE"})
}

func istioNode(t testing.TB, id, namespace string, metadata map[string]any) *corev3.Node {
	t.Helper()
	metadata["NAMESPACE"] = namespace
	packed, err := structpb.NewStruct(metadata)
	require.NoError(t, err)
	return &corev3.Node{Id: id + "." + namespace + "~" + namespace + ".svc.cluster.local", Metadata: packed}
}

// Relay passes the streams of an embedded proxy, which wants TLS and sends a
// token, on to istiod's plain ADS, as those of a node of Istio's. It is what
// Istio's agent is to an Envoy besides: istiod names the certificate of the
// workload and the mesh's root by a cluster of the bootstrap (sds-grpc), and the
// relay serves them over the same stream.
type Relay struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	istiod   discoveryv3.AggregatedDiscoveryServiceClient
	node     *corev3.Node
	ca       *ca.CA
	identity string

	mu    sync.Mutex
	nacks []string
}

// NewRelay serves a relay for a node until the test ends, and returns where. The
// node proves identity, a SPIFFE ID.
func NewRelay(t testing.TB, istiod grpc.ClientConnInterface, node *corev3.Node, authority *ca.CA, identity string) (r *Relay, address string) {
	t.Helper()
	r = &Relay{istiod: discoveryv3.NewAggregatedDiscoveryServiceClient(istiod), node: node, ca: authority, identity: identity}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	leaf, err := authority.IssueServer("127.0.0.1")
	require.NoError(t, err)
	certificate, err := tls.X509KeyPair(leaf.ChainPEM, leaf.KeyPEM)
	require.NoError(t, err)
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return r, listener.Addr().String()
}

// Fetch is what istiod sends a node at once, as it is; all of a type, or by name.
func Fetch(t testing.TB, istiod grpc.ClientConnInterface, node *corev3.Node, typeURL string, names ...string) []*anypb.Any {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(istiod).StreamAggregatedResources(ctx)
	require.NoError(t, err)
	require.NoError(t, stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNames: names}))
	response, err := stream.Recv()
	require.NoError(t, err)
	return response.GetResources()
}

// StreamAggregatedResources relays a stream until one of its ends goes.
func (r *Relay) StreamAggregatedResources(down discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	up, err := r.istiod.StreamAggregatedResources(down.Context())
	if err != nil {
		return err
	}
	var sending sync.Mutex
	send := func(response *discoveryv3.DiscoveryResponse) error {
		sending.Lock()
		defer sending.Unlock()
		return down.Send(response)
	}
	ended := make(chan error, 2)
	go func() {
		for {
			response, err := up.Recv()
			if err == nil {
				if err = adapt(response); err == nil {
					err = send(response)
				}
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		for {
			request, err := down.Recv()
			if err == nil {
				r.note(request)
				if request.GetTypeUrl() == resource.SecretType {
					err = r.secrets(request, send)
				} else {
					err = up.Send(request)
				}
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	err = <-ended
	if down.Context().Err() == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.nacks = append(r.nacks, "the stream: "+err.Error())
	}
	return err
}

func (r *Relay) note(request *discoveryv3.DiscoveryRequest) {
	if request.GetNode() != nil {
		request.Node = r.node
	}
	if problem := request.GetErrorDetail(); problem != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.nacks = append(r.nacks, request.GetTypeUrl()+": "+problem.GetMessage())
	}
}

// Refused is what the proxy has not taken, with its reasons.
func (r *Relay) Refused() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.nacks)
}

// secrets answers a subscription; what acknowledges an answer gets none.
func (r *Relay) secrets(request *discoveryv3.DiscoveryRequest, send func(*discoveryv3.DiscoveryResponse) error) error {
	names := slices.Sorted(slices.Values(request.GetResourceNames()))
	version := "of"
	for _, name := range names {
		version += " " + name
	}
	if request.GetVersionInfo() == version {
		return nil
	}
	leaf, err := r.ca.Issue(r.identity)
	if err != nil {
		return err
	}
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	response := &discoveryv3.DiscoveryResponse{TypeUrl: resource.SecretType, VersionInfo: version, Nonce: version}
	for _, secret := range []*tlsv3.Secret{
		{Name: ads.SecretWorkload, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(leaf.ChainPEM), PrivateKey: inline(leaf.KeyPEM),
		}}},
		{Name: ads.SecretRoot, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline(r.ca.Root()),
		}}},
	} {
		packed, err := anypb.New(secret)
		if err != nil {
			return err
		}
		if slices.Contains(names, secret.GetName()) {
			response.Resources = append(response.Resources, packed)
		}
	}
	return send(response)
}

// adapt what istiod sends to the embedded proxy: secrets come over the stream
// instead of the bootstrap's cluster, and what it refuses and decides about no
// request is left out: clusters that pass captured connections through (our
// Sidecars capture none), the address that connections to the application come
// from, and a filter chain's port, which is its listener's only one.
func adapt(response *discoveryv3.DiscoveryResponse) error {
	var adapted []*anypb.Any
	for _, packed := range response.GetResources() {
		var message proto.Message
		switch response.GetTypeUrl() {
		case resource.ClusterType:
			var cluster clusterv3.Cluster
			if err := packed.UnmarshalTo(&cluster); err != nil {
				return err
			}
			if cluster.GetType() == clusterv3.Cluster_ORIGINAL_DST {
				continue
			}
			cluster.UpstreamBindConfig = nil
			sockets := []*corev3.TransportSocket{cluster.GetTransportSocket()}
			for _, m := range cluster.GetTransportSocketMatches() {
				sockets = append(sockets, m.GetTransportSocket())
			}
			for _, s := range sockets {
				if err := socketOverADS(s); err != nil {
					return err
				}
			}
			message = &cluster
		case resource.ListenerType:
			var listener listenerv3.Listener
			if err := packed.UnmarshalTo(&listener); err != nil {
				return err
			}
			for _, chain := range append(listener.GetFilterChains(), listener.GetDefaultFilterChain()) {
				if err := socketOverADS(chain.GetTransportSocket()); err != nil {
					return err
				}
				if match := chain.GetFilterChainMatch(); match.GetDestinationPort().GetValue() == listener.GetAddress().GetSocketAddress().GetPortValue() && match != nil {
					match.DestinationPort = nil
				}
			}
			message = &listener
		default:
			return nil
		}
		again, err := anypb.New(message)
		if err != nil {
			return err
		}
		adapted = append(adapted, again)
	}
	response.Resources = adapted
	return nil
}

func socketOverADS(socket *corev3.TransportSocket) error {
	var upstream tlsv3.UpstreamTlsContext
	var downstream tlsv3.DownstreamTlsContext
	var message proto.Message = &upstream
	var common *tlsv3.CommonTlsContext
	switch config := socket.GetTypedConfig(); {
	case config.MessageIs(&upstream):
		if err := config.UnmarshalTo(&upstream); err != nil {
			return err
		}
		common = upstream.GetCommonTlsContext()
	case config.MessageIs(&downstream):
		if err := config.UnmarshalTo(&downstream); err != nil {
			return err
		}
		message, common = &downstream, downstream.GetCommonTlsContext()
	default:
		return nil // plain text
	}
	for _, config := range append(slices.Clone(common.GetTlsCertificateSdsSecretConfigs()),
		common.GetValidationContextSdsSecretConfig(), common.GetCombinedValidationContext().GetValidationContextSdsSecretConfig()) {
		if config.GetSdsConfig() != nil {
			config.SdsConfig = &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}, ResourceApiVersion: corev3.ApiVersion_V3,
			}
		}
	}
	packed, err := anypb.New(message)
	if err != nil {
		return err
	}
	socket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: packed}
	return nil
}
