package controller

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Directory answers, on every replica, what namespaces may read and what their
// Subscriptions say.
type Directory struct{ reconciler Reconciler }

// NewDirectory reads from a cache. openSources: every namespace may read sources
// that nobody owns.
func NewDirectory(c client.Client, policy URLPolicy, openSources bool) *Directory {
	return &Directory{Reconciler{client: c, policy: policy, openSources: openSources}}
}

// Readable selects what a namespace may read, and perhaps more: ask
// [Directory.MayRead] about each source.
func (d *Directory) Readable(ctx context.Context, namespace string) ([]broker.Selector, error) {
	origins, err := d.reconciler.everything(ctx, namespace)
	if err != nil {
		return nil, err
	}
	return selectors(origins, []string{"**"})
}

// MayRead reports whether a namespace may read the events of a source now.
func (d *Directory) MayRead(ctx context.Context, namespace, source string) (bool, error) {
	return permitted(d.reconciler.mayRead(ctx, namespace, source))
}

// Subscriptions are those of a namespace, or of all when it is empty.
func (d *Directory) Subscriptions(ctx context.Context, namespace string) ([]dispatch.Known, error) {
	var list v1alpha1.SubscriptionList
	if err := d.reconciler.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list subscriptions: %w", err)
	}
	all := make([]dispatch.Known, 0, len(list.Items))
	for i := range list.Items {
		known, err := d.known(ctx, &list.Items[i])
		if err != nil {
			return nil, err
		}
		all = append(all, known)
	}
	return all, nil
}

func (d *Directory) known(ctx context.Context, sub *v1alpha1.Subscription) (dispatch.Known, error) {
	r := &d.reconciler
	wanted, err := r.wanted(ctx, sub)
	known := dispatch.Known{Subscription: wanted}
	if why, ok := errors.AsType[*refusal](err); ok {
		known.Refused = why.message
		return known, nil
	}
	if err != nil {
		return known, err
	}
	sink, err := resolveSink(ctx, r.client, r.policy, sub.Namespace, sub.Spec.Sink)
	if why, ok := errors.AsType[*refusal](err); ok {
		known.Waits = "its sink is not ready: " + why.message
		return known, nil
	}
	if err != nil {
		return known, err
	}
	known.Sink = sink
	switch {
	case sub.Spec.Paused:
		known.Waits = "spec.paused is true"
	case gone(sub):
		known.Waits = goneMessage
	}
	return known, nil
}
