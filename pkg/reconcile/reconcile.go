package reconcile

import (
	"context"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// maxMessage keeps a condition's message below the API server's limit of 32768
// bytes with room for a cut mark; a compiler can say a lot.
const maxMessage = 8192

// Object is a kind of pkg/apis as the client reads and writes it.
type Object interface {
	client.Object
	v1alpha1.Object
}

// Set sets one condition for the object's current generation.
func Set(obj v1alpha1.Object, conditionType string, status metav1.ConditionStatus, reason, message string) {
	if len(message) > maxMessage {
		message = message[:maxMessage] + " [cut]"
	}
	meta.SetStatusCondition(obj.Conditions(), metav1.Condition{
		Type:               conditionType,
		Status:             status,
		ObservedGeneration: obj.GetGeneration(),
		Reason:             reason,
		Message:            message,
	})
}

// True sets a condition to True.
func True(obj v1alpha1.Object, conditionType, reason, message string) {
	Set(obj, conditionType, metav1.ConditionTrue, reason, message)
}

// False sets a condition to False.
func False(obj v1alpha1.Object, conditionType, reason, message string) {
	Set(obj, conditionType, metav1.ConditionFalse, reason, message)
}

// Summarize sets Ready from the conditions named, in order, and notes the
// generation: the first that is not True for this generation gives Ready its
// reason and message.
func Summarize(obj v1alpha1.Object, conditionTypes ...string) {
	obj.SetObservedGeneration(obj.GetGeneration())
	for _, t := range conditionTypes {
		c := meta.FindStatusCondition(*obj.Conditions(), t)
		switch {
		case c == nil || c.ObservedGeneration != obj.GetGeneration():
			Set(obj, v1alpha1.ConditionReady, metav1.ConditionUnknown, v1alpha1.ReasonPending, t+" is not known yet for this generation")
			return
		case c.Status != metav1.ConditionTrue:
			Set(obj, v1alpha1.ConditionReady, c.Status, c.Reason, c.Message)
			return
		}
	}
	True(obj, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "")
}

// PatchStatus writes obj's status when it differs from that of before, the deep
// copy taken when the reconciliation began. An object that is gone meanwhile is
// no error: there is nobody left to tell.
func PatchStatus[T Object](ctx context.Context, c client.Client, before, obj T) error {
	if reflect.DeepEqual(before, obj) {
		return nil
	}
	if err := c.Status().Patch(ctx, obj, client.MergeFrom(before)); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of %T %s: %w", obj, client.ObjectKeyFromObject(obj), err)
	}
	return nil
}
