package conformance

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Event returns an event of /shop/cart with this id.
func Event(id string) event.Event {
	return event.Event{ID: id, Source: "/shop/cart", Type: "order.created.v1", DataContentType: "application/json", Data: []byte(`{"n":1}`)}
}

// Publish publishes events that must be accepted.
func Publish(t *testing.T, b Backend, events ...event.Event) []broker.Receipt {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	receipts, err := b.Publish(ctx, events)
	require.NoError(t, err)
	require.Len(t, receipts, len(events))
	return receipts
}

// Subscribe makes a consumer of one source and type pattern; source "" selects
// all workloads of the namespace shop.
func Subscribe(t *testing.T, b Backend, name string, start broker.Start, source, pattern string) broker.Consumer {
	t.Helper()
	selector := broker.Selector{Source: source, Type: pattern}
	if source == "" {
		selector.Owner = "shop"
	}
	c, err := b.Subscribe(t.Context(), broker.ConsumerSpec{Name: name, Start: start, Selectors: []broker.Selector{selector}})
	require.NoError(t, err)
	return c
}

// Take fetches n deliveries that must come.
func Take(t *testing.T, c broker.Consumer, n int) []broker.Delivery {
	t.Helper()
	var mu sync.Mutex
	var got []broker.Delivery
	for begin := time.Now(); len(got) < n; {
		require.Less(t, time.Since(begin), deadline, "got %d of %d deliveries", len(got), n)
		_, err := c.Fetch(t.Context(), broker.Window{Events: n - len(got), Bytes: plenty}, deadline, func(d broker.Delivery) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, d)
		})
		require.NoError(t, err)
	}
	return got
}

// Nothing asserts that nothing is there to fetch.
func Nothing(t *testing.T, c broker.Consumer) {
	t.Helper()
	_, err := c.Fetch(t.Context(), broker.Window{Events: 1, Bytes: plenty}, 300*time.Millisecond, func(d broker.Delivery) {
		require.Fail(t, "unexpected delivery", "event %s, attempt %d", d.Event().ID, d.Attempt())
	})
	require.NoError(t, err)
}

// waiting is how much waits, without the positions, which not every broker tells.
func waiting(t *testing.T, c broker.Consumer) broker.ConsumerInfo {
	t.Helper()
	i, err := c.Info(t.Context())
	require.NoError(t, err)
	return broker.ConsumerInfo{Pending: i.Pending, Unacknowledged: i.Unacknowledged}
}
