package envoy

import (
	"cmp"
	"reflect"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// diff walks two sorted lists: what is new or another in after, and what is only in
// before. Where the pointers are the same nothing is looked at.
func diff[T any](before, after []*T, compare func(a, b *T) int) (changed, gone []*T) {
	i, j := 0, 0
	for i < len(before) && j < len(after) {
		if before[i] == after[j] {
			i, j = i+1, j+1
			continue
		}
		switch c := compare(before[i], after[j]); {
		case c < 0:
			gone = append(gone, before[i])
			i++
		case c > 0:
			changed = append(changed, after[j])
			j++
		default:
			changed = append(changed, after[j])
			i, j = i+1, j+1
		}
	}
	return append(changed, after[j:]...), append(gone, before[i:]...)
}

// same replaces what is equal in both lists by what before has.
func same[T any](before, after []*T, compare func(a, b *T) int) []*T {
	out := after
	copied := false
	i, j := 0, 0
	for i < len(before) && j < len(after) {
		if before[i] == after[j] {
			i, j = i+1, j+1
			continue
		}
		switch c := compare(before[i], after[j]); {
		case c < 0:
			i++
		case c > 0:
			j++
		default:
			if reflect.DeepEqual(before[i], after[j]) {
				if !copied {
					out, copied = append([]*T(nil), after...), true
				}
				out[j] = before[i]
			}
			i, j = i+1, j+1
		}
	}
	return out
}

func byDestination(a, b *ir.Destination) int { return cmp.Compare(a.Key(), b.Key()) }

func byWorkload(a, b *ir.Workload) int { return cmp.Compare(a.Key(), b.Key()) }

func byNode(a, b *ir.Sidecar) int { return cmp.Compare(a.Node, b.Node) }

// settled is the mesh with the former one's parts where they are equal.
func settled(before, mesh *ir.Mesh) *ir.Mesh {
	out := *mesh
	out.Destinations = same(before.Destinations, mesh.Destinations, byDestination)
	out.Workloads = same(before.Workloads, mesh.Workloads, byWorkload)
	out.Sidecars = same(before.Sidecars, mesh.Sidecars, byNode)
	out.Gateways = append([]ir.Gateway(nil), mesh.Gateways...)
	for i := range out.Gateways {
		g := &out.Gateways[i]
		if former, found := before.Gateway(g.Namespace, g.Name); found {
			g.VirtualHosts = same(former.VirtualHosts, g.VirtualHosts, byOwner)
		}
	}
	return &out
}

// difference of two meshes, as far as sidecars and clusters are concerned.
type difference struct {
	all                    bool // nothing can be compared
	destinations           []*ir.Destination
	destinationsGone       []*ir.Destination
	workloads, lost        []*ir.Workload
	sidecars, sidecarsGone []*ir.Sidecar
}

func differences(before, after *ir.Mesh) difference {
	var d difference
	d.all = before.TrustDomain != after.TrustDomain
	d.destinations, d.destinationsGone = diff(before.Destinations, after.Destinations, byDestination)
	d.workloads, d.lost = diff(before.Workloads, after.Workloads, byWorkload)
	d.sidecars, d.sidecarsGone = diff(before.Sidecars, after.Sidecars, byNode)
	return d
}

// concerned are the sidecars that differ, or what they are given from.
func (d *difference) concerned(mesh *ir.Mesh) []*ir.Sidecar {
	if d.all {
		return mesh.Sidecars
	}
	if len(d.destinations)+len(d.destinationsGone)+len(d.workloads)+len(d.lost) == 0 {
		return d.sidecars
	}
	sidecars, workloads, destinations := map[*ir.Sidecar]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range d.sidecars {
		sidecars[s] = true
	}
	for _, all := range [][]*ir.Workload{d.workloads, d.lost} {
		for _, w := range all {
			workloads[w.Key()] = true
		}
	}
	for _, all := range [][]*ir.Destination{d.destinations, d.destinationsGone} {
		for _, one := range all {
			destinations[one.Key()] = true
		}
	}
	var out []*ir.Sidecar
	for _, s := range mesh.Sidecars {
		concerned := sidecars[s] || workloads[s.Workload]
		for i := 0; !concerned && len(destinations) > 0 && i < len(s.Egress); i++ {
			for _, key := range s.Egress[i].Destinations {
				if concerned = destinations[key]; concerned {
					break
				}
			}
		}
		if concerned {
			out = append(out, s)
		}
	}
	return out
}
