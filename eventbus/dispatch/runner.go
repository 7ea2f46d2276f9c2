package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
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
	// storePause is the pause before a dead letter that could not be stored is
	// tried again.
	storePause = 5 * time.Second
	// storeTimeout is how long storing a dead letter may take.
	storeTimeout = 5 * time.Second
)

// runner dispatches one subscription.
type runner struct {
	d   *Dispatcher
	log *slog.Logger
	// ctx ends when the runner is to fetch nothing more.
	ctx context.Context //nolint:containedctx // the life of the runner, not of a call
	end context.CancelFunc

	wake    chan struct{} // something reserve waits for may have changed
	account *account

	mu       sync.Mutex
	sub      Subscription
	consumer broker.Consumer
	fetching context.Context //nolint:containedctx // ends when the running fetches are to stop
	unfetch  context.CancelFunc
	demanded int // events asked of the broker and not yet here
	inFlight int
	backlog  bool                    // more is there than a fetch brings unasked
	need     int64                   // bytes the next event needs, when it did not fit
	average  int64                   // bytes of an event, lately
	open     map[identity]*attempted // what was tried and is not done
	lanes    map[string]*lane        // by key of ordered events
	stats    Stats
	dirty    bool
}

func newRunner(d *Dispatcher, sub Subscription, consumer broker.Consumer) *runner {
	r := &runner{
		d: d, sub: sub, consumer: consumer,
		log:  d.config.Log.With("subscription", sub.Namespace+"/"+sub.Name),
		wake: make(chan struct{}, 1),
		open: map[identity]*attempted{}, lanes: map[string]*lane{},
	}
	r.account = d.budget.account(sub.Namespace, r.signal)
	r.ctx, r.end = context.WithCancel(d.pull)
	r.fetching, r.unfetch = context.WithCancel(r.ctx)
	return r
}

func (r *runner) stop() { r.end() }

// update changes what is pushed from the next event on.
func (r *runner) update(sub Subscription, consumer broker.Consumer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sub, r.consumer = sub, consumer
	if sub.Hold {
		r.stopFetching()
	}
	r.signal()
}

// hold pushes nothing more, nor dead letters: whatever is there waits.
func (r *runner) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sub.Hold, r.sub.DeadLetter = true, nil
	r.stopFetching()
	r.signal()
}

// stopFetching takes back what was asked of the broker. Call it with mu held.
func (r *runner) stopFetching() {
	r.unfetch()
	r.fetching, r.unfetch = context.WithCancel(r.ctx)
}

func (r *runner) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *runner) current() (Subscription, broker.Consumer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sub, r.consumer
}

func (r *runner) takeDirty() (Subscription, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	dirty := r.dirty
	r.dirty = false
	return r.sub, dirty
}

func (r *runner) snapshot() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.InFlight = int64(r.inFlight)
	for id := range r.open {
		if stored := time.Unix(0, id.stored); s.Oldest.IsZero() || stored.Before(s.Oldest) {
			s.Oldest = stored
		}
	}
	return s
}

// change applies fn to the stats.
func (r *runner) change(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
	r.dirty = true
}

// run asks the broker for as many events as can be pushed now, and again when
// half of that is used up.
func (r *runner) run() {
	defer r.account.withdraw()
	var work sync.WaitGroup
	work.Go(r.sweep)
	r.settle()
	for {
		f, ok := r.reserve()
		if !ok {
			break
		}
		work.Go(func() { r.fetch(&f) })
	}
	work.Wait()
}

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
		if f, ok := r.tryReserve(); ok {
			return f, true
		}
		select {
		case <-r.wake:
		case <-r.ctx.Done():
			return fetch{}, false
		}
	}
}

