package dispatch

import (
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

const (
	// probeEvery is how often a sink that is not reachable is asked again.
	probeEvery = time.Second
	// turn is how long a probe that is due waits for an event that was never sent,
	// after one with an event that was.
	turn = probeEvery / 4
	// maxProbes wait for their answer at once: a sink that hangs answers none.
	maxProbes = 8
	// maxStaleProbes of them are events that were answered before: those may hang
	// because of what they are.
	maxStaleProbes = maxProbes / 2
	// maxHold is how long a sink's Retry-After holds back events that it was not
	// given for: a few events may be answered so that alone would not be.
	maxHold = 10 * time.Second
	// putOff is how long an event waits whose turn to be a probe it is not.
	putOff = 10 * time.Second
	// openAfter different events in a row that did not reach the sink, or as many
	// requests that found no connection to it, the breaker opens where attempts are
	// not limited.
	openAfter = 3
	// openAfterEvents different events that failed in a row it opens in any case: one
	// event that is wrong uses up its own attempts.
	openAfterEvents = 5
)

// breaker holds back the events of one subscription whose sink fails, so that they
// use up no attempts and their backlog flows as soon as it is back: a probe, which
// is one of the events, asks every second. Call it with the runner's lock held.
//
// It opens when different events fail in a row because nobody answers, or somebody
// answers for a sink that does not (429, 502, 503, 504). Other answers come from the
// sink: what it refuses is tried by the policy. Where that limits attempts they are
// used up; where it does not, a sink that fails with every event (5xx) is held back
// too. The answer to any event that did not fail so closes it.
//
// A few events that fail because of what they are may open it, and must not hold up
// the others: probes are in turn events that were answered before and, if there are
// any, events that were not.
type breaker struct {
	unconnected int                   // requests in a row that found no connection
	unreached   map[identity]struct{} // events in a row that did not reach the sink, up to openAfterEvents
	failed      map[identity]struct{} // events that failed in a row, likewise
	open        bool
	probes      int       // on their way
	stale       int       // of these, events that were answered before
	wasStale    bool      // the last one was such
	next        time.Time // not before then
	row         int       // which one it is: how often a success ended one
	closed      int       // how often it closed
}

// unreachable tells outcomes that may say nothing about the event.
func unreachable(o Outcome) bool {
	switch o.Status {
	case 0, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// unconnected tells outcomes that certainly say nothing about the event: nobody has
// seen it.
func unconnected(o Outcome) bool {
	if o.Err == nil {
		return false
	}
	if op, ok := errors.AsType[*net.OpError](o.Err); ok && op.Op == "dial" {
		return true
	}
	_, unresolved := errors.AsType[*net.DNSError](o.Err)
	return unresolved || targets.IsRefused(o.Err)
}

// fails tells outcomes for which events are held back.
func fails(o Outcome, limited bool) bool {
	return unreachable(o) || !limited && o.Status >= http.StatusInternalServerError
}

// left notes that a probe has its outcome.
func (b *breaker) left(o Outcome) {
	if o.Probe {
		b.probes--
	}
	if o.stale {
		b.stale--
	}
}

// observe notes the outcome of a request; limited says whether attempts are. It
// returns whether that opened or closed the breaker.
func (b *breaker) observe(id identity, o Outcome, limited bool, now time.Time) (opened, closed bool) {
	switch {
	case !fails(o, limited):
		closed = b.open
		fresh := breaker{probes: b.probes, stale: b.stale, row: b.row + 1, closed: b.closed}
		if closed {
			fresh.closed++
		}
		*b = fresh
		return false, closed
	case !unreachable(o):
		b.unreached, b.unconnected = nil, 0
	default:
		b.unreached = with(b.unreached, id)
		if b.unconnected++; !unconnected(o) {
			b.unconnected = 0
		}
	}
	b.failed = with(b.failed, id)
	hold := min(o.RetryAfter, maxHold)
	if b.open {
		if !o.stale {
			b.next = maxTime(b.next, now.Add(hold))
		}
		return false, false
	}
	if !limited && (len(b.unreached) >= openAfter || b.unconnected >= openAfter) || len(b.failed) >= openAfterEvents {
		b.open, b.next = true, now.Add(max(probeEvery, hold))
	}
	return b.open, false
}

// with adds an event to some, unless they are many.
func with(some map[identity]struct{}, id identity) map[identity]struct{} {
	if some == nil {
		some = map[identity]struct{}{}
	}
	if len(some) < openAfterEvents {
		some[id] = struct{}{}
	}
	return some
}

// takes reports whether an event may be the next probe; stale says that it was
// answered before.
func (b *breaker) takes(stale bool, now time.Time) bool {
	return !b.open || !stale || b.stale < maxStaleProbes && (!b.wasStale || !now.Before(b.next.Add(turn)))
}

// lacks reports whether no event came to be the probe that is due.
func (b *breaker) lacks(now time.Time) bool {
	return b.open && b.wait(now) == 0 && !now.Before(b.next.Add(turn))
}

// admit lets a request be sent, when there is nothing to wait for; it says whether
// that is a probe.
func (b *breaker) admit(stale bool, now time.Time) (probe bool) {
	if !b.open {
		return false
	}
	b.probes++
	if stale {
		b.stale++
	}
	b.wasStale = stale
	b.next = now.Add(probeEvery)
	return true
}

// wait is how long no request may be sent.
func (b *breaker) wait(now time.Time) time.Duration {
	if !b.open {
		return 0
	}
	if b.probes >= maxProbes {
		return probeEvery
	}
	return max(0, b.next.Sub(now))
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
