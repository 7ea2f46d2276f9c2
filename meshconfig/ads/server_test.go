package ads_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
)

const (
	node    = "orders-1.shop"
	account = "shop/orders"
	gateway = "gateway~edge~main~1"
)

type tokens struct{}

func (tokens) Authenticate(_ context.Context, token string) (ads.Identity, error) {
	switch token {
	case "shop/orders":
		return ads.Identity{Namespace: "shop", ServiceAccount: "orders"}, nil
	case "edge/gateway":
		return ads.Identity{Namespace: "edge", ServiceAccount: "gateway"}, nil
	case "down":
		return ads.Identity{}, errors.New("the API server is away")
	}
	return ads.Identity{}, ads.ErrUnauthenticated
}

type fixture struct {
	*ads.Server
	ca       *ca.CA
	changed  chan string
	registry *prometheus.Registry
}

func start(t *testing.T, change ...func(*ads.Config)) *fixture {
	t.Helper()
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &fixture{ca: authority, changed: make(chan string, 1000), registry: prometheus.NewRegistry()}
	config := ads.Config{
		Listener: listener, CA: authority, Authenticator: tokens{}, Log: slog.New(slog.DiscardHandler), Registry: f.registry,
		OnChange: func(target string) { f.changed <- target },
		NodeIdentity: func(_ context.Context, id string) (ads.Identity, bool) {
			known := map[string]ads.Identity{
				node: {Namespace: "shop", ServiceAccount: "orders"}, gateway: {Namespace: "edge", ServiceAccount: "gateway"},
				"gateway~edge~main~2": {Namespace: "edge", ServiceAccount: "gateway"},
			}
			identity, ok := known[id]
			return identity, ok
		},
	}
	for _, f := range change {
		f(&config)
	}
	f.Server, err = ads.New(config)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(time.Minute):
			t.Error("the server did not stop")
		}
	})
	<-f.Ready()
	return f
}

// Whoever stops a server at once may be faster than its listening.
func TestAServerThatIsStoppedBeforeItServesEndsWithoutAnError(t *testing.T) {
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	stopped, stop := context.WithCancel(t.Context())
	stop()
	for range 200 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		server, err := ads.New(ads.Config{
			Listener: listener, CA: authority, Authenticator: tokens{}, Log: slog.New(slog.DiscardHandler),
			NodeIdentity: func(context.Context, string) (ads.Identity, bool) { return ads.Identity{}, false },
		})
		require.NoError(t, err)
		require.NoError(t, server.Run(stopped))
	}
}

// client speaks the protocol by hand.
type client struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node   string
	got    chan *discoveryv3.DiscoveryResponse
	ended  chan error
	close  func()
}

func (f *fixture) connect(t *testing.T, nodeID string, headers ...string) *client {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+f.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: f.ca.Pool(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), headers...))
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	require.NoError(t, err)
	c := &client{t: t, stream: stream, node: nodeID, got: make(chan *discoveryv3.DiscoveryResponse, 100), ended: make(chan error, 1)}
	c.close = func() { cancel(); conn.Close() }
	t.Cleanup(c.close)
	go func() {
		for {
			resp, err := stream.Recv()
			if err != nil {
				c.ended <- err
				return
			}
			c.got <- resp
		}
	}()
	return c
}

func (f *fixture) sidecar(t *testing.T) *client {
	return f.connect(t, node, "authorization", "Bearer "+account)
}

func (c *client) request(typeURL string, names ...string) {
	c.t.Helper()
	_ = c.stream.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: c.node}, TypeUrl: typeURL, ResourceNames: names})
}

func (c *client) ack(resp *discoveryv3.DiscoveryResponse, names ...string) {
	c.t.Helper()
	require.NoError(c.t, c.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResourceNames: names, VersionInfo: resp.GetVersionInfo(), ResponseNonce: resp.GetNonce()}))
}

func (c *client) nack(resp *discoveryv3.DiscoveryResponse, message string, names ...string) {
	c.t.Helper()
	require.NoError(c.t, c.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResourceNames: names, ResponseNonce: resp.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: message}}))
}

func (c *client) next(typeURL string) *discoveryv3.DiscoveryResponse {
	c.t.Helper()
	select {
	case resp := <-c.got:
		require.Equal(c.t, typeURL, resp.GetTypeUrl())
		return resp
	case err := <-c.ended:
		c.t.Fatalf("the stream ended: %v", err)
	case <-time.After(time.Minute):
		c.t.Fatalf("no %s came", typeURL)
	}
	return nil
}