func (r *runner) tryReserve() (f fetch, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	free := r.sub.MaxInFlight - r.inFlight - r.demanded
	most := r.sub.MaxInFlight / 2
	if r.sub.OrderBy != "" {
		most = 0 // two fetches at a time could overtake each other
	}
	if free <= 0 || r.demanded > most || r.sub.Hold || r.ctx.Err() != nil {
		r.account.withdraw()
		return f, false
	}
	f = fetch{ctx: r.fetching, consumer: r.consumer, window: broker.Window{Events: free, Bytes: pollBytes}}
	if r.backlog || !r.account.idle() {
		least, want := max(pollBytes, r.need), int64(pollBytes)
		if r.backlog {
			want = max(least, min(int64(free)*r.average, maxFetchBytes))
		}
		if f.reserved = r.account.reserve(want, least); f.reserved == 0 {
			return f, false
		}
		f.window.Bytes = int(max(f.reserved, r.need))
	}
	r.demanded += free
	return f, true
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
			r.queue(key, t)
			return used
		}
	}
	r.d.work.Go(func() { r.process(t) })
	return used
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
	known := r.known(id)
	known.here++
	return &taken{Delivery: d, id: id, bytes: bytes, attempt: max(1, d.Attempt()-known.idle)}
}

// process brings one delivery to its end.
func (r *runner) process(d *taken) {
	sub, _ := r.current()
	r.finish(d, r.handle(&sub, d))
}

// finish gives the place of a delivery back.
func (r *runner) finish(d *taken, done bool) {
	r.account.release(d.bytes)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight--
	known := r.known(d.id)
	known.here--
	if done {
		delete(r.open, d.id)
	}
	r.dirty = true
	r.signal()
}

