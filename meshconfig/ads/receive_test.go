package ads_test

import (
	"fmt"
	"runtime"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
)

// Any workload has a token; before it is known whose node it is, its request is not
// even decoded when it is large.
func TestALargeFirstRequestTakesLittleMemory(t *testing.T) {
	f := start(t)
	names := make([]string, 2_500_000)
	for i := range names {
		names[i] = "a"
	}
	request := &discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "orders-2.other"}, TypeUrl: resource.ClusterType, ResourceNames: names}
	c := f.sidecar(t)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_ = c.stream.Send(request)
	c.refused(codes.ResourceExhausted)
	runtime.ReadMemStats(&after)
	require.Less(t, (after.TotalAlloc-before.TotalAlloc)>>20, uint64(64), "MiB were allocated, the client's 8 among them")
}

func TestRequestsAreBounded(t *testing.T) {
	f := start(t)
	extensions := make([]*corev3.Extension, 100_000)
	for i := range extensions {
		extensions[i] = &corev3.Extension{Name: "a"}
	}
	names := make([]string, 100_001)
	for name, request := range map[string]*discoveryv3.DiscoveryRequest{
		"names": {TypeUrl: resource.EndpointType, ResourceNames: names},
		"node":  {TypeUrl: resource.EndpointType, Node: &corev3.Node{Id: node, Extensions: extensions}},
	} {
		t.Run(name, func(t *testing.T) {
			c := f.sidecar(t)
			c.request(resource.ClusterType)
			require.NoError(t, c.stream.Send(request))
			c.refused(codes.ResourceExhausted)
		})
	}
	// What Envoy says of itself fits by far.
	c := f.sidecar(t)
	_ = c.stream.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: node, Extensions: extensions[:1000]}, TypeUrl: resource.ClusterType})
	_, err := f.SetResources(node, set(t, "a"))
	require.NoError(t, err)
	c.next(resource.ClusterType)
}

// Those who have a token and send nothing hold up their own namespace.
func TestFirstRequestsThatDoNotComeKeepNobodyOut(t *testing.T) {
	f := start(t)
	for range 20 {
		f.connect(t, gateway, "authorization", "Bearer edge/gateway")
	}
	f.sidecar(t).letIn(f)
}

func TestANodeHasFewStreams(t *testing.T) {
	f := start(t)
	var clients []*client
	for i := range 9 {
		c := f.sidecar(t)
		c.letIn(f)
		clients = append(clients, c)
		require.Empty(t, c.ended, fmt.Sprint("the newest stays: ", i))
	}
	clients[0].refused(codes.ResourceExhausted)
}
