// Package v1alpha1 holds the kinds of the API group lambdamesh.dev, and the
// names (labels, annotations, environment variables, identities) by which the
// parts of the system and their users know each other.
//
// What may enter: a contract that another process reads. Behavior stays in the
// domain that owns the kind; this package imports nothing of this module.
//
// +kubebuilder:object:generate=true
// +groupName=lambdamesh.dev
package v1alpha1
