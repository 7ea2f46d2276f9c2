package translate

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Reasons that a translation gives beside those of pkg/apis (NotFound,
// NotSupported, NotPermitted, Invalid, Pending).
const (
	ReasonAccepted       = "Accepted"
	ReasonResolved       = "Resolved"
	ReasonHostConflict   = "HostConflict"
	ReasonHostNotServed  = "HostNotServed"
	ReasonUnknownGateway = "UnknownGateway"
	ReasonIssuerConflict = "IssuerConflict"
	ReasonKeysUnusable   = "KeysUnusable"
	// ReasonShadowed is a warning: an earlier rule takes all its requests.
	ReasonShadowed = "Shadowed"
)

// Problem is something wrong with a field of an object.
type Problem struct {
	// Kind, Namespace and Name of the object: an APIRule, or a Gateway.
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Field is a path such as spec.rules[2].lambda.
	Field string `json:"field"`
	// Condition that it concerns: Accepted or ResolvedRefs.
	Condition string `json:"condition"`
	// Reason is a CamelCase word for programs, Message says to people what is
	// wrong and what to do.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Warning: the condition stays True.
	Warning bool `json:"warning,omitempty"`
}

// Problems are sorted by kind, namespace, name and field.
type Problems []Problem

// APIRuleStatus is what a translation knows of an APIRule's status. Programmed
// and Ready are for the controller to add.
type APIRuleStatus struct {
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Generation int64  `json:"generation"`
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
}

// Statuses says for each of the APIRules, sorted by namespace and name, what
// the translation found.
func Statuses(s Snapshot, mesh ir.Mesh, problems Problems) []APIRuleStatus {
	_ = v1alpha1.ConditionAccepted
	return nil
}
