package dispatch_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// keyed puts an event with a subject into the broker.
func (b *fakeBroker) keyed(seq uint64, id, subject string) {
	b.put(delivery{seq: seq, stored: time.Now(), e: event.Event{ID: id, Source: "commerce", Type: "order.created", Subject: subject}})
}

func ordered(uid string) dispatch.Subscription {
	sub := subscription(uid)
	sub.OrderBy = "subject"
	return sub
}

func TestEventsOfOneKeyArePushedInOrderThroughFailures(t *testing.T) {
	var mu sync.Mutex // the sink answers one request per key at a time
	var order []string
	failures := map[string]int{"a1": 2, "b2": 1}
	bubble(t, func(r *http.Request) (*http.Response, error) {
		id := r.Header.Get("Ce-Id")
		time.Sleep(100 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if failures[id] > 0 {
			failures[id]--
			return answer(500), nil
		}
		order = append(order, id)
		return answer(200), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		b.keyed(1, "a1", "a")
		b.keyed(2, "a2", "a")
		b.keyed(3, "b1", "b")
		b.keyed(4, "free", "")
		b.keyed(5, "b2", "b")
		b.keyed(6, "a3", "a")
		require.NoError(t, d.Set(t.Context(), ordered("u1")))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, order, 6)
		at := map[string]int{}
		for i, id := range order {
			at[id] = i
		}
		require.Less(t, at["a1"], at["a2"])
		require.Less(t, at["a2"], at["a3"])
		require.Less(t, at["b1"], at["b2"])
		require.Less(t, at["free"], at["a1"], "what has no key does not wait")
		require.Less(t, at["b1"], at["a1"], "a key that fails holds up no other")
		require.Empty(t, b.naks, "a failing event stays here until its key goes on")
		stats, _ := d.Stats("u1")
		require.Equal(t, int64(6), stats.Delivered)
		require.Equal(t, int64(3), stats.Redelivered)
	})
}

func TestNextFetchDoesNotOvertakeTheLastEventOfAFetch(t *testing.T) {
	var mu sync.Mutex
	var order []string
	bubble(t, func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, r.Header.Get("Ce-Id"))
		return answer(200), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		b.keyed(1, "free", "") // its end lets the next fetch begin
		b.put(delivery{seq: 2, stored: time.Now(), slow: time.Second, e: event.Event{ID: "a1", Source: "commerce", Type: "order.created", Subject: "a"}})
		b.keyed(3, "a2", "a")
		sub := ordered("u1")
		sub.MaxInFlight = 2
		require.NoError(t, d.Set(t.Context(), sub))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"free", "a1", "a2"}, order)
	})
}

func TestPoisonEventOfAKeyDiesAndTheKeyGoesOn(t *testing.T) {
	attempts := 0
	bubble(t, func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Ce-Id") == "poison" {
			attempts++
			return answer(500), nil
		}
		return answer(200), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		require.NoError(t, d.Set(t.Context(), ordered("u1")))
		b.keyed(1, "poison", "a")
		b.keyed(2, "next", "a")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 4, attempts)
		require.Len(t, b.letters, 1)
		require.Equal(t, []uint64{1, 2}, b.acked)
	})
}

func TestPausedKeyUsesUpNoAttempts(t *testing.T) {
	attempts := 0
	bubble(t, func(*http.Request) (*http.Response, error) {
		if attempts++; attempts < 3 {
			return answer(500), nil
		}
		return answer(200), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		require.NoError(t, d.Set(t.Context(), ordered("u1")))
		b.keyed(1, "1", "a")
		synctest.Wait()
		require.NoError(t, d.Hold(t.Context(), ordered("u1")))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, attempts)
		require.NoError(t, d.Set(t.Context(), ordered("u1")))
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 3, attempts)
		require.Equal(t, []uint64{1}, b.acked)
	})
}

func TestShutdownGivesBackAKeyInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := sink(func(*http.Request) (*http.Response, error) { return answer(500), nil })
		d := dispatch.New(dispatch.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		require.NoError(t, d.Set(t.Context(), ordered("u1")))
		for i := range uint64(5) {
			b.keyed(i+1, "x", "a")
		}
		synctest.Wait()
		cancel()
		require.NoError(t, <-done)
		synctest.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		require.Empty(t, b.acked)
		require.Equal(t, []uint64{1, 2, 3, 4, 5}, b.nakked, "the broker offers again in this order")
		require.Equal(t, make([]time.Duration, 5), b.naks, "and at once")
	})
}
