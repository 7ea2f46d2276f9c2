package controller

import (
	"context"
	"fmt"
	"slices"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// applications are those that an ApplicationBinding lets the lambda call, sorted.
func (r *reconciler) applications(ctx context.Context, lambda *v1alpha1.Lambda) ([]string, error) {
	var bindings v1alpha1.ApplicationBindingList
	if err := r.client.List(ctx, &bindings, client.InNamespace(lambda.Namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the application bindings of namespace %s: %w", lambda.Namespace, err)
	}
	var names []string
	for i := range bindings.Items {
		if b := &bindings.Items[i]; b.DeletionTimestamp.IsZero() && b.Spec.Lambdas.Picks(lambda.Name, lambda.Labels) {
			names = append(names, b.Spec.Application)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// lambdasBeside asks for all lambdas in the namespace of an object.
func (r *reconciler) lambdasBeside(ctx context.Context, obj client.Object) []ctrl.Request {
	var lambdas v1alpha1.LambdaList
	if err := r.client.List(ctx, &lambdas, client.InNamespace(obj.GetNamespace()), client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "listing lambdas failed", "namespace", obj.GetNamespace())
		return nil
	}
	requests := make([]ctrl.Request, len(lambdas.Items))
	for i := range lambdas.Items {
		requests[i].NamespacedName = client.ObjectKeyFromObject(&lambdas.Items[i])
	}
	return requests
}
