package dispatch

import (
	"errors"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// remembered is how long what is known of an event is kept for its next attempt,
// beyond the longest pause that a subscription asks for: a sink may ask for an
// hour, and the broker may be away.
const remembered = 2 * maxRetryAfter

// identity tells events apart. The sequence alone does not: it comes again when
// the stream was lost and begins anew.
type identity struct {
	sequence uint64
	stored   int64 // in nanoseconds
	key      string
}

func identify(d broker.Delivery) identity {
	return identity{sequence: d.Sequence(), stored: d.Stored().UnixNano(), key: d.Event().Key()}
}

// ledger is what is known of the events of one subscription that are not done with:
// the requests that were sent for them, by this process or, as far as the journal
// knows, by those before. Call it with the runner's lock held.
type ledger map[identity]*entry

// entry of an event.
type entry struct {
	attempts int       // requests that were sent
	last     Outcome   // of the last one
	decided  Decision  // what the last one led to
	next     time.Time // not before then
	buried   bool      // its dead letter is stored
	here     int       // deliveries that are being handled
	touched  time.Time
}

// of returns the entry of an event.
func (l ledger) of(id identity) *entry {
	e, ok := l[id]
	if !ok {
		e = &entry{}
		l[id] = e
	}
	e.touched = time.Now()
	return e
}

// restore notes an attempt that the journal knows.
func (l ledger) restore(a *broker.Attempt) {
	e := l.of(identity{sequence: a.Sequence, stored: a.Stored.UnixNano(), key: a.Key})
	e.attempts = max(e.attempts, a.Number)
	e.last = Outcome{Status: a.Status, Took: a.Took, Probe: a.Probe}
	if a.Error != "" {
		e.last.Err = errors.New(a.Error)
	}
	e.decided = Decision{What: a.Decision, At: a.Next, Reason: a.Reason}
	e.next = a.Next
}

// forget drops what does not seem to come again, as the events of a stream that
// was lost. It reports whether there was something.
func (l ledger) forget(longest time.Duration) (some bool) {
	for id, e := range l {
		if e.here == 0 && time.Since(e.touched) > remembered+longest {
			delete(l, id)
			some = true
		}
	}
	return some
}

// oldest is when the oldest event was stored; zero if there is none.
func (l ledger) oldest() (oldest time.Time) {
	for id := range l {
		if stored := time.Unix(0, id.stored); oldest.IsZero() || stored.Before(oldest) {
			oldest = stored
		}
	}
	return oldest
}
