package compile

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// Resources are what the control plane served and was accepted, compiled. Who
// holds them guards them.
type Resources struct {
	Clusters  map[string]*Cluster
	Endpoints map[string][]*Endpoint
	Listeners map[string]*Listener
	Routes    map[string]*RouteTable
	Secrets   map[string]*Secret

	Raw       map[string]map[string]string // type, name -> serialized, to know what did not change
	SecretGen int

	// hosts of route tables that were served one by one (VHDS), by their names as
	// resources.
	hosts map[string]*servedHost
	// needs are what wanted returned last; nil when that may have changed.
	needs map[string][]string

	servers map[string]bool // of secrets, besides the control plane
}

// NewResources are none. Secrets may come from the servers, by name, besides the
// control plane.
func NewResources(servers []string) *Resources {
	known := map[string]bool{}
	for _, server := range servers {
		known[server] = true
	}
	return &Resources{
		servers:  known,
		Clusters: map[string]*Cluster{}, Endpoints: map[string][]*Endpoint{}, Listeners: map[string]*Listener{},
		Routes: map[string]*RouteTable{}, Secrets: map[string]*Secret{}, Raw: map[string]map[string]string{},
		hosts: map[string]*servedHost{},
	}
}

// Accept compiles a response. With an error, which names every resource at
// fault, nothing changes.
func (r *Resources) Accept(typeURL string, list []*anypb.Any) error {
	return r.accept(typeURL, change{list: list, full: typeURL == resource.ClusterType || typeURL == resource.ListenerType})
}

// AcceptChanges is the same for a response of delta xDS, with the names of what is
// gone.
func (r *Resources) AcceptChanges(typeURL string, changed []*discoveryv3.Resource, gone []string) error {
	if typeURL == resource.VirtualHostType {
		return r.acceptHosts(changed, gone)
	}
	list := make([]*anypb.Any, 0, len(changed))
	for _, one := range changed {
		list = append(list, one.GetResource())
	}
	return r.accept(typeURL, change{list: list, gone: gone})
}

// change is what a response brings: with full, what is not in the list is gone.
type change struct {
	list []*anypb.Any
	gone []string
	full bool
}

func (r *Resources) accept(typeURL string, c change) error {
	r.needs = nil
	switch typeURL {
	case resource.ClusterType:
		return take(r, typeURL, c, &r.Clusters, func() *clusterv3.Cluster { return &clusterv3.Cluster{} },
			func(c *clusterv3.Cluster) (*Cluster, error) {
				k, err := compileCluster(c)
				for i := 0; err == nil && i < len(k.Sockets); i++ {
					err = r.known(fmt.Sprintf("Cluster %q", c.GetName()), k.Sockets[i].TLS)
				}
				return k, err
			})
	case resource.EndpointType:
		return take(r, typeURL, c, &r.Endpoints, func() *endpointv3.ClusterLoadAssignment { return &endpointv3.ClusterLoadAssignment{} },
			func(a *endpointv3.ClusterLoadAssignment) ([]*Endpoint, error) {
				return compileEndpoints(fmt.Sprintf("ClusterLoadAssignment %q", a.GetClusterName()), a)
			})
	case resource.ListenerType:
		return take(r, typeURL, c, &r.Listeners, func() *listenerv3.Listener { return &listenerv3.Listener{} },
			func(l *listenerv3.Listener) (*Listener, error) {
				c, err := compileListener(l)
				for i := 0; err == nil && i < len(c.Chains); i++ {
					err = r.known(fmt.Sprintf("Listener %q", l.GetName()), c.Chains[i].TLS)
				}
				return c, err
			})
	case resource.RouteType:
		if err := take(r, typeURL, c, &r.Routes, func() *routev3.RouteConfiguration { return &routev3.RouteConfiguration{} }, compileRouteTable); err != nil {
			return err
		}
		r.rejoin()
		return nil
	case resource.SecretType:
		r.SecretGen++
		return take(r, typeURL, c, &r.Secrets, func() *tlsv3.Secret { return &tlsv3.Secret{} }, compileSecret)
	default:
		return fmt.Errorf("resources of type %s are not supported", typeURL)
	}
}

