package controller

import (
	"context"
	"fmt"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// owner returns the application that speaks for a source; see
// [v1alpha1.SourceOwner].
func owner(ctx context.Context, c client.Reader, source string) (*v1alpha1.Application, error) {
	var app v1alpha1.Application
	err := c.Get(ctx, client.ObjectKey{Name: source}, &app)
	if err == nil && app.DeletionTimestamp.IsZero() {
		return &app, nil
	}
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read application %s: %w", source, err)
	}
	var all v1alpha1.ApplicationList
	// Nothing of it is changed, and it is asked for often.
	if err := c.List(ctx, &all, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list applications: %w", err)
	}
	found, _ := v1alpha1.SourceOwner(all.Items, source)
	return found, nil
}

// Owned returns a function that tells whether somebody owns a source: a workload
// by its form, or an application that has the name or speaks for it. One
// that cannot be read is nobody's: publishing is refused then. c reads from a cache.
func Owned(c client.Reader) func(source string) bool {
	return func(source string) bool {
		if _, _, ok := event.WorkloadOf(source); ok {
			return true
		}
		app, err := owner(context.Background(), c, source)
		return err == nil && app != nil
	}
}

// Publishers returns a function that tells whether a workload publishes for the
// application that owns a source: the application names it among its publishers,
// or it is the connector. c reads from a cache.
func Publishers(c client.Reader) func(source, namespace, serviceAccount string) bool {
	return func(source, namespace, serviceAccount string) bool {
		app, err := owner(context.Background(), c, source)
		if err != nil || app == nil {
			return false
		}
		if namespace == v1alpha1.SystemNamespace && serviceAccount == v1alpha1.ServiceAccountConnector {
			return true
		}
		return slices.ContainsFunc(app.Spec.Publishers, func(p v1alpha1.LambdaAccess) bool {
			// A lambda's service account has its name.
			return p.Namespace == namespace && (p.Lambda == serviceAccount || p.ServiceAccount == serviceAccount)
		})
	}
}

// Subscribed returns a function that lists the type patterns Subscriptions ask
// of an application's events, sorted, each once. c reads from a cache.
func Subscribed(c client.Reader) func(application string) []string {
	return func(application string) []string {
		var subs v1alpha1.SubscriptionList
		if c.List(context.Background(), &subs) != nil {
			return nil
		}
		var types []string
		for _, sub := range subs.Items {
			if sub.Spec.Source == application {
				types = append(types, sub.Spec.Types...)
			}
		}
		slices.Sort(types)
		return slices.Compact(types)
	}
}
