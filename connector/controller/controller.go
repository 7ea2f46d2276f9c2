package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	status "github.com/lambdamesh/lambdamesh/pkg/reconcile"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Setup adds the reconcilers to the manager. Its cache must hold the Secrets of
// the system namespace.
func Setup(mgr ctrl.Manager, policy *targets.Policy) error {
	c := mgr.GetClient()
	// A status of ours is no reason to look again.
	changed := builder.WithPredicates(predicate.GenerationChangedPredicate{})
	return errors.Join(
		ctrl.NewControllerManagedBy(mgr).Named("application").
			For(&v1alpha1.Application{}, changed).
			Watches(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(applicationsWithSecret(c))).
			Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(rivals(c)), changed).
			Complete(reconcile.AsReconciler(c, &applications{client: c, targets: policy})),
		ctrl.NewControllerManagedBy(mgr).Named("applicationbinding").
			For(&v1alpha1.ApplicationBinding{}, changed).
			Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(bindingsOfApplication(c)), changed).
			Complete(reconcile.AsReconciler(c, &bindings{client: c})),
		ctrl.NewControllerManagedBy(mgr).Named("tokenrequest").
			For(&v1alpha1.TokenRequest{}, changed).
			Complete(reconcile.AsReconciler(c, &tokenRequests{client: c})),
	)
}

// ReasonSourceConflict: another application speaks for a source.
const ReasonSourceConflict = "SourceConflict"

// problem is why an object is not ready.
type problem struct{ reason, message string }

// report writes Ready: True when there is no problem, else with the reason of
// the first and the messages of all.
func report[T status.Object](ctx context.Context, c client.Client, before, obj T, problems []problem) error {
	obj.SetObservedGeneration(obj.GetGeneration())
	if len(problems) == 0 {
		status.True(obj, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "")
	} else {
		messages := make([]string, len(problems))
		for i, p := range problems {
			messages[i] = p.message
		}
		status.False(obj, v1alpha1.ConditionReady, problems[0].reason, strings.Join(messages, "; "))
	}
	return status.PatchStatus(ctx, c, before, obj)
}

type applications struct {
	client  client.Client
	targets *targets.Policy
}

// Reconcile checks each service as the outbound gateway will, so that status and
// calls cannot disagree.
func (r *applications) Reconcile(ctx context.Context, app *v1alpha1.Application) (ctrl.Result, error) {
	secrets := func(name string) (*corev1.Secret, error) {
		var secret corev1.Secret
		err := r.client.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, &secret)
		return &secret, err
	}
	var problems []problem
	for i := range app.Spec.Services {
		service := &app.Spec.Services[i]
		if service.API == nil {
			continue
		}
		_, err := outbound.Resolve(service.API, secrets, r.targets)
		var unusable *outbound.UnusableError
		switch {
		case errors.As(err, &unusable):
			problems = append(problems, problem{unusable.Reason, fmt.Sprintf("service %s: %s", service.Name, unusable.Message)})
		case err != nil:
			return ctrl.Result{}, err
		}
	}
	taken, err := r.taken(ctx, app)
	if err != nil {
		return ctrl.Result{}, err
	}
	problems = append(problems, taken...)
	if len(app.Spec.Webhooks) > 0 {
		problems = append(problems, problem{v1alpha1.ReasonNotSupported, "webhooks are not implemented in this version: the services work without them"})
	}
	return ctrl.Result{}, report(ctx, r.client, app.DeepCopy(), app, problems)
}

// taken names the sources of an application that belong to an older one.
func (r *applications) taken(ctx context.Context, app *v1alpha1.Application) (problems []problem, err error) {
	if len(app.Spec.Sources) == 0 {
		return nil, nil
	}
	var all v1alpha1.ApplicationList
	if err := r.client.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("listing Applications: %w", err)
	}
	for _, source := range app.Spec.Sources {
		if owner, ok := v1alpha1.SourceOwner(all.Items, source); ok && owner.Name != app.Name {
			problems = append(problems, problem{ReasonSourceConflict, fmt.Sprintf(
				"the source %s belongs to the older Application %s: remove it from the spec.sources of one", source, owner.Name)})
		}
	}
	return problems, nil
}