// silent tells that nothing comes, given a moment.
func (c *client) silent() {
	c.t.Helper()
	select {
	case resp := <-c.got:
		c.t.Fatalf("unexpected %s", resp)
	case err := <-c.ended:
		c.t.Fatalf("the stream ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
}

func (c *client) refused(code codes.Code) {
	c.t.Helper()
	select {
	case resp := <-c.got:
		c.t.Fatalf("served %s", resp.GetTypeUrl())
	case err := <-c.ended:
		require.Equal(c.t, code, status.Code(err), err)
	case <-time.After(time.Minute):
		c.t.Fatal("neither served nor refused")
	}
}

// until waits for a status.
func (f *fixture) until(t *testing.T, target string, check func(ads.Status) bool) ads.Status {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		s := f.Status(target)
		if check(s) {
			return s
		}
		select {
		case <-f.changed:
		case <-deadline:
			t.Fatalf("status stays %+v", s)
		}
	}
}

func cluster(name, more string, eds bool) *clusterv3.Cluster {
	c := &clusterv3.Cluster{Name: name, AltStatName: more, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}}
	if eds {
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		c.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}
	}
	return c
}

func listener(t *testing.T, name string, route string) *listenerv3.Listener {
	t.Helper()
	config, err := anypb.New(&hcmv3.HttpConnectionManager{RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
		RouteConfigName: route, ConfigSource: &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}},
	}}})
	require.NoError(t, err)
	return &listenerv3.Listener{Name: name, FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
		Name: "envoy.filters.network.http_connection_manager", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config},
	}}}}}
}

func table(name, cluster string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{{
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}}},
	}}}}}
}

func set(t *testing.T, name string) ads.Resources {
	return ads.Resources{
		resource.ClusterType: {cluster(name, "", false)}, resource.ListenerType: {listener(t, "l", "r")}, resource.RouteType: {table("r", name)},
	}
}

func names(t *testing.T, resp *discoveryv3.DiscoveryResponse) []string {
	t.Helper()
	var out []string
	for _, r := range resp.GetResources() {
		m, err := r.UnmarshalNew()
		require.NoError(t, err)
		out = append(out, cache.GetResourceName(m.(types.Resource)))
	}
	return out
}

func TestStreamsWithoutTheRightIdentityGetNothing(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	for name, test := range map[string]struct {
		node    string
		headers []string
		code    codes.Code
	}{
		"no token":           {node, nil, codes.Unauthenticated},
		"two tokens":         {node, []string{"authorization", "Bearer " + account, "authorization", "Bearer " + account}, codes.Unauthenticated},
		"another scheme":     {node, []string{"authorization", "Basic " + account}, codes.Unauthenticated},
		"bad token":          {node, []string{"authorization", "Bearer forged"}, codes.Unauthenticated},
		"somebody else":      {node, []string{"authorization", "Bearer edge/gateway"}, codes.PermissionDenied},
		"as the gateway":     {gateway, []string{"authorization", "Bearer " + account}, codes.PermissionDenied},
		"unknown node":       {"orders-2.shop", []string{"authorization", "Bearer " + account}, codes.PermissionDenied},
		"no node id":         {"", []string{"authorization", "Bearer " + account}, codes.InvalidArgument},
		"node id of no kind": {"gateway~edge~main", []string{"authorization", "Bearer edge/gateway"}, codes.InvalidArgument},
		"API server is away": {node, []string{"authorization", "Bearer down"}, codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			c := f.connect(t, test.node, test.headers...)
			c.request(resource.ClusterType)
			c.request(resource.SecretType, "default")
			c.refused(test.code)
		})
	}
	require.Empty(t, f.Status(node).Nodes)
}

func TestANodeCannotBecomeAnother(t *testing.T) {
	f := start(t)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.silent()
	c.node = gateway
	c.request(resource.ListenerType)
	c.refused(codes.InvalidArgument)
}

func TestNothingIsServedBeforeThereIsSomething(t *testing.T) {
	f := start(t)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	c.request(resource.SecretType, "default")
	c.silent()
	_, err := f.SetResources("other.shop", set(t, "b"))
	require.NoError(t, err)
	c.silent()
	_, err = f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	c.next(resource.SecretType)
	require.Equal(t, []string{"a"}, names(t, c.next(resource.ClusterType)))
}

// follow acknowledges everything up to routes.
func (c *client) follow() {
	c.t.Helper()
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	c.ack(c.next(resource.ClusterType))
	l := c.next(resource.ListenerType)
	c.request(resource.RouteType, "r")
	c.ack(l)
	c.ack(c.next(resource.RouteType), "r")
}

func TestTheSameResourcesHaveTheSameVersionAndAreNotSentAgain(t *testing.T) {
	f := start(t)
	first, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.follow()
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(first) })
	again, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	require.Equal(t, first, again)
	c.silent()
}

