package xds_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// nodes are the resources of every node of the mesh, by node id.
func nodes(t *testing.T, mesh *ir.Mesh) map[string]xds.Resources {
	t.Helper()
	all := map[string]xds.Resources{}
	for _, g := range mesh.Gateways {
		resources, err := xds.GatewayResources(mesh, g.Namespace, g.Name)
		require.NoError(t, err)
		all["gateway~"+g.Namespace+"~"+g.Name] = resources
	}
	for _, s := range mesh.Sidecars {
		resources, err := xds.SidecarResources(mesh, s.Node)
		require.NoError(t, err)
		all[s.Node] = resources
	}
	return all
}

func TestGoldenXDS(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			out := map[string]any{}
			for node, resources := range nodes(t, c.Mesh(t)) {
				require.NoError(t, resources.Validate())
				byType := map[string][]any{}
				for typeURL, list := range resources.ByType() {
					for _, r := range list {
						value := plain(t, r)
						if c.Name != "open-lambda" { // the same everywhere; once is enough to read
							drop(value, "localReplyConfig")
						}
						byType[typeURL] = append(byType[typeURL], value)
					}
				}
				out[node] = byType
			}
			text, err := yaml.Marshal(out)
			require.NoError(t, err)
			testkit.Golden(t, c.Path("xds.yaml"), text)
		})
	}
}

// plain is the message as JSON values, Any unpacked.
func plain(t *testing.T, m proto.Message) any {
	t.Helper()
	text, err := protojson.Marshal(m)
	require.NoError(t, err)
	var value any
	require.NoError(t, json.Unmarshal(text, &value))
	return value
}

// drop removes a key wherever it is.
func drop(value any, key string) {
	switch v := value.(type) {
	case map[string]any:
		delete(v, key)
		for _, inner := range v {
			drop(inner, key)
		}
	case []any:
		for _, inner := range v {
			drop(inner, key)
		}
	}
}

func TestResourcesNameOnlyWhatIsThere(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			for node, resources := range nodes(t, c.Mesh(t)) {
				requireConsistent(t, node, resources)
			}
		})
	}
}

func requireConsistent(t *testing.T, node string, r xds.Resources) {
	t.Helper()
	clusters, endpoints := map[string]bool{}, map[string]bool{}
	for _, c := range r.Clusters {
		require.False(t, clusters[c.GetName()], "%s: cluster %s twice", node, c.GetName())
		clusters[c.GetName()] = true
	}
	for _, e := range r.Endpoints {
		endpoints[e.GetClusterName()] = true
		require.True(t, clusters[e.GetClusterName()], "%s: endpoints of no cluster %s", node, e.GetClusterName())
	}
	for _, c := range r.Clusters {
		if c.GetEdsClusterConfig() != nil {
			require.True(t, endpoints[c.GetName()], "%s: cluster %s has no endpoints", node, c.GetName())
		}
	}
	for _, config := range r.Routes {
		domains := map[string]bool{}
		for _, vh := range config.GetVirtualHosts() {
			for _, d := range vh.GetDomains() {
				require.False(t, domains[d], "%s: %s has domain %s twice", node, config.GetName(), d)
				domains[d] = true
			}
			for _, route := range vh.GetRoutes() {
				if name := route.GetRoute().GetCluster(); name != "" {
					require.True(t, clusters[name], "%s: route %s to no cluster %s", node, route.GetName(), name)
				}
				for _, w := range route.GetRoute().GetWeightedClusters().GetClusters() {
					require.True(t, clusters[w.GetName()], "%s: route %s to no cluster %s", node, route.GetName(), w.GetName())
				}
			}
		}
	}
}

func TestUnknownNodeIsAnErrorAndNotAnEmptyConfiguration(t *testing.T) {
	mesh := &ir.Mesh{TrustDomain: "cluster.local"}
	_, err := xds.GatewayResources(mesh, "lambdamesh-system", "gateway")
	require.ErrorIs(t, err, xds.ErrUnknownNode)
	_, err = xds.SidecarResources(mesh, "a.shop")
	require.ErrorIs(t, err, xds.ErrUnknownNode)
}
