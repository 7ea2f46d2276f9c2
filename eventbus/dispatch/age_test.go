package dispatch_test

import (
	"errors"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

func TestEventThatIsTooOldIsADeadLetterWithoutAnAttempt(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			sub := subscription("u1")
			sub.Created = time.Now()
			b.add(1, "1")
			time.Sleep(48 * time.Hour)
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.Equal(t, []uint64{1}, b.acked)
			require.Len(t, b.dead(), 1)
			require.Equal(t, broker.ReasonExpired, b.dead()[0].Reason)
			require.Zero(t, b.dead()[0].Attempts)
			require.Contains(t, b.dead()[0].LastError, "not delivered within 1h")
			stats, _ := d.Stats("u1")
			require.Equal(t, int64(1), stats.DeadLettered)
			require.Zero(t, stats.Delivered)
		})
}

func TestOldEventThatANewSubscriptionAsksForIsNotTooOld(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			b.add(1, "1")
			time.Sleep(48 * time.Hour)
			sub := subscription("u1")
			sub.Created = time.Now()
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.Equal(t, []uint64{1}, b.acked)
			require.Empty(t, b.dead())
		})
}

func TestWhatGetsTooOldWhileNothingIsPushedIsADeadLetter(t *testing.T) {
	held := func(sub dispatch.Subscription) dispatch.Subscription { sub.Hold = true; return sub }
	for name, hold := range map[string]func(t *testing.T, d *dispatch.Dispatcher, sub dispatch.Subscription){
		"paused from the beginning": func(t *testing.T, d *dispatch.Dispatcher, sub dispatch.Subscription) {
			require.NoError(t, d.Set(t.Context(), held(sub)))
		},
		"paused later": func(t *testing.T, d *dispatch.Dispatcher, sub dispatch.Subscription) {
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.NoError(t, d.Set(t.Context(), held(sub)))
		},
		"invalid": func(t *testing.T, d *dispatch.Dispatcher, sub dispatch.Subscription) {
			require.NoError(t, d.Set(t.Context(), sub))
			synctest.Wait()
			require.NoError(t, d.Hold(t.Context(), sub))
		},
	} {
		for _, orderBy := range []string{"", "subject"} {
			t.Run(name+" "+orderBy, func(t *testing.T) {
				pushed := map[string]int{}
				bubble(t, func(r *http.Request) (*http.Response, error) {
					pushed[r.Header.Get("Ce-Id")]++
					return answer(200), nil
				}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
					sub := subscription("u1")
					sub.Created, sub.OrderBy, sub.Retry.MaxAttempts = time.Now(), orderBy, 1
					hold(t, d, sub)
					for i := range uint64(20) {
						b.keyed(i+1, "old", "a")
					}
					time.Sleep(50 * time.Minute)
					b.keyed(100, "young", "a")
					synctest.Wait()
					require.Empty(t, b.dead())
					time.Sleep(12 * time.Minute)
					synctest.Wait()
					require.Len(t, b.dead(), 20)
					for _, letter := range b.dead() {
						require.Equal(t, broker.ReasonExpired, letter.Reason)
						require.Equal(t, "old", letter.Event.ID)
						require.Zero(t, letter.Attempts)
					}
					require.Empty(t, pushed)
					require.NoError(t, d.Set(t.Context(), sub))
					time.Sleep(time.Minute)
					synctest.Wait()
					require.Equal(t, map[string]int{"young": 1}, pushed, "looking for old ones used up no attempt")
				})
			})
		}
	}
}

func TestSubscriptionThatIsRefusedAfterARestartLosesNothingToItsAge(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			sub := subscription("u1")
			sub.Created = time.Now()
			sub.Filter = func(e *event.Event) bool { return e.ID == "1" }
			require.NoError(t, d.Hold(t.Context(), sub), "one without a position")
			_, err := b.Subscribe(t.Context(), broker.ConsumerSpec{Name: "u1"}) // by the process before
			require.NoError(t, err)
			require.NoError(t, d.Hold(t.Context(), sub))
			b.add(1, "1")
			b.add(2, "not selected")
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			require.Len(t, b.dead(), 1)
			require.Equal(t, broker.ReasonExpired, b.dead()[0].Reason)
			require.Equal(t, "shop/sub-u1", b.dead()[0].Subscription)
		})
}

func TestWhatCannotBeReadIsADeadLetter(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(200), nil },
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			require.NoError(t, d.Set(t.Context(), subscription("u1")))
			bad := &broker.Unreadable{Raw: broker.Raw{Header: map[string][]string{"ce-id": {"%zz"}}, Data: []byte("raw")}, Err: errors.New("header ce-id is broken")}
			b.put(delivery{seq: 1, stored: time.Now(), bad: bad})
			b.put(delivery{seq: 2, stored: time.Now(), bad: bad, e: event.Event{Source: "erp", Type: "t"}})
			synctest.Wait()
			require.Equal(t, []uint64{1, 2}, slices.Sorted(slices.Values(b.acked)))
			require.Len(t, b.dead(), 1, "the other one is not for this subscription")
			require.Equal(t, broker.ReasonUnreadable, b.dead()[0].Reason)
			require.Equal(t, "header ce-id is broken", b.dead()[0].LastError)
			require.Equal(t, &bad.Raw, b.dead()[0].Raw)
		})
}
