package dispatch

import (
	"context"
	"fmt"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

const (
	// storePause is the pause before a dead letter that could not be stored is
	// tried again.
	storePause = 5 * time.Second
	// storeTimeout is how long storing a dead letter may take.
	storeTimeout = 5 * time.Second
)

// handle does with a delivery what is to be done now. It returns whether the event
// is done with.
func (r *runner) handle(sub *Subscription, d delivery) (done bool) {
	if !r.claim(d) { // offered again while it is being sent
		r.told("give back", d.Retry(brokerPause))
		return false
	}
	defer r.unclaim(d)
	defer r.extend(d)()
	t := r.gate(sub, d)
	switch t.passage {
	case skip:
		return r.told("acknowledge", d.Ack())
	case stay:
		if t.recall {
			r.putOff(d, t.pause, t.closed)
		} else {
			r.told("give back", d.Retry(t.pause))
		}
		return false
	case bury:
		return r.bury(sub, d, t.reason)
	}
	begin := time.Now()
	outcome := r.d.send(sub, sub.Sink, d, nil)
	outcome.Probe, outcome.stale, outcome.closed = t.probe, t.stale, t.closed
	if r.d.push.Err() != nil && !outcome.ok() { // cut off: no failure of the sink
		outcome.Interrupted = true
	}
	return r.settle(sub, d, begin, outcome)
}

// settle does what an outcome leads to.
func (r *runner) settle(sub *Subscription, d delivery, begin time.Time, outcome Outcome) (done bool) {
	decision, attempt, closed := r.enter(sub, d, begin, outcome)
	switch {
	case outcome.Interrupted:
		r.told("give back", d.Retry(0))
		return false
	case decision.What == broker.Delivered:
		r.d.journal.add(attempt)
		return r.told("acknowledge", d.Ack())
	}
	r.d.journal.write(r.d.push, attempt)
	if decision.What == broker.Dead {
		return r.bury(sub, d, decision.Reason)
	}
	r.putOff(d, time.Until(decision.At), closed)
	return false
}

// claim takes an event beyond the gate, and returns false when another delivery of
// it is there.
func (r *runner) claim(d delivery) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.ledger.of(d.identity())
	if known.busy {
		return false
	}
	known.busy, known.recall = true, nil
	return true
}

func (r *runner) unclaim(d delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ledger.of(d.identity()).busy = false
}

// enter puts an outcome into the ledger, from which the stats, the metrics and the
// journal have it, and decides what it leads to. It returns how often the breaker
// had closed by then.
//
// The outcome is that of the sink that was asked, which may be another one by now:
// what it says about itself counts no longer then.
func (r *runner) enter(sub *Subscription, d delivery, begin time.Time, outcome Outcome) (Decision, *broker.Attempt, int) {
	e, id := d.Event(), d.identity()
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.ledger.of(id)
	limited := sub.Retry.MaxAttempts > 0
	r.breaker.left(outcome)
	if outcome.Probe && !outcome.Interrupted && !fails(outcome, limited) {
		outcome.Probe = false // the sink is back, and this is an attempt
	}
	switch {
	case outcome.Interrupted:
	case outcome.Probe || outcome.Unsent:
		known.probes++
	default:
		if known.attempts++; known.attempts > 1 {
			r.stats.Redelivered++
		}
	}
	history := History{Salt: sub.UID + e.ID, Expires: sub.expires(d.Stored()), Attempts: known.attempts, Probes: known.probes}
	decision := Decide(sub.Retry, history, outcome, now)
	known.last = outcome
	failed := fails(outcome, limited)
	switch {
	case outcome.Interrupted:
	case failed:
		known.fail(r.breaker.row, now, outcome)
	default:
		known.fail(-1, now, outcome)
	}
	switch {
	case sub.Sink != r.sub.Sink, outcome.Probe && outcome.closed != r.breaker.closed: // another one, or back since
		if decision.What == broker.Again {
			decision.At = now
		}
	case failed && known.suspect() && !r.breaker.open:
	case !outcome.Interrupted:
		r.observeSink(id, outcome, limited, now)
	}
	attempt := &broker.Attempt{
		Consumer: sub.UID, Sequence: d.Sequence(), Stored: d.Stored(), Key: id.key, Replay: d.Replay(),
		Number: known.attempts, Probe: outcome.Probe || outcome.Unsent,
		At: begin, Took: outcome.Took, Status: outcome.Status, Replica: r.d.config.Replica,
		Decision: decision.What, Reason: decision.Reason, Next: decision.At,
	}
	if outcome.Err != nil {
		text := outcome.Err.Error()
		attempt.Error = text[:min(len(text), maxErrorText)]
	}
	known.decided, known.next = decision, decision.At
	r.dirty = true
	if outcome.Interrupted {
		known.decided, known.next = Decision{}, time.Time{}
		return decision, attempt, r.breaker.closed
	}
	r.observe(sub, outcome)
	r.stats.Failing = decision.What != broker.Delivered
	switch decision.What {
	case broker.Delivered:
		r.stats.Delivered++
		return decision, attempt, r.breaker.closed
	case broker.Gone:
		if sub.Generation == r.sub.Generation {
			r.gone, r.stats.Gone = true, true
			r.stopFetching()
		}
	}
	which := numbered(attempt, sub.Retry)
	if outcome.Unsent {
		which = "not sent"
	}
	r.stats.LastError = fmt.Sprintf("event %s, %s: %s", e.ID, which, outcome.text())
	return decision, attempt, r.breaker.closed
}

