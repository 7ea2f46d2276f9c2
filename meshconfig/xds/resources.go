package xds

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

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

// ByType lists the resources by their type URL, for a cache.
func (r Resources) ByType() map[resource.Type][]types.Resource {
	return map[resource.Type][]types.Resource{
		resource.ListenerType: list(r.Listeners),
		resource.RouteType:    list(r.Routes),
		resource.ClusterType:  list(r.Clusters),
		resource.EndpointType: list(r.Endpoints),
	}
}

// Validate tells which resources Envoy would refuse to read. The ADS server
// checks what it is given by itself; this is for who writes it elsewhere.
func (r Resources) Validate() error {
	var errs []error
	for _, resources := range r.ByType() {
		for _, one := range resources {
			if v, ok := one.(interface{ ValidateAll() error }); ok {
				errs = append(errs, v.ValidateAll())
			}
		}
	}
	return errors.Join(errs...)
}

func list[T types.Resource](resources []T) []types.Resource {
	all := make([]types.Resource, 0, len(resources))
	for _, r := range resources {
		all = append(all, r)
	}
	return all
}

// Secret is the SDS resource kubernetes://<name> of a gateway's TLS server,
// from the tls.crt and tls.key (PEM) of its Secret.
func Secret(name string, certificate, key []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: secretName(name), Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: certificate}},
		PrivateKey:       &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: key}},
	}}}
}

func secretName(name string) string { return "kubernetes://" + name }

// GatewayResources are those of every node of the gateway namespace/name. It
// returns ErrUnknownNode when mesh has no such gateway, and another error when
// mesh contradicts itself. They are not validated yet.
func GatewayResources(mesh *ir.Mesh, namespace, name string) (Resources, error) {
	g, found := mesh.Gateway(namespace, name)
	if !found {
		return Resources{}, fmt.Errorf("gateway %s/%s: %w", namespace, name, ErrUnknownNode)
	}
	b := newBuilder(mesh)
	b.gateway(g)
	return b.finish()
}

// SidecarResources are those of the sidecar with the node id
// <WorkloadEntry name>.<namespace>. It returns ErrUnknownNode when mesh has no
// such sidecar, and another error when mesh contradicts itself. They are not
// validated yet.
func SidecarResources(mesh *ir.Mesh, node string) (Resources, error) {
	s, found := mesh.Sidecar(node)
	if !found {
		return Resources{}, fmt.Errorf("sidecar %s: %w", node, ErrUnknownNode)
	}
	b := newBuilder(mesh)
	b.sidecar(s)
	return b.finish()
}

// builder collects the resources of a node.
type builder struct {
	mesh     *ir.Mesh
	out      Resources
	clusters map[string]bool
	errs     []error
}

func newBuilder(mesh *ir.Mesh) *builder {
	return &builder{mesh: mesh, clusters: map[string]bool{}}
}

// destination with a key of the mesh.
func (b *builder) destination(key string) *ir.Destination {
	d, found := b.mesh.Destination(key)
	if !found {
		b.note(fmt.Errorf("the mesh has no destination %s", key))
		return &ir.Destination{}
	}
	return d
}

func (b *builder) finish() (Resources, error) {
	slices.SortFunc(b.out.Listeners, byName)
	slices.SortFunc(b.out.Routes, byName)
	slices.SortFunc(b.out.Clusters, byName)
	slices.SortFunc(b.out.Endpoints, func(x, y *endpointv3.ClusterLoadAssignment) int {
		return cmp.Compare(x.GetClusterName(), y.GetClusterName())
	})
	return b.out, errors.Join(b.errs...)
}

func (b *builder) note(err error) {
	if err != nil {
		b.errs = append(b.errs, err)
	}
}

func byName[T interface{ GetName() string }](x, y T) int {
	return cmp.Compare(x.GetName(), y.GetName())
}

// any packs a message; equal messages give equal bytes.
func (b *builder) any(m proto.Message) *anypb.Any {
	packed := &anypb.Any{}
	b.note(anypb.MarshalFrom(packed, m, proto.MarshalOptions{Deterministic: true}))
	return packed
}

// adsWithin is ads, waited for no longer than the timeout.
func adsWithin(timeout time.Duration) *corev3.ConfigSource {
	source := ads()
	source.InitialFetchTimeout = durationpb.New(timeout)
	return source
}

// ads is where everything dynamic comes from.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}
