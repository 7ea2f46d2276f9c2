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
	}
}

// Accept compiles a response. With an error, which names every resource at
// fault, nothing changes.
func (r *Resources) Accept(typeURL string, list []*anypb.Any) error {
	switch typeURL {
	case resource.ClusterType:
		return take(r, typeURL, list, &r.Clusters, true, func() *clusterv3.Cluster { return &clusterv3.Cluster{} },
			func(c *clusterv3.Cluster) (*Cluster, error) {
				k, err := compileCluster(c)
				for i := 0; err == nil && i < len(k.Sockets); i++ {
					err = r.known(fmt.Sprintf("Cluster %q", c.GetName()), k.Sockets[i].TLS)
				}
				return k, err
			})
	case resource.EndpointType:
		return take(r, typeURL, list, &r.Endpoints, false, func() *endpointv3.ClusterLoadAssignment { return &endpointv3.ClusterLoadAssignment{} },
			func(a *endpointv3.ClusterLoadAssignment) ([]*Endpoint, error) {
				return compileEndpoints(fmt.Sprintf("ClusterLoadAssignment %q", a.GetClusterName()), a)
			})
	case resource.ListenerType:
		return take(r, typeURL, list, &r.Listeners, true, func() *listenerv3.Listener { return &listenerv3.Listener{} },
			func(l *listenerv3.Listener) (*Listener, error) {
				c, err := compileListener(l)
				for i := 0; err == nil && i < len(c.Chains); i++ {
					err = r.known(fmt.Sprintf("Listener %q", l.GetName()), c.Chains[i].TLS)
				}
				return c, err
			})
	case resource.RouteType:
		return take(r, typeURL, list, &r.Routes, false, func() *routev3.RouteConfiguration { return &routev3.RouteConfiguration{} }, compileRouteTable)
	case resource.SecretType:
		r.SecretGen++
		return take(r, typeURL, list, &r.Secrets, false, func() *tlsv3.Secret { return &tlsv3.Secret{} }, compileSecret)
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

// take compiles what changed into a copy of into and puts it there if all of it
// is good. full means that what is not in the list is gone.
func take[M proto.Message, T any](r *Resources, typeURL string, list []*anypb.Any, into *map[string]T, full bool, empty func() M, compile func(M) (T, error)) error {
	next, raw := map[string]T{}, map[string]string{}
	if !full {
		next, raw = maps.Clone(*into), maps.Clone(r.Raw[typeURL])
		if raw == nil {
			raw = map[string]string{}
		}
	}
	var errs []error
	for _, any := range list {
		m := empty()
		if err := strict.Unmarshal(typeURL, any, m); err != nil {
			errs = append(errs, err)
			continue
		}
		name, bytes := nameOf(m), string(any.GetValue())
		if old, ok := (*into)[name]; ok && r.Raw[typeURL][name] == bytes {
			next[name], raw[name] = old, bytes
			continue
		}
		compiled, err := compile(m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		next[name], raw[name] = compiled, bytes
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	*into, r.Raw[typeURL] = next, raw
	return nil
}

// wanted are the names of what was accepted needs, by type.
func (r *Resources) wanted() map[string][]string {
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
	return map[string][]string{
		resource.EndpointType: slices.Sorted(maps.Keys(endpoints)),
		resource.RouteType:    slices.Sorted(maps.Keys(routes)),
		resource.SecretType:   slices.Sorted(maps.Keys(secrets)),
	}
}

// Prune forgets what is not wanted any more.
func (r *Resources) Prune() {
	wanted := r.wanted()
	r.Endpoints = pruned(r, resource.EndpointType, r.Endpoints, wanted)
	r.Routes = pruned(r, resource.RouteType, r.Routes, wanted)
	r.Secrets = pruned(r, resource.SecretType, r.Secrets, wanted)
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
