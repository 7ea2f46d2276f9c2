package controller_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func istioOnly(o *options) { o.envoy, o.istio = false, true }

// virtualService waits for the one made from an APIRule, and for check.
func (w *world) virtualService(rule *v1alpha1.APIRule, check func(*networkingv1.VirtualService) error) *networkingv1.VirtualService {
	w.t.Helper()
	var found *networkingv1.VirtualService
	testkit.Eventually(w.t, patience, func() error {
		var list networkingv1.VirtualServiceList
		if err := w.client.List(w.t.Context(), &list, client.InNamespace(w.namespace), client.MatchingLabels{v1alpha1.LabelOwnerName: rule.Name}); err != nil {
			return err
		}
		if len(list.Items) != 1 {
			return fmt.Errorf("there are %d", len(list.Items))
		}
		found = list.Items[0]
		return check(found)
	}, "the VirtualService of "+rule.Name)
	return found
}

func anyState(*networkingv1.VirtualService) error { return nil }

func TestIstioObjectsAreAppliedRepairedAndPruned(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane(istioOnly)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireReady(rule)
	vs := w.virtualService(rule, anyState)
	require.Equal(t, []string{"orders." + domain}, vs.Spec.Hosts)

	// Somebody changes a field of ours, and adds one that we do not set.
	routes := len(vs.Spec.Http)
	changed := vs.DeepCopy()
	changed.Spec.Http = changed.Spec.Http[:1]
	changed.Spec.ExportTo = []string{"."}
	require.NoError(t, w.client.Update(t.Context(), changed, client.FieldOwner("somebody")))
	vs = w.virtualService(rule, func(vs *networkingv1.VirtualService) error {
		if len(vs.Spec.Http) != routes || len(vs.Spec.ExportTo) != 0 {
			return fmt.Errorf("%d routes, exported to %v", len(vs.Spec.Http), vs.Spec.ExportTo)
		}
		return nil
	})

	// Somebody deletes it.
	uid := vs.UID
	w.delete(vs)
	w.virtualService(rule, func(vs *networkingv1.VirtualService) error {
		if vs.UID == uid {
			return fmt.Errorf("it is still the old one")
		}
		return nil
	})

	// Its rule goes while nobody looks.
	p.stop()
	kept := w.apiRule("kept", "kept", toService("orders"))
	w.delete(rule)
	w.create(kept)
	foreign := &networkingv1.VirtualService{
		ObjectMeta: metav1.ObjectMeta{Name: "foreign"},
		Spec:       istioapi.VirtualService{Hosts: []string{"foreign." + domain}, Http: []*istioapi.HTTPRoute{{DirectResponse: &istioapi.HTTPDirectResponse{Status: 200}}}},
	}
	w.create(foreign)
	w.controlPlane(istioOnly)
	w.requireReady(kept)
	testkit.Eventually(t, patience, func() error {
		err := w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: vs.Name}, &networkingv1.VirtualService{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	}, "the stale VirtualService is pruned")
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(foreign), foreign), "others' objects stay")
}

func TestAnUnchangedIstioObjectIsNotWrittenAgain(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane(istioOnly)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireReady(rule)
	before := w.virtualService(rule, anyState)

	other := w.apiRule("other", "other", toService("orders"))
	w.create(other)
	w.requireReady(other)
	require.Equal(t, before.ResourceVersion, w.virtualService(rule, anyState).ResourceVersion)

	p.stop()
	w.controlPlane(istioOnly)
	third := w.apiRule("third", "third", toService("orders"))
	w.create(third)
	w.requireReady(third)
	require.Equal(t, before.ResourceVersion, w.virtualService(rule, anyState).ResourceVersion, "not after a restart either")
}

func TestAnObjectThatCannotBeWrittenIsItsRulesConditionAlone(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	w.create(&v1alpha1.Lambda{
		ObjectMeta: metav1.ObjectMeta{Name: "last-order"},
		Spec:       v1alpha1.LambdaSpec{Runtime: v1alpha1.RuntimeGo, Source: v1alpha1.SourceSpec{Inline: &v1alpha1.InlineSource{Code: "package main"}}},
	})
	// Somebody's object has the name, and belongs to another controller.
	owner := true
	w.create(&securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{
		Name: "lambda-last-order",
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "v1", Kind: "ConfigMap", Name: "somebody", UID: "0a0a0a0a-0000-0000-0000-000000000000", Controller: &owner,
		}},
	}})
	w.controlPlane(istioOnly)
	bad := w.apiRule("bad", "bad", toLambda("last-order"))
	w.create(bad)
	good := w.apiRule("good", "good", toService("orders"))
	w.create(good)
	w.requireReady(good)
	c := w.requireCondition(bad, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, output.ReasonApplyFailed)
	require.Contains(t, c.Message, "AuthorizationPolicy "+w.namespace+"/lambda-last-order")
}

