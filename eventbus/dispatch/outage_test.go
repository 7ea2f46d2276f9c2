package dispatch_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
)

// outage is a sink that fails until it is back.
type outage struct {
	mu       sync.Mutex
	fail     func(r *http.Request) (*http.Response, error)
	requests int
	taken    map[string]time.Time
}

func (o *outage) RoundTrip(r *http.Request) (*http.Response, error) {
	o.mu.Lock()
	o.requests++
	fail := o.fail
	if fail == nil {
		o.taken[r.Header.Get("Ce-Id")] = time.Now()
	}
	o.mu.Unlock()
	if fail != nil {
		return fail(r)
	}
	return answer(200), nil
}

func (o *outage) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail = nil
}

// refused is what a dialer says when nobody listens.
func refused() error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

func TestBacklogFlowsWithinTwoSecondsAfterAnOutage(t *testing.T) {
	refuse := func(*http.Request) (*http.Response, error) { return nil, refused() }
	reset := func(*http.Request) (*http.Response, error) { return nil, errors.New("connection reset by peer") }
	hang := func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() }
	status := func(code int) func(*http.Request) (*http.Response, error) {
		return func(*http.Request) (*http.Response, error) { return answer(code), nil }
	}
	for name, tt := range map[string]struct {
		fail        func(*http.Request) (*http.Response, error)
		events      int
		maxAttempts int
		orderBy     string
		timeout     time.Duration
		within      time.Duration // of the end; a request that hangs ends with its timeout
	}{
		"refused":                    {refuse, 50, 0, "", 30 * time.Second, 2 * time.Second},
		"refused, attempts limited":  {refuse, 50, 3, "", 30 * time.Second, 2 * time.Second},
		"refused, ordered":           {refuse, 50, 0, "subject", 30 * time.Second, 2 * time.Second},
		"reset, ordered":             {reset, 50, 0, "subject", 30 * time.Second, 2 * time.Second},
		"503, ordered, three events": {status(503), 3, 0, "subject", 30 * time.Second, 2 * time.Second},
		"503, three events":          {status(503), 3, 0, "", 30 * time.Second, 2 * time.Second},
		"refused, one event":         {refuse, 1, 0, "", 30 * time.Second, 2 * time.Second},
		"503":                        {status(503), 50, 3, "", 30 * time.Second, 2 * time.Second},
		"500 for every event":        {status(500), 50, 0, "", 30 * time.Second, 2 * time.Second},
		"hangs":                      {hang, 50, 0, "", 5 * time.Second, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			o := &outage{fail: tt.fail, taken: map[string]time.Time{}}
			bubble(t, o.RoundTrip, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				sub := subscription("u1")
				sub.OrderBy, sub.Timeout = tt.orderBy, tt.timeout
				sub.Retry = dispatch.Retry{MaxAttempts: tt.maxAttempts, MinBackoff: time.Second, MaxBackoff: 10 * time.Minute, MaxAge: 24 * time.Hour}
				require.NoError(t, d.Set(t.Context(), sub))
				for i := range tt.events {
					b.keyed(uint64(i+1), string(rune('A'+i)), string(rune('a'+i)))
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Empty(t, b.dead(), "the outage used up no attempts")
				o.mu.Lock()
				require.Less(t, o.requests, 70+15*tt.events/10, "it is asked now and then only")
				o.mu.Unlock()
				back := time.Now()
				o.end()
				time.Sleep(30 * time.Second)
				synctest.Wait()
				o.mu.Lock()
				defer o.mu.Unlock()
				require.Len(t, o.taken, tt.events)
				for id, at := range o.taken {
					require.LessOrEqual(t, at.Sub(back), tt.within, "event %s", id)
				}
				stats, _ := d.Stats("u1")
				require.False(t, stats.HeldBack)
				require.Equal(t, int64(tt.events), stats.Delivered)
			})
		})
	}
}

// A sink that answers is there: an event that it refuses uses up its attempts.
func TestAFewEventsThatFailUseUpTheirAttempts(t *testing.T) {
	for name, status := range map[string]int{"500": 500, "503": 503} {
		t.Run(name, func(t *testing.T) {
			var requests atomic.Int64
			bubble(t, func(*http.Request) (*http.Response, error) { requests.Add(1); return answer(status), nil }, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				require.NoError(t, d.Set(t.Context(), subscription("u1")))
				for i := range uint64(3) {
					b.add(i+1, string(rune('a'+i)))
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Len(t, b.dead(), 3)
				require.Equal(t, int64(12), requests.Load())
				for _, letter := range b.dead() {
					require.Equal(t, 4, letter.Attempts)
				}
			})
		})
	}
}

