package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// policies keeps each lambda's NetworkPolicy. It is a controller of its own: a
// rule must not wait for its gateway to be let in behind somebody's build.
type policies struct {
	config Config
	client client.Client
	reader client.Reader
}

func addPolicies(mgr ctrl.Manager, p *policies) error {
	changed := builder.WithPredicates(predicate.GenerationChangedPredicate{})
	err := ctrl.NewControllerManagedBy(mgr).
		Named("lambda-policy").
		For(&v1alpha1.Lambda{}, changed).
		Owns(&networkingv1.NetworkPolicy{}).
		Watches(&v1alpha1.APIRule{}, handler.EnqueueRequestsFromMapFunc(p.named), changed).
		Watches(&v1alpha1.Subscription{}, handler.EnqueueRequestsFromMapFunc(p.named), changed).
		Watches(&corev1.Service{}, handler.EnqueueRequestsFromMapFunc(selected)).
		WithOptions(controller.Options{SkipNameValidation: new(true)}).
		Complete(p)
	if err != nil {
		return fmt.Errorf("add the controller of lambdas' network policies: %w", err)
	}
	return nil
}

// Reconcile implements reconcile.Reconciler.
func (p *policies) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	lambda := &v1alpha1.Lambda{}
	if err := p.client.Get(ctx, request.NamespacedName, lambda); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !lambda.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil // the policy goes with it, after its pods
	}
	existing, err := p.existing(ctx, lambda)
	if err != nil {
		return ctrl.Result{}, err
	}
	if existing != nil && !metav1.IsControlledBy(existing, lambda) {
		return ctrl.Result{}, nil // the lambda's own controller says that the name is taken
	}
	err = p.apply(ctx, lambda)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, err
}

// ensure makes the lambda's policy where there is none, for pods to start behind
// it. One that is there is kept by Reconcile alone, which sees every change of
// what it is made from.
func (p *policies) ensure(ctx context.Context, lambda *v1alpha1.Lambda) error {
	existing, err := p.existing(ctx, lambda)
	if err != nil || existing != nil {
		return err
	}
	return p.apply(ctx, lambda)
}

// existing is nil when there is none. It is read past the cache, which may hold
// only what is ours.
func (p *policies) existing(ctx context.Context, lambda *v1alpha1.Lambda) (*networkingv1.NetworkPolicy, error) {
	key := client.ObjectKeyFromObject(deploy.NetworkPolicy(lambda, deploy.Callers{}, p.config.Deploy))
	existing := &networkingv1.NetworkPolicy{}
	if err := p.reader.Get(ctx, key, existing); apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none
	} else if err != nil {
		return nil, fmt.Errorf("read NetworkPolicy %s: %w", key, err)
	}
	return existing, nil
}

func (p *policies) apply(ctx context.Context, lambda *v1alpha1.Lambda) error {
	callers, err := p.callers(ctx, lambda)
	if err != nil {
		return err
	}
	return kube.Apply(ctx, p.client, fieldManager, deploy.NetworkPolicy(lambda, callers, p.config.Deploy))
}

// callers of the lambda that APIRules and Subscriptions of its namespace name.
// What is wrong with them otherwise does not matter here: who a request comes
// from is checked again behind the policy.
func (p *policies) callers(ctx context.Context, lambda *v1alpha1.Lambda) (deploy.Callers, error) {
	var callers deploy.Callers
	var rules v1alpha1.APIRuleList
	var subscriptions v1alpha1.SubscriptionList
	for _, list := range []client.ObjectList{&rules, &subscriptions} {
		if err := p.client.List(ctx, list, client.InNamespace(lambda.Namespace)); err != nil {
			return callers, fmt.Errorf("list what names lambda %s: %w", client.ObjectKeyFromObject(lambda), err)
		}
	}
	isLambda := func(b backend) (bool, error) {
		if b.lambda != "" || b.service == lambda.Name {
			return b.lambda == lambda.Name || b.service == lambda.Name, nil
		}
		service := &corev1.Service{}
		err := p.client.Get(ctx, types.NamespacedName{Namespace: lambda.Namespace, Name: b.service}, service)
		return err == nil && service.Spec.Selector[v1alpha1.LabelLambda] == lambda.Name, client.IgnoreNotFound(err)
	}
	for i := range rules.Items {
		for _, b := range routed(&rules.Items[i]) {
			yes, err := isLambda(b)
			if err != nil {
				return callers, err
			}
			callers.Gateway = callers.Gateway || yes
		}
	}
	for i := range subscriptions.Items {
		for _, b := range sinks(&subscriptions.Items[i]) {
			yes, err := isLambda(b)
			if err != nil {
				return callers, err
			}
			callers.EventBus = callers.EventBus || yes
		}
	}
	return callers, nil
}

// named are the lambdas that an APIRule or a Subscription leads to. A Service
// may stand before another lambda than that of its name.
func (p *policies) named(ctx context.Context, object client.Object) []reconcile.Request {
	var all []backend
	switch o := object.(type) {
	case *v1alpha1.APIRule:
		all = routed(o)
	case *v1alpha1.Subscription:
		all = sinks(o)
	}
	var requests []reconcile.Request
	add := func(name string) {
		requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: object.GetNamespace(), Name: name}})
	}
	for _, b := range all {
		if b.lambda != "" {
			add(b.lambda)
			continue
		}
		add(b.service)
		service := &corev1.Service{}
		if err := p.client.Get(ctx, types.NamespacedName{Namespace: object.GetNamespace(), Name: b.service}, service); err == nil {
			if lambda := service.Spec.Selector[v1alpha1.LabelLambda]; lambda != "" && lambda != b.service {
				add(lambda)
			}
		}
	}
	return requests
}

// selected is the lambda that a Service stands before.
func selected(_ context.Context, object client.Object) []reconcile.Request {
	service, ok := object.(*corev1.Service)
	if !ok || service.Spec.Selector[v1alpha1.LabelLambda] == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: service.Namespace, Name: service.Spec.Selector[v1alpha1.LabelLambda]}}}
}

// backend is a lambda or a Service of the namespace.
type backend struct{ lambda, service string }

func routed(rule *v1alpha1.APIRule) []backend {
	var all []backend
	add := func(lambda string, service *v1alpha1.ServiceRef) {
		all = appendBackend(all, rule.Namespace, lambda, service)
	}
	for i := range rule.Spec.Rules {
		r := &rule.Spec.Rules[i]
		add(r.Lambda, r.Service)
		for _, b := range r.Backends {
			add(b.Lambda, b.Service)
		}
	}
	return all
}

func sinks(subscription *v1alpha1.Subscription) []backend {
	var all []backend
	add := func(sink v1alpha1.Sink) {
		all = appendBackend(all, subscription.Namespace, sink.Lambda, sink.ServiceIn(subscription.Namespace))
	}
	add(subscription.Spec.Sink)
	if dead := subscription.Spec.Delivery.DeadLetter; dead != nil {
		add(dead.Sink)
	}
	return all
}

// appendBackend leaves out what is in another namespace, which nothing there has
// agreed to.
func appendBackend(all []backend, namespace, lambda string, service *v1alpha1.ServiceRef) []backend {
	switch {
	case lambda != "":
		return append(all, backend{lambda: lambda})
	case service != nil && (service.Namespace == "" || service.Namespace == namespace):
		return append(all, backend{service: service.Name})
	}
	return all
}
