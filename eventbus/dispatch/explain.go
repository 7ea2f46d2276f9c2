package dispatch

import (
	"context"
	"fmt"
	"slices"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Known is a subscription as its object says it, whether it is dispatched here or
// not.
type Known struct {
	Subscription
	// Refused says why it is not served; "" when it is.
	Refused string
	// Waits says why its events wait: it is paused, or its sink is not there; "" when
	// they do not.
	Waits string
}

// Matches reports whether an event is for the subscription, and if not, why.
func (k *Known) Matches(ctx context.Context, e *event.Event) (matches bool, why string, err error) {
	if k.Permit != nil {
		permitted, err := k.Permit(ctx, e.Source)
		if err != nil {
			return false, "", fmt.Errorf("subscription %s/%s: %w", k.Namespace, k.Name, err)
		}
		if !permitted {
			return false, "the namespace may not read events of " + e.Source, nil
		}
	}
	switch {
	case k.Selectors == nil:
		return false, "the subscription is refused: " + k.Refused, nil
	case !slices.ContainsFunc(k.Selectors, func(s broker.Selector) bool {
		s.Type = "**"
		return broker.Selects([]broker.Selector{s}, e.Source, e.Type)
	}):
		return false, "spec.source does not select the source " + e.Source, nil
	case !broker.Selects(k.Selectors, e.Source, e.Type):
		return false, "spec.types does not select the type " + e.Type, nil
	case k.Filter != nil && !k.Filter(e):
		return false, "spec.filters does not let it through", nil
	}
	return true, "", nil
}
