package dispatch

import (
	"context"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

const (
	fetchWait = 30 * time.Second
	// largeWait is how long a fetch waits that has taken much of the budget: what it
	// is for is there.
	largeWait = time.Second
	// pollBytes is what a fetch may bring without asking the budget, so that any
	// number of subscriptions can wait for events.
	pollBytes = 64 << 10
	// maxFetchBytes bounds what one fetch brings at once. Many fetches of large
	// events would otherwise fill the broker's buffer for this connection, and it
	// drops a connection whose buffer is full.
	maxFetchBytes = 4 << 20
	// brokerPause is the pause after the broker failed.
	brokerPause = time.Second
)

// fetch is a question to the broker for events.
type fetch struct {
	ctx      context.Context //nolint:containedctx // ends when the fetch is to stop
	consumer broker.Consumer
	window   broker.Window
	reserved int64 // of the window, in the budget
}

// reserve waits until events may be fetched; it returns false when the runner is
// to end.
func (r *runner) reserve() (fetch, bool) {
	for {
		f, again, ok := r.tryReserve()
		if ok {
			return f, true
		}
		var later <-chan time.Time
		if again > 0 {
			later = time.After(again)
		}
		select {
		case <-r.wake:
		case <-later:
		case <-r.ctx.Done():
			return fetch{}, false
		}
	}
}

// tryReserve returns, when nothing may be fetched now, when to ask again without
// being woken; 0: not at all.
func (r *runner) tryReserve() (f fetch, again time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	free := r.sub.MaxInFlight - r.inFlight - r.demanded
	most := r.sub.MaxInFlight / 2
	if r.sub.OrderBy != "" {
		most = 0 // two fetches at a time could overtake each other
	}
	free, most, again = r.slow(free, most)
	if free <= 0 || r.demanded > most || r.resting() || r.ctx.Err() != nil {
		r.account.withdraw()
		return f, again, false
	}
	f = fetch{ctx: r.fetching, consumer: r.consumer, window: broker.Window{Events: free, Bytes: pollBytes}}
	if r.backlog || !r.account.idle() {
		least, want := max(pollBytes, r.need), int64(pollBytes)
		if r.backlog {
			want = max(least, min(int64(free)*r.average, maxFetchBytes))
		}
		if f.reserved = r.account.reserve(want, least); f.reserved == 0 {
			return f, 0, false
		}
		f.window.Bytes = int(max(f.reserved, r.need))
	}
	r.demanded += free
	return f, 0, true
}

// slow lowers how much is fetched where less may be sent: one event to ask whether
// the sink is back, and no more than the rate allows. Call it with mu held.
func (r *runner) slow(free, most int) (slowed, demanded int, again time.Duration) {
	now := time.Now()
	if r.breaker.open {
		if pause := r.breaker.wait(now); pause > 0 {
			return 0, 0, pause
		}
		free, most = min(free, 1), 0
	}
	if r.limiter != nil && free > 0 {
		tokens := int(r.limiter.TokensAt(now))
		if tokens < 1 {
			return 0, most, time.Duration(float64(time.Second) / float64(r.limiter.Limit()))
		}
		free = min(free, max(0, tokens-r.demanded))
	}
	return free, most, 0
}

func (r *runner) fetch(f *fetch) {
	missing, left := f.window.Events, f.reserved
	wait := fetchWait
	if f.reserved > pollBytes {
		wait = largeWait
	}
	more, err := f.consumer.Fetch(f.ctx, f.window, wait, func(delivery broker.Delivery) {
		missing--
		left -= r.accept(delivery, left)
	})
	r.account.release(left)
	if err != nil && f.ctx.Err() == nil {
		r.log.Warn("fetching events failed; trying again", "error", err)
		r.change(func() { r.stats.LastError = err.Error() })
		// What is demanded stays so during the pause: reserve asks for no more.
		select {
		case <-time.After(brokerPause):
		case <-f.ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.demanded -= missing
	r.need = 0
	if missing > 0 { // else there may be more, or not
		r.backlog = more
	}
	if more && missing == f.window.Events { // not even one did fit
		r.need = maxMessage
		if f.window.Bytes >= maxMessage { // nor will it then: not written by this bus
			r.need = 2 * int64(f.window.Bytes)
		}
	}
	r.signal()
}

// accept takes a delivery that was demanded on its way. It returns how much of
// what was reserved it takes.
func (r *runner) accept(d broker.Delivery, reserved int64) (used int64) {
	e, id := d.Event(), identify(d)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.demanded--
	bytes := size(r.sub.Format, e, d.Unreadable())
	r.average += (bytes - r.average) / 8
	used = min(bytes, reserved)
	r.account.charge(bytes - used)
	t := r.takeLocked(d, id, bytes)
	if r.sub.OrderBy != "" {
		if key, ok := e.Attribute(r.sub.OrderBy); ok {
			// Before mu is released: when nothing is demanded any more the next
			// fetch begins, and its events would overtake this one.
			r.enqueue(key, t)
			return used
		}
	}
	r.d.work.Go(func() { r.process(t) })
	return used
}

// taken is a delivery that takes memory here.
type taken struct {
	broker.Delivery
	id    identity
	bytes int64
}

func (t *taken) identity() identity { return t.id }

// delivery is one of an event that the ledger knows.
type delivery interface {
	broker.Delivery
	identity() identity
}

// take counts a delivery among those in flight.
func (r *runner) take(d broker.Delivery, bytes int64) *taken {
	id := identify(d)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.takeLocked(d, id, bytes)
}

// takeLocked is take with mu held.
func (r *runner) takeLocked(d broker.Delivery, id identity, bytes int64) *taken {
	r.inFlight++
	known := r.ledger.of(id)
	known.here++
	known.recall = nil
	return &taken{Delivery: d, id: id, bytes: bytes}
}

// process brings one delivery to its end.
func (r *runner) process(t *taken) {
	sub, _ := r.current()
	r.finish(t, r.handle(&sub, t))
}

// finish gives the place of a delivery back.
func (r *runner) finish(t *taken, done bool) {
	r.account.release(t.bytes)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight--
	r.ledger.leave(t.id, done)
	r.dirty = true
	r.signal()
}
