package dispatch

import (
	"hash/fnv"
	"net/http"
	"strconv"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// History is what happened to an event before an outcome is judged.
type History struct {
	// Salt tells subscriptions and events apart, so that those that failed together
	// do not come back together.
	Salt string
	// Expires is when the event is given up.
	Expires time.Time
	// Attempts are the requests that were sent, the one whose outcome is judged
	// included, unless that was a probe.
	Attempts int
	// Probes are those that were no attempts, likewise.
	Probes int
}

// Decision is what becomes of an event.
type Decision struct {
	What   broker.Decision
	At     time.Time // when it is tried again
	Reason string    // of the dead letter
}

// Decide says what becomes of an event after an attempt. It is a pure function.
func Decide(policy Retry, history History, outcome Outcome, now time.Time) Decision {
	switch {
	case outcome.Interrupted:
		return Decision{What: broker.Again, At: now}
	case outcome.ok():
		return Decision{What: broker.Delivered}
	case rejected(outcome.Status):
		return Decision{What: broker.Dead, Reason: broker.ReasonRejected}
	case outcome.Status == http.StatusGone:
		return Decision{What: broker.Gone, At: now}
	case !outcome.Probe && policy.exhausted(history.Attempts):
		return Decision{What: broker.Dead, Reason: broker.ReasonAttemptsExhausted}
	case !now.Before(history.Expires):
		return Decision{What: broker.Dead, Reason: broker.ReasonExpired}
	}
	pause := policy.backoff(max(1, history.Attempts+history.Probes), history.Salt)
	if outcome.Probe && unconnected(outcome) { // which is no reason to spare the sink this event
		pause = probeEvery
	}
	pause = max(pause, outcome.RetryAfter)
	at := now.Add(pause)
	if at.After(history.Expires) { // until then maxAge may be raised
		at = history.Expires
	}
	return Decision{What: broker.Again, At: at}
}

// rejected tells answers that say that the event itself is wrong: no further
// attempt would be answered otherwise.
func rejected(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// Retry says how hard to try.
type Retry struct {
	MaxAttempts int // the first included; 0: until MaxAge
	MinBackoff  time.Duration
	MaxBackoff  time.Duration
	// MaxAge is when an event is given up, counted from its acceptance or from
	// the creation of the subscription, whichever is later, tried or not.
	MaxAge time.Duration
}

// exhausted reports whether no further attempt may follow so many.
func (r Retry) exhausted(attempts int) bool { return r.MaxAttempts > 0 && attempts >= r.MaxAttempts }

// spread is how much the longest pause after an attempt exceeds the shortest.
const spread = 1.25

// backoff is the pause after the given attempt: MinBackoff doubled with each, and
// up to a quarter more; at most MaxBackoff, and there up to a fifth less, so that
// few come back at the same moment. The same salt gives the same pause.
func (r Retry) backoff(attempt int, salt string) time.Duration {
	d := r.MinBackoff
	for i := 1; i < attempt && d < r.MaxBackoff; i++ {
		d *= 2
	}
	high := min(time.Duration(float64(d)*spread), r.MaxBackoff)
	low := max(r.MinBackoff, time.Duration(float64(high)/spread))
	return low + time.Duration(float64(high-low)*fraction(salt, attempt))
}

// fraction is a number in [0, 1) that salt and attempt determine.
func fraction(salt string, attempt int) float64 {
	h := fnv.New64a()
	_, _ = h.Write(append([]byte(salt), "/"+strconv.Itoa(attempt)...))
	x := h.Sum64()
	x ^= x >> 33 // FNV spreads its last bytes over the lower half only
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x>>11) / (1 << 53)
}
