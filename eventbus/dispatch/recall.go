package dispatch

import "time"

// An event that failed waits for its own pause, so that the few that fail because
// of what they are leave the others room. What failed because the sink was away is
// recalled when it is back.

// putOff gives an event back for a pause, which is over when it is recalled. closed
// says how often the breaker had closed when that was decided.
func (r *runner) putOff(d delivery, pause time.Duration, closed int) {
	recall := d.Recall()
	if !r.told("retry", d.Retry(max(0, pause))) {
		return
	}
	r.mu.Lock()
	known := r.ledger.of(d.identity())
	switch {
	case known.here > 1: // it came again
	case closed == r.breaker.closed:
		known.recall = recall
	case known.returning(known.row, time.Now()): // the sink is back since
		known.next = time.Time{}
		r.mu.Unlock()
		r.told("recall", recall())
		return
	}
	r.mu.Unlock()
}

// ask has an event come that was put off, when no other comes to ask whether the
// sink is back, until the breaker closes. closed says how often it did before.
func (r *runner) ask(closed int) {
	for r.wait(turn) {
		r.mu.Lock()
		if !r.breaker.open || r.breaker.closed != closed {
			r.mu.Unlock()
			return
		}
		var one []func() error
		if now := time.Now(); !r.resting() && r.breaker.lacks(now) {
			one = r.ledger.recallNext(now)
		}
		r.mu.Unlock()
		r.recall(one)
	}
}

// recall asks the broker for events that were put off.
func (r *runner) recall(all []func() error) {
	for _, recall := range all {
		r.told("recall", recall())
	}
}

// recall ends the pauses of those that are put off and meant.
func (l ledger) recall(meant func(*entry) bool) (all []func() error) {
	for _, e := range l {
		if e.recall != nil && meant(e) {
			all = append(all, e.takeRecall())
		}
	}
	return all
}

// recallNext ends the pause of the one that was sent longest ago.
func (l ledger) recallNext(now time.Time) []func() error {
	var next *entry
	for _, e := range l {
		if e.recall != nil && !e.suspect() && !e.asked.After(now) && (next == nil || e.sent.Before(next.sent)) {
			next = e
		}
	}
	if next == nil {
		return nil
	}
	return []func() error{next.takeRecall()}
}

// returning reports whether an event is to be recalled because the sink is back
// from a row of failures.
func (e *entry) returning(row int, now time.Time) bool {
	return row >= 0 && e.row == row && !e.suspect() && !e.asked.After(now)
}

func (e *entry) takeRecall() func() error {
	recall := e.recall
	e.recall, e.next = nil, time.Time{}
	return recall
}
