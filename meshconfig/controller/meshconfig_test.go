package controller_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// With Istio's default a rule for /private does not decide about //private, and
// nothing in our objects can change that.
func TestNoRuleIsAcceptedUntilIstioNormalizesPaths(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	w.controlPlane(istioOnly, func(o *options) { o.meshConfig = "istio" })
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	refused := func() string {
		t.Helper()
		return w.requireCondition(rule, v1alpha1.ConditionAccepted, metav1.ConditionFalse, translate.ReasonPathsNotNormalized).Message
	}
	require.Contains(t, refused(), "ConfigMap "+w.namespace+"/istio, key mesh) is not there")
	vs := w.virtualService(rule, anyState)
	for _, route := range vs.Spec.Http {
		require.NotNil(t, route.GetDirectResponse(), "route %s of a rule that is not accepted reaches a backend", route.GetName())
	}

	config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio"}, Data: map[string]string{"mesh": "accessLogFile: /dev/stdout"}}
	w.create(config)
	set := func(mesh string) {
		t.Helper()
		config.Data["mesh"] = mesh
		require.NoError(t, w.client.Update(t.Context(), config))
	}
	// It heals by itself, and is closed again.
	set("pathNormalization: {normalization: MERGE_SLASHES}")
	w.requireReady(rule)
	w.virtualService(rule, func(vs *networkingv1.VirtualService) error {
		for _, route := range vs.Spec.Http {
			if len(route.GetRoute()) > 0 {
				return nil
			}
		}
		return errors.New("no route reaches a backend")
	})
	set("pathNormalization: {normalization: BASE}")
	require.Contains(t, refused(), "has the path normalization BASE; set pathNormalization.normalization to MERGE_SLASHES")
	set("pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}")
	w.requireReady(rule)
}
