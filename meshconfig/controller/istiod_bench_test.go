package controller_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
)

// benchmarkIstiod is the time from creating an APIRule until istiod has pushed
// its host to a gateway, by way of the Istio objects that we write. The metric
// istiod-ns/op is istiod's own part of it: from when the VirtualService is seen
// in the API server.
func (w *world) benchmarkIstiod(b *testing.B, rules int) {
	hosts := w.watchRoutes(b)
	stop := w.controlPlane(istioOnly).stop
	defer stop()
	written := w.watchVirtualServices(b)
	hosts.await(b, func(now map[string]bool) bool { return len(now) >= rules-1 })
	var own time.Duration
	n := 0
	for ; b.Loop(); n++ {
		name := fmt.Sprintf("istio-%d", n)
		host := name + "." + domain
		rule := w.apiRule(name, name, toService("orders"))
		require.NoError(b, w.client.Create(b.Context(), rule))
		hosts.await(b, func(now map[string]bool) bool { return now[host] })
		pushed := time.Now()
		b.StopTimer()
		for object := range written {
			if object.host == host {
				own += pushed.Sub(object.at)
				break
			}
		}
		w.delete(rule)
		hosts.await(b, func(now map[string]bool) bool { return !now[host] })
		b.StartTimer()
	}
	b.ReportMetric(float64(own.Nanoseconds())/float64(n), "istiod-ns/op")
}

// routes are the hosts of each push, in order.
type routes <-chan map[string]bool

func (r routes) await(b *testing.B, enough func(map[string]bool) bool) {
	b.Helper()
	timeout := time.After(2 * patience)
	for {
		select {
		case now, ok := <-r:
			if !ok {
				b.Fatal("the stream from istiod ended")
			}
			if enough(now) {
				return
			}
		case <-timeout:
			b.Fatal("istiod pushed nothing that was waited for")
		}
	}
}

// watchRoutes follows istiod as a gateway does: clusters, listeners and the
// routes of port 80, all acknowledged.
func (w *world) watchRoutes(b *testing.B) routes {
	b.Helper()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(meshtest.Istiod(b, w.config, "")).StreamAggregatedResources(b.Context())
	require.NoError(b, err)
	node := meshtest.GatewayNode(b, "gateway")
	names := map[string][]string{resource.RouteType: {"http.80"}}
	for _, typeURL := range []string{resource.ClusterType, resource.ListenerType, resource.RouteType} {
		require.NoError(b, stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNames: names[typeURL]}))
	}
	pushes := make(chan map[string]bool, 10_000)
	go func() {
		defer close(pushes)
		for {
			response, err := stream.Recv()
			if err != nil {
				return
			}
			typeURL := response.GetTypeUrl()
			if typeURL == resource.RouteType {
				pushes <- hostsOf(response)
			}
			if stream.Send(&discoveryv3.DiscoveryRequest{
				TypeUrl: typeURL, ResourceNames: names[typeURL], VersionInfo: response.GetVersionInfo(), ResponseNonce: response.GetNonce(),
			}) != nil {
				return
			}
		}
	}()
	return pushes
}

func hostsOf(response *discoveryv3.DiscoveryResponse) map[string]bool {
	hosts := map[string]bool{}
	for _, packed := range response.GetResources() {
		var routes routev3.RouteConfiguration
		if packed.UnmarshalTo(&routes) != nil {
			continue
		}
		for _, virtual := range routes.GetVirtualHosts() {
			for _, host := range virtual.GetDomains() {
				if host != "*" { // istiod's answer while there are no hosts
					hosts[host] = true
				}
			}
		}
	}
	return hosts
}

// seenHost is when the VirtualService of a host was seen.
type seenHost struct {
	host string
	at   time.Time
}

func (w *world) watchVirtualServices(b *testing.B) <-chan seenHost {
	b.Helper()
	c, err := client.NewWithWatch(w.config, client.Options{Scheme: w.client.Scheme()})
	require.NoError(b, err)
	events, err := c.Watch(context.Background(), &networkingv1.VirtualServiceList{}, client.InNamespace(w.namespace))
	require.NoError(b, err)
	b.Cleanup(events.Stop)
	all := make(chan seenHost, 10_000)
	go func() {
		told := map[string]bool{}
		for event := range events.ResultChan() {
			object, ok := event.Object.(*networkingv1.VirtualService)
			if ok && len(object.Spec.Hosts) > 0 && !told[object.Spec.Hosts[0]] {
				told[object.Spec.Hosts[0]] = true
				all <- seenHost{object.Spec.Hosts[0], time.Now()}
			}
		}
	}()
	return all
}
