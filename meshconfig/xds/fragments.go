package xds

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// The resources of a gateway in parts, each a function of what it is called with
// and of nothing else: whoever keeps them makes a part again when that changes.

// Table is a table of routes of a gateway: that of a TLS server, or of the servers
// that listen without TLS at one place.
type Table struct {
	Name    string
	Servers []*ir.Server
}

// Tables of a gateway, sorted by name.
func Tables(g *ir.Gateway) []Table {
	var all []Table
	for i := range g.Servers {
		s := &g.Servers[i]
		name := tableName(s)
		if at := slices.IndexFunc(all, func(t Table) bool { return t.Name == name }); at >= 0 {
			all[at].Servers = append(all[at].Servers, s)
			continue
		}
		all = append(all, Table{name, []*ir.Server{s}})
	}
	slices.SortFunc(all, func(a, b Table) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func tableName(s *ir.Server) string {
	switch {
	case s.Protocol == ir.HTTPS:
		return fmt.Sprintf("https.%d.%s", s.Port, s.Name)
	case s.Bind != "":
		return fmt.Sprintf("http.%s.%d", s.Bind, s.Port)
	default:
		return fmt.Sprintf("http.%d", s.Port)
	}
}

// Empty is the table with the one host that answers for all that nobody has.
func (t Table) Empty() *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: t.Name, VirtualHosts: []*routev3.VirtualHost{unknownHost()}}
}

// Host is what an APIRule says about those of its hosts that the table's servers
// accept; nil when they accept none.
func (t Table) Host(vh *ir.VirtualHost) (*routev3.VirtualHost, error) {
	var domains []string
	for _, h := range vh.Hosts {
		if slices.ContainsFunc(t.Servers, func(s *ir.Server) bool { return s.Accepts(vh.Owner.Namespace, h) }) {
			domains = append(domains, h)
		}
	}
	if len(domains) == 0 {
		return nil, nil //nolint:nilnil // it is no error
	}
	b := &builder{}
	out := b.virtualHost(HostName(vh), domains, vh)
	return out, errors.Join(b.errs...)
}

// HostName is the name of an APIRule's host in each table.
func HostName(vh *ir.VirtualHost) string { return vh.Owner.Namespace + "/" + vh.Owner.Name }

// DestinationsOf are the keys of the destinations that a host leads to, each once.
func DestinationsOf(vh *ir.VirtualHost) []string {
	var all []string
	for i := range vh.Rules {
		if vh.Rules[i].Closed == nil {
			all = append(all, vh.Rules[i].Destinations()...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Cluster of a destination, and its endpoints.
func Cluster(d *ir.Destination) (*clusterv3.Cluster, *endpointv3.ClusterLoadAssignment, error) {
	b := &builder{}
	cluster, endpoints := b.clusterOf(d)
	return cluster, endpoints, errors.Join(b.errs...)
}

// Demands are what the rules of a host ask of all the listeners of its gateway.
type Demands struct {
	providers    map[string]ir.JWTProvider
	requirements map[string][]string
	filters      []string
}

// DemandsOf a host.
func DemandsOf(vh *ir.VirtualHost) *Demands {
	d := &Demands{providers: map[string]ir.JWTProvider{}, requirements: map[string][]string{}}
	filters := map[string]bool{}
	for i := range vh.Rules {
		r := &vh.Rules[i]
		if r.JWT != nil {
			for _, p := range r.JWT.Providers {
				d.providers[providerName(p)] = p
			}
			names := providerNames(r.JWT)
			d.requirements[requirementName(names)] = names
		}
		if r.Closed != nil {
			continue
		}
		for name, asked := range map[string]bool{filterAPIKey: r.APIKey != nil, filterRateLimit: r.RateLimit != nil, filterBuffer: r.MaxBodyBytes > 0} {
			if asked {
				filters[name] = true
			}
		}
	}
	d.filters = slices.Sorted(maps.Keys(filters))
	return d
}

// Equal says whether both ask the same.
func (d *Demands) Equal(o *Demands) bool {
	// A requirement is its providers, by name.
	return maps.EqualFunc(d.providers, o.providers, func(a, b ir.JWTProvider) bool { return trustOf(a) == trustOf(b) }) &&
		maps.EqualFunc(d.requirements, o.requirements, slices.Equal) && slices.Equal(d.filters, o.filters)
}

// KeySets are the names of those that the host's tokens are verified with.
func (d *Demands) KeySets() []string {
	var all []string
	for _, p := range d.providers {
		all = append(all, p.KeySet)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Listeners of a gateway, sorted by name, whose hosts have these demands.
func Listeners(g *ir.Gateway, keySets []ir.KeySet, demands iter.Seq[*Demands]) ([]*listenerv3.Listener, error) {
	b := &builder{}
	b.listeners(g, keySets, demands)
	slices.SortFunc(b.out.Listeners, byName)
	return b.out.Listeners, errors.Join(b.errs...)
}

// clusterNameOf a destination's key, namespace/name:port.
func clusterNameOf(key string) string {
	name, port := key[:max(0, strings.LastIndexByte(key, ':'))], key[strings.LastIndexByte(key, ':')+1:]
	namespace, name, _ := strings.Cut(name, "/")
	return "outbound|" + port + "||" + (&ir.Destination{Namespace: namespace, Name: name}).Hostname()
}
