package meshtest_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// What an Envoy would be sent, where our objects rely on what istiod makes of
// them: no Envoy runs here, and the embedded proxy is not one.
func TestIstiodSendsWhatOurObjectsMean(t *testing.T) {
	m := newIstioMesh(t)
	cases := meshtest.Cases(t)
	c := cases[slices.IndexFunc(cases, func(c meshtest.Case) bool { return c.Name == "methods-headers" })]
	addresses := m.serve(t, c.Mesh(t), c.Snapshot(t).Gateways, echo)
	requests := c.Requests(t)
	testkit.Eventually(t, patience, func() error {
		got, err := exchange(t.Context(), addresses["lambdamesh-system/gateway 80"], requests[0], "")
		if err == nil && got.status != http.StatusOK {
			err = fmt.Errorf("answered %d", got.status)
		}
		return err
	}, "istiod has pushed the rules")

	gateway := meshtest.GatewayNode(t, "lambdamesh-system-gateway")
	manager := m.manager(t, gateway, corev3.TrafficDirection_OUTBOUND)
	require.True(t, manager.GetNormalizePath().GetValue())
	require.True(t, manager.GetMergeSlashes())
	require.Equal(t, hcmv3.HttpConnectionManager_SANITIZE_SET, manager.GetForwardClientCertDetails(), "a client's x-forwarded-client-cert goes")
	entry := map[string]string{v1alpha1.LabelLambda: "reader", v1alpha1.LabelReplica: "reader-0"}
	sidecar := meshtest.SidecarNode(t, "shop", "reader-0", entry)
	manager = m.manager(t, sidecar, corev3.TrafficDirection_INBOUND)
	require.Equal(t, hcmv3.HttpConnectionManager_APPEND_FORWARD, manager.GetForwardClientCertDetails(), "the last element is the sidecar's own")
	require.True(t, manager.GetSetCurrentClientCertDetails().GetUri())

	var host *routev3.VirtualHost
	for _, packed := range meshtest.Fetch(t, m.istiod, gateway, resource.RouteType, "http.80") {
		var routes routev3.RouteConfiguration
		require.NoError(t, packed.UnmarshalTo(&routes))
		require.False(t, routes.GetIgnorePathParametersInPathMatching())
		for _, vh := range routes.GetVirtualHosts() {
			if slices.Contains(vh.GetDomains(), "orders.lambdas.localhost") {
				host = vh
			}
		}
	}
	require.NotNil(t, host)
	path, method := host.GetRoutes()[0], host.GetRoutes()[1]
	for _, first := range []*routev3.Route{path, method} {
		require.Equal(t, uint32(http.StatusBadRequest), first.GetDirectResponse().GetStatus())
		require.Len(t, first.GetMatch().GetHeaders(), 1)
		require.Equal(t, "/", first.GetMatch().GetPrefix())
	}
	target := path.GetMatch().GetHeaders()[0]
	require.Equal(t, ":path", target.GetName())
	require.True(t, target.GetInvertMatch())
	require.Equal(t, ir.UnambiguousTarget(), target.GetStringMatch().GetSafeRegex().GetRegex())
	word := method.GetMatch().GetHeaders()[0]
	require.Equal(t, ":method", word.GetName())
	require.False(t, word.GetInvertMatch())
	require.Equal(t, ir.LowerCaseMethod(), word.GetStringMatch().GetSafeRegex().GetRegex())

	both := slices.IndexFunc(host.GetRoutes(), func(r *routev3.Route) bool { return strings.Contains(r.GetMatch().String(), "/both") })
	require.GreaterOrEqual(t, both, 0)
	var names []string
	for _, h := range host.GetRoutes()[both].GetMatch().GetHeaders() {
		names = append(names, h.GetName())
	}
	require.Len(t, names, 4, "every condition on the header is there: %v", names)
	for _, name := range names { // which Envoy takes for one, in lower case
		require.Equal(t, "x-key", strings.ToLower(name))
	}
}

// manager of HTTP connections in the listener of a node for a direction.
func (m *istioMesh) manager(t *testing.T, node *corev3.Node, direction corev3.TrafficDirection) *hcmv3.HttpConnectionManager {
	t.Helper()
	for _, packed := range meshtest.Fetch(t, m.istiod, node, resource.ListenerType) {
		var l listenerv3.Listener
		require.NoError(t, packed.UnmarshalTo(&l))
		if l.GetTrafficDirection() != direction {
			continue
		}
		for _, chain := range l.GetFilterChains() {
			for _, f := range chain.GetFilters() {
				var manager hcmv3.HttpConnectionManager
				if f.GetTypedConfig().MessageIs(&manager) {
					require.NoError(t, f.GetTypedConfig().UnmarshalTo(&manager))
					return &manager
				}
			}
		}
	}
	t.Fatalf("istiod sends %s no listener that is %s", node.GetId(), direction)
	return nil
}
