package controller

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

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

// selectors returns what a subscription may read of what it asks for. It fails
// with a [*refusal] when that is nothing.
func selectors(ctx context.Context, c client.Reader, sub *v1alpha1.Subscription) ([]event.Selector, error) {
	for _, pattern := range sub.Spec.Types {
		if err := event.CheckTypePattern(pattern); err != nil {
			return nil, refuse(v1alpha1.ReasonInvalid, "%v", err)
		}
	}
	origins, err := origins(ctx, c, sub.Namespace, sub.Spec.Source)
	if err != nil {
		return nil, err
	}
	var all []event.Selector
	for _, origin := range origins {
		for _, pattern := range sub.Spec.Types {
			origin.Type = pattern
			all = append(all, origin)
		}
	}
	return all, nil
}

// origins returns the sources, as selectors without a type, that a namespace
// may read of a subscription's source.
func origins(ctx context.Context, c client.Reader, namespace, source string) ([]event.Selector, error) {
	if source == "*" {
		return everything(ctx, c, namespace)
	}
	if owner, name, ok := event.WorkloadOf(source); ok {
		if owner == namespace {
			return []event.Selector{{Source: source}}, nil
		}
		grants, err := grantsTo(ctx, c, namespace)
		if err != nil {
			return nil, err
		}
		for _, g := range grants {
			if g.Namespace == owner && (len(g.Spec.Lambdas) == 0 || slices.Contains(g.Spec.Lambdas, name)) {
				return []event.Selector{{Source: source}}, nil
			}
		}
		return nil, refuse(v1alpha1.ReasonNotPermitted,
			"events of %s belong to namespace %s: an EventGrant there must name namespace %s", source, owner, namespace)
	}
	bound, err := boundApplications(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(bound, source) {
		return nil, refuse(v1alpha1.ReasonNotPermitted,
			"application %s is not bound in namespace %s: make an ApplicationBinding for it", source, namespace)
	}
	return []event.Selector{{Source: source}}, nil
}

// everything is all that a namespace may read: its own workloads' events, those
// of bound applications, and what it was granted.
func everything(ctx context.Context, c client.Reader, namespace string) ([]event.Selector, error) {
	all := []event.Selector{{Owner: namespace}}
	bound, err := boundApplications(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	for _, application := range bound {
		all = append(all, event.Selector{Source: application})
	}
	grants, err := grantsTo(ctx, c, namespace)
	if err != nil {
		return nil, err
	}
	for _, g := range grants {
		if len(g.Spec.Lambdas) == 0 {
			all = append(all, event.Selector{Owner: g.Namespace})
		}
		for _, lambda := range g.Spec.Lambdas {
			all = append(all, event.Selector{Source: v1alpha1.LambdaSource(g.Namespace, lambda)})
		}
	}
	return all, nil
}

// boundApplications are the names of the applications bound in a namespace.
func boundApplications(ctx context.Context, c client.Reader, namespace string) ([]string, error) {
	var bindings v1alpha1.ApplicationBindingList
	if err := c.List(ctx, &bindings, client.InNamespace(namespace)); err != nil {
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

// grantsTo are the event grants of other namespaces to this one.
func grantsTo(ctx context.Context, c client.Reader, namespace string) ([]v1alpha1.EventGrant, error) {
	var grants v1alpha1.EventGrantList
	if err := c.List(ctx, &grants); err != nil {
		return nil, fmt.Errorf("list event grants: %w", err)
	}
	return slices.DeleteFunc(grants.Items, func(g v1alpha1.EventGrant) bool {
		return !g.DeletionTimestamp.IsZero() || !slices.Contains(g.Spec.Namespaces, namespace)
	}), nil
}
