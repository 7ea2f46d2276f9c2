package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/connector/registry"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	status "github.com/lambdamesh/lambdamesh/pkg/reconcile"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// ReasonNameConflict: another service of the application has the name or the id.
const ReasonNameConflict = "NameConflict"

// unclaimed is how old a Secret of the registry may be that no service refers to:
// it is written before the service is.
const unclaimed = time.Minute

type services struct {
	client  client.Client
	live    client.Reader
	targets *targets.Policy
	probes  *probes
}

// Reconcile checks a service as the outbound gateway will, keeps its event types,
// and sees to the Secrets that the registry made for it.
func (r *services) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var service v1alpha1.ApplicationService
	err := r.client.Get(ctx, request.NamespacedName, &service)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, err
	}
	if err != nil || !service.DeletionTimestamp.IsZero() {
		r.probes.set(probeKey{object: request.Name}, nil, 0)
		after, err := r.sweep(ctx, request.Name, nil)
		return ctrl.Result{RequeueAfter: after}, err
	}
	before := service.DeepCopy()
	problems, err := r.check(ctx, &service)
	if err != nil {
		return ctrl.Result{}, err
	}
	judge := judge{client: r.client, live: r.live}
	judged, err := judge.service(ctx, &service)
	if err != nil {
		return ctrl.Result{}, err
	}
	problems = append(problems, judged...)
	reportProbe(&service, r.probes.result(probeKey{object: service.Name}))
	after, err := r.sweep(ctx, service.Name, &service)
	if err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: after}, report(ctx, r.client, before, &service, problems)
}

// check finds what keeps the service from being called.
func (r *services) check(ctx context.Context, service *v1alpha1.ApplicationService) (problems []problem, err error) {
	var app v1alpha1.Application
	err = r.client.Get(ctx, client.ObjectKey{Name: service.Spec.Application}, &app, client.UnsafeDisableDeepCopy)
	if client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	if err != nil {
		problems = append(problems, problem{v1alpha1.ReasonNotFound, fmt.Sprintf("there is no Application %s", service.Spec.Application)})
	}
	for i := range app.Spec.Services {
		if app.Spec.Services[i].Name == service.Spec.Name {
			problems = append(problems, problem{ReasonNameConflict, fmt.Sprintf(
				"the Application %s itself has a service %s, which counts: remove it there, or this one", app.Name, service.Spec.Name)})
		}
	}
	if service.Spec.ID != "" {
		var others v1alpha1.ApplicationServiceList
		err := r.client.List(ctx, &others, client.MatchingFields{catalog.ByApplication: service.Spec.Application}, client.UnsafeDisableDeepCopy)
		if err != nil {
			return nil, err
		}
		for i := range others.Items {
			if other := &others.Items[i]; other.Name < service.Name && other.Spec.ID == service.Spec.ID {
				problems = append(problems, problem{ReasonNameConflict, fmt.Sprintf("the ApplicationService %s has the id %s, too: write another", other.Name, other.Spec.ID)})
			}
		}
	}
	if service.Spec.API == nil {
		r.probes.set(probeKey{object: service.Name}, nil, 0)
		return problems, nil
	}
	unusable, err := resolve(ctx, r.client, service.Spec.API, r.targets)
	if unusable != nil {
		problems = append(problems, *unusable)
	}
	r.probes.set(probeKey{object: service.Name}, service.Spec.API, service.Generation)
	return problems, err
}

// resolve finds out whether the outbound gateway could call an API.
func resolve(ctx context.Context, c client.Reader, api *v1alpha1.ServiceAPI, policy *targets.Policy) (*problem, error) {
	secrets := func(name string) (*corev1.Secret, error) {
		var secret corev1.Secret
		err := c.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, &secret, client.UnsafeDisableDeepCopy)
		return &secret, err
	}
	_, err := outbound.Resolve(api, secrets, policy)
	var unusable *outbound.UnusableError
	if errors.As(err, &unusable) {
		return &problem{unusable.Reason, unusable.Message}, nil
	}
	return nil, err
}

