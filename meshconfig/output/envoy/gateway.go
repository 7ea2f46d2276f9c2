package envoy

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	cachetypes "github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
)

// gateway is what a Gateway's proxies are served, in parts. A part of the mesh that
// is the same as before is not looked at: only what changed is made, checked,
// serialized and given to the server.
type gateway struct {
	shape     *ir.Gateway // without hosts
	tables    []xds.Table
	keySets   []ir.KeySet // those that its rules name
	listeners map[ads.Key]*ads.Item
	made      []*ir.VirtualHost    // what hosts are made of
	hosts     map[string]*hostPart // by the APIRule, namespace/name
	clusters  map[string]*clusterPart
	touched   []string // clusters that may be new or gone
	secrets   map[ads.Key]*ads.Item
	// closed are the refusals of hosts that answer 503 because of them, by APIRule.
	closed map[string]ads.Nack
	// nodes counts how often other nodes were connected, or refused something else,
	// than before; seen are those of now.
	nodes int
	seen  []ads.NodeStatus
}

func newGateway() *gateway {
	return &gateway{nodes: 1, closed: map[string]ads.Nack{}, hosts: map[string]*hostPart{}, clusters: map[string]*clusterPart{}}
}

// hostPart is what an APIRule's host is made into.
type hostPart struct {
	made         *ir.VirtualHost
	items        map[ads.Key]*ads.Item
	destinations []string
	demands      *xds.Demands
	// quarantine is what a proxy said of a host that it refused: it answers 503 until
	// it is another.
	quarantine string
	// held is which nodes were seen to hold it; 0: none.
	held int
}

// clusterPart is a destination and by how many hosts it is used.
type clusterPart struct {
	made  *ir.Destination
	items map[ads.Key]*ads.Item
	uses  int
}

// change collects what is to be given to the server.
type change map[ads.Key]*ads.Item

// replace the items of a part by others; both may be nil.
func (c change) replace(before, after map[ads.Key]*ads.Item) {
	for key := range before {
		if after[key] == nil {
			if _, set := c[key]; !set {
				c[key] = nil
			}
		}
	}
	for key, it := range after {
		if before[key] == nil || before[key].Hash() != it.Hash() {
			c[key] = it
		}
	}
}

// update makes the parts that differ and says what that changes. After an error
// the gateway must not be used again.
func (g *gateway) update(to *ir.Gateway, mesh *ir.Mesh, changed []*ir.Destination, secrets []cachetypes.Resource) (change, error) {
	changes, shape := change{}, *to
	shape.VirtualHosts = nil
	reshaped := g.shape == nil || !reflect.DeepEqual(*g.shape, shape)
	if reshaped {
		g.shape, g.tables = &shape, xds.Tables(&shape)
	}
	redo, err := g.updateHosts(to, reshaped, changes)
	if err != nil {
		return nil, err
	}
	if err := g.updateClusters(mesh, changed, changes); err != nil {
		return nil, err
	}
	if keySets := g.keySetsOf(mesh, redo); redo || reshaped || !slices.Equal(keySets, g.keySets) {
		g.keySets = keySets
		if err := g.updateListeners(changes); err != nil {
			return nil, err
		}
	}
	items, err := prepare(secrets...)
	if err != nil {
		return nil, err
	}
	changes.replace(g.secrets, items)
	g.secrets = items
	return changes, nil
}

// updateHosts says whether the hosts demand something else of listeners.
func (g *gateway) updateHosts(to *ir.Gateway, reshaped bool, changes change) (redo bool, err error) {
	var before []*ir.VirtualHost // nothing of a gateway of another shape is used again
	if !reshaped {
		before = g.made
	}
	changed, gone := diff(before, to.VirtualHosts, byOwner)
	if reshaped {
		_, gone = diff(g.made, to.VirtualHosts, byOwner)
	}
	none := xds.DemandsOf(&ir.VirtualHost{})
	for _, vh := range gone {
		old := g.hosts[xds.HostName(vh)]
		redo = redo || !old.demands.Equal(none)
		changes.replace(old.items, nil)
		g.use(old.destinations, -1)
		delete(g.hosts, xds.HostName(vh))
		delete(g.closed, xds.HostName(vh))
	}
	for _, vh := range changed {
		items, err := g.hostItems(vh)
		if err != nil {
			return false, err
		}
		part := &hostPart{made: vh, items: items, destinations: xds.DestinationsOf(vh), demands: xds.DemandsOf(vh)}
		old := g.hosts[xds.HostName(vh)]
		if old == nil {
			old = &hostPart{demands: none}
		}
		g.hosts[xds.HostName(vh)] = part
		delete(g.closed, xds.HostName(vh))
		redo = redo || !part.demands.Equal(old.demands)
		changes.replace(old.items, part.items)
		g.use(part.destinations, 1)
		g.use(old.destinations, -1)
	}
	g.made = to.VirtualHosts
	return redo, nil
}

func byOwner(a, b *ir.VirtualHost) int {
	return cmp.Or(cmp.Compare(a.Owner.Namespace, b.Owner.Namespace), cmp.Compare(a.Owner.Name, b.Owner.Name))
}