// rivals maps an application to the others that name one of its sources.
func rivals(c client.Client) handler.MapFunc {
	return func(ctx context.Context, obj client.Object) []reconcile.Request {
		app, ok := obj.(*v1alpha1.Application)
		var list v1alpha1.ApplicationList
		if !ok || c.List(ctx, &list) != nil {
			return nil
		}
		var requests []reconcile.Request
		for i := range list.Items {
			other := &list.Items[i]
			if other.Name != app.Name && slices.ContainsFunc(other.Spec.Sources, func(s string) bool { return slices.Contains(app.Spec.Sources, s) }) {
				requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(other)})
			}
		}
		return requests
	}
}

type bindings struct{ client client.Client }

// Reconcile checks that what the binding names exists. A lambda may come later:
// the binding is ready for it.
func (r *bindings) Reconcile(ctx context.Context, binding *v1alpha1.ApplicationBinding) (ctrl.Result, error) {
	var problems []problem
	if selection := binding.Spec.Lambdas; selection != nil {
		if _, err := metav1.LabelSelectorAsSelector(selection.Selector); err != nil {
			problems = append(problems, problem{v1alpha1.ReasonInvalid, "lambdas.selector: " + err.Error()})
		}
	}
	var app v1alpha1.Application
	err := r.client.Get(ctx, client.ObjectKey{Name: binding.Spec.Application}, &app)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return ctrl.Result{}, err
	case err != nil:
		problems = append(problems, problem{v1alpha1.ReasonNotFound, fmt.Sprintf("there is no Application %s", binding.Spec.Application)})
	default:
		for _, name := range binding.Spec.Services {
			if !slices.ContainsFunc(app.Spec.Services, func(s v1alpha1.ApplicationService) bool { return s.Name == name }) {
				problems = append(problems, problem{v1alpha1.ReasonNotFound, fmt.Sprintf("the Application %s has no service %s", app.Name, name)})
			}
		}
	}
	return ctrl.Result{}, report(ctx, r.client, binding.DeepCopy(), binding, problems)
}

type tokenRequests struct{ client client.Client }

// Reconcile says that nobody makes a token.
func (r *tokenRequests) Reconcile(ctx context.Context, request *v1alpha1.TokenRequest) (ctrl.Result, error) {
	return ctrl.Result{}, report(ctx, r.client, request.DeepCopy(), request,
		[]problem{{v1alpha1.ReasonNotSupported, "pairing is not implemented in this version: no token is made"}})
}

// applicationsWithSecret maps a Secret to the applications whose credentials it
// holds.
func applicationsWithSecret(c client.Client) handler.MapFunc {
	return func(ctx context.Context, secret client.Object) []reconcile.Request {
		var list v1alpha1.ApplicationList
		if secret.GetNamespace() != v1alpha1.SystemNamespace || c.List(ctx, &list) != nil {
			return nil
		}
		var requests []reconcile.Request
		for i := range list.Items {
			if slices.Contains(secretsOf(&list.Items[i]), secret.GetName()) {
				requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
		return requests
	}
}

// secretsOf returns the names of the Secrets that an application refers to.
func secretsOf(app *v1alpha1.Application) []string {
	var names []string
	for _, service := range app.Spec.Services {
		if service.API == nil || service.API.Auth == nil {
			continue
		}
		auth := service.API.Auth
		if auth.OAuth2 != nil {
			names = append(names, auth.OAuth2.Secret.Name)
		}
		if auth.Basic != nil {
			names = append(names, auth.Basic.Secret.Name)
		}
		if auth.MTLS != nil {
			names = append(names, auth.MTLS.Secret.Name)
		}
		for _, value := range slices.Concat(auth.Headers, auth.QueryParameters) {
			if value.Secret != nil {
				names = append(names, value.Secret.Name)
			}
		}
	}
	return names
}

// bindingsOfApplication maps an application to the bindings that name it.
func bindingsOfApplication(c client.Client) handler.MapFunc {
	return func(ctx context.Context, app client.Object) []reconcile.Request {
		var list v1alpha1.ApplicationBindingList
		if c.List(ctx, &list) != nil {
			return nil
		}
		var requests []reconcile.Request
		for i := range list.Items {
			if list.Items[i].Spec.Application == app.GetName() {
				requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
		return requests
	}
}