// observeSink lets the breaker know of an outcome. Call it with mu held.
func (r *runner) observeSink(id identity, outcome Outcome, limited bool, now time.Time) {
	row := r.breaker.row
	opened, closed := r.breaker.observe(id, outcome, limited, now)
	r.stats.HeldBack = r.breaker.open
	switch {
	case opened:
		r.log.Warn("the sink is not reachable: its events are held back until it is", "last", outcome.text())
		r.stopFetching()
		times := r.breaker.closed
		r.d.work.Go(func() { r.ask(times) })
	case closed:
		r.log.Info("the sink is reachable again: its events flow")
		all := r.ledger.recall(func(e *entry) bool { return e.returning(row, now) })
		r.d.work.Go(func() { r.recall(all) })
		r.signal()
	}
}

// numbered says which attempt it was.
func numbered(a *broker.Attempt, policy Retry) string {
	switch {
	case a.Probe:
		return "asking whether the sink is back"
	case policy.MaxAttempts > 0:
		return fmt.Sprintf("attempt %d of %d", a.Number, policy.MaxAttempts)
	}
	return fmt.Sprintf("attempt %d", a.Number)
}

// bury stores the dead letter and acknowledges the event after that. A letter
// holds the event: there is none of what is not permitted.
func (r *runner) bury(sub *Subscription, d delivery, reason string) (done bool) {
	switch permitted, err := r.permitted(d.Event().Source); {
	case err != nil:
		r.log.Warn("whether a dead letter is permitted is not known; the event stays", "event", d.Event().ID, "error", err)
		r.told("retry", d.Retry(storePause))
		return false
	case !permitted:
		return r.told("acknowledge", d.Ack())
	}
	letter, decided := r.letter(sub, d, reason)
	// Not cut off by the drain timeout: an event that is given up must not be
	// tried once more only because we stop now. The store has a timeout.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.d.push), storeTimeout)
	defer cancel()
	if err := r.d.config.DeadLetters.StoreDeadLetter(ctx, letter); err != nil {
		r.log.Warn("a dead letter could not be stored; the event stays", "event", letter.Event.ID, "error", err)
		r.change(func() { r.stats.LastError = "storing a dead letter: " + err.Error() })
		r.told("retry", d.Retry(storePause))
		return false
	}
	r.log.Warn("event given up and stored as a dead letter", "event", letter.Event.ID, "reason", reason, "attempts", letter.Attempts, "last", letter.LastError)
	r.change(func() {
		r.stats.DeadLettered++
		r.ledger.of(d.identity()).buried = true
	})
	if m := r.d.config.Metrics; m != nil {
		m.dead.WithLabelValues(sub.Namespace, sub.Name, reason).Inc()
	}
	if decided.What != broker.Dead { // by no attempt
		r.d.journal.add(&broker.Attempt{
			Consumer: sub.UID, Sequence: letter.Sequence, Stored: letter.Stored, Key: d.identity().key, Replay: d.Replay(), Number: letter.Attempts,
			At: letter.Died, Replica: r.d.config.Replica, Decision: broker.Dead, Reason: reason, Error: letter.LastError,
		})
	}
	r.forward(d, letter)
	return r.told("acknowledge", d.Ack())
}

// letter is the dead letter of an event, and what its last attempt led to.
func (r *runner) letter(sub *Subscription, d delivery, reason string) (letter *broker.DeadLetter, decided Decision) {
	r.mu.Lock()
	known := *r.ledger.of(d.identity())
	r.mu.Unlock()
	letter = &broker.DeadLetter{
		Subscription: sub.Namespace + "/" + sub.Name,
		Consumer:     sub.UID,
		Sequence:     d.Sequence(),
		Stored:       d.Stored(),
		Died:         time.Now(),
		Reason:       reason,
		Attempts:     known.attempts,
		LastStatus:   known.last.Status,
		LastError:    known.last.text(),
		Event:        *d.Event(),
	}
	switch bad := d.Unreadable(); {
	case bad != nil:
		letter.Raw, letter.LastError = &bad.Raw, bad.Err.Error()
		letter.Event.Data = nil
	case reason == broker.ReasonExpired && letter.LastError == "":
		letter.LastError = fmt.Sprintf("it was not delivered within %s", sub.Retry.MaxAge)
	}
	return letter, known.decided
}

// forward sends a stored dead letter to the sink for them, as things are by now:
// the event may have been on its way for long.
func (r *runner) forward(d delivery, letter *broker.DeadLetter) {
	sub, _ := r.current()
	if permitted, err := r.permitted(letter.Event.Source); err != nil || !permitted || sub.DeadLetter == nil {
		return
	}
	if outcome := r.d.send(&sub, *sub.DeadLetter, d, letter); !outcome.ok() {
		r.log.Warn("the sink for dead letters did not take one; it is stored", "event", letter.Event.ID, "error", outcome.text())
	}
}

// observe counts a request.
func (r *runner) observe(sub *Subscription, outcome Outcome) {
	m := r.d.config.Metrics
	if m == nil {
		return
	}
	label := "failed"
	if outcome.ok() {
		label = "ok"
	}
	m.pushes.WithLabelValues(sub.Namespace, sub.Name, label).Inc()
	m.seconds.Observe(outcome.Took.Seconds())
}