// nameOf reads the name of a resource; endpoints have another field for it.
func nameOf(m any) string {
	switch v := m.(type) {
	case *endpointv3.ClusterLoadAssignment:
		return v.GetClusterName()
	case interface{ GetName() string }:
		return v.GetName()
	}
	return ""
}

// take compiles what changed and, if all of it is good, puts it into a copy of into.
func take[M proto.Message, T any](r *Resources, typeURL string, c change, into *map[string]T, empty func() M, compile func(M) (T, error)) error {
	compiled, raw := make(map[string]T, len(c.list)), make(map[string]string, len(c.list))
	var errs []error
	for _, any := range c.list {
		m := empty()
		if err := strict.Unmarshal(typeURL, any, m); err != nil {
			errs = append(errs, err)
			continue
		}
		name, bytes := nameOf(m), string(any.GetValue())
		if old, ok := (*into)[name]; ok && r.Raw[typeURL][name] == bytes {
			compiled[name], raw[name] = old, bytes
			continue
		}
		one, err := compile(m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		compiled[name], raw[name] = one, bytes
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if c.full {
		*into, r.Raw[typeURL] = compiled, raw
		return nil
	}
	next, bytes := maps.Clone(*into), maps.Clone(r.Raw[typeURL])
	if bytes == nil {
		bytes = map[string]string{}
	}
	maps.Copy(next, compiled)
	maps.Copy(bytes, raw)
	for _, name := range c.gone {
		delete(next, name)
		delete(bytes, name)
	}
	*into, r.Raw[typeURL] = next, bytes
	return nil
}

// wanted are the names of what was accepted needs, by type.
func (r *Resources) wanted() map[string][]string {
	if r.needs != nil {
		return r.needs
	}
	endpoints, routes, secrets := map[string]bool{}, map[string]bool{}, map[string]bool{}
	note := func(t *tlsContext) {
		for _, name := range t.secretNames() {
			secrets[name] = true
		}
	}
	for _, c := range r.Clusters {
		if c.EDSName != "" {
			endpoints[c.EDSName] = true
		}
		for i := range c.Sockets {
			note(c.Sockets[i].TLS)
		}
	}
	for _, l := range r.Listeners {
		for _, chain := range l.Chains {
			note(chain.TLS)
			if chain.HCM.RouteName != "" {
				routes[chain.HCM.RouteName] = true
			}
		}
	}
	hosts := map[string]bool{}
	for name, table := range r.Routes {
		if table.hostsApart {
			hosts[name] = true
		}
	}
	r.needs = map[string][]string{
		resource.EndpointType:    slices.Sorted(maps.Keys(endpoints)),
		resource.RouteType:       slices.Sorted(maps.Keys(routes)),
		resource.SecretType:      slices.Sorted(maps.Keys(secrets)),
		resource.VirtualHostType: slices.Sorted(maps.Keys(hosts)),
	}
	return r.needs
}

// Prune forgets what is not wanted any more.
func (r *Resources) Prune() {
	wanted := r.wanted()
	r.needs = nil
	r.Endpoints = pruned(r, resource.EndpointType, r.Endpoints, wanted)
	r.Routes = pruned(r, resource.RouteType, r.Routes, wanted)
	r.Secrets = pruned(r, resource.SecretType, r.Secrets, wanted)
	maps.DeleteFunc(r.hosts, func(_ string, h *servedHost) bool { return r.Routes[h.table] == nil })
}

// pruned returns a copy when something goes: requests read the maps of the
// snapshot meanwhile.
func pruned[T any](r *Resources, typeURL string, m map[string]T, wanted map[string][]string) map[string]T {
	out, raw := map[string]T{}, map[string]string{}
	for _, name := range wanted[typeURL] {
		if one, ok := m[name]; ok {
			out[name], raw[name] = one, r.Raw[typeURL][name]
		}
	}
	if len(out) == len(m) {
		return m
	}
	r.Raw[typeURL] = raw
	return out
}
