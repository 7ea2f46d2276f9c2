package ads_test

import (
	"fmt"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
)

// A mesh with more destinations than a request once could name: all are served,
// in responses that a client of grpc's default limit takes too.
func TestTwelveThousandClustersAreServed(t *testing.T) {
	const n = 12_000
	f := start(t)
	r := ads.Resources{resource.ListenerType: {listener(t, "l", "r")}, resource.RouteType: {table("r", "c-00000")}}
	names := make([]string, n)
	for i := range n {
		names[i] = fmt.Sprintf("c-%05d", i)
		r[resource.ClusterType] = append(r[resource.ClusterType], cluster(names[i], "", true))
		r[resource.EndpointType] = append(r[resource.EndpointType], &endpointv3.ClusterLoadAssignment{
			ClusterName: names[i], NamedEndpoints: map[string]*endpointv3.Endpoint{"padding": {Hostname: strings.Repeat("x", 700)}},
		})
	}
	version, err := f.SetResources(node, r)
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	clusters := c.next(resource.ClusterType)
	require.Len(t, clusters.GetResources(), n)
	c.request(resource.EndpointType, names...)
	c.ack(clusters)
	received, responses := 0, 0
	for received < n {
		endpoints := c.next(resource.EndpointType)
		require.Less(t, proto.Size(endpoints), 4<<20)
		received, responses = received+len(endpoints.GetResources()), responses+1
		c.ack(endpoints, names...)
	}
	require.Equal(t, n, received, "each is sent once")
	require.Greater(t, responses, 1)
	listeners := c.next(resource.ListenerType)
	c.request(resource.RouteType, "r")
	c.ack(listeners)
	c.ack(c.next(resource.RouteType), "r")
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(version) })
}

// Names of what does not exist are remembered, a bounded number of them, and
// end no stream.
func TestNamesOfNothingEndNoStream(t *testing.T) {
	f := start(t)
	version, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	c := f.sidecar(t)
	var names []string
	for i := range 25_000 {
		names = append(names, fmt.Sprint("nothing-", i))
	}
	names = append(names, "r")
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	c.ack(c.next(resource.ClusterType))
	listeners := c.next(resource.ListenerType)
	c.request(resource.RouteType, names...)
	c.ack(listeners)
	routes := c.next(resource.RouteType)
	require.Len(t, routes.GetResources(), 1, "what exists is served, however long the list")
	c.ack(routes, names...)
	f.until(t, node, func(s ads.Status) bool { return s.Acknowledged(version) })

	more := set(t, "a")
	more[resource.RouteType] = append(more[resource.RouteType], table("nothing-0", "a"), table("nothing-24999", "a"))
	_, err = f.SetResources(node, more)
	require.NoError(t, err)
	require.Len(t, c.next(resource.RouteType).GetResources(), 1, "of the rest the first are remembered")
}

// What no message could carry never leaves, and what was served stays.
func TestASetThatNoMessageCouldCarryIsRefused(t *testing.T) {
	f := start(t, func(c *ads.Config) { c.MaxResponseBytes = 1 << 20 })
	former, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	large := strings.Repeat("x", 700<<10)
	tests := map[string]struct {
		change func(ads.Resources)
		want   string
	}{
		"clusters together": {func(r ads.Resources) {
			r[resource.ClusterType] = []types.Resource{cluster("one", large[:300<<10], false), cluster("two", large[:300<<10], false)}
		}, "the 2 resources of type Cluster take 61"},
		"one table": {func(r ads.Resources) {
			r[resource.RouteType] = []types.Resource{&routev3.RouteConfiguration{Name: "r", InternalOnlyHeaders: []string{large, large}}}
		}, `RouteConfiguration "r" takes 14`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := set(t, "b")
			test.change(r)
			_, err := f.SetResources(node, r)
			require.ErrorContains(t, err, test.want)
			require.Equal(t, former, f.Status(node).Version)
		})
	}
	// Tables that fit one by one come one by one.
	r := set(t, "a")
	for _, name := range []string{"r", "s"} {
		r[resource.RouteType] = append(r[resource.RouteType][:0:0], append(r[resource.RouteType], &routev3.RouteConfiguration{Name: name + "-large", InternalOnlyHeaders: []string{large}})...)
	}
	_, err = f.SetResources(node, r)
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	c.ack(c.next(resource.ClusterType))
	listeners := c.next(resource.ListenerType)
	names := []string{"r", "r-large", "s-large"}
	c.request(resource.RouteType, names...)
	c.ack(listeners)
	for range 2 {
		routes := c.next(resource.RouteType)
		require.Less(t, proto.Size(routes), 1<<20)
		c.ack(routes, names...)
	}
}

// Clusters that are kept until the routes to them are gone do not pile up
// without end while routes are refused.
func TestClustersThatGoDoNotPileUp(t *testing.T) {
	f := start(t, func(c *ads.Config) { c.MaxResponseBytes = 1 << 20 })
	step := func(i int) ads.Resources {
		name := fmt.Sprint("c-", i)
		r := set(t, name)
		r[resource.ClusterType] = []types.Resource{cluster(name, strings.Repeat("x", 400<<10), false)}
		return r
	}
	_, err := f.SetResources(node, step(0))
	require.NoError(t, err)
	c := f.sidecar(t)
	c.request(resource.ClusterType)
	c.request(resource.ListenerType)
	c.ack(c.next(resource.ClusterType))
	c.nack(c.next(resource.ListenerType), "no")
	for i := 1; i < 4; i++ {
		r := step(i)
		r[resource.ListenerType] = []types.Resource{listener(t, fmt.Sprint("l-", i), "r")}
		_, err := f.SetResources(node, r)
		require.NoError(t, err)
		clusters := c.next(resource.ClusterType)
		require.Less(t, proto.Size(clusters), 1<<20)
		newest := new(clusterv3.Cluster)
		require.NoError(t, clusters.GetResources()[len(clusters.GetResources())-1].UnmarshalTo(newest))
		require.Equal(t, fmt.Sprint("c-", i), newest.GetName())
		c.ack(clusters)
		c.nack(c.next(resource.ListenerType), "no")
	}
}
