package dispatch_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
)

// attemptLog keeps attempts in memory, over the lives of dispatchers.
type attemptLog struct {
	mu   sync.Mutex
	kept []broker.Attempt
}

func (l *attemptLog) StoreAttempts(_ context.Context, attempts []broker.Attempt) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = append(l.kept, attempts...)
	return nil
}

func (l *attemptLog) Attempts(_ context.Context, after uint64, handle func(*broker.Attempt)) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.kept[after:] {
		handle(&l.kept[int(after)+i])
	}
	return uint64(len(l.kept)), nil
}

// life runs a dispatcher for a while. killed says that nothing of what it has in
// hand is given back, as after a kill -9: the broker offers it again after its
// ack wait.
func life(t *testing.T, b *fakeBroker, log *attemptLog, s sink, sub dispatch.Subscription, how time.Duration, killed bool) {
	t.Helper()
	source := &mortal{fakeBroker: b}
	d := dispatch.New(dispatch.Config{Source: source, DeadLetters: source, Mesh: s, Direct: s, Attempts: log, DrainTimeout: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	require.NoError(t, d.Set(t.Context(), sub))
	time.Sleep(how)
	synctest.Wait()
	if killed {
		source.die()
	}
	cancel()
	require.NoError(t, <-done)
	synctest.Wait()
}

func TestAttemptsAreRequestsAlsoOverRestarts(t *testing.T) {
	for name, killed := range map[string]bool{"stopped": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, log := newBroker(), &attemptLog{}
				b.ackWait = 10 * time.Second
				var requests []time.Time
				s := sink(func(*http.Request) (*http.Response, error) {
					requests = append(requests, time.Now())
					return answer(500), nil
				})
				sub := subscription("u1")
				sub.Retry.MinBackoff, sub.Retry.MaxBackoff = 4*time.Second, 4*time.Second
				b.add(1, "poison")
				for range 10 {
					life(t, b, log, s, sub, 5*time.Second, killed)
				}
				life(t, b, log, s, sub, time.Minute, false)
				require.Len(t, requests, 4)
				for i := range requests[1:] {
					require.GreaterOrEqual(t, requests[i+1].Sub(requests[i]), 4*time.Second)
				}
				require.Len(t, b.dead(), 1)
				require.Equal(t, 4, b.dead()[0].Attempts)
				require.Equal(t, 500, b.dead()[0].LastStatus)
			})
		})
	}
}

// An event that was fetched and not sent has had no attempt.
func TestAKillBeforeTheFirstRequestUsesUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, log := newBroker(), &attemptLog{}
		b.ackWait = 10 * time.Second
		s := sink(func(*http.Request) (*http.Response, error) { return answer(200), nil })
		sub := subscription("u1")
		sub.Retry.MaxAttempts = 1
		_, err := b.Subscribe(t.Context(), broker.ConsumerSpec{Name: "u1"})
		require.NoError(t, err)
		b.add(1, "1")
		for range 10 { // fetched by processes that died
			b.mu.Lock()
			b.consumers["u1"].attempts[1]++
			b.mu.Unlock()
		}
		life(t, b, log, s, sub, time.Minute, false)
		require.Empty(t, b.dead())
		require.Equal(t, []uint64{1}, b.acked)
	})
}

// After a kill the broker offers what was in flight again in any order, and before
// that nothing.
func TestOrderHoldsAfterAKill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, log := newBroker(), &attemptLog{}
		b.ackWait = 10 * time.Second
		var mu sync.Mutex
		var order []string
		up := false
		s := sink(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if !up {
				return answer(500), nil
			}
			order = append(order, r.Header.Get("Ce-Id"))
			return answer(200), nil
		})
		sub := ordered("u1")
		sub.Retry.MaxAttempts = 0
		b.shuffle = []uint64{5, 1, 4, 2, 3} // how it offers them again
		want := []string{"1", "2", "3", "4", "5", "6"}
		for i, id := range want[:5] {
			b.keyed(uint64(i+1), id, "a")
		}
		life(t, b, log, s, sub, 3*time.Second, true)
		b.keyed(6, "6", "a")
		mu.Lock()
		up = true
		mu.Unlock()
		life(t, b, log, s, sub, 2*time.Minute, false)
		require.Equal(t, want, order)
	})
}

// While the broker is away longer than its ack wait it offers again what is in
// hand: that neither comes twice nor overtakes.
func TestRedeliveryOfWhatIsInHandKeepsTheOrder(t *testing.T) {
	var mu sync.Mutex
	var order []string
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := sink(func(r *http.Request) (*http.Response, error) {
			time.Sleep(10 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, r.Header.Get("Ce-Id"))
			return answer(200), nil
		})
		d := dispatch.New(dispatch.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		require.NoError(t, d.Set(t.Context(), ordered("u1")))
		want := []string{"1", "2", "3"}
		for i, id := range want {
			b.keyed(uint64(i+1), id, "a")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		b.offerAgain(3, 1, 2)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, want, order)
		cancel()
		require.NoError(t, <-done)
	})
}
