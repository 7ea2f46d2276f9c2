package dispatch_test

import (
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// What a sink answers that was replaced meanwhile says nothing about the new one.
func TestAnswersOfTheSinkBeforeDoNotHoldUpTheNewOne(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func() *http.Response
		late   time.Duration
	}{
		"410, after the change":         {func() *http.Response { return answer(410) }, 5 * time.Second},
		"Retry-After, before it":        {func() *http.Response { return answer(503, "Retry-After", "3600") }, 0},
		"Retry-After, after the change": {func() *http.Response { return answer(503, "Retry-After", "3600") }, 5 * time.Second},
	} {
		for _, orderBy := range []string{"", "subject"} {
			t.Run(name+" "+orderBy, func(t *testing.T) {
				bubble(t, func(r *http.Request) (*http.Response, error) {
					if r.URL.Host == "old" {
						time.Sleep(tt.late)
						return tt.answer(), nil
					}
					return answer(200), nil
				}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
					sub := subscription("u1")
					sub.Generation, sub.Sink.URL, sub.OrderBy, sub.Retry.MaxAttempts = 1, "http://old/", orderBy, 0
					require.NoError(t, d.Set(t.Context(), sub))
					for i := range uint64(6) {
						b.keyed(i+1, "x", string(rune('a'+i)))
					}
					time.Sleep(2 * time.Second)
					sub.Generation, sub.Sink.URL = 2, "http://fresh/"
					require.NoError(t, d.Set(t.Context(), sub))
					time.Sleep(10 * time.Second)
					b.keyed(7, "7", "g")
					synctest.Wait()
					stats, _ := d.Stats("u1")
					require.False(t, stats.Gone)
					require.False(t, stats.HeldBack)
					require.Equal(t, int64(7), stats.Delivered)
				})
			})
		}
	}
}

// The broker offers an event again while its request is on its way.
func TestWhatIsOfferedAgainWhileItIsSentIsSentOnce(t *testing.T) {
	var mu sync.Mutex
	sent := 0
	bubble(t, func(*http.Request) (*http.Response, error) {
		mu.Lock()
		sent++
		mu.Unlock()
		time.Sleep(10 * time.Second)
		return answer(200), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		require.NoError(t, d.Set(t.Context(), subscription("u1")))
		b.add(1, "1")
		time.Sleep(5500 * time.Millisecond) // and not at the moment of the answer
		b.offerAgain(1)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, 1, sent)
		require.Equal(t, []uint64{1}, b.acked)
		stats, _ := d.Stats("u1")
		require.Equal(t, int64(1), stats.Delivered)
		require.True(t, stats.Oldest.IsZero())
	})
}

// What expires while the sink is held back leaves its key in order.
func TestOrderHoldsWhenEventsExpireInAnOutage(t *testing.T) {
	for shift := time.Duration(0); shift < 2*time.Second; shift += 100 * time.Millisecond {
		var mu sync.Mutex
		var order []string
		var begin time.Time
		bubble(t, func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if time.Since(begin) < 65*time.Second+shift {
				return answer(503), nil
			}
			order = append(order, r.Header.Get("Ce-Id"))
			return answer(200), nil
		}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			begin = time.Now()
			sub := ordered("u1")
			sub.MaxInFlight = 3
			sub.Retry = dispatch.Retry{MinBackoff: time.Second, MaxBackoff: 3 * time.Second, MaxAge: time.Minute}
			require.NoError(t, d.Set(t.Context(), sub))
			// Others, without a key, so that the sink is held back.
			for i := range uint64(3) {
				b.put(delivery{seq: i + 1, stored: time.Now(), e: event.Event{ID: "0", Source: "commerce", Type: "order.created"}})
			}
			for i := range uint64(30) {
				b.keyed(i+10, string(rune('A'+i)), "a")
				time.Sleep(500 * time.Millisecond)
			}
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			require.NotEmpty(t, order)
			keyed := slices.DeleteFunc(slices.Clone(order), func(id string) bool { return id == "0" })
			require.IsIncreasing(t, keyed, "shift %s", shift)
			require.Len(t, b.dead(), 33-len(order))
		})
	}
}

func TestAProbeThatIsRefusedIsAnAttempt(t *testing.T) {
	requests := 0
	bubble(t, func(*http.Request) (*http.Response, error) {
		if requests++; requests <= 3 {
			return nil, refused()
		}
		return answer(400), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		sub := subscription("u1")
		sub.Retry.MaxAttempts = 0
		require.NoError(t, d.Set(t.Context(), sub))
		b.add(1, "1")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, b.dead(), 1)
		require.Equal(t, broker.ReasonRejected, b.dead()[0].Reason)
		require.Equal(t, 4, requests)
		require.Equal(t, requests, b.dead()[0].Attempts)
	})
}

// Nobody was asked: that uses up no attempts.
func TestATargetThatThePolicyRefusesIsNoAttempt(t *testing.T) {
	var mu sync.Mutex
	allowed := false
	bubble(t, func(*http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		if allowed {
			return answer(400), nil
		}
		return nil, &targets.RefusedError{Target: "https://sink", Why: "it is not allowed"}
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		require.NoError(t, d.Set(t.Context(), subscription("u1")))
		b.add(1, "1")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		require.Empty(t, b.dead())
		stats, _ := d.Stats("u1")
		require.Contains(t, stats.LastError, "not sent")
		mu.Lock()
		allowed = true
		mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, b.dead(), 1)
		require.Equal(t, 1, b.dead()[0].Attempts)
	})
}
