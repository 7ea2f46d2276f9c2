package envoy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
)

// randomMesh is the mesh after a random edit of another.
func randomMesh(r *rand.Rand, mesh *ir.Mesh) *ir.Mesh {
	out := *mesh
	out.Gateways = slices.Clone(mesh.Gateways)
	g := &out.Gateways[0]
	switch r.IntN(10) {
	case 0: // other endpoints
		out.Destinations = slices.Clone(mesh.Destinations)
		i := r.IntN(len(out.Destinations))
		d := *out.Destinations[i]
		d.Endpoints = []ir.Endpoint{{Address: fmt.Sprintf("10.0.0.%d", r.IntN(200)), Port: 80}}
		if r.IntN(2) == 0 {
			d.Identities = []string{"spiffe://cluster.local/ns/shop/sa/a"}
		}
		out.Destinations[i] = &d
	case 1: // other keys
		out.KeySets = slices.Clone(mesh.KeySets)
		out.KeySets[r.IntN(len(out.KeySets))].JWKS = fmt.Sprintf(`{"keys":[%d]}`, r.IntN(100))
	case 2: // other servers
		g.Servers = []ir.Server{{Name: "http", Port: 80, Protocol: ir.HTTP, Hosts: []string{"*/*"}}}
		for i := range r.IntN(3) {
			g.Servers = append(g.Servers, ir.Server{Name: fmt.Sprint("s", i), Port: 443, Protocol: ir.HTTPS, TLSSecret: "s", Hosts: []string{fmt.Sprintf("*/*.%d.example", i)}})
		}
	case 3: // one that goes
		if len(g.VirtualHosts) > 0 {
			i := r.IntN(len(g.VirtualHosts))
			g.VirtualHosts = slices.Delete(slices.Clone(g.VirtualHosts), i, i+1)
		}
	default: // one that is new or another
		g.VirtualHosts = slices.Clone(g.VirtualHosts)
		name := fmt.Sprintf("r%02d", r.IntN(20))
		vh := &ir.VirtualHost{Owner: ir.Owner{Kind: "APIRule", Namespace: "shop", Name: name}, Hosts: []string{name + ".0.example", name + ".1.example"}[r.IntN(2):]}
		for i := range r.IntN(3) {
			rule := ir.Rule{ID: fmt.Sprintf("shop/%s/%d", name, i), Path: ir.PathMatch{Kind: ir.PathPrefix, Value: fmt.Sprintf("/%d/", r.IntN(9))}}
			switch r.IntN(4) {
			case 0:
				rule.Closed = &ir.Closed{Status: 503, Reason: "x"}
			case 1:
				set := fmt.Sprint("set", r.IntN(3))
				rule.JWT = &ir.JWT{Providers: []ir.JWTProvider{{Issuer: "https://" + set, KeySet: set}}}
			case 2:
				rule.MaxBodyBytes = 10
			}
			rule.Backends = []ir.Backend{{Destination: fmt.Sprintf("shop/d%d:80", r.IntN(6)), Weight: 1}}
			vh.Rules = append(vh.Rules, rule)
		}
		i, found := slices.BinarySearchFunc(g.VirtualHosts, vh, byOwner)
		if found {
			g.VirtualHosts[i] = vh
		} else {
			g.VirtualHosts = slices.Insert(g.VirtualHosts, i, vh)
		}
	}
	return &out
}

// Whatever was edited before, the parts that were kept and those that were made
// again are what making all of them gives.
func TestPartsAreWhatAllOfItIs(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // it is to be repeatable
		mesh := &ir.Mesh{TrustDomain: "cluster.local", Gateways: []ir.Gateway{{
			Namespace: "shop", Name: "g", Servers: []ir.Server{{Name: "http", Port: 80, Protocol: ir.HTTP, Hosts: []string{"*/*"}}},
		}}}
		for i := range 6 {
			mesh.Destinations = append(mesh.Destinations, &ir.Destination{Namespace: "shop", Name: fmt.Sprint("d", i), Port: 80})
		}
		for i := range 3 {
			mesh.KeySets = append(mesh.KeySets, ir.KeySet{Name: fmt.Sprint("set", i), JWKS: `{"keys":[0]}`})
		}
		parts, served, before := newGateway(), map[ads.Key]string{}, &ir.Mesh{}
		for range 50 {
			next := randomMesh(r, mesh)
			mesh = settled(before, next)
			changed := differences(before, mesh).destinations
			changes, err := parts.update(&mesh.Gateways[0], mesh, changed, nil)
			require.NoError(t, err)
			for key, it := range changes {
				if it == nil {
					delete(served, key)
				} else {
					served[key] = it.Hash()
				}
			}
			resources, err := xds.GatewayResources(mesh, "shop", "g")
			require.NoError(t, err)
			want := map[ads.Key]string{}
			for _, list := range resources.ByType() {
				items, err := prepare(list...)
				require.NoError(t, err)
				for key, it := range items {
					want[key] = it.Hash()
				}
			}
			require.Equal(t, want, served, "seed %d", seed)
			before = mesh
		}
	}
}

func TestARefusedHostIsClosedUntilItIsAnother(t *testing.T) {
	vh := func(path string) *ir.VirtualHost {
		return &ir.VirtualHost{Owner: ir.Owner{Namespace: "shop", Name: "r"}, Hosts: []string{"r.example"}, Rules: []ir.Rule{{
			ID: "shop/r/1", Path: ir.PathMatch{Kind: ir.PathPrefix, Value: path}, Backends: []ir.Backend{{Destination: "shop/d:80", Weight: 1}},
		}}}
	}
	mesh := &ir.Mesh{TrustDomain: "cluster.local", Destinations: []*ir.Destination{{Namespace: "shop", Name: "d", Port: 80}}, Gateways: []ir.Gateway{{
		Namespace: "shop", Name: "g", Servers: []ir.Server{{Name: "http", Port: 80, Protocol: ir.HTTP, Hosts: []string{"*/*"}}},
		VirtualHosts: []*ir.VirtualHost{vh("/a/")},
	}}}
	g := newGateway()
	changes, err := g.update(&mesh.Gateways[0], mesh, mesh.Destinations, nil)
	require.NoError(t, err)
	key := ads.Key{Type: resource.VirtualHostType, Name: ads.HostName("http.80", "shop/r")}
	bad := changes[key]
	refusal := []ads.NodeStatus{{NodeID: "n", Nacks: []ads.Nack{{Type: key.Type, Name: key.Name, Version: bad.Hash(), Message: "no such thing"}}}}
	closing := g.quarantine(refusal)
	require.Len(t, closing, 1)
	require.NotEqual(t, bad.Hash(), closing[key].Hash())
	require.Equal(t, "no such thing", g.hosts["shop/r"].quarantine)
	require.Empty(t, g.quarantine(refusal), "once")

	next := *mesh
	next.Gateways = slices.Clone(mesh.Gateways)
	next.Gateways[0].VirtualHosts = []*ir.VirtualHost{vh("/b/")}
	changes, err = g.update(&next.Gateways[0], &next, nil, nil)
	require.NoError(t, err)
	require.Len(t, changes, 1)
	require.Empty(t, g.hosts["shop/r"].quarantine)
}
