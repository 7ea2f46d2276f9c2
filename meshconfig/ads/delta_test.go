package ads_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
)

// deltaClient speaks delta xDS by hand.
type deltaClient struct {
	t      *testing.T
	node   string
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	got    chan *discoveryv3.DeltaDiscoveryResponse
	close  func()
}

func (f *fixture) delta(t *testing.T, nodeID, token string) *deltaClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+f.Addr(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: f.ca.Pool(), ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+token))
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	require.NoError(t, err)
	c := &deltaClient{t: t, node: nodeID, stream: stream, got: make(chan *discoveryv3.DeltaDiscoveryResponse, 100)}
	c.close = func() { cancel(); conn.Close() }
	t.Cleanup(c.close)
	go func() {
		defer close(c.got)
		for {
			resp, err := stream.Recv()
			if err != nil {
				return
			}
			c.got <- resp
		}
	}()
	return c
}

func (c *deltaClient) send(req *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	req.Node = &corev3.Node{Id: c.node}
	require.NoError(c.t, c.stream.Send(req))
}

func (c *deltaClient) subscribe(typeURL string, names ...string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

func (c *deltaClient) next(typeURL string) *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	select {
	case resp, ok := <-c.got:
		require.True(c.t, ok, "the stream ended")
		require.Equal(c.t, typeURL, resp.GetTypeUrl())
		return resp
	case <-time.After(time.Minute):
		c.t.Fatalf("no %s came", typeURL)
	}
	return nil
}

func (c *deltaClient) answer(resp *discoveryv3.DeltaDiscoveryResponse, refusal string) {
	c.t.Helper()
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if refusal != "" {
		req.ErrorDetail = &rpcstatus.Status{Message: refusal}
	}
	c.send(req)
}

// take acknowledges the next response and returns the names in it.
func (c *deltaClient) take(typeURL string) []string {
	c.t.Helper()
	resp := c.next(typeURL)
	c.answer(resp, "")
	return named(resp)
}

func named(resp *discoveryv3.DeltaDiscoveryResponse) []string {
	var all []string
	for _, r := range resp.GetResources() {
		all = append(all, r.GetName())
	}
	return all
}

// begin subscribes like a proxy and takes what there is.
func (c *deltaClient) begin() {
	c.t.Helper()
	c.subscribe(resource.ListenerType)
	c.subscribe(resource.ClusterType)
	c.take(resource.ClusterType)
	c.take(resource.ListenerType)
	c.subscribe(resource.RouteType, "r")
	c.take(resource.RouteType)
	c.subscribe(resource.VirtualHostType, "r")
	c.take(resource.VirtualHostType)
}

// hosts are a table r of so many hosts; changed of them say something else.
func hosts(n int, changed ...int) *routev3.RouteConfiguration {
	out := &routev3.RouteConfiguration{Name: "r"}
	for i := range n {
		path := "/"
		if slices.Contains(changed, i) {
			path = "/changed"
		}
		out.VirtualHosts = append(out.VirtualHosts, &routev3.VirtualHost{
			Name: fmt.Sprintf("shop/h%03d", i), Domains: []string{fmt.Sprintf("h%03d", i)},
			Routes: []*routev3.Route{{
				Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: path}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "a"}}},
			}},
		})
	}
	return out
}

func hostKey(i int) ads.Key {
	return ads.Key{Type: resource.VirtualHostType, Name: ads.HostName("r", fmt.Sprintf("shop/h%03d", i))}
}

func (f *fixture) setHosts(t *testing.T, table *routev3.RouteConfiguration) string {
	t.Helper()
	all := set(t, "a")
	all[resource.RouteType][0] = table
	version, err := f.SetResources(node, all)
	require.NoError(t, err)
	return version
}

func TestOnlyTheHostThatChangedIsSent(t *testing.T) {
	f := start(t)
	before := f.setHosts(t, hosts(500))
	c := f.delta(t, node, account)
	c.begin()
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(before) })
	require.Empty(t, f.Lacking(node, []ads.Key{hostKey(7), hostKey(8)}))

	after := f.setHosts(t, hosts(500, 7))
	require.NotEqual(t, before, after)
	resp := c.next(resource.VirtualHostType)
	require.Equal(t, []string{"r/shop|h007"}, named(resp))
	require.Less(t, proto.Size(resp), 1<<10, "and nothing of the other 499")
	require.Len(t, f.Lacking(node, []ads.Key{hostKey(7)}), 1, "not before it is acknowledged")
	require.Empty(t, f.Lacking(node, []ads.Key{hostKey(8)}), "which is no matter of others")
	c.answer(resp, "")
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(after) })
	require.Empty(t, f.Lacking(node, []ads.Key{hostKey(7)}))

	// And one that goes.
	f.setHosts(t, hosts(499, 7))
	resp = c.next(resource.VirtualHostType)
	require.Empty(t, resp.GetResources())
	require.Equal(t, []string{"r/shop|h499"}, resp.GetRemovedResources())
}

