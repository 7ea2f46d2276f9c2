package output

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Output takes a mesh to where it takes effect.
type Output interface {
	// Name in logs and in the messages of conditions.
	Name() string
	// Needs of it that a translation and its watches have to know.
	Needs() Needs
	// Run does what the output does in the background until ctx ends. It calls
	// changed, which does not block, when Programmed would answer otherwise.
	Run(ctx context.Context, changed func()) error
	// Update hands over the newest mesh. It does not wait for its effect. The
	// values must not be changed by anybody afterwards.
	Update(ctx context.Context, update Update)
	// Programmed returns a function that says how far the output is with a rule
	// of the last update. The function is used at once and then dropped.
	Programmed() func(rule *translate.APIRuleStatus) Programmed
}

// Needs of an output.
type Needs struct {
	// TokensAtSidecars: sidecars check tokens, since gateways do not.
	TokensAtSidecars bool
	// Lacks lists what the output cannot carry.
	Lacks []ir.Feature
	// Members: pods have sidecars that the output programs.
	Members bool
}

// Update is what an output works from.
type Update struct {
	Mesh *ir.Mesh
	// Secrets that the mesh's gateways name, as far as they exist.
	Secrets []*corev1.Secret
}

// Programmed is the condition of that name as one output sees it.
type Programmed struct {
	Status          metav1.ConditionStatus
	Reason, Message string
	// Keep: if the condition is True for this generation already, it stays.
	Keep bool
}

// Reasons of the condition Programmed, besides Pending.
const (
	ReasonProgrammed = "Programmed"
	// ReasonNotServed: none of the hosts is in the mesh; Accepted says why.
	ReasonNotServed = "NotServed"
	// ReasonNoDataPlane: no node of the gateway is connected.
	ReasonNoDataPlane = "NoDataPlane"
	// ReasonDataPlaneRefused: a node refused the resources.
	ReasonDataPlaneRefused = "DataPlaneRefused"
	// ReasonApplyFailed: an object could not be written.
	ReasonApplyFailed = "ApplyFailed"
)

// Joined is what all the outputs say of a rule, each by its view: the first that is False, else the
// first that is not True.
func Joined(rule *translate.APIRuleStatus, outputs []Output, views []func(*translate.APIRuleStatus) Programmed) Programmed {
	if !rule.Served {
		return Programmed{Status: metav1.ConditionFalse, Reason: ReasonNotServed, Message: "none of the hosts is served; the condition Accepted says why"}
	}
	worst := Programmed{Status: metav1.ConditionTrue, Reason: ReasonProgrammed}
	keep := true
	for i, view := range views {
		p := view(rule)
		if p.Status == metav1.ConditionTrue {
			continue
		}
		keep = keep && p.Keep
		if worst.Status == metav1.ConditionTrue || worst.Status == metav1.ConditionUnknown && p.Status == metav1.ConditionFalse {
			if len(outputs) > 1 {
				p.Message = outputs[i].Name() + ": " + p.Message
			}
			worst = p
		}
	}
	worst.Keep = keep
	return worst
}

// RoutedTo lists for each APIRule the workloads whose policies let it in.
func RoutedTo(mesh *ir.Mesh) map[string][]string {
	all := map[string][]string{}
	for i := range mesh.Workloads {
		workload := mesh.Workloads[i]
		for _, allow := range workload.Allow {
			for _, id := range allow.Rules {
				rule := id[:max(0, strings.LastIndexByte(id, '/'))] // <namespace>/<name>/<hash>
				if !slices.Contains(all[rule], workload.Key()) {
					all[rule] = append(all[rule], workload.Key())
				}
			}
		}
	}
	return all
}

// Poke leaves a token in a channel that holds one.
func Poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default: // one token is enough
	}
}

// fieldManager of all that is applied.
const FieldManager = v1alpha1.ManagedBy + "-meshconfig"
