package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Condition types. Ready is on every kind and sums up the others.
const (
	ConditionReady = "Ready"

	// Lambda.
	ConditionSourceReady = "SourceReady"
	ConditionDeployed    = "Deployed"

	// APIRule.
	ConditionAccepted     = "Accepted"
	ConditionProgrammed   = "Programmed"
	ConditionResolvedRefs = "ResolvedRefs"

	// Application and ApplicationService: whether their documents can be read, and
	// whether the targets that are probed answer.
	ConditionDocumentsValid  = "DocumentsValid"
	ConditionTargetReachable = "TargetReachable"

	// Subscription.
	ConditionSubscribed = "Subscribed"
	ConditionSinkReady  = "SinkReady"
	ConditionDelivering = "Delivering"

	// Application.
	ConditionPaired = "Paired"
)

// Reasons that more than one domain gives. A domain keeps its own reasons
// beside the code that gives them.
const (
	ReasonReady   = "Ready"
	ReasonPending = "Pending"
	// ReasonNotSupported: a valid field that this version does not implement.
	// It is refused. What is taken without effect is told in a message instead.
	ReasonNotSupported = "NotSupported"
	ReasonInvalid      = "Invalid"
	// ReasonNotPermitted: the object's namespace lacks a binding or grant.
	ReasonNotPermitted = "NotPermitted"
	// ReasonNotFound: an object that this one names does not exist.
	ReasonNotFound = "NotFound"
	// ReasonTargetRefused: a URL points where allowedTargets does not allow.
	ReasonTargetRefused = "TargetRefused"
)

// Object is a kind of this package as its controller sees it.
// +kubebuilder:object:generate=false
type Object interface {
	metav1.Object
	// Conditions returns the conditions in the status, to be changed in place.
	Conditions() *[]metav1.Condition
	// SetObservedGeneration notes which generation the status speaks of.
	SetObservedGeneration(generation int64)
}

// CommonStatus is part of the status of every kind.
type CommonStatus struct {
	// ObservedGeneration is the metadata.generation that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Conditions: Ready sums up the others; reason and message say what to do.
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}
