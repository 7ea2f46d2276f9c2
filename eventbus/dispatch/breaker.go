package dispatch

import (
	"net/http"
	"time"
)

const (
	// probeEvery is how often a sink that is not reachable is asked again.
	probeEvery = time.Second
	// maxProbes wait for their answer at once: a sink that hangs answers none.
	maxProbes = 8
	// openAfter requests in a row that did not reach the sink the breaker opens,
	// where attempts are not limited.
	openAfter = 3
	// openAfterEvents different events that failed in a row it opens in any case: one
	// event that is wrong uses up its own attempts.
	openAfterEvents = 5
)

// breaker holds back the events of one subscription whose sink fails, so that they
// use up no attempts and their backlog flows as soon as it is back: a probe, which
// is one of the events, asks every second. Call it with the runner's lock held.
//
// It opens when requests fail in a row because nobody answers, or somebody answers
// for a sink that does not (429, 502, 503, 504). Other answers come from the sink:
// what it refuses is tried by the policy. Where that limits attempts they are used
// up; where it does not, a sink that fails with every event (5xx) is held back too.
type breaker struct {
	unreached int                   // requests in a row
	events    map[identity]struct{} // that failed in a row, up to openAfterEvents
	open      bool
	probes    int       // on their way
	next      time.Time // not before then
}

// unreachable tells outcomes that say nothing about the event.
func unreachable(o Outcome) bool {
	switch o.Status {
	case 0, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// observe notes the outcome of a request; limited says whether attempts are. It
// returns whether that closed the breaker.
func (b *breaker) observe(id identity, o Outcome, limited bool, now time.Time) (closed bool) {
	if o.Probe {
		b.probes--
	}
	if o.Interrupted {
		return false
	}
	switch {
	case unreachable(o):
		b.unreached++
	case !limited && o.Status >= http.StatusInternalServerError:
		b.unreached = 0
	default:
		closed = b.open
		*b = breaker{probes: b.probes}
		return closed
	}
	if b.open {
		b.next = maxTime(b.next, now.Add(o.RetryAfter))
		return false
	}
	if b.events == nil {
		b.events = map[identity]struct{}{}
	}
	if len(b.events) < openAfterEvents {
		b.events[id] = struct{}{}
	}
	if !limited && b.unreached >= openAfter || len(b.events) >= openAfterEvents {
		b.open, b.next = true, now.Add(max(probeEvery, o.RetryAfter))
	}
	return false
}

// admit lets a request be sent, when there is nothing to wait for; it says whether
// that is a probe.
func (b *breaker) admit(now time.Time) (probe bool) {
	if !b.open {
		return false
	}
	b.probes++
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
