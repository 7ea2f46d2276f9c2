package istio

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Object is a Kubernetes object with its type, ready for server-side apply.
type Object interface {
	metav1.Object
	runtime.Object
}

// Objects are the VirtualServices, DestinationRules, AuthorizationPolicies,
// RequestAuthentications and PeerAuthentications that say what mesh says,
// sorted by kind, namespace and name. All carry the managed-by label and the
// owner labels; and an owner reference when the owner's UID is known. Whatever
// else carries the managed-by label and is of these kinds is stale.
func Objects(mesh *ir.Mesh) []Object {
	w := newWriter(mesh)
	for i := range mesh.Gateways {
		g := &mesh.Gateways[i]
		for j := range g.VirtualHosts {
			w.add(w.virtualService(g, g.VirtualHosts[j]))
		}
	}
	for i := range mesh.Workloads {
		// The system's own workloads authenticate their callers themselves, who need
		// not be members of the mesh.
		if workload := mesh.Workloads[i]; workload.Owner.Kind == "Lambda" {
			w.workload(workload)
		}
	}
	slices.SortFunc(w.objects, func(a, b Object) int {
		return cmp.Or(
			cmp.Compare(a.GetObjectKind().GroupVersionKind().Kind, b.GetObjectKind().GroupVersionKind().Kind),
			cmp.Compare(a.GetNamespace(), b.GetNamespace()),
			cmp.Compare(a.GetName(), b.GetName()))
	})
	return w.objects
}

type writer struct {
	destinations map[string]*ir.Destination
	keySets      map[string]string
	rules        map[string]*ir.Rule // by id
	objects      []Object
}

func newWriter(mesh *ir.Mesh) *writer {
	w := &writer{destinations: map[string]*ir.Destination{}, keySets: map[string]string{}, rules: map[string]*ir.Rule{}}
	for i := range mesh.Destinations {
		w.destinations[mesh.Destinations[i].Key()] = mesh.Destinations[i]
	}
	for _, k := range mesh.KeySets {
		w.keySets[k.Name] = k.JWKS
	}
	for i := range mesh.Gateways {
		for j := range mesh.Gateways[i].VirtualHosts {
			rules := mesh.Gateways[i].VirtualHosts[j].Rules
			for k := range rules {
				w.rules[rules[k].ID] = &rules[k]
			}
		}
	}
	return w
}

func (w *writer) add(o Object) { w.objects = append(w.objects, o) }

// meta of an object made from owner, in its namespace. The kind is part of the
// name: an APIRule and a Lambda may share theirs.
func meta(prefix string, owner ir.Owner) metav1.ObjectMeta {
	m := metav1.ObjectMeta{
		Namespace: owner.Namespace,
		Name:      prefix + owner.Name,
		Labels: map[string]string{
			v1alpha1.LabelManagedBy:      v1alpha1.ManagedBy,
			v1alpha1.LabelOwnerNamespace: owner.Namespace,
			v1alpha1.LabelOwnerName:      label(owner.Name),
		},
	}
	if owner.UID != "" {
		yes := true
		m.OwnerReferences = []metav1.OwnerReference{{
			APIVersion: v1alpha1.GroupVersion().String(), Kind: owner.Kind, Name: owner.Name, UID: types.UID(owner.UID),
			Controller: &yes, BlockOwnerDeletion: &yes,
		}}
	}
	return m
}

// label values end at 63 characters; the owner reference has the whole name.
func label(name string) string {
	if len(name) <= 63 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return strings.TrimRight(name[:54], "-.") + "-" + hex.EncodeToString(sum[:4])
}
