package dispatch_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
)

// tenant is a subscription with a sink for dead letters, whose permission can be
// taken away.
func tenant(orderBy string) (sub dispatch.Subscription, permitted *atomic.Bool) {
	permitted = &atomic.Bool{}
	permitted.Store(true)
	sub = subscription("u1")
	sub.Created, sub.OrderBy = time.Now(), orderBy
	sub.DeadLetter = &dispatch.Sink{URL: "http://dead.shop.svc/"}
	sub.Permit = func(context.Context, string) (bool, error) { return permitted.Load(), nil }
	return sub, permitted
}

func TestWhatIsNotPermittedGoesNowhere(t *testing.T) {
	for name, revoke := range map[string]func(t *testing.T, d *dispatch.Dispatcher, sub dispatch.Subscription){
		"held": func(t *testing.T, d *dispatch.Dispatcher, sub dispatch.Subscription) {
			require.NoError(t, d.Hold(t.Context(), sub))
		},
		"held while it was paused": func(t *testing.T, d *dispatch.Dispatcher, sub dispatch.Subscription) {
			paused := sub
			paused.Hold = true
			require.NoError(t, d.Set(t.Context(), paused))
			synctest.Wait()
			require.NoError(t, d.Hold(t.Context(), sub))
		},
		"before the dispatcher was told": func(*testing.T, *dispatch.Dispatcher, dispatch.Subscription) {},
	} {
		for _, orderBy := range []string{"", "subject"} {
			t.Run(name+" "+orderBy, func(t *testing.T) {
				var mu sync.Mutex
				var posted []string
				fails := true
				bubble(t, func(r *http.Request) (*http.Response, error) {
					mu.Lock()
					defer mu.Unlock()
					posted = append(posted, r.URL.Host+" "+r.Header.Get("Ce-Id"))
					if fails {
						return answer(500), nil
					}
					return answer(200), nil
				}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
					sub, permitted := tenant(orderBy)
					require.NoError(t, d.Set(t.Context(), sub))
					b.keyed(1, "tried", "a")
					synctest.Wait()
					require.Equal(t, []string{"last-order.shop.svc tried"}, posted)
					permitted.Store(false)
					revoke(t, d, sub)
					b.keyed(2, "new", "a")
					time.Sleep(2 * time.Hour)
					synctest.Wait()
					require.Len(t, posted, 1, "neither to the sink nor to that for dead letters")
					require.Empty(t, b.dead())
					require.ElementsMatch(t, []uint64{1, 2}, b.acked)

					fails = false
					permitted.Store(true)
					require.NoError(t, d.Set(t.Context(), sub))
					b.keyed(3, "after", "a")
					time.Sleep(time.Minute)
					synctest.Wait()
					require.Equal(t, []string{"last-order.shop.svc after"}, posted[1:])
				})
			})
		}
	}
}

func TestPermissionThatEndsDuringAPushLeavesNoDeadLetter(t *testing.T) {
	var posted []string
	bubble(t, func(r *http.Request) (*http.Response, error) {
		posted = append(posted, r.URL.Host)
		time.Sleep(20 * time.Second)
		return answer(500), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		sub, permitted := tenant("")
		sub.Retry.MaxAttempts = 1
		require.NoError(t, d.Set(t.Context(), sub))
		b.add(1, "1")
		time.Sleep(10 * time.Second)
		permitted.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Equal(t, []string{"last-order.shop.svc"}, posted)
		require.Empty(t, b.dead())
		require.Equal(t, []uint64{1}, b.acked)
	})
}

func TestASubscriptionRefusedAfterARestartLeavesNothingOfWhatItMayNotHave(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			sub, permitted := tenant("")
			permitted.Store(false)
			require.NoError(t, d.Hold(t.Context(), sub), "one without a position")
			_, err := b.Subscribe(t.Context(), broker.ConsumerSpec{Name: "u1"}) // by the process before
			require.NoError(t, err)
			require.NoError(t, d.Hold(t.Context(), sub))
			b.add(1, "1")
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			require.Equal(t, []uint64{1}, b.acked)
			require.Empty(t, b.dead())
			stats, _ := d.Stats("u1")
			require.Zero(t, stats.Delivered)
		})
}

