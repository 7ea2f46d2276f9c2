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
	probes   int       // of those that were not counted, since this process began
	last     Outcome   // of the last one
	decided  Decision  // what the last one led to
	next     time.Time // not before then
	buried   bool      // its dead letter is stored
	here     int       // deliveries that are being handled
	busy     bool      // one of them is beyond the gate
	done     bool      // nothing is to be done any more
	touched  time.Time

	// Of an event that failed and is put off:
	sent   time.Time    // when it failed last
	asked  time.Time    // until when its sink asked for patience
	row    int          // of failures, see breaker
	recall func() error // asks for it at once; nil when it is not put off
	// outlived is how many successes, of other events, lay between two of its failures.
	outlived int
}

// stale reports whether the sink may have seen the event: its next outcome may be
// the same because of what it is.
func (e *entry) stale() bool {
	return e.attempts+e.probes > 0 && !unconnected(e.last)
}

// maxOutlived is how many times an event may fail again after the sink took others:
// one that does so more often fails because of what it is.
const maxOutlived = 3

// suspect reports whether the failures of an event say nothing about its sink.
func (e *entry) suspect() bool { return e.outlived >= maxOutlived }

// fail notes that it failed in a row of failures; -1: not one that the breaker knows.
func (e *entry) fail(row int, now time.Time, o Outcome) {
	if !e.sent.IsZero() && e.row >= 0 && e.row != row {
		e.outlived++
	}
	e.row, e.sent, e.asked = row, now, now.Add(o.RetryAfter)
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

// leave notes that a delivery is not handled any more, and forgets an event that is
// done with when it was the last one.
func (l ledger) leave(id identity, done bool) {
	e := l.of(id)
	e.here--
	e.done = e.done || done
	if e.done && e.here <= 0 {
		delete(l, id)
	}
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
