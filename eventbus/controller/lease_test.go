package controller_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Who dispatches next begins when the lease is free. What is on its way then would
// be overtaken by what comes after it.
func TestTheLeaseIsHeldUntilPushesHaveEnded(t *testing.T) {
	w := stillWorld(t)
	w.elected, w.drain = true, time.Minute
	err := w.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}})
	if !apierrors.IsAlreadyExists(err) {
		require.NoError(t, err)
	}
	w.start()
	holder := func() string {
		var lease coordinationv1.Lease
		require.NoError(t, w.client.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: "eventbus." + v1alpha1.Group}, &lease))
		if lease.Spec.HolderIdentity == nil {
			return ""
		}
		return *lease.Spec.HolderIdentity
	}
	answer := make(chan struct{})
	slow := func(*http.Request) int { <-answer; return http.StatusOK }
	w.refuse.Store(&slow)
	source := "/" + w.ns + "/cart"
	sub := subscription("slow", source, func(s *v1alpha1.SubscriptionSpec) { s.Delivery.Timeout = &metav1.Duration{Duration: time.Minute} })
	w.create(service("orders", 8080), sub)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.publish(source, "order.created.v1", "1")
	w.nextPush()
	require.NotEmpty(t, holder())

	w.cancel()
	require.Never(t, func() bool { return holder() == "" }, 3*time.Second, 50*time.Millisecond, "somebody else may dispatch while a push is on its way")
	close(answer)
	require.Eventually(t, func() bool { return holder() == "" }, patience, 10*time.Millisecond, "the lease is given back, not left to expire")
	w.stop()
}