// A slip in spec.source is refused as what is not permitted; the events that the
// subscription may have wait until it is put right.
func TestWhatIsPermittedSurvivesARefusal(t *testing.T) {
	for _, orderBy := range []string{"", "subject"} {
		t.Run(orderBy, func(t *testing.T) {
			var mu sync.Mutex // events of two keys are pushed at the same time
			var pushed []string
			bubble(t, func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				pushed = append(pushed, r.Header.Get("Ce-Id"))
				return answer(200), nil
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				sub, _ := tenant(orderBy)
				paused := sub
				paused.Hold = true
				require.NoError(t, d.Set(t.Context(), paused))
				b.keyed(1, "1", "a")
				b.keyed(2, "2", "b")
				synctest.Wait()
				require.NoError(t, d.Hold(t.Context(), sub))
				b.keyed(3, "3", "a")
				time.Sleep(time.Minute)
				require.Empty(t, pushed)
				require.Empty(t, b.acked)
				require.NoError(t, d.Set(t.Context(), sub))
				time.Sleep(time.Minute)
				synctest.Wait()
				require.ElementsMatch(t, []string{"1", "2", "3"}, pushed)
			})
		})
	}
}

func TestARefusedSubscriptionGetsNoDeadLettersPushed(t *testing.T) {
	var posted []string
	bubble(t, func(r *http.Request) (*http.Response, error) {
		posted = append(posted, r.URL.Host)
		return answer(200), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		sub, _ := tenant("")
		require.NoError(t, d.Set(t.Context(), sub))
		require.NoError(t, d.Hold(t.Context(), sub))
		synctest.Wait()
		b.add(1, "1")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		require.Len(t, b.dead(), 1)
		require.Empty(t, posted)
	})
}

func TestAnEventStaysWhileItIsNotKnownWhetherItIsPermitted(t *testing.T) {
	for _, orderBy := range []string{"", "subject"} {
		t.Run(orderBy, func(t *testing.T) {
			pushed := 0
			bubble(t, func(*http.Request) (*http.Response, error) { pushed++; return answer(200), nil },
				func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
					sub, known := tenant(orderBy)
					sub.Retry.MaxAttempts = 2
					known.Store(false)
					sub.Permit = func(context.Context, string) (bool, error) {
						if !known.Load() {
							return true, errors.New("cannot be read")
						}
						return true, nil
					}
					require.NoError(t, d.Set(t.Context(), sub))
					b.keyed(1, "1", "a")
					time.Sleep(10 * time.Minute)
					synctest.Wait()
					require.Zero(t, pushed)
					require.Empty(t, b.acked)
					require.Empty(t, b.dead())
					known.Store(true)
					time.Sleep(time.Minute)
					synctest.Wait()
					require.Equal(t, 1, pushed, "waiting used up no attempt")
					require.Equal(t, []uint64{1}, b.acked)
				})
		})
	}
}

// Storing a dead letter may take long: its sink is asked about again after that.
func TestPermissionThatEndsWhileADeadLetterIsStoredLeavesItThere(t *testing.T) {
	var posted []string
	bubble(t, func(r *http.Request) (*http.Response, error) {
		posted = append(posted, r.URL.Host)
		return answer(500), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		sub, permitted := tenant("")
		sub.Retry.MaxAttempts = 1
		b.storing = func() { permitted.Store(false) }
		require.NoError(t, d.Set(t.Context(), sub))
		b.add(1, "1")
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, b.dead(), 1)
		require.Equal(t, []string{"last-order.shop.svc"}, posted, "not to the sink for dead letters")
	})
}
