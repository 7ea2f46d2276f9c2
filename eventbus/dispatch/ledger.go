package dispatch

import (
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

// attempted is what is remembered of an event between its attempts.
type attempted struct {
	last    outcome
	idle    int // deliveries that were no attempt
	here    int // deliveries that are being handled
	touched time.Time
}

// delivery is one of an event that is remembered.
type delivery interface {
	broker.Delivery
	identity() identity
}

// taken is a delivery that takes memory here.
type taken struct {
	broker.Delivery
	id      identity
	bytes   int64
	attempt int
}

func (t *taken) identity() identity { return t.id }

// Attempt counts the pushes and the one to come, as far as this process knows
// which deliveries were none.
func (t *taken) Attempt() int { return t.attempt }

// known is what is remembered of an event. Call it with mu held.
func (r *runner) known(id identity) *attempted {
	a, ok := r.open[id]
	if !ok {
		a = &attempted{}
		r.open[id] = a
	}
	a.touched = time.Now()
	return a
}

// note remembers the outcome of an attempt. Call it with mu held.
func (r *runner) note(d delivery, last outcome) { r.known(d.identity()).last = last }

// last is the outcome of the attempt before, if this process made it.
func (r *runner) last(d delivery) outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known(d.identity()).last
}

// idle counts the deliveries that were no attempt.
func (r *runner) idle(d delivery) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known(d.identity()).idle
}

// forget drops what does not seem to come again, as the events of a stream that
// was lost.
func (r *runner) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, a := range r.open {
		if a.here == 0 && time.Since(a.touched) > remembered+r.sub.Retry.MaxBackoff {
			delete(r.open, id)
			r.dirty = true
		}
	}
}
