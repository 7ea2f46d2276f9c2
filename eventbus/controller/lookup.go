package controller

import (
	"context"
	"slices"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Publishers returns a function that tells whether an Application names the
// workload with a service account among its publishers. c reads from a cache.
func Publishers(c client.Reader) func(application, namespace, serviceAccount string) bool {
	return func(application, namespace, serviceAccount string) bool {
		var app v1alpha1.Application
		if c.Get(context.Background(), client.ObjectKey{Name: application}, &app) != nil {
			return false
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
