package envoy

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
)

// Budgets keep what one namespace gives a data plane within bounds, and many
// namespaces may still give it more than one message carries. The largest is left
// out then: whoever else changes or removes something, it takes effect.

// largest namespace of what a data plane is given, by name among equals; empty
// when nothing can be left out any more.
func largest(mesh *ir.Mesh, target string, without map[string]string) string {
	sizes := map[string]int{}
	add := func(key string) {
		if d, found := mesh.Destination(key); found {
			sizes[d.Namespace] += d.Size()
		}
	}
	if g := gatewayOf(mesh, target); g != nil {
		counted := map[string]bool{}
		for i := range g.VirtualHosts {
			vh := g.VirtualHosts[i]
			if text, err := json.Marshal(vh); err == nil {
				sizes[vh.Owner.Namespace] += len(text)
			}
			for _, rule := range vh.Rules {
				for _, b := range rule.Backends {
					if !counted[b.Destination] {
						counted[b.Destination] = true
						add(b.Destination)
					}
				}
			}
		}
	}
	if s, found := mesh.Sidecar(target); found {
		for _, out := range s.Egress {
			for _, key := range out.Destinations {
				add(key)
			}
		}
	}
	maps.DeleteFunc(sizes, func(namespace string, _ int) bool { _, gone := without[namespace]; return gone })
	if len(sizes) == 0 {
		return ""
	}
	return slices.MinFunc(slices.Collect(maps.Keys(sizes)), func(a, b string) int {
		return cmp.Or(cmp.Compare(sizes[b], sizes[a]), cmp.Compare(a, b))
	})
}

// leaveOut namespaces of what a data plane is given: a gateway answers 503 at their
// hosts, and a sidecar leads to none of their workloads.
func leaveOut(mesh *ir.Mesh, target string, without map[string]string) *ir.Mesh {
	out := *mesh
	out.Gateways, out.Sidecars = slices.Clone(mesh.Gateways), slices.Clone(mesh.Sidecars)
	if g := gatewayOf(&out, target); g != nil {
		g.VirtualHosts = slices.Clone(g.VirtualHosts)
		for i := range g.VirtualHosts {
			if _, gone := without[g.VirtualHosts[i].Owner.Namespace]; gone {
				g.VirtualHosts[i] = closed(g.VirtualHosts[i], "left-out", translate.ReasonTooLarge)
			}
		}
	}
	if i := slices.IndexFunc(out.Sidecars, func(s *ir.Sidecar) bool { return s.Node == target }); i >= 0 {
		s := *out.Sidecars[i]
		out.Sidecars[i] = &s
		s.Egress = slices.Clone(s.Egress)
		for i := range s.Egress {
			s.Egress[i].Destinations = slices.DeleteFunc(slices.Clone(s.Egress[i].Destinations), func(key string) bool {
				namespace, _, _ := strings.Cut(key, "/")
				_, gone := without[namespace]
				return gone
			})
		}
	}
	return &out
}

// closed answers 503 to everything at a host.
func closed(vh *ir.VirtualHost, name, reason string) *ir.VirtualHost {
	out := *vh
	out.CORS, out.Rules = nil, []ir.Rule{{
		ID: vh.Owner.Namespace + "/" + vh.Owner.Name + "/" + name, Path: ir.AnyPath(),
		Closed: &ir.Closed{Status: http.StatusServiceUnavailable, Reason: reason},
	}}
	return &out
}

func gatewayOf(mesh *ir.Mesh, target string) *ir.Gateway {
	namespace, name, _ := strings.Cut(target, "/")
	g, found := mesh.Gateway(namespace, name)
	if !found {
		return nil
	}
	return g
}
