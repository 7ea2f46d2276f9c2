package controller

import (
	"bytes"
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// scaleManager is the field manager of replicas alone: between min and max they
// are an autoscaler's or kubectl scale's, which must not be reverted when the
// rest of the Deployment is applied.
const scaleManager = fieldManager + "-scale"

// keepInBounds sets the replicas of a Deployment that others may scale where they
// are out of bounds, and has them follow scale.min where nobody else has changed
// them. before is the Deployment as it was, nil when there was none; it is called
// before the Deployment is applied without replicas, and after.
func (r *reconciler) keepInBounds(ctx context.Context, lambda *v1alpha1.Lambda, before *appsv1.Deployment) error {
	scale := deploy.NewScale(lambda)
	if before == nil || !scale.Moves() {
		return nil
	}
	current := int32(1)
	if before.Spec.Replicas != nil {
		current = *before.Spec.Replicas
	}
	wanted := scale.Within(current)
	if old, known := deploy.ScaleOf(before); known && current == old.Min && scale.Min > 0 {
		wanted = scale.Min
	}
	if wanted == current && !ownsReplicas(before) {
		return nil
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(appsv1.SchemeGroupVersion.WithKind("Deployment"))
	u.SetNamespace(before.Namespace)
	u.SetName(before.Name)
	if err := unstructured.SetNestedField(u.Object, int64(wanted), "spec", "replicas"); err != nil {
		return fmt.Errorf("scale Deployment %s: %w", client.ObjectKeyFromObject(before), err)
	}
	if err := r.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(scaleManager), client.ForceOwnership); err != nil {
		return fmt.Errorf("scale Deployment %s: %w", client.ObjectKeyFromObject(before), err)
	}
	return nil
}

// leftToOthers tells that nothing of ours scales a Deployment here.
func (r *reconciler) leftToOthers(deployment *appsv1.Deployment, replicas int32) string {
	if scale, known := deploy.ScaleOf(deployment); known && scale.Max > replicas && !r.config.Deploy.ToZero {
		return fmt.Sprintf("%d replicas: this version does not scale up to scale.max by itself in a cluster, an autoscaler on the Deployment may", replicas)
	}
	return ""
}

// ownsReplicas tells whether applying the Deployment without replicas would
// delete them.
func ownsReplicas(deployment *appsv1.Deployment) bool {
	for _, entry := range deployment.ManagedFields {
		if entry.Manager == fieldManager && entry.Operation == metav1.ManagedFieldsOperationApply && entry.FieldsV1 != nil && bytes.Contains(entry.FieldsV1.GetRawBytes(), []byte(`"f:replicas"`)) {
			return true
		}
	}
	return false
}

// scaling tells whether all that a Deployment waits for is a number of replicas:
// its version runs, and has been told so.
func scaling(lambda *v1alpha1.Lambda, deployment *appsv1.Deployment) bool {
	scale, known := deploy.ScaleOf(deployment)
	told := meta.FindStatusCondition(lambda.Status.CommonStatus.Conditions, v1alpha1.ConditionDeployed)
	return known && scale.Moves() && deployment.Status.UpdatedReplicas == deployment.Status.Replicas &&
		told != nil && told.Status == metav1.ConditionTrue && told.ObservedGeneration == lambda.Generation
}
