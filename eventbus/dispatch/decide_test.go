package dispatch_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
)

func TestDecide(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	limited := dispatch.Retry{MaxAttempts: 3, MinBackoff: time.Second, MaxBackoff: time.Minute, MaxAge: time.Hour}
	unlimited := limited
	unlimited.MaxAttempts = 0
	again := func(least, most time.Duration) func(*testing.T, dispatch.Decision) {
		return func(t *testing.T, d dispatch.Decision) {
			require.Equal(t, broker.Again, d.What)
			require.GreaterOrEqual(t, d.At.Sub(now), least)
			require.LessOrEqual(t, d.At.Sub(now), most)
		}
	}
	is := func(what broker.Decision, reason string) func(*testing.T, dispatch.Decision) {
		return func(t *testing.T, d dispatch.Decision) {
			require.Equal(t, what, d.What)
			require.Equal(t, reason, d.Reason)
		}
	}
	refused := errors.New("connection refused")
	for name, tt := range map[string]struct {
		policy   dispatch.Retry
		attempts int
		left     time.Duration // until it expires; default an hour
		outcome  dispatch.Outcome
		want     func(*testing.T, dispatch.Decision)
	}{
		"200":                        {limited, 1, 0, dispatch.Outcome{Status: 200}, is(broker.Delivered, "")},
		"299":                        {limited, 1, 0, dispatch.Outcome{Status: 299}, is(broker.Delivered, "")},
		"200 of a probe":             {limited, 1, 0, dispatch.Outcome{Status: 200, Probe: true}, is(broker.Delivered, "")},
		"200 too late":               {limited, 3, -time.Second, dispatch.Outcome{Status: 204}, is(broker.Delivered, "")},
		"400":                        {limited, 1, 0, dispatch.Outcome{Status: 400}, is(broker.Dead, broker.ReasonRejected)},
		"413":                        {limited, 1, 0, dispatch.Outcome{Status: 413}, is(broker.Dead, broker.ReasonRejected)},
		"415":                        {unlimited, 1, 0, dispatch.Outcome{Status: 415}, is(broker.Dead, broker.ReasonRejected)},
		"422 with Retry-After":       {unlimited, 1, 0, dispatch.Outcome{Status: 422, RetryAfter: time.Minute}, is(broker.Dead, broker.ReasonRejected)},
		"410":                        {limited, 3, 0, dispatch.Outcome{Status: 410}, is(broker.Gone, "")},
		"401":                        {limited, 1, 0, dispatch.Outcome{Status: 401}, again(time.Second, 1250*time.Millisecond)},
		"403":                        {limited, 1, 0, dispatch.Outcome{Status: 403}, again(time.Second, 1250*time.Millisecond)},
		"404":                        {limited, 1, 0, dispatch.Outcome{Status: 404}, again(time.Second, 1250*time.Millisecond)},
		"301":                        {limited, 1, 0, dispatch.Outcome{Status: 301}, again(time.Second, 1250*time.Millisecond)},
		"500, the second":            {limited, 2, 0, dispatch.Outcome{Status: 500}, again(2*time.Second, 2500*time.Millisecond)},
		"500, the last":              {limited, 3, 0, dispatch.Outcome{Status: 500}, is(broker.Dead, broker.ReasonAttemptsExhausted)},
		"500, the policy was higher": {limited, 9, 0, dispatch.Outcome{Status: 500}, is(broker.Dead, broker.ReasonAttemptsExhausted)},
		"500, no limit":              {unlimited, 1000, 0, dispatch.Outcome{Status: 500}, again(48*time.Second, time.Minute)},
		"500, no limit, too old":     {unlimited, 1000, -1, dispatch.Outcome{Status: 500}, is(broker.Dead, broker.ReasonExpired)},
		"500, close to its end":      {unlimited, 9, 3 * time.Second, dispatch.Outcome{Status: 500}, again(3*time.Second, 3*time.Second)},
		"no answer":                  {limited, 1, 0, dispatch.Outcome{Err: refused}, again(time.Second, 1250*time.Millisecond)},
		"no answer to the last":      {limited, 3, 0, dispatch.Outcome{Err: refused}, is(broker.Dead, broker.ReasonAttemptsExhausted)},
		"a probe that nobody saw":    {limited, 3, 0, dispatch.Outcome{Err: &net.OpError{Op: "dial", Err: refused}, Probe: true}, again(time.Second, time.Second)},
		"a probe that failed":        {limited, 3, 0, dispatch.Outcome{Err: refused, Probe: true}, again(4*time.Second, 5*time.Second)},
		"a probe of what is too old": {limited, 3, -1, dispatch.Outcome{Err: refused, Probe: true}, is(broker.Dead, broker.ReasonExpired)},
		"429 with Retry-After":       {limited, 1, 0, dispatch.Outcome{Status: 429, RetryAfter: 20 * time.Second}, again(20*time.Second, 20*time.Second)},
		"503 with a short one":       {limited, 2, 0, dispatch.Outcome{Status: 503, RetryAfter: time.Second}, again(2*time.Second, 2500*time.Millisecond)},
		"Retry-After beyond its end": {limited, 1, 10 * time.Second, dispatch.Outcome{Status: 503, RetryAfter: time.Hour}, again(10*time.Second, 10*time.Second)},
		"interrupted":                {limited, 3, -1, dispatch.Outcome{Err: refused, Interrupted: true}, again(0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.left == 0 {
				tt.left = time.Hour
			}
			history := dispatch.History{Salt: name, Expires: now.Add(tt.left), Attempts: tt.attempts}
			got := dispatch.Decide(tt.policy, history, tt.outcome, now)
			tt.want(t, got)
			require.Equal(t, got, dispatch.Decide(tt.policy, history, tt.outcome, now), "the same again")
		})
	}
}

// What failed together does not come back together: neither in its first pause nor
// in the longest.
func TestPausesAreSpreadAndKeepTheirBounds(t *testing.T) {
	now := time.Now()
	policy := dispatch.Retry{MinBackoff: time.Second, MaxBackoff: 10 * time.Second, MaxAge: time.Hour}
	for _, attempts := range []int{1, 2, 20} {
		seen := map[time.Duration]int{}
		for i := range 1000 {
			d := dispatch.Decide(policy, dispatch.History{Salt: string(rune('a' + i)), Expires: now.Add(time.Hour), Attempts: attempts}, dispatch.Outcome{Status: 500}, now)
			pause := d.At.Sub(now)
			require.GreaterOrEqual(t, pause, time.Second)
			require.LessOrEqual(t, pause, 10*time.Second)
			seen[pause.Round(10*time.Millisecond)]++
		}
		for pause, n := range seen {
			require.Less(t, n, 200, "after attempt %d, %s", attempts, pause)
		}
	}
}
