package dispatch

import (
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// passage says what is to be done with an event that came.
type passage int

const (
	// pass: it is sent now.
	pass passage = iota
	// skip: it is not for the subscription, or was delivered before: it is
	// acknowledged, and nothing else.
	skip
	// stay: it may not be sent now, and uses up no attempt.
	stay
	// bury: it is a dead letter.
	bury
)

// ticket is what the gate gives an event.
type ticket struct {
	passage passage
	probe   bool          // of pass
	stale   bool          // of a probe: the event was answered before
	recall  bool          // of stay: it may be asked for before the pause is over
	closed  int           // how often the breaker had closed
	pause   time.Duration // of stay
	reason  string        // of bury
}

// gate looks at an event before it is sent: whether it is for the subscription,
// which may have changed since the broker selected it, whether it has had its end
// already, and whether it may be sent now.
func (r *runner) gate(sub *Subscription, d delivery) ticket {
	if d.Unreadable() != nil {
		return r.gateUnreadable(sub, d)
	}
	e := d.Event()
	// The broker's filters may be wider than the selectors, and a selector that
	// is gone leaves events behind that wait for a retry.
	if d.Replay() == "" && !sub.selects(e) {
		return ticket{passage: skip}
	}
	if r.ended(d) { // its acknowledgement did not get through
		return ticket{passage: skip}
	}
	switch permitted, err := r.permitted(e.Source); {
	case err != nil:
		r.log.Warn("whether an event is permitted is not known; it stays", "event", e.ID, "error", err)
		return ticket{passage: stay, pause: brokerPause}
	case !permitted:
		return ticket{passage: skip}
	}
	return r.gateNow(sub, d, time.Now())
}

// gateUnreadable: what is no event is a dead letter, unless what could be read of
// it says that it is not for this subscription.
func (r *runner) gateUnreadable(sub *Subscription, d delivery) ticket {
	if e := d.Event(); e.Source != "" && e.Type != "" && sub.Selectors != nil && !broker.Selects(sub.Selectors, e.Source, e.Type) {
		return ticket{passage: skip}
	}
	r.log.Error("a stored message cannot be read as an event", "sequence", d.Sequence(), "error", d.Unreadable().Err)
	return ticket{passage: bury, reason: broker.ReasonUnreadable}
}

// gateNow decides about an event that the subscription is to have.
func (r *runner) gateNow(sub *Subscription, d delivery, now time.Time) ticket {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.ledger.of(d.identity())
	expires := sub.expires(d.Stored())
	stale := known.stale()
	switch {
	case known.decided.What == broker.Dead: // its dead letter could not be stored or acknowledged
		return ticket{passage: bury, reason: known.decided.Reason}
	case sub.Retry.exhausted(known.attempts):
		return ticket{passage: bury, reason: broker.ReasonAttemptsExhausted}
	case !now.Before(expires):
		return ticket{passage: bury, reason: broker.ReasonExpired}
	case r.resting():
		return ticket{passage: stay, pause: brokerPause}
	case known.next.After(now): // the broker was restarted, or we were
		return ticket{passage: stay, pause: min(known.next.Sub(now), expires.Sub(now)), recall: true, closed: r.breaker.closed}
	}
	if pause := r.breaker.wait(now); pause > 0 {
		return ticket{passage: stay, pause: min(max(pause, probeEvery), expires.Sub(now))}
	}
	if !r.breaker.takes(stale, now) {
		known.row = r.breaker.row
		return ticket{passage: stay, pause: min(putOff, expires.Sub(now)), recall: true, closed: r.breaker.closed}
	}
	if r.limiter != nil && !r.limiter.AllowN(now, 1) {
		return ticket{passage: stay, pause: time.Duration(float64(time.Second) / float64(r.limiter.Limit()))}
	}
	probe := r.breaker.admit(stale, now)
	return ticket{passage: pass, probe: probe, stale: probe && stale, closed: r.breaker.closed}
}

// ended reports whether the event was delivered, or its dead letter is stored.
func (r *runner) ended(d delivery) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.ledger.of(d.identity())
	return known.buried || known.decided.What == broker.Delivered
}

// permitted reports whether the subscription may have events of a source now; a
// message that names none was selected by the broker.
func (r *runner) permitted(source string) (bool, error) {
	sub, _ := r.current()
	if sub.Permit == nil || source == "" {
		return true, nil
	}
	return sub.Permit(r.d.push, source)
}
