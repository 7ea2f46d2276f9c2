package controller

import (
	"context"
	"fmt"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Consumers lists the durable positions in the event store by their names, which
// are the UIDs of Subscriptions.
type Consumers interface {
	Consumers(ctx context.Context) ([]string, error)
}

// sweepEvery is how often is looked for consumers without a Subscription. One is
// removed when it has none twice in a row.
const sweepEvery = time.Minute

// sweeper removes the consumers of Subscriptions that went while no event bus was
// there to see it. A backlog that nobody reads would be kept for ever.
type sweeper struct {
	reader     client.Reader // past the cache: what it has just missed is no orphan
	consumers  Consumers
	dispatcher Dispatcher
}

// Start implements manager.Runnable; where the leader is.
func (s *sweeper) Start(ctx context.Context) error {
	log := ctrl.LoggerFrom(ctx).WithName("subscription-sweeper")
	ticks := time.NewTicker(sweepEvery)
	defer ticks.Stop()
	suspects := map[string]bool{}
	for {
		orphans, err := s.orphans(ctx)
		if err != nil && ctx.Err() == nil {
			log.V(1).Info("looking for consumers without a Subscription failed; trying again", "error", err.Error())
		}
		next := map[string]bool{}
		for _, uid := range orphans {
			if !suspects[uid] {
				next[uid] = true
				continue
			}
			if err := s.dispatcher.Remove(ctx, uid); err != nil {
				next[uid] = true
				log.Error(err, "removing a consumer without a Subscription failed; trying again", "consumer", uid)
				continue
			}
			log.Info("removed a consumer and its backlog: its Subscription was deleted while no event bus ran", "consumer", uid)
		}
		suspects = next
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// orphans are the consumers that no Subscription has.
func (s *sweeper) orphans(ctx context.Context) ([]string, error) {
	names, err := s.consumers.Consumers(ctx)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var subs v1alpha1.SubscriptionList
	if err := s.reader.List(ctx, &subs); err != nil {
		return nil, fmt.Errorf("list subscriptions: %w", err)
	}
	wanted := map[string]bool{}
	for i := range subs.Items {
		wanted[string(subs.Items[i].UID)] = true
	}
	var orphans []string
	for _, name := range names {
		if !wanted[name] {
			orphans = append(orphans, name)
		}
	}
	return orphans, nil
}
