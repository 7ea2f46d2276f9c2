package controller_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// An EndpointSlice that is being deleted and kept by a finalizer is nobody's: the
// cluster does not put it right, and whoever may patch it may name any pod in it.
func TestAPinnedEndpointSliceLeadsToNobodyElsesPod(t *testing.T) {
	w := newWorld(t)
	p := w.controlPlane()
	g := w.gateway(p.address)
	const own, theirs = "10.77.0.7", "10.77.0.8"
	w.create(httpService("shop", map[string]string{"app": "shop"}))
	w.podAt(w.namespace, "shop-0", own)
	slice := w.endpointSlice("shop", own)
	slice.Labels[discoveryv1.LabelManagedBy] = "endpointslice-controller.k8s.io"
	slice.Finalizers = []string{"attack.example/pin"}
	w.create(slice)
	rule := w.apiRule("shop", "shop", toService("shop"))
	w.create(rule)
	w.requireReady(rule)

	bank := testkit.Namespace(t, w.config)
	w.podAt(bank, "vault-0", theirs)
	w.delete(slice)
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(slice), slice))
	slice.Endpoints[0].Addresses = []string{theirs}
	require.NoError(t, w.client.Update(t.Context(), slice))
	c := w.requireCondition(rule, v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
	require.Contains(t, c.Message, theirs+" belongs to namespace "+bank)
	g.requireStatus(http.StatusServiceUnavailable, "shop."+domain, "/")

	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(slice), slice))
	slice.Finalizers = nil
	require.NoError(t, w.client.Update(t.Context(), slice))
	w.requireReady(rule)
}

// An address is a pod's and no EndpointSlice's, so that nobody takes another's
// away by naming it.
func TestAnEndpointSliceTakesNobodysAddressAway(t *testing.T) {
	w := newWorld(t)
	p := w.controlPlane()
	w.gateway(p.address)
	const address = "10.77.0.9"
	w.create(httpService("shop", map[string]string{"app": "shop"}))
	slice := w.endpointSlice("shop", address)
	slice.Labels[discoveryv1.LabelManagedBy] = "endpointslice-controller.k8s.io"
	w.create(slice)
	w.podAt(w.namespace, "shop-0", address)

	mallory := testkit.Namespace(t, w.config)
	claim := w.endpointSlice("fake", address)
	claim.Namespace = mallory
	claim.Labels[discoveryv1.LabelManagedBy] = "endpointslice-controller.k8s.io"
	w.create(claim)

	rule := w.apiRule("shop", "shop", toService("shop"))
	w.create(rule)
	w.requireReady(rule)
}

// podAt is a pod that runs and has an address.
func (w *world) podAt(namespace, name, address string) {
	w.t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	w.create(pod)
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}}
	require.NoError(w.t, w.client.Status().Update(w.t.Context(), pod))
}

func (w *world) endpointSlice(service string, addresses ...string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: w.namespace, Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new(v1alpha1.ServiceHTTPPort), Port: new(int32(80))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: addresses}},
	}
}
