package dispatch_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
)

// A broker that lost its stream counts from 1 again.
func TestASequenceThatComesAgainIsAnotherEvent(t *testing.T) {
	for name, second := range map[string]string{"another event": "second", "the same one, published again": "first"} {
		t.Run(name, func(t *testing.T) {
			var pushed []string
			bubble(t, func(r *http.Request) (*http.Response, error) {
				pushed = append(pushed, r.Header.Get("Ce-Id"))
				return answer(200), nil
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				require.NoError(t, d.Set(t.Context(), subscription("u1")))
				b.ackFails = true
				b.add(1, "first")
				synctest.Wait()
				require.Empty(t, b.acked)
				b.lose()
				time.Sleep(time.Second)
				b.add(1, second)
				synctest.Wait()
				require.Equal(t, []string{"first", second}, pushed)
				require.Equal(t, []uint64{1}, b.acked)
			})
		})
	}
}

func TestWhatDoesNotComeAgainIsForgotten(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return answer(500), nil },
		func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
			require.NoError(t, d.Set(t.Context(), subscription("u1")))
			b.add(1, "1")
			synctest.Wait()
			b.lose()
			stats, _ := d.Stats("u1")
			require.False(t, stats.Oldest.IsZero())
			time.Sleep(3 * time.Hour)
			synctest.Wait()
			stats, _ = d.Stats("u1")
			require.True(t, stats.Oldest.IsZero(), "since %s", stats.Oldest)
		})
}

func TestRetryAfterBeyondMaxAgeWaitsForIt(t *testing.T) {
	for _, orderBy := range []string{"", "subject"} {
		t.Run(orderBy, func(t *testing.T) {
			pushes := 0
			bubble(t, func(*http.Request) (*http.Response, error) {
				pushes++
				return answer(503, "Retry-After", "3600"), nil
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				sub := subscription("u1")
				sub.OrderBy, sub.Retry.MaxAge = orderBy, 10*time.Minute
				require.NoError(t, d.Set(t.Context(), sub))
				b.keyed(1, "1", "a")
				time.Sleep(9 * time.Minute)
				synctest.Wait()
				require.Empty(t, b.dead(), "it is not too old yet")
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				require.Len(t, b.dead(), 1)
				require.Equal(t, broker.ReasonExpired, b.dead()[0].Reason)
				require.Equal(t, 10*time.Minute, b.dead()[0].Died.Sub(b.dead()[0].Stored))
				require.Equal(t, 1, b.dead()[0].Attempts)
				require.Equal(t, 503, b.dead()[0].LastStatus)
				require.Equal(t, 1, pushes)
			})
		})
	}
}
