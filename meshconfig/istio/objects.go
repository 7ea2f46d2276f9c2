// Package istio writes the mesh (package ir) as Istio objects, for istiod to
// program. It is pure; controller applies what it returns.
package istio

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

// Object is a Kubernetes object with its type, ready for server-side apply.
type Object interface {
	metav1.Object
	runtime.Object
}

// Objects are the VirtualServices, AuthorizationPolicies,
// RequestAuthentications and PeerAuthentications that say what mesh says,
// sorted by kind, namespace and name. All carry the managed-by label and the
// owner labels; those in their owner's namespace an owner reference too (when
// the owner's UID is known). Whatever else carries the managed-by label and is
// of these kinds is stale.
func Objects(mesh *ir.Mesh) []Object {
	return nil
}
