package dispatch_test

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
)

// A few events that a sink cannot take, whatever it says of them, hold up no others,
// though the broker offers them first.
func TestPoisonEventsHoldUpNoOthers(t *testing.T) {
	hang := func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() }
	status := func(code int, header ...string) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return answer(code, header...), nil }
	}
	crash := func(*http.Request) (*http.Response, error) { return nil, errors.New("EOF") }
	for name, tt := range map[string]struct {
		fail        func(*http.Request) (*http.Response, error)
		poison      int
		maxAttempts int
		backoff     time.Duration // the longest
		within      time.Duration // of its acceptance a healthy event is delivered
	}{
		"500, five":                             {status(500), 5, 0, 10 * time.Minute, 5 * time.Second},
		"500, five, short pauses":               {status(500), 5, 0, 10 * time.Millisecond, 5 * time.Second},
		"500, thirty":                           {status(500), 30, 0, 10 * time.Minute, 30 * time.Second},
		"503, one":                              {status(503), 1, 0, 10 * time.Minute, 0},
		"503, eight":                            {status(503), 8, 0, 10 * time.Minute, 10 * time.Second},
		"503, eight, attempts limited":          {status(503), 8, 3, 10 * time.Minute, 5 * time.Second},
		"429, eight, which ask for an hour":     {status(429, "Retry-After", "3600"), 8, 0, 10 * time.Minute, 65 * time.Second},
		"a handler that hangs on one":           {hang, 1, 0, 10 * time.Minute, 0},
		"a handler that hangs on eight":         {hang, 8, 0, 10 * time.Minute, 5 * time.Second},
		"a handler that crashes on five":        {crash, 5, 0, 10 * time.Minute, 5 * time.Second},
		"a handler that crashes on one":         {crash, 1, 0, 10 * time.Minute, 0},
		"504, four, pauses of ten milliseconds": {status(504), 4, 0, 10 * time.Millisecond, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			taken := map[string]time.Time{}
			bubble(t, func(r *http.Request) (*http.Response, error) {
				id := r.Header.Get("Ce-Id")
				if strings.HasPrefix(id, "poison") {
					return tt.fail(r)
				}
				mu.Lock()
				defer mu.Unlock()
				taken[id] = time.Now()
				return answer(200), nil
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				sub := subscription("u1")
				sub.Timeout = 5 * time.Second
				sub.Retry = dispatch.Retry{MaxAttempts: tt.maxAttempts, MinBackoff: min(time.Second, tt.backoff), MaxBackoff: tt.backoff, MaxAge: 24 * time.Hour}
				require.NoError(t, d.Set(t.Context(), sub))
				for i := range tt.poison {
					b.add(uint64(i+1), "poison"+string(rune('A'+i)))
				}
				time.Sleep(2 * time.Minute)
				at := map[string]time.Time{}
				for i := range uint64(30) {
					id := "healthy" + string(rune('A'+i))
					at[id] = time.Now()
					b.add(100+i, id)
					if i >= 10 { // the first of them come together
						time.Sleep(10 * time.Second)
					}
				}
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				require.Len(t, taken, len(at))
				for id, accepted := range at {
					require.LessOrEqual(t, taken[id].Sub(accepted), tt.within, "%s", id)
				}
			})
		})
	}
}

// The pauses of an event that fails grow, also when it is what opened the breaker.
func TestPoisonEventsAreNotSentAgainAndAgain(t *testing.T) {
	var mu sync.Mutex
	requests := 0
	bubble(t, func(r *http.Request) (*http.Response, error) {
		if !strings.HasPrefix(r.Header.Get("Ce-Id"), "poison") {
			return answer(200), nil
		}
		mu.Lock()
		defer mu.Unlock()
		requests++
		return answer(500), nil
	}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		sub := subscription("u1")
		sub.Retry = dispatch.Retry{MinBackoff: time.Second, MaxBackoff: 10 * time.Minute, MaxAge: 24 * time.Hour}
		require.NoError(t, d.Set(t.Context(), sub))
		for i := range uint64(5) {
			b.add(i+1, "poison"+string(rune('A'+i)))
		}
		for i := range uint64(600) {
			b.add(100+i, "healthy")
			time.Sleep(time.Second)
		}
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		require.Less(t, requests, 5*15)
		stats, _ := d.Stats("u1")
		require.Equal(t, int64(600), stats.Delivered)
	})
}
