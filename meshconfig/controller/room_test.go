package controller_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// Within their budgets namespaces may still give a gateway more than one message
// carries. The largest is left out then, and nothing is frozen: least of all what
// closes or removes a rule, and not a control plane that starts.
func TestTheLargestNamespaceIsLeftOutOfWhatIsTooMuch(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	w.service("bills", "a bill")
	small := func(o *options) { o.response = 80 << 10 }
	p := w.controlPlane(small)
	g := w.gateway(p.address)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireReady(rule)
	last := w.apiRule("last", "last", toService("orders"))
	w.create(last)
	w.requireReady(last)

	hostile := w.fatRule(testkit.Namespace(t, w.config), 12)
	c := w.requireCondition(hostile, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, translate.ReasonTooLarge)
	require.Regexp(t, `is left out; remove .*resources of type Cluster take \d+ bytes, and a response has room for 40960`, c.Message)
	g.requireStatus(http.StatusServiceUnavailable, "fat."+domain, "/0")

	changes := func() {
		t.Helper()
		w.delete(rule)
		g.requireStatus(http.StatusNotFound, "orders."+domain, "/")
		rule = w.apiRule("orders", "orders", toService("orders"))
		w.create(rule)
		w.requireReady(rule)
		g.requireStatus(http.StatusOK, "orders."+domain, "/")
		require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(rule), rule))
		rule.Spec.Rules = []v1alpha1.Rule{toService("bills")}
		require.NoError(t, w.client.Update(t.Context(), rule))
		w.requireReady(rule)
		_, body, err := g.get("orders."+domain, "/")
		require.NoError(t, err)
		require.Equal(t, "a bill", body)
	}
	changes()

	g.stop()
	p.stop()
	p = w.controlPlane(small)
	g = w.gateway(p.address)
	g.requireStatus(http.StatusOK, "orders."+domain, "/")
	changes()

	w.delete(hostile)
	g.requireStatus(http.StatusNotFound, "fat."+domain, "/0")
}

// fatRule leads to a Service with so many ports, all of whose machines run under
// accounts of their own.
func (w *world) fatRule(namespace string, ports int) *v1alpha1.APIRule {
	w.t.Helper()
	service := httpService("fat", map[string]string{"app": "fat"})
	service.Namespace, service.Spec.Ports = namespace, nil
	rule := w.apiRule("fat", "fat")
	rule.Namespace = namespace
	for i := range ports {
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(1000 + i)})
		r := open(fmt.Sprint("/", i))
		r.Service = &v1alpha1.ServiceRef{Name: "fat", Port: int32(1000 + i)}
		rule.Spec.Rules = append(rule.Spec.Rules, r)
	}
	w.create(service)
	for i := range 16 {
		w.create(&networkingv1.WorkloadEntry{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("fat-", i), Namespace: namespace},
			Spec: istioapi.WorkloadEntry{
				Address: fmt.Sprint("8.8.8.", i+1), ServiceAccount: fmt.Sprintf("s%02d", i) + strings.Repeat("a", 250),
				Labels: map[string]string{"app": "fat", v1alpha1.LabelIstioTLSMode: "istio"},
			},
		})
	}
	w.create(rule)
	return rule
}