func TestAcknowledgedMeansEverythingIncludingRoutes(t *testing.T) {
	f := start(t)
	version, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	require.False(t, f.Status(node).Acknowledged(version), "no node is connected")
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	c.ack(c.next(resource.ClusterType))
	c.ack(c.next(resource.ListenerType))
	c.silent()
	require.False(t, f.Status(node).Acknowledged(version), "the listener's routes are not there")
	c.request(resource.RouteType, "r")
	c.ack(c.next(resource.RouteType), "r")
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(version) })
	c.close()
	f.until(t, node, func(s ads.Status) bool { return len(s.Nodes) == 0 })
}

func TestARefusalIsReportedAndNotRepeated(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.follow()

	bad, err := f.SetResources(node, ads.Resources{resource.ClusterType: {cluster("a", "", false)}, resource.ListenerType: {listener(t, "l", "r")}, resource.RouteType: {table("r", "x")}})
	require.NoError(t, err)
	c.nack(c.next(resource.RouteType), "no such cluster", "r")
	s := f.until(t, node, func(s ads.Status) bool { return len(s.Nodes) == 1 && len(s.Nodes[0].Nacks) == 1 })
	require.Equal(t, "no such cluster", s.Nodes[0].Nacks[0].Message)
	require.Equal(t, resource.RouteType, s.Nodes[0].Nacks[0].Type)
	require.False(t, s.Acknowledged(bad))
	c.silent()

	good, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	s = f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(good) })
	require.Empty(t, s.Nodes[0].Nacks)
}

func TestOneRefusedRouteTableDoesNotHoldTheOthersBack(t *testing.T) {
	f := start(t)
	resources := func(cluster string) ads.Resources {
		return ads.Resources{resource.RouteType: {table("bad", cluster), table("good", cluster)}}
	}
	_, err := f.SetResources(node, resources("a"))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.RouteType, "bad", "good")
	c.ack(c.next(resource.RouteType), "bad", "good")
	_, err = f.SetResources(node, resources("b"))
	require.NoError(t, err)
	c.nack(c.next(resource.RouteType), "whole", "bad", "good")
	one := c.next(resource.RouteType)
	require.Equal(t, []string{"bad"}, names(t, one))
	c.nack(one, "this one", "bad", "good")
	one = c.next(resource.RouteType)
	require.Equal(t, []string{"good"}, names(t, one))
	c.ack(one, "bad", "good")
	c.silent()
	require.Equal(t, "this one", f.Status(node).Nodes[0].Nacks[0].Message)
}

func TestMakeBeforeBreak(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, set(t, "old"))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.follow()

	version, err := f.SetResources(node, set(t, "new"))
	require.NoError(t, err)
	clusters := c.next(resource.ClusterType)
	require.Equal(t, []string{"new", "old"}, names(t, clusters), "what routes still use stays")
	c.silent()
	c.ack(clusters)
	routes := c.next(resource.RouteType)
	c.silent()
	c.ack(routes, "r")
	clusters = c.next(resource.ClusterType)
	require.Equal(t, []string{"new"}, names(t, clusters))
	require.False(t, f.Status(node).Acknowledged(version))
	c.ack(clusters)
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(version) })
}

func TestRoutesWaitForTheEndpointsOfTheirClusters(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, ads.Resources{
		resource.ClusterType: {cluster("e", "", true)}, resource.EndpointType: {&endpointv3.ClusterLoadAssignment{ClusterName: "e"}},
		resource.ListenerType: {listener(t, "l", "r")}, resource.RouteType: {table("r", "e")},
	})
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	clusters := c.next(resource.ClusterType)
	c.ack(clusters)
	c.silent()
	c.request(resource.EndpointType, "e")
	endpoints := c.next(resource.EndpointType)
	c.silent()
	c.ack(endpoints, "e")
	c.next(resource.ListenerType)
}

func TestAChangedClusterGetsItsEndpointsAgain(t *testing.T) {
	f := start(t)
	resources := func(stat string) ads.Resources {
		return ads.Resources{resource.ClusterType: {cluster("e", stat, true)}, resource.EndpointType: {&endpointv3.ClusterLoadAssignment{ClusterName: "e"}}}
	}
	_, err := f.SetResources(node, resources(""))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.ack(c.next(resource.ClusterType))
	c.request(resource.EndpointType, "e")
	c.ack(c.next(resource.EndpointType), "e")
	_, err = f.SetResources(node, resources("changed"))
	require.NoError(t, err)
	c.ack(c.next(resource.ClusterType))
	c.ack(c.next(resource.EndpointType), "e")
	c.silent()
}