func (g *gateway) hostItems(vh *ir.VirtualHost) (map[ads.Key]*ads.Item, error) {
	items := map[ads.Key]*ads.Item{}
	for _, table := range g.tables {
		host, err := table.Host(vh)
		if err != nil {
			return nil, err
		}
		if host == nil {
			continue
		}
		it, err := ads.PrepareHost(table.Name, host)
		if err != nil {
			return nil, err
		}
		items[it.Key()] = it
	}
	return items, nil
}

// use counts who uses destinations.
func (g *gateway) use(destinations []string, times int) {
	for _, key := range destinations {
		part := g.clusters[key]
		if part == nil {
			part = &clusterPart{}
			g.clusters[key] = part
		}
		if part.uses += times; part.uses == 0 || part.made == nil {
			g.touched = append(g.touched, key)
		}
	}
}

// updateClusters makes those of destinations that changed, or are used as of now.
func (g *gateway) updateClusters(mesh *ir.Mesh, changed []*ir.Destination, changes change) error {
	for _, d := range changed {
		if part := g.clusters[d.Key()]; part != nil && part.uses > 0 {
			if err := part.make(d, changes); err != nil {
				return err
			}
		}
	}
	for _, key := range g.touched {
		part := g.clusters[key]
		switch {
		case part == nil: // it was named twice
		case part.uses == 0:
			changes.replace(part.items, nil)
			delete(g.clusters, key)
		case part.made == nil:
			d, found := mesh.Destination(key)
			if !found {
				return fmt.Errorf("the mesh has no destination %s", key)
			}
			if err := part.make(d, changes); err != nil {
				return err
			}
		}
	}
	g.touched = nil
	return nil
}

func (p *clusterPart) make(d *ir.Destination, changes change) error {
	cluster, endpoints, err := xds.Cluster(d)
	if err != nil {
		return err
	}
	items, err := prepare(cluster, endpoints)
	if err != nil {
		return err
	}
	changes.replace(p.items, items)
	p.made, p.items = d, items
	return nil
}

// keySetsOf the gateway, of those of the mesh.
func (g *gateway) keySetsOf(mesh *ir.Mesh, redo bool) []ir.KeySet {
	if !redo && len(g.keySets) == 0 {
		return nil
	}
	names := map[string]bool{}
	if redo {
		for _, part := range g.hosts {
			for _, name := range part.demands.KeySets() {
				names[name] = true
			}
		}
	} else {
		for _, set := range g.keySets {
			names[set.Name] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(mesh.KeySets), func(set ir.KeySet) bool { return !names[set.Name] })
}

func (g *gateway) updateListeners(changes change) error {
	listeners, err := xds.Listeners(g.shape, g.keySets, func(yield func(*xds.Demands) bool) {
		for _, part := range g.hosts {
			if !yield(part.demands) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	items := map[ads.Key]*ads.Item{}
	add := func(resources ...cachetypes.Resource) error {
		more, err := prepare(resources...)
		maps.Copy(items, more)
		return err
	}
	for _, l := range listeners {
		if err := add(l); err != nil {
			return err
		}
	}
	for _, table := range g.tables {
		if err := add(table.Empty()); err != nil {
			return err
		}
	}
	changes.replace(g.listeners, items)
	g.listeners = items
	return nil
}

func prepare(resources ...cachetypes.Resource) (map[ads.Key]*ads.Item, error) {
	all := map[ads.Key]*ads.Item{}
	for _, r := range resources {
		items, err := ads.Prepare(r)
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			all[it.Key()] = it
		}
	}
	return all, nil
}

// see notes which nodes are connected and what they refuse.
func (g *gateway) see(nodes []ads.NodeStatus) {
	if !slices.EqualFunc(g.seen, nodes, func(a, b ads.NodeStatus) bool {
		return a.NodeID == b.NodeID && a.ConnectedAt.Equal(b.ConnectedAt) && slices.Equal(a.Nacks, b.Nacks)
	}) {
		g.nodes++
	}
	g.seen = nodes
}

// keys of all that must be acknowledged before a host takes effect.
func (g *gateway) keys(part *hostPart) []ads.Key {
	all := slices.Collect(maps.Keys(part.items))
	all = slices.AppendSeq(all, maps.Keys(g.listeners))
	for _, key := range part.destinations {
		all = slices.AppendSeq(all, maps.Keys(g.clusters[key].items))
	}
	return all
}

// quarantine closes hosts that a proxy refused, as they are, and returns what that
// changes: a proxy that starts has no former one of them.
func (g *gateway) quarantine(nodes []ads.NodeStatus) change {
	var refused map[ads.Key]ads.Nack
	for _, node := range nodes {
		for _, nack := range node.Nacks {
			if nack.Type != resource.VirtualHostType {
				continue
			}
			if refused == nil {
				refused = map[ads.Key]ads.Nack{}
			}
			refused[ads.Key{Type: nack.Type, Name: nack.Name}] = nack
		}
	}
	if len(refused) == 0 {
		return nil
	}
	changes := change{}
	for name, part := range g.hosts {
		for key, it := range part.items {
			nack, found := refused[key]
			if !found || part.quarantine != "" || nack.Version != it.Hash() {
				continue
			}
			items, err := g.hostItems(closed(part.made, "refused", output.ReasonDataPlaneRefused))
			if err != nil {
				continue
			}
			changes.replace(part.items, items)
			part.items, part.quarantine = items, nack.Message
			g.closed[name] = nack
			break
		}
	}
	return changes
}