// handle returns whether the event is done with.
func (r *runner) handle(sub *Subscription, d delivery) (done bool) {
	e := d.Event()
	if bad := d.Unreadable(); bad != nil {
		return r.handleUnreadable(sub, d, bad)
	}
	// The broker's filters may be wider than the selectors, and a selector that
	// is gone leaves events behind that wait for a retry.
	if !sub.selects(e) {
		return r.answer("acknowledge", d.Ack())
	}
	if r.last(d).delivered() { // its acknowledgement did not get through
		return r.answer("acknowledge", d.Ack())
	}
	switch permitted, err := r.permitted(e.Source); {
	case err != nil:
		r.log.Warn("whether an event is permitted is not known; it stays", "event", e.ID, "error", err)
		return r.giveBack(d)
	case !permitted:
		return r.answer("acknowledge", d.Ack())
	}
	attempt := d.Attempt()
	expires := sub.expires(d.Stored())
	switch {
	case attempt > sub.Retry.MaxAttempts: // its dead letter could not be stored or acknowledged
		return r.bury(sub, d, broker.ReasonAttemptsExhausted, sub.Retry.MaxAttempts)
	case !time.Now().Before(expires):
		return r.bury(sub, d, broker.ReasonExpired, attempt-1)
	case sub.Hold: // came while the fetch was being taken back
		return r.giveBack(d)
	}
	if attempt > 1 {
		r.change(func() { r.stats.Redelivered++ })
	}

	stopExtending := r.extend(d)
	result := r.d.post(sub, sub.Sink, d, nil)
	stopExtending()
	r.observe(sub, result)
	if result.ok() {
		r.change(func() {
			r.stats.Delivered++
			r.stats.Failing = false
			r.note(d, result)
		})
		return r.answer("acknowledge", d.Ack())
	}
	if r.d.push.Err() != nil { // cut off: no failure of the sink
		r.answer("give back", d.Retry(0))
		return false
	}
	r.change(func() {
		r.stats.Failing = true
		r.note(d, result)
		r.stats.LastError = fmt.Sprintf("event %s, attempt %d of %d: %s", e.ID, attempt, sub.Retry.MaxAttempts, result.text())
	})
	if attempt >= sub.Retry.MaxAttempts {
		return r.bury(sub, d, broker.ReasonAttemptsExhausted, attempt)
	}
	left := time.Until(expires)
	if left <= 0 {
		return r.bury(sub, d, broker.ReasonExpired, attempt)
	}
	// Not beyond the end: until then maxAge may be raised.
	r.answer("retry", d.Retry(min(max(sub.Retry.backoff(attempt), result.retryAfter), left)))
	return false
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

// giveBack lets the broker offer a delivery again that was no attempt.
func (r *runner) giveBack(d delivery) (done bool) {
	r.change(func() { r.known(d.identity()).idle++ })
	r.answer("give back", d.Retry(brokerPause))
	return false
}

// handleUnreadable makes a dead letter of what is no event, unless what could be
// read of it says that it is not for this subscription.
func (r *runner) handleUnreadable(sub *Subscription, d delivery, bad *broker.Unreadable) (done bool) {
	if e := d.Event(); e.Source != "" && e.Type != "" && sub.Selectors != nil && !broker.Selects(sub.Selectors, e.Source, e.Type) {
		return r.answer("acknowledge", d.Ack())
	}
	r.log.Error("a stored message cannot be read as an event", "sequence", d.Sequence(), "error", bad.Err)
	return r.bury(sub, d, broker.ReasonUnreadable, 0)
}

// bury stores the dead letter and acknowledges the event after that. A letter
// holds the event: there is none of what is not permitted.
func (r *runner) bury(sub *Subscription, d delivery, reason string, attempts int) (done bool) {
	switch permitted, err := r.permitted(d.Event().Source); {
	case err != nil:
		r.log.Warn("whether a dead letter is permitted is not known; the event stays", "event", d.Event().ID, "error", err)
		r.answer("retry", d.Retry(storePause))
		return false
	case !permitted:
		return r.answer("acknowledge", d.Ack())
	}
	last := r.last(d)
	letter := broker.DeadLetter{
		Subscription: sub.Namespace + "/" + sub.Name,
		Consumer:     sub.UID,
		Sequence:     d.Sequence(),
		Stored:       d.Stored(),
		Died:         time.Now(),
		Reason:       reason,
		Attempts:     attempts,
		LastStatus:   last.status,
		LastError:    last.text(),
		Event:        *d.Event(),
	}
	switch bad := d.Unreadable(); {
	case bad != nil:
		letter.Raw, letter.LastError = &bad.Raw, bad.Err.Error()
		letter.Event.Data = nil
	case reason == broker.ReasonExpired && letter.LastError == "":
		letter.LastError = fmt.Sprintf("it was not delivered within %s", sub.Retry.MaxAge)
	}
	// Not cut off by the drain timeout: an event that is given up must not be
	// tried once more only because we stop now. The store has a timeout.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.d.push), storeTimeout)
	defer cancel()
	if err := r.d.config.DeadLetters.StoreDeadLetter(ctx, &letter); err != nil {
		r.log.Warn("a dead letter could not be stored; the event stays", "event", letter.Event.ID, "error", err)
		r.change(func() { r.stats.LastError = "storing a dead letter: " + err.Error() })
		r.answer("retry", d.Retry(storePause))
		return false
	}
	r.log.Warn("event given up and stored as a dead letter", "event", letter.Event.ID, "reason", reason, "attempts", attempts, "last", letter.LastError)
	r.change(func() { r.stats.DeadLettered++ })
	if m := r.d.config.Metrics; m != nil {
		m.dead.WithLabelValues(sub.Namespace, sub.Name, reason).Inc()
	}
	r.forward(d, &letter)
	return r.answer("acknowledge", d.Ack())
}

// forward sends a stored dead letter to the sink for them, as things are by now:
// the event may have been on its way for long.
func (r *runner) forward(d delivery, letter *broker.DeadLetter) {
	sub, _ := r.current()
	if permitted, err := r.permitted(letter.Event.Source); err != nil || !permitted || sub.DeadLetter == nil {
		return
	}
	if result := r.d.post(&sub, *sub.DeadLetter, d, letter); !result.ok() {
		r.log.Warn("the sink for dead letters did not take one; it is stored", "event", letter.Event.ID, "error", result.text())
	}
}

// extend tells the broker now and then that the push goes on.
func (r *runner) extend(d broker.Delivery) (stop func()) {
	var mu sync.Mutex
	stopped := false
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(r.d.config.ExtendEvery, func() {
		mu.Lock()
		defer mu.Unlock()
		if !stopped {
			r.answer("extend", d.Extend())
			timer.Reset(r.d.config.ExtendEvery)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// answer notes when the broker could not be told; the event comes again then.
func (r *runner) answer(what string, err error) bool {
	if err != nil {
		r.log.Warn("the broker could not be told about an event; it will come again", "what", what, "error", err)
	}
	return err == nil
}

func (r *runner) observe(sub *Subscription, result outcome) {
	m := r.d.config.Metrics
	if m == nil {
		return
	}
	label := "failed"
	if result.ok() {
		label = "ok"
	}
	m.pushes.WithLabelValues(sub.Namespace, sub.Name, label).Inc()
	m.seconds.Observe(result.took.Seconds())
}
