package translate

import (
	"slices"

	istiometa "istio.io/api/meta/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// ObjectStatus is what a translation says about a Gateway or a Sidecar, whose
// kinds are Istio's.
type ObjectStatus struct {
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Generation int64  `json:"generation,omitempty"`
	// Conditions Accepted and ResolvedRefs, without a time.
	Conditions []metav1.Condition `json:"conditions"`
}

// ObjectStatuses are those of the Gateways that APIRules use, and of Sidecars
// with problems, sorted by kind, namespace and name. Other Gateways may be
// somebody else's, who gives their fields a meaning of his own.
func ObjectStatuses(s Snapshot, problems Problems) []ObjectStatus {
	type object struct {
		kind string
		types.NamespacedName
	}
	found := map[object]Problems{}
	for _, p := range problems {
		o := object{p.Kind, types.NamespacedName{Namespace: p.Namespace, Name: p.Name}}
		found[o] = append(found[o], p)
	}
	used := map[string]bool{v1alpha1.DefaultGateway: true}
	for _, r := range s.APIRules {
		used[gatewayKey(r)] = true
	}
	var all []ObjectStatus
	add := func(kind string, o metav1.Object, problems Problems) {
		all = append(all, ObjectStatus{
			Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName(), Generation: o.GetGeneration(),
			Conditions: []metav1.Condition{
				condition(o, v1alpha1.ConditionAccepted, ReasonAccepted, problems),
				condition(o, v1alpha1.ConditionResolvedRefs, ReasonResolved, problems),
			},
		})
	}
	for _, g := range sorted(s.Gateways) {
		if used[name(g).String()] || g.Annotations[v1alpha1.AnnotationDomain] != "" {
			add("Gateway", g, found[object{"Gateway", name(g)}])
		}
	}
	for _, sidecar := range sorted(s.Sidecars) {
		// One that healed says so, others need not be written to.
		said := slices.ContainsFunc(sidecar.Status.GetConditions(), func(c *istiometa.IstioCondition) bool {
			return c.GetType() == v1alpha1.ConditionAccepted
		})
		if problems := found[object{"Sidecar", name(sidecar)}]; len(problems) > 0 || said {
			add("Sidecar", sidecar, problems)
		}
	}
	return all
}
