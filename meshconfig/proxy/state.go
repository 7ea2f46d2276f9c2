package proxy

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
)

// snapshot is the configuration that requests are served with. It never
// changes; a new one replaces it.
type snapshot struct {
	routes   map[string]*routeTable
	clusters map[string]*cluster
	hcms     map[*chainServer]*hcm
}

// resources are what the control plane served and was accepted, compiled.
// Proxy.applying guards them.
type resources struct {
	clusters  map[string]*clusterConfig
	endpoints map[string][]*endpoint
	listeners map[string]*listenerConfig
	routes    map[string]*routeTable
	secrets   map[string]*secret

	raw       map[string]map[string]string // type, name -> serialized, to know what did not change
	secretGen int
}

func newResources() *resources {
	return &resources{
		clusters: map[string]*clusterConfig{}, endpoints: map[string][]*endpoint{}, listeners: map[string]*listenerConfig{},
		routes: map[string]*routeTable{}, secrets: map[string]*secret{}, raw: map[string]map[string]string{},
	}
}

// accept compiles a response. With an error, which names every resource at
// fault, nothing changes.
func (r *resources) accept(typeURL string, list []*anypb.Any) error {
	switch typeURL {
	case resource.ClusterType:
		return take(r, typeURL, list, &r.clusters, true, func() *clusterv3.Cluster { return &clusterv3.Cluster{} }, compileCluster)
	case resource.EndpointType:
		return take(r, typeURL, list, &r.endpoints, false, func() *endpointv3.ClusterLoadAssignment { return &endpointv3.ClusterLoadAssignment{} },
			func(a *endpointv3.ClusterLoadAssignment) ([]*endpoint, error) {
				return compileEndpoints(fmt.Sprintf("ClusterLoadAssignment %q", a.GetClusterName()), a)
			})
	case resource.ListenerType:
		return take(r, typeURL, list, &r.listeners, true, func() *listenerv3.Listener { return &listenerv3.Listener{} }, compileListener)
	case resource.RouteType:
		return take(r, typeURL, list, &r.routes, false, func() *routev3.RouteConfiguration { return &routev3.RouteConfiguration{} }, compileRouteTable)
	case resource.SecretType:
		r.secretGen++
		return take(r, typeURL, list, &r.secrets, false, func() *tlsv3.Secret { return &tlsv3.Secret{} }, compileSecret)
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
func take[M proto.Message, T any](r *resources, typeURL string, list []*anypb.Any, into *map[string]T, full bool, empty func() M, compile func(M) (T, error)) error {
	next, raw := map[string]T{}, map[string]string{}
	if !full {
		next, raw = maps.Clone(*into), maps.Clone(r.raw[typeURL])
		if raw == nil {
			raw = map[string]string{}
		}
	}
	var errs []error
	for _, any := range list {
		m := empty()
		if err := unmarshal(typeURL, any, m); err != nil {
			errs = append(errs, err)
			continue
		}
		name, bytes := nameOf(m), string(any.GetValue())
		if old, ok := (*into)[name]; ok && r.raw[typeURL][name] == bytes {
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
	*into, r.raw[typeURL] = next, raw
	return nil
}

// wanted are the names to subscribe to, by type, because of what was accepted.
func (r *resources) wanted() map[string][]string {
	endpoints, routes, secrets := map[string]bool{}, map[string]bool{}, map[string]bool{}
	note := func(t *tlsContext) {
		for _, name := range t.secretNames() {
			secrets[name] = true
		}
	}
	for _, c := range r.clusters {
		if c.edsName != "" {
			endpoints[c.edsName] = true
		}
		for i := range c.sockets {
			note(c.sockets[i].tls)
		}
	}
	for _, l := range r.listeners {
		for _, chain := range l.chains {
			note(chain.tls)
			if chain.hcm.routeName != "" {
				routes[chain.hcm.routeName] = true
			}
		}
	}
	return map[string][]string{
		resource.EndpointType: slices.Sorted(maps.Keys(endpoints)),
		resource.RouteType:    slices.Sorted(maps.Keys(routes)),
		resource.SecretType:   slices.Sorted(maps.Keys(secrets)),
	}
}

// prune forgets what is not wanted any more.
func (r *resources) prune(wanted map[string][]string) {
	r.endpoints = pruned(r, resource.EndpointType, r.endpoints, wanted)
	r.routes = pruned(r, resource.RouteType, r.routes, wanted)
	r.secrets = pruned(r, resource.SecretType, r.secrets, wanted)
}

// pruned returns a copy when something goes: requests read the maps of the
// snapshot meanwhile.
func pruned[T any](r *resources, typeURL string, m map[string]T, wanted map[string][]string) map[string]T {
	out, raw := map[string]T{}, map[string]string{}
	for _, name := range wanted[typeURL] {
		if one, ok := m[name]; ok {
			out[name], raw[name] = one, r.raw[typeURL][name]
		}
	}
	if len(out) == len(m) {
		return m
	}
	r.raw[typeURL] = raw
	return out
}