// sweep makes the Secret that the registry made for a service go with it, and
// deletes those that it refers to no longer. A nil service is one that is gone.
func (r *services) sweep(ctx context.Context, name string, service *v1alpha1.ApplicationService) (after time.Duration, err error) {
	var secrets corev1.SecretList
	err = r.client.List(ctx, &secrets, client.InNamespace(v1alpha1.SystemNamespace), client.MatchingFields{catalog.ByService: name})
	if err != nil {
		return 0, fmt.Errorf("listing the Secrets of ApplicationService %s: %w", name, err)
	}
	used := map[string]bool{}
	if service != nil {
		for _, secret := range catalog.Secrets(service.Spec.API) {
			used[secret] = true
		}
	}
	var errs []error
	for i := range secrets.Items {
		secret := &secrets.Items[i]
		age := time.Since(secret.CreationTimestamp.Time)
		switch {
		case !secret.DeletionTimestamp.IsZero():
		case used[secret.Name]:
			if !metav1.IsControlledBy(secret, service) {
				errs = append(errs, registry.Own(ctx, r.client, service, secret))
			}
		case age < unclaimed:
			after = max(after, unclaimed-age)
		default:
			errs = append(errs, client.IgnoreNotFound(r.client.Delete(ctx, secret)))
		}
	}
	return after, errors.Join(errs...)
}

func controllerRef(owner client.Object, kind string) metav1.OwnerReference {
	return metav1.OwnerReference{
		APIVersion: v1alpha1.GroupVersion().String(), Kind: kind, Name: owner.GetName(), UID: owner.GetUID(), Controller: new(true),
	}
}

// servicesOfApplication maps an application to its ApplicationServices.
func servicesOfApplication(c client.Reader) func(context.Context, client.Object) []reconcile.Request {
	return func(ctx context.Context, app client.Object) []reconcile.Request {
		return servicesWith(ctx, c, client.MatchingFields{catalog.ByApplication: app.GetName()})
	}
}

// servicesWithSecret maps a Secret to the ApplicationServices that refer to it, and
// to the one that it was made for.
func servicesWithSecret(c client.Reader) func(context.Context, client.Object) []reconcile.Request {
	return func(ctx context.Context, secret client.Object) []reconcile.Request {
		if secret.GetNamespace() != v1alpha1.SystemNamespace {
			return nil
		}
		requests := servicesWith(ctx, c, client.MatchingFields{catalog.BySecret: secret.GetName()})
		if labels := secret.GetLabels(); catalog.MadeByRegistry(secret) {
			name := v1alpha1.ServiceObjectName(labels[v1alpha1.LabelApplication], labels[v1alpha1.LabelService])
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKey{Name: name}})
		}
		return requests
	}
}

func servicesWith(ctx context.Context, c client.Reader, fields client.MatchingFields) []reconcile.Request {
	var list v1alpha1.ApplicationServiceList
	if err := c.List(ctx, &list, fields, client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "listing ApplicationServices failed", "fields", fields)
		return nil
	}
	requests := make([]reconcile.Request, len(list.Items))
	for i := range list.Items {
		requests[i].Name = list.Items[i].Name
	}
	return requests
}

// reportProbe tells what the last probe of a target found; an empty result is none.
func reportProbe(obj status.Object, result probeResult) {
	switch {
	case !result.wanted:
		kept := (*obj.Conditions())[:0]
		for _, c := range *obj.Conditions() {
			if c.Type != v1alpha1.ConditionTargetReachable {
				kept = append(kept, c)
			}
		}
		*obj.Conditions() = kept
	case result.at.IsZero():
		status.Set(obj, v1alpha1.ConditionTargetReachable, metav1.ConditionUnknown, v1alpha1.ReasonPending, "the target has not been asked yet")
	case result.failure == "":
		status.True(obj, v1alpha1.ConditionTargetReachable, ReasonAnswers, "the target answered the last probe")
	default:
		status.False(obj, v1alpha1.ConditionTargetReachable, ReasonNoAnswer, result.failure)
	}
}
