package dispatch

import (
	"context"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// Bounds of the pause between two looks at the backlog of a subscription that is
// held.
const (
	minSweep = time.Second
	maxSweep = time.Minute
	// sweepWait is how long an event that is there may take to come.
	sweepWait = 2 * time.Second
)

// sweep makes dead letters of what gets too old while nothing is pushed: a
// subscription that is paused, or whose sink is not there, fetches nothing, and
// nobody else would notice. It also forgets what does not come again.
func (r *runner) sweep() {
	for pause := minSweep; r.wait(pause); {
		r.mu.Lock()
		if r.ledger.forget(r.sub.Retry.MaxBackoff) {
			r.dirty = true
		}
		r.mu.Unlock()
		pause = r.expireHeld()
	}
}

// expireHeld buries what has expired and returns when to look again.
func (r *runner) expireHeld() time.Duration {
	for {
		sub, consumer := r.current()
		if !r.sendsNothing() {
			return clampSweep(sub.Retry.MaxAge)
		}
		oldest, err := consumer.Oldest(r.ctx)
		if err != nil {
			if r.ctx.Err() == nil {
				r.log.Warn("looking for events that are too old failed; trying again", "error", err)
			}
			return maxSweep
		}
		if oldest.IsZero() {
			return clampSweep(sub.Retry.MaxAge)
		}
		if left := time.Until(sub.expires(oldest)); left > 0 {
			return clampSweep(left)
		}
		if !r.expireOne(&sub, consumer) {
			return minSweep
		}
	}
}

// sendsNothing reports whether events wait that nobody looks at.
func (r *runner) sendsNothing() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resting() || r.breaker.open
}

func clampSweep(pause time.Duration) time.Duration { return max(minSweep, min(pause, maxSweep)) }

// expireOne fetches one event and buries it. It returns false when there was none
// that expired, or it could not be stored. Of an ordered subscription it is accepted
// like any other: its lane buries it, and what is younger after all keeps its place.
func (r *runner) expireOne(sub *Subscription, consumer broker.Consumer) (done bool) {
	reserved := r.account.reserve(maxMessage, maxMessage)
	if reserved == 0 {
		return false
	}
	defer func() { r.account.release(reserved) }()
	ordered := sub.OrderBy != ""
	if ordered {
		if !r.demandOne() {
			return false
		}
		defer func() {
			if !done {
				r.change(func() { r.demanded-- })
				r.signal()
			}
		}()
	}
	ctx, cancel := context.WithTimeout(r.ctx, sweepWait)
	defer cancel()
	var alone broker.Delivery
	_, err := consumer.Fetch(ctx, broker.Window{Events: 1, Bytes: int(reserved)}, sweepWait, func(d broker.Delivery) {
		if ordered {
			reserved -= r.accept(d, reserved)
			done = true
			return
		}
		alone = d
	})
	if err != nil || alone == nil {
		return done
	}
	t := r.take(alone, 0)
	done = r.handle(sub, t)
	r.finish(t, done)
	return done
}

// demandOne demands an event of an ordered subscription, when nobody else does, who
// could have one that it would overtake, and there is room for it.
func (r *runner) demandOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.demanded > 0 || r.inFlight >= r.sub.MaxInFlight {
		return false
	}
	r.demanded++
	return true
}
