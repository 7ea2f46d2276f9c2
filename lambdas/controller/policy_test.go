package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// refusal stands for an API server that takes no NetworkPolicies in some
// namespaces.
type refusal struct {
	mu         sync.Mutex
	namespaces map[string]bool
}

func (r *refusal) set(namespace string, refuse bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.namespaces[namespace] = refuse
}

func (r *refusal) newClient(config *rest.Config, options client.Options) (client.Client, error) {
	c, err := client.NewWithWatch(config, options)
	if err != nil {
		return nil, err
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, object runtime.ApplyConfiguration, options ...client.ApplyOption) error {
			var is struct {
				Kind     string
				Metadata struct{ Namespace string }
			}
			text, err := json.Marshal(object)
			if err != nil {
				return err
			}
			if err := json.Unmarshal(text, &is); err != nil {
				return err
			}
			r.mu.Lock()
			refused := is.Kind == "NetworkPolicy" && r.namespaces[is.Metadata.Namespace]
			r.mu.Unlock()
			if refused {
				return errors.New("admission says no")
			}
			return c.Apply(ctx, object, options...)
		},
	}), nil
}

// testPolicies shows that a lambda's NetworkPolicy lets in what names it, as
// long as it does.
func testPolicies(t *testing.T, w *world, ns string) {
	rule := func(name string, backend v1alpha1.Rule) *v1alpha1.APIRule {
		backend.Path, backend.NoAuth = "/*", new(true)
		r := &v1alpha1.APIRule{Spec: v1alpha1.APIRuleSpec{Hosts: []string{ns + "-" + name}, Rules: []v1alpha1.Rule{backend}}}
		r.Name, r.Namespace = name, ns
		return r
	}
	lambda := w.create(t, ns, nil)
	w.letsIn(t, lambda)

	routes := rule("routes", v1alpha1.Rule{Lambda: lambda.Name})
	require.NoError(t, w.client.Create(t.Context(), routes))
	w.letsIn(t, lambda, "lambdamesh-system/gateway")

	sub := &v1alpha1.Subscription{Spec: v1alpha1.SubscriptionSpec{
		Source: "commerce", Types: []string{"a"}, Sink: v1alpha1.Sink{URI: "https://example.com"},
		Delivery: v1alpha1.Delivery{DeadLetter: &v1alpha1.DeadLetter{Sink: v1alpha1.Sink{Lambda: lambda.Name}}},
	}}
	sub.Name, sub.Namespace = "dead", ns
	require.NoError(t, w.client.Create(t.Context(), sub))
	w.letsIn(t, lambda, "lambdamesh-system/eventbus", "lambdamesh-system/gateway")

	require.NoError(t, w.client.Delete(t.Context(), routes))
	w.letsIn(t, lambda, "lambdamesh-system/eventbus")
	require.NoError(t, w.client.Delete(t.Context(), sub))
	w.letsIn(t, lambda)

	// By a URI that names its Service, as the event bus calls it.
	uri := &v1alpha1.Subscription{Spec: v1alpha1.SubscriptionSpec{
		Source: "commerce", Types: []string{"a"}, Sink: v1alpha1.Sink{URI: "http://" + lambda.Name + "." + ns + ".svc/hook"},
	}}
	uri.Name, uri.Namespace = "uri", ns
	require.NoError(t, w.client.Create(t.Context(), uri))
	w.letsIn(t, lambda, "lambdamesh-system/eventbus")
	require.NoError(t, w.client.Delete(t.Context(), uri))
	w.letsIn(t, lambda)

	// By a Service that stands before the lambda and comes later.
	require.NoError(t, w.client.Create(t.Context(), rule("front", v1alpha1.Rule{Service: &v1alpha1.ServiceRef{Name: "front"}})))
	require.NoError(t, w.client.Create(t.Context(), rule("elsewhere", v1alpha1.Rule{Lambda: "another"})))
	front := &corev1.Service{Spec: corev1.ServiceSpec{Selector: map[string]string{v1alpha1.LabelLambda: lambda.Name}, Ports: []corev1.ServicePort{{Port: 80}}}}
	front.Name, front.Namespace = "front", ns
	require.NoError(t, w.client.Create(t.Context(), front))
	w.letsIn(t, lambda, "lambdamesh-system/gateway")

	w.change(t, lambda, func(l *v1alpha1.Lambda) {
		l.Spec.Access = []v1alpha1.LambdaAccess{{Namespace: "bank", Lambda: "ledger"}}
	})
	w.letsIn(t, lambda, "bank/ledger", "lambdamesh-system/gateway")

	// What somebody opens is closed again.
	policy := w.letsIn(t, lambda, "bank/ledger", "lambdamesh-system/gateway")
	policy.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{}}
	require.NoError(t, w.client.Update(t.Context(), policy, client.FieldOwner("somebody")))
	w.letsIn(t, lambda, "bank/ledger", "lambdamesh-system/gateway")
	require.NoError(t, w.client.Delete(t.Context(), policy))
	w.letsIn(t, lambda, "bank/ledger", "lambdamesh-system/gateway")
}

// letsIn waits until the lambda's policy lets exactly these callers in, written
// namespace/pods.
func (w *world) letsIn(t *testing.T, lambda *v1alpha1.Lambda, want ...string) *networkingv1.NetworkPolicy {
	t.Helper()
	policy := &networkingv1.NetworkPolicy{}
	testkit.Eventually(t, time.Minute, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKey{Namespace: lambda.Namespace, Name: "lambda-" + lambda.Name}, policy); err != nil {
			return err
		}
		var got []string
		for _, ingress := range policy.Spec.Ingress {
			if len(ingress.From) == 0 || len(ingress.Ports) != 1 {
				return fmt.Errorf("a rule lets in everybody, or to every port: %v", ingress)
			}
			if ingress.Ports[0].Port.StrVal != v1alpha1.ServiceHTTPPort {
				continue
			}
			for _, from := range ingress.From {
				for _, name := range from.PodSelector.MatchLabels {
					got = append(got, from.NamespaceSelector.MatchLabels[corev1.LabelMetadataName]+"/"+name)
				}
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("lets in %v", got)
		}
		return nil
	}, "the policy lets in "+strings.Join(want, " and "))
	require.True(t, metav1.IsControlledBy(policy, lambda))
	require.Equal(t, map[string]string{v1alpha1.LabelLambda: lambda.Name}, policy.Spec.PodSelector.MatchLabels)
	require.Equal(t, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, policy.Spec.PolicyTypes)
	return policy
}
