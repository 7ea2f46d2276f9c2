package controller

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Defaults of the API, for objects that were stored before a field had one.
const (
	defaultTimeout     = 30 * time.Second
	defaultMaxInFlight = 100
	defaultMinBackoff  = time.Second
	defaultMaxBackoff  = 10 * time.Minute
	defaultMaxAge      = 24 * time.Hour
)

// compile turns the parts of a Subscription that need no other object into what
// the dispatcher takes. It fails with a [*refusal] when a filter is invalid, and
// returns the rest.
func compile(sub *v1alpha1.Subscription) (dispatch.Subscription, error) {
	delivery := sub.Spec.Delivery
	filter, filterErr := compileFilters(sub.Spec.Filters)
	retry := delivery.Retry
	wanted := dispatch.Subscription{
		UID:         string(sub.UID),
		Namespace:   sub.Namespace,
		Name:        sub.Name,
		Created:     sub.CreationTimestamp.Time,
		Generation:  sub.Generation,
		Rate:        rate(delivery.Rate),
		Start:       start(sub.Spec.Start),
		Filter:      filter,
		OrderBy:     delivery.OrderBy,
		Format:      dispatch.Format(or(string(delivery.Format), string(dispatch.Binary))),
		Timeout:     duration(delivery.Timeout, defaultTimeout),
		MaxInFlight: number(delivery.MaxInFlight, defaultMaxInFlight),
		Retry: dispatch.Retry{
			MaxAttempts: number(retry.MaxAttempts, 0),
			MinBackoff:  duration(retry.MinBackoff, defaultMinBackoff),
			MaxBackoff:  duration(retry.MaxBackoff, defaultMaxBackoff),
			MaxAge:      duration(retry.MaxAge, defaultMaxAge),
		},
	}
	if wanted.Retry.MaxBackoff < wanted.Retry.MinBackoff {
		wanted.Retry.MaxBackoff = wanted.Retry.MinBackoff
	}
	if filterErr != nil {
		return wanted, refuse(v1alpha1.ReasonInvalid, "%v", filterErr)
	}
	return wanted, nil
}

func compileFilters(filters []v1alpha1.Filter) (dispatch.Filter, error) {
	texts := make([]json.RawMessage, len(filters))
	for i := range filters {
		var err error
		if texts[i], err = json.Marshal(&filters[i]); err != nil {
			return nil, fmt.Errorf("filters[%d]: %w", i, err)
		}
	}
	return dispatch.CompileFilters(texts)
}

func start(s *v1alpha1.Start) broker.Start {
	switch {
	case s == nil:
		return broker.Start{}
	case s.Time != nil:
		return broker.Start{Time: s.Time.Time}
	case s.Sequence != nil:
		return broker.Start{Sequence: uint64(max(1, *s.Sequence))}
	}
	return broker.Start{Earliest: s.From == "earliest"}
}

func rate(r *v1alpha1.Rate) dispatch.Rate {
	if r == nil {
		return dispatch.Rate{}
	}
	return dispatch.Rate{Events: int(r.Events), Per: duration(r.Per, time.Second)}
}

func or(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}

func duration(value *metav1.Duration, fallback time.Duration) time.Duration {
	if value == nil {
		return fallback
	}
	return value.Duration
}

func number(value *int32, fallback int) int {
	if value == nil {
		return fallback
	}
	return int(*value)
}

// bases holds what the counters of each Subscription were when this process
// first saw it; the dispatcher counts from zero.
type bases struct {
	mu    sync.Mutex
	first map[types.UID]v1alpha1.SubscriptionStatus
}

func (b *bases) of(sub *v1alpha1.Subscription) v1alpha1.SubscriptionStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.first == nil {
		b.first = map[types.UID]v1alpha1.SubscriptionStatus{}
	}
	base, ok := b.first[sub.UID]
	if !ok {
		base = v1alpha1.SubscriptionStatus{
			Delivered:    sub.Status.Delivered,
			Redelivered:  sub.Status.Redelivered,
			DeadLettered: sub.Status.DeadLettered,
		}
		b.first[sub.UID] = base
	}
	return base
}

func (b *bases) forget(id types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.first, id)
}
