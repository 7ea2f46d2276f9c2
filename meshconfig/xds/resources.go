package xds

import (
	"errors"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// ErrUnknownNode: the mesh does not know the node. Serve it nothing, so that it
// keeps what it has.
var ErrUnknownNode = errors.New("the mesh has no such node")

// Resources of one node; each list is sorted by name. Secrets (SDS) are not
// among them: clusters and listeners name them.
type Resources struct {
	Listeners []*listenerv3.Listener
	Routes    []*routev3.RouteConfiguration
	Clusters  []*clusterv3.Cluster
	Endpoints []*endpointv3.ClusterLoadAssignment
}

// GatewayResources are those of every node of the gateway namespace/name. It
// returns ErrUnknownNode when mesh has no such gateway.
func GatewayResources(mesh *ir.Mesh, namespace, name string) (Resources, error) {
	return Resources{}, ErrUnknownNode
}

// SidecarResources are those of the sidecar with the node id
// <WorkloadEntry name>.<namespace>. It returns ErrUnknownNode when mesh has no
// such sidecar.
func SidecarResources(mesh *ir.Mesh, node string) (Resources, error) {
	return Resources{}, ErrUnknownNode
}