func TestWhoComesBackIsSentOnlyWhatDiffers(t *testing.T) {
	f := start(t)
	f.setHosts(t, hosts(50))
	c := f.delta(t, node, account)
	c.subscribe(resource.ListenerType)
	c.subscribe(resource.ClusterType)
	versions := map[string]map[string]string{}
	keep := func(resp *discoveryv3.DeltaDiscoveryResponse) {
		of := map[string]string{}
		for _, r := range resp.GetResources() {
			of[r.GetName()] = r.GetVersion()
		}
		versions[resp.GetTypeUrl()] = of
		c.answer(resp, "")
	}
	keep(c.next(resource.ClusterType))
	keep(c.next(resource.ListenerType))
	c.subscribe(resource.RouteType, "r")
	keep(c.next(resource.RouteType))
	c.subscribe(resource.VirtualHostType, "r")
	keep(c.next(resource.VirtualHostType))
	c.close()

	version := f.setHosts(t, hosts(49, 3))
	c = f.delta(t, node, account)
	for typeURL, names := range map[string][]string{
		resource.ListenerType: nil, resource.ClusterType: nil, resource.RouteType: {"r"}, resource.VirtualHostType: {"r"},
	} {
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names, InitialResourceVersions: versions[typeURL]})
	}
	resp := c.next(resource.VirtualHostType)
	require.Equal(t, []string{"r/shop|h003"}, named(resp))
	require.Equal(t, []string{"r/shop|h049"}, resp.GetRemovedResources())
	c.answer(resp, "")
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(version) })
}

func TestARefusalIsHalvedUntilTheCulpritIsFound(t *testing.T) {
	f := start(t)
	f.setHosts(t, hosts(64))
	c := f.delta(t, node, account)
	c.begin()
	changed := make([]int, 40)
	for i := range changed {
		changed[i] = i
	}
	f.setHosts(t, hosts(64, changed...))
	bad, taken, responses := hostKey(23).Name, map[string]bool{}, 0
	for len(taken) < len(changed)-1 {
		resp := c.next(resource.VirtualHostType)
		responses++
		if slices.Contains(named(resp), bad) {
			c.answer(resp, "h023 is bad")
			continue
		}
		for _, name := range named(resp) {
			taken[name] = true
		}
		c.answer(resp, "")
	}
	require.Less(t, responses, 2*len(changed))
	s := f.until(t, node, func(s ads.Status) bool {
		return len(s.Nodes) == 1 && len(s.Nodes[0].Nacks) == 1 && s.Nodes[0].Nacks[0].Name == bad
	})
	require.Equal(t, "h023 is bad", s.Nodes[0].Nacks[0].Message)
	require.Empty(t, f.Lacking(node, []ads.Key{hostKey(22), hostKey(24)}), "everything else goes on")
	lacking := f.Lacking(node, []ads.Key{hostKey(23)})
	require.Len(t, lacking, 1)
	require.Equal(t, "h023 is bad", lacking[0].Nacks[0].Message)

	// It is not sent again until it is another, and then the refusal is over.
	version := f.setHosts(t, hosts(64, slices.DeleteFunc(slices.Clone(changed), func(i int) bool { return i == 23 })...))
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(version) && len(s.Nodes[0].Nacks) == 0 })
}

func TestHostsWaitForTheEndpointsOfNewClusters(t *testing.T) {
	f := start(t)
	f.setHosts(t, hosts(2))
	c := f.delta(t, node, account)
	c.begin()
	all := set(t, "a")
	all[resource.RouteType][0] = hosts(2, 1)
	all[resource.ClusterType] = append(all[resource.ClusterType], cluster("new", "", true))
	all[resource.EndpointType] = append(all[resource.EndpointType], &endpointv3.ClusterLoadAssignment{ClusterName: "new"})
	version, err := f.SetResources(node, all)
	require.NoError(t, err)
	resp := c.next(resource.ClusterType)
	require.Equal(t, []string{"new"}, named(resp))
	c.subscribe(resource.EndpointType, "new")
	c.answer(resp, "")
	require.Equal(t, []string{"new"}, c.take(resource.EndpointType))
	require.Equal(t, []string{hostKey(1).Name}, c.take(resource.VirtualHostType))
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(version) })

	// And a cluster that goes is kept until the hosts are without it.
	f.setHosts(t, hosts(2))
	resp = c.next(resource.VirtualHostType)
	c.answer(resp, "")
	require.Equal(t, []string{"new"}, c.next(resource.ClusterType).GetRemovedResources())
}

// What a client may have a stream remember is what one request may hold.
func TestNamesDoNotPileUp(t *testing.T) {
	f := start(t)
	f.setHosts(t, hosts(1))
	c := f.delta(t, node, account)
	c.begin()
	for i := range 2 {
		c.subscribe(resource.EndpointType, fmt.Sprint(i)+strings.Repeat("x", 5<<20))
	}
	select {
	case _, open := <-c.got:
		require.False(t, open, "the stream ends")
	case <-time.After(time.Minute):
		t.Fatal("the stream goes on")
	}
}

func TestATableWithoutHostsIsSaidToHaveNone(t *testing.T) {
	f := start(t)
	f.setHosts(t, &routev3.RouteConfiguration{Name: "r"})
	c := f.delta(t, node, account)
	c.begin()
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(s.Version) })
}

func TestThousandsOfChangesAreFollowedOrLookedUp(t *testing.T) {
	f := start(t)
	f.setHosts(t, hosts(1))
	c := f.delta(t, node, account)
	c.begin()
	var version string
	for i := range 10_000 { // more than the server remembers, for two changes each
		host := hosts(1, i%2).GetVirtualHosts()[0]
		it, err := ads.PrepareHost("r", host)
		require.NoError(t, err)
		host.Name = "shop/other"
		other, err := ads.PrepareHost("r", host)
		require.NoError(t, err)
		version, err = f.Update(node, map[ads.Key]*ads.Item{it.Key(): it, other.Key(): other})
		require.NoError(t, err)
	}
	for deadline := time.After(time.Minute); !f.Status(node).Acknowledged(version); {
		select {
		case resp := <-c.got:
			c.answer(resp, "")
		case <-f.changed:
		case <-deadline:
			t.Fatalf("status stays %+v", f.Status(node))
		}
	}
}
