package translate

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// APIRuleStatus is what a translation knows of an APIRule's status. Programmed
// and Ready are for the controller to add.
type APIRuleStatus struct {
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Generation int64  `json:"generation,omitempty"`
	// Gateway, namespace/name, whose nodes must acknowledge the rule.
	Gateway string `json:"gateway"`
	// Served: at least one host of the APIRule is in the mesh. What is not
	// served cannot be programmed.
	Served bool `json:"served"`
	// URLs at which its hosts answer.
	URLs []string `json:"urls,omitempty"`
	// Conditions Accepted and ResolvedRefs: type, status, reason, message and
	// observedGeneration, without a time.
	Conditions []metav1.Condition `json:"conditions"`
	// Charged is what it takes of budgets, or took before it was too large.
	Charged *v1alpha1.Charge `json:"-"`
}

// Statuses says for each of the APIRules, sorted by namespace and name, what
// the translation of s found.
func Statuses(s Snapshot, mesh ir.Mesh, problems Problems) []APIRuleStatus {
	byRule := map[types.NamespacedName]Problems{}
	for _, p := range problems {
		if p.Kind == "APIRule" {
			key := types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
			byRule[key] = append(byRule[key], p)
		}
	}
	addresses := map[types.NamespacedName][]string{}
	served := map[types.NamespacedName]bool{}
	for i := range mesh.Gateways {
		g := &mesh.Gateways[i]
		for _, vh := range g.VirtualHosts {
			key := types.NamespacedName{Namespace: vh.Owner.Namespace, Name: vh.Owner.Name}
			served[key] = true
			for _, host := range vh.Hosts {
				addresses[key] = append(addresses[key], urls(g, vh.Owner.Namespace, host, s.Settings.AdvertisedPorts)...)
			}
		}
	}
	all := make([]APIRuleStatus, 0, len(s.APIRules))
	for _, r := range sorted(s.APIRules) {
		key := name(r)
		all = append(all, APIRuleStatus{
			Namespace: r.Namespace, Name: r.Name, Generation: r.Generation,
			Gateway: gatewayKey(r), Served: served[key], URLs: addresses[key],
			Charged: chargeOf(r, served[key], byRule[key]),
			Conditions: []metav1.Condition{
				condition(r, v1alpha1.ConditionAccepted, ReasonAccepted, byRule[key]),
				condition(r, v1alpha1.ConditionResolvedRefs, ReasonResolved, byRule[key]),
			},
		})
	}
	return all
}

// condition sums up the problems that concern it. The reason is that of the
// first problem, the message names all.
func condition(r metav1.Object, conditionType, goodReason string, problems Problems) metav1.Condition {
	c := metav1.Condition{Type: conditionType, Status: metav1.ConditionTrue, Reason: goodReason, ObservedGeneration: r.GetGeneration()}
	concerned := slices.DeleteFunc(slices.Clone(problems), func(p Problem) bool { return p.Condition != conditionType })
	// A warning never hides an error's reason.
	slices.SortStableFunc(concerned, func(a, b Problem) int {
		switch {
		case a.Warning == b.Warning:
			return 0
		case b.Warning:
			return -1
		default:
			return 1
		}
	})
	var messages []string
	for i, p := range concerned {
		if i == 0 {
			c.Reason = p.Reason
		}
		if !p.Warning {
			c.Status = metav1.ConditionFalse
		}
		messages = append(messages, p.Field+": "+p.Message)
	}
	c.Message = strings.Join(messages, "; ")
	return c
}