func TestWithBothOutputsProgrammedNeedsBoth(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane(func(o *options) { o.istio = true })
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	c := w.requireCondition(rule, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, output.ReasonNoDataPlane)
	require.Contains(t, c.Message, "envoy: ")
	w.virtualService(rule, anyState)
	w.gateway(p.address)
	w.requireReady(rule)
}

func TestAForeignChangeOfAStatusIsPutRight(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	w.controlPlane(istioOnly)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireReady(rule)
	var now v1alpha1.APIRule
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(rule), &now))
	now.Status = v1alpha1.APIRuleStatus{}
	require.NoError(t, w.client.Status().Update(t.Context(), &now))
	w.requireReady(rule)
}

func TestAKeySetOfASecretIsReadWhenItAppearsAndWhenItChanges(t *testing.T) {
	w := newWorld(t)
	w.create(nodeLambda("orders"))
	w.create(lambdaPod("orders", "orders-0", true))
	w.controlPlane(istioOnly)
	protected := toLambda("orders")
	protected.NoAuth = nil
	protected.JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{{Issuer: "https://issuer.test", JWKSSecret: "keys"}}}
	rule := w.apiRule("orders", "orders", protected)
	w.create(rule)
	w.requireCondition(rule, v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, v1alpha1.ReasonNotFound)
	secret := keySecret(`{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`)
	w.create(secret)
	w.requireCondition(rule, v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, "KeysUnusable")
	secret.Data = keySecret(newIssuer(t).set).Data
	require.NoError(t, w.client.Update(t.Context(), secret))
	w.requireReady(rule)
}

// Istio's gateways let every bearer token pass: it is the sidecar that checks
// it, so that without one a rule must not open.
func TestARuleWithTokensNeedsSidecarsUnderIstio(t *testing.T) {
	w := newWorld(t)
	w.service("plain", "no member of the mesh")
	w.create(nodeLambda("orders"))
	w.create(keySecret(newIssuer(t).set))
	w.controlPlane(istioOnly)
	protect := func(rule v1alpha1.Rule, path string) v1alpha1.Rule {
		rule.Path, rule.NoAuth = path, nil
		rule.JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{{Issuer: "https://issuer.test", JWKSSecret: "keys"}}}
		return rule
	}
	routed := func(name string) func(*networkingv1.VirtualService) error {
		return func(vs *networkingv1.VirtualService) error {
			for _, route := range vs.Spec.Http {
				if len(route.Route) > 0 && route.Route[0].Destination.Host == name+"."+w.namespace+".svc.cluster.local" {
					return nil
				}
			}
			return fmt.Errorf("no route leads to %s", name)
		}
	}
	closed := func(vs *networkingv1.VirtualService) error {
		for _, route := range vs.Spec.Http {
			if len(route.Route) > 0 {
				return fmt.Errorf("a route leads to %s", route.Route[0].Destination.Host)
			}
		}
		return nil
	}

	service := w.apiRule("plain", "plain", protect(toService("plain"), "/"))
	w.create(service)
	c := w.requireCondition(service, v1alpha1.ConditionAccepted, metav1.ConditionFalse, translate.ReasonNoSidecar)
	require.Contains(t, c.Message, "route to a lambda")
	w.requireCondition(service, v1alpha1.ConditionReady, metav1.ConditionFalse, translate.ReasonNoSidecar)
	w.virtualService(service, closed)

	rule := w.apiRule("orders", "orders", protect(toLambda("orders"), "/"))
	w.create(rule)
	w.requireCondition(rule, v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonPending)
	w.virtualService(rule, closed)

	w.create(lambdaPod("orders", "orders-0", true))
	w.requireReady(rule)
	w.virtualService(rule, routed("orders"))

	bare := lambdaPod("orders", "orders-1", false)
	w.create(bare)
	c = w.requireCondition(rule, v1alpha1.ConditionAccepted, metav1.ConditionFalse, translate.ReasonNoSidecar)
	require.Contains(t, c.Message, "1 of 2 pods of lambda "+w.namespace+"/orders have no sidecar")
	require.Contains(t, c.Message, "orders-1")
	require.Contains(t, c.Message, "istio-injection=enabled")
	w.virtualService(rule, closed)

	require.NoError(t, w.client.Delete(t.Context(), bare, client.GracePeriodSeconds(0)))
	w.requireReady(rule)
	w.virtualService(rule, routed("orders"))
}

func nodeLambda(name string) *v1alpha1.Lambda {
	return &v1alpha1.Lambda{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.LambdaSpec{Runtime: v1alpha1.RuntimeNodeJS, Source: v1alpha1.SourceSpec{Inline: &v1alpha1.InlineSource{Code: "x"}}},
	}
}

func lambdaPod(lambda, name string, sidecar bool) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1alpha1.LabelLambda: lambda}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "lambda", Image: "node"}}},
	}
	if sidecar { // as Istio's webhook leaves it
		pod.Annotations = map[string]string{"sidecar.istio.io/status": `{"containers":["istio-proxy"]}`}
	}
	return pod
}

func keySecret(set string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "keys"}, Data: map[string][]byte{"jwks.json": []byte(set)}}
}
