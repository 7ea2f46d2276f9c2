package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// refusal is why a subscription cannot be served as it is: the reason and the
// message of a condition.
type refusal struct{ reason, message string }

func (r *refusal) Error() string { return r.message }

func refuse(reason, format string, args ...any) error {
	return &refusal{reason: reason, message: fmt.Sprintf(format, args...)}
}

// permitted tells a refusal from a failure to find out.
func permitted(err error) (bool, error) {
	if _, ok := errors.AsType[*refusal](err); ok {
		return false, nil
	}
	return err == nil, err
}

// selectors combines origins with the types that a subscription asks for. It
// fails with a [*refusal] when a type is invalid.
func selectors(origins []broker.Selector, types []string) ([]broker.Selector, error) {
	for _, pattern := range types {
		if err := broker.CheckTypePattern(pattern); err != nil {
			return nil, refuse(v1alpha1.ReasonInvalid, "%v", err)
		}
	}
	var all []broker.Selector
	for _, origin := range origins {
		for _, pattern := range types {
			origin.Type = pattern
			all = append(all, origin)
		}
	}
	return all, nil
}

// origins returns the sources, as selectors without a type, that a namespace
// may read of a subscription's source. It fails with a [*refusal] when that is
// nothing.
func (r *Reconciler) origins(ctx context.Context, namespace, source string) ([]broker.Selector, error) {
	if source == "*" {
		return r.everything(ctx, namespace)
	}
	if err := r.mayRead(ctx, namespace, source); err != nil {
		return nil, err
	}
	if _, _, ok := event.WorkloadOf(source); ok {
		return []broker.Selector{{Source: source}}, nil
	}
	app, err := owner(ctx, r.client, source)
	if err != nil {
		return nil, err
	}
	if app != nil && app.Name == source {
		return spoken(ctx, r.client, source)
	}
	return []broker.Selector{{Source: source}}, nil
}

// mayRead returns nil when a namespace may read the events of one source now, a
// [*refusal] when it may not. It is asked for every event, and reads from a cache.
func (r *Reconciler) mayRead(ctx context.Context, namespace, source string) error {
	if owner, name, ok := event.WorkloadOf(source); ok {
		if owner == namespace {
			return nil
		}
		grants, err := grantsTo(ctx, r.client, namespace, client.InNamespace(owner))
		if err != nil {
			return err
		}
		for _, g := range grants {
			if len(g.Spec.Lambdas) == 0 || slices.Contains(g.Spec.Lambdas, name) {
				return nil
			}
		}
		return refuse(v1alpha1.ReasonNotPermitted,
			"events of %s belong to namespace %s: an EventGrant there must name namespace %s", source, owner, namespace)
	}
	bound, err := boundApplications(ctx, r.client, namespace)
	if err != nil {
		return err
	}
	app, err := owner(ctx, r.client, source)
	switch {
	case err != nil:
		return err
	case app == nil && (r.openSources || slices.Contains(bound, source)): // bound: the application is still to come
		return nil
	case app == nil:
		return refuse(v1alpha1.ReasonNotPermitted,
			"nobody owns the source %s: an Application of that name, or one that names it in spec.sources, must be bound in namespace %s", source, namespace)
	case !slices.Contains(bound, app.Name):
		return refuse(v1alpha1.ReasonNotPermitted,
			"application %s is not bound in namespace %s: make an ApplicationBinding for it", app.Name, namespace)
	}
	return nil
}

// spoken are the sources of an application: its name, and those that it speaks
// for and no older one does.
func spoken(ctx context.Context, c client.Reader, application string) ([]broker.Selector, error) {
	all := []broker.Selector{{Source: application}}
	var apps v1alpha1.ApplicationList
	if err := c.List(ctx, &apps); err != nil {
		return nil, fmt.Errorf("list applications: %w", err)
	}
	for i := range apps.Items {
		if apps.Items[i].Name != application {
			continue
		}
		for _, source := range apps.Items[i].Spec.Sources {
			if owner, ok := v1alpha1.SourceOwner(apps.Items, source); ok && owner.Name == application {
				all = append(all, broker.Selector{Source: source})
			}
		}
	}
	return all, nil
}

// everything is all that a namespace may read: its own workloads' events, those
// of bound applications, what it was granted, and, where they are open, those of
// sources that nobody owns. Which those are changes when applications do, and the
// broker selects all that are no workloads: [Reconciler.mayRead] tells the rest.
func (r *Reconciler) everything(ctx context.Context, namespace string) ([]broker.Selector, error) {
	c := r.client
	all := []broker.Selector{{Owner: namespace}}
	bound, err := boundApplications(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	for _, application := range bound {
		sources, err := spoken(ctx, c, application)
		if err != nil {
			return nil, err
		}
		all = append(all, sources...)
	}
	if r.openSources {
		all = append(all, broker.Selector{Owner: broker.NoOwner})
	}
	grants, err := grantsTo(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	for _, g := range grants {
		if len(g.Spec.Lambdas) == 0 {
			all = append(all, broker.Selector{Owner: g.Namespace})
		}
		for _, lambda := range g.Spec.Lambdas {
			all = append(all, broker.Selector{Source: v1alpha1.LambdaSource(g.Namespace, lambda)})
		}
	}
	return all, nil
}

// boundApplications are the names of the applications bound in a namespace.
func boundApplications(ctx context.Context, c client.Reader, namespace string) ([]string, error) {
	var bindings v1alpha1.ApplicationBindingList
	if err := c.List(ctx, &bindings, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list the application bindings of namespace %s: %w", namespace, err)
	}
	var names []string
	for _, b := range bindings.Items {
		if b.DeletionTimestamp.IsZero() && !slices.Contains(names, b.Spec.Application) {
			names = append(names, b.Spec.Application)
		}
	}
	slices.Sort(names)
	return names, nil
}

// grantsTo are the event grants to a namespace, among those that opts select.
func grantsTo(ctx context.Context, c client.Reader, namespace string, opts ...client.ListOption) ([]v1alpha1.EventGrant, error) {
	var grants v1alpha1.EventGrantList
	if err := c.List(ctx, &grants, append(opts, client.UnsafeDisableDeepCopy)...); err != nil {
		return nil, fmt.Errorf("list event grants: %w", err)
	}
	return slices.DeleteFunc(grants.Items, func(g v1alpha1.EventGrant) bool {
		return !g.DeletionTimestamp.IsZero() || !slices.Contains(g.Spec.Namespaces, namespace)
	}), nil
}