func TestWhatIsHeldBackTooLongIsADeadLetter(t *testing.T) {
	bubble(t, func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") }, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
		sub := subscription("u1")
		sub.Retry.MaxAttempts = 0
		require.NoError(t, d.Set(t.Context(), sub))
		for i := range uint64(30) {
			b.add(i+1, string(rune('a'+i)))
		}
		time.Sleep(time.Hour + 2*time.Minute)
		synctest.Wait()
		require.Len(t, b.dead(), 30)
		for _, letter := range b.dead() {
			require.Equal(t, broker.ReasonExpired, letter.Reason)
		}
	})
}

func TestASinkThatIsGonePausesUntilTheSubscriptionIsChanged(t *testing.T) {
	for _, orderBy := range []string{"", "subject"} {
		t.Run(orderBy, func(t *testing.T) {
			var status, requests atomic.Int32
			status.Store(410)
			bubble(t, func(*http.Request) (*http.Response, error) {
				requests.Add(1)
				return answer(int(status.Load())), nil
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				sub := subscription("u1")
				sub.OrderBy, sub.Generation = orderBy, 1
				require.NoError(t, d.Set(t.Context(), sub))
				b.keyed(1, "1", "a")
				time.Sleep(10 * time.Minute)
				b.keyed(2, "2", "a")
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				require.EqualValues(t, 1, requests.Load())
				stats, _ := d.Stats("u1")
				require.True(t, stats.Gone)
				require.NoError(t, d.Set(t.Context(), sub), "the same again")
				time.Sleep(time.Minute)
				synctest.Wait()
				require.EqualValues(t, 1, requests.Load())
				require.Empty(t, b.dead())
				require.Empty(t, b.acked)

				status.Store(200)
				sub.Generation = 2
				require.NoError(t, d.Set(t.Context(), sub))
				time.Sleep(time.Minute)
				synctest.Wait()
				require.ElementsMatch(t, []uint64{1, 2}, b.acked)
				stats, _ = d.Stats("u1")
				require.False(t, stats.Gone)
			})
		})
	}
}

func TestRate(t *testing.T) {
	for _, orderBy := range []string{"", "subject"} {
		t.Run(orderBy, func(t *testing.T) {
			var mu sync.Mutex
			var at []time.Time
			bubble(t, func(*http.Request) (*http.Response, error) {
				mu.Lock()
				defer mu.Unlock()
				at = append(at, time.Now())
				return answer(200), nil
			}, func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher) {
				sub := subscription("u1")
				sub.OrderBy, sub.Rate = orderBy, dispatch.Rate{Events: 10, Per: time.Second}
				for i := range 100 {
					b.keyed(uint64(i+1), string(rune('A'+i)), string(rune('a'+i)))
				}
				require.NoError(t, d.Set(t.Context(), sub))
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Len(t, at, 100)
				for i := 11; i < len(at); i++ {
					require.Greater(t, at[i].Sub(at[i-11]), time.Second-time.Millisecond, "no second has more than ten, and one to begin with")
				}
				require.Less(t, at[99].Sub(at[0]), 15*time.Second)
			})
		})
	}
}

// A sink for dead letters that takes longer than the broker waits gets each once.
func TestASlowSinkForDeadLettersGetsEachOnce(t *testing.T) {
	var mu sync.Mutex
	dead := 0
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		b.ackWait = 10 * time.Second
		s := sink(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "dead" {
				mu.Lock()
				dead++
				mu.Unlock()
				time.Sleep(25 * time.Second)
				return answer(200), nil
			}
			return answer(400), nil
		})
		d := dispatch.New(dispatch.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		sub := subscription("u1")
		sub.DeadLetter = &dispatch.Sink{URL: "https://dead/"}
		require.NoError(t, d.Set(t.Context(), sub))
		b.add(1, "1")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Equal(t, 1, dead)
		stats, _ := d.Stats("u1")
		require.Equal(t, int64(1), stats.DeadLettered)
		require.Equal(t, broker.ReasonRejected, b.dead()[0].Reason)
		cancel()
		require.NoError(t, <-done)
	})
}