func TestASlowClientGetsOnlyTheNewest(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, set(t, "v0"))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	first := c.next(resource.ClusterType)
	for i := range 50 {
		_, err := f.SetResources(node, set(t, fmt.Sprintf("v%d", i+1)))
		require.NoError(t, err)
	}
	c.silent()
	c.ack(first)
	require.Contains(t, names(t, c.next(resource.ClusterType)), "v50")
	c.silent()
}

func TestSecretsAreTheNodesOwn(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.SecretType, "ROOTCA", "default", "kubernetes://tls")
	resp := c.next(resource.SecretType)
	require.Equal(t, []string{"ROOTCA", "default"}, names(t, resp))
	var secret tlsv3.Secret
	require.NoError(t, resp.GetResources()[1].UnmarshalTo(&secret))
	block, _ := pem.Decode(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	pair, err := tls.X509KeyPair(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes(), secret.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	require.NoError(t, err)
	require.Equal(t, block.Bytes, pair.Leaf.Raw)
	require.Equal(t, "spiffe://cluster.local/ns/shop/sa/orders", pair.Leaf.URIs[0].String())
}

func TestGatewaysShareTheirResourcesAndSecrets(t *testing.T) {
	f := start(t)
	kube := &tlsv3.Secret{Name: "kubernetes://tls", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{}}}
	_, err := f.SetResources(node, ads.Resources{resource.SecretType: {kube}})
	require.ErrorContains(t, err, "for gateways only")
	target := ads.GatewayTarget("edge", "main")
	version, err := f.SetResources(target, ads.Resources{resource.SecretType: {kube}})
	require.NoError(t, err)
	one := f.connect(t, gateway, "authorization", "Bearer edge/gateway")
	two := f.connect(t, "gateway~edge~main~2", "authorization", "Bearer edge/gateway")
	for _, c := range []*client{one, two} {
		c.request(resource.SecretType, "kubernetes://tls")
		c.ack(c.next(resource.SecretType), "kubernetes://tls")
		c.request(resource.ClusterType)
		c.request(resource.ListenerType)
		c.ack(c.next(resource.ClusterType))
	}
	one.ack(one.next(resource.ListenerType))
	f.until(t, target, func(s ads.Status) bool { return len(s.Nodes) == 2 && s.Nodes[0].Version == version })
	require.False(t, f.Status(target).Acknowledged(version), "one of two has not answered")
	two.ack(two.next(resource.ListenerType))
	f.until(t, target, func(s ads.Status) bool { return s.Acknowledged(version) })
}

func TestARemovedNodeIsSentAway(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.follow()
	f.Remove(node)
	c.refused(codes.PermissionDenied)
	require.Empty(t, f.Status(node).Version)
}

func TestInvalidSetsAreRefusedAndTheFormerStays(t *testing.T) {
	f := start(t)
	version, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	for name, test := range map[string]struct {
		resources ads.Resources
		message   string
	}{
		"invalid":        {ads.Resources{resource.RouteType: {&routev3.RouteConfiguration{Name: "r", VirtualHosts: []*routev3.VirtualHost{{Name: "v"}}}}}, `RouteConfiguration "r" is invalid`},
		"without a name": {ads.Resources{resource.RouteType: {&routev3.RouteConfiguration{}}}, "has no name"},
		"twice":          {ads.Resources{resource.RouteType: {table("r", "a"), table("r", "b")}}, `RouteConfiguration "r" is given twice`},
		"wrong type":     {ads.Resources{resource.RouteType: {cluster("c", "", false)}}, "stands under RouteConfiguration"},
		"unknown type":   {ads.Resources{resource.RuntimeType: {}}, "are not served"},
		"our secret":     {ads.Resources{resource.SecretType: {&tlsv3.Secret{Name: "default"}}}, "made by the server"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.SetResources(node, test.resources)
			require.ErrorContains(t, err, test.message)
			require.ErrorContains(t, err, node)
			require.Equal(t, version, f.Status(node).Version)
		})
	}
}

func TestMetrics(t *testing.T) {
	f := start(t)
	_, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	f.sidecar(t).follow()
	families, err := f.registry.Gather()
	require.NoError(t, err)
	count := map[string]int{}
	for _, family := range families {
		count[family.GetName()] = len(family.GetMetric())
	}
	require.Equal(t, 1, count["lambdamesh_ads_streams"])
	require.Equal(t, 3, count["lambdamesh_ads_responses_total"], "one series a type")
}

func TestConfigNamesWhatIsMissing(t *testing.T) {
	_, err := ads.New(ads.Config{})
	for _, name := range []string{"Listener", "CA", "Authenticator", "NodeIdentity"} {
		require.ErrorContains(t, err, name+" is required")
	}
}
