package push

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

const (
	fetchWait = 30 * time.Second
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

	wake chan struct{} // something reserve waits for may have changed

	mu       sync.Mutex
	sub      Subscription
	consumer event.Consumer
	fetching context.Context //nolint:containedctx // ends when the running fetches are to stop
	unfetch  context.CancelFunc
	demanded int // events asked of the broker and not yet here
	inFlight int
	open     map[uint64]attempted // by sequence: what was tried and is not done
	lanes    map[string]*lane     // by key of ordered events
	stats    Stats
	dirty    bool
}

// attempted is what is remembered of an event between its attempts.
type attempted struct {
	stored time.Time
	last   outcome
}

func newRunner(d *Dispatcher, sub Subscription, consumer event.Consumer) *runner {
	r := &runner{
		d: d, sub: sub, consumer: consumer,
		log:  d.config.Log.With("subscription", sub.Namespace+"/"+sub.Name),
		wake: make(chan struct{}, 1),
		open: map[uint64]attempted{}, lanes: map[string]*lane{},
	}
	r.ctx, r.end = context.WithCancel(d.pull)
	r.fetching, r.unfetch = context.WithCancel(r.ctx)
	return r
}

func (r *runner) stop() { r.end() }

// update changes what is pushed from the next event on.
func (r *runner) update(sub Subscription, consumer event.Consumer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sub, r.consumer = sub, consumer
	if sub.Hold {
		r.stopFetching()
	}
	r.signal()
}

func (r *runner) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sub.Hold = true
	r.stopFetching()
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

func (r *runner) current() (Subscription, event.Consumer) {
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
	for _, a := range r.open {
		if s.Oldest.IsZero() || a.stored.Before(s.Oldest) {
			s.Oldest = a.stored
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
	r.settle()
	var fetches sync.WaitGroup
	for {
		n, consumer, ctx := r.reserve()
		if n == 0 {
			break
		}
		fetches.Go(func() { r.fetch(ctx, consumer, n) })
	}
	fetches.Wait()
}

// reserve waits until events may be fetched and returns how many; 0 when the
// runner is to end.
func (r *runner) reserve() (int, event.Consumer, context.Context) {
	for {
		r.mu.Lock()
		free := r.sub.MaxInFlight - r.inFlight - r.demanded
		most := r.sub.MaxInFlight / 2
		if r.sub.OrderBy != "" {
			most = 0 // two fetches at a time could overtake each other
		}
		if free > 0 && r.demanded <= most && !r.sub.Hold && r.ctx.Err() == nil {
			r.demanded += free
			consumer, ctx := r.consumer, r.fetching
			r.mu.Unlock()
			return free, consumer, ctx
		}
		r.mu.Unlock()
		select {
		case <-r.wake:
		case <-r.ctx.Done():
			return 0, nil, nil
		}
	}
}

func (r *runner) fetch(ctx context.Context, consumer event.Consumer, n int) {
	missing := n
	err := consumer.Fetch(ctx, n, fetchWait, func(delivery event.Delivery) {
		missing--
		r.accept(delivery)
	})
	if err != nil && ctx.Err() == nil {
		r.log.Warn("fetching events failed; trying again", "error", err)
		r.change(func() { r.stats.LastError = err.Error() })
		// What is demanded stays so during the pause: reserve asks for no more.
		select {
		case <-time.After(brokerPause):
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.demanded -= missing
	r.signal()
}

// accept takes a delivery that was demanded on its way.
func (r *runner) accept(d event.Delivery) {
	e := d.Event()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.demanded--
	r.inFlight++
	r.open[d.Sequence()] = attempted{stored: d.Stored(), last: r.open[d.Sequence()].last}
	if r.sub.OrderBy != "" {
		if key, ok := e.Attribute(r.sub.OrderBy); ok {
			// Before mu is released: when nothing is demanded any more the next
			// fetch begins, and its events would overtake this one.
			r.queue(key, d)
			return
		}
	}
	r.d.work.Go(func() { r.process(d) })
}

// process brings one delivery to its end.
func (r *runner) process(d event.Delivery) {
	sub, _ := r.current()
	r.finish(d, r.handle(&sub, d))
}

// finish gives the place of a delivery back.
func (r *runner) finish(d event.Delivery, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight--
	if done {
		delete(r.open, d.Sequence())
	}
	r.dirty = true
	r.signal()
}

// handle returns whether the event is done with.
func (r *runner) handle(sub *Subscription, d event.Delivery) (done bool) {
	e := d.Event()
	if sub.Hold { // came while the fetch was being taken back
		r.answer("give back", d.Retry(brokerPause))
		return false
	}
	// The broker's filters may be wider than the selectors, and a selector that
	// is gone leaves events behind that wait for a retry.
	if !event.Selects(sub.Selectors, e.Source, e.Type) || (sub.Filter != nil && !sub.Filter(e)) {
		return r.answer("acknowledge", d.Ack())
	}
	if r.last(d).delivered() { // its acknowledgement did not get through
		return r.answer("acknowledge", d.Ack())
	}
	attempt := d.Attempt()
	if attempt > 1 {
		r.change(func() { r.stats.Redelivered++ })
	}
	expires := later(d.Stored(), sub.Created).Add(sub.Retry.MaxAge)
	switch {
	case attempt > sub.Retry.MaxAttempts: // its dead letter could not be stored or acknowledged
		return r.bury(sub, d, event.ReasonAttemptsExhausted, sub.Retry.MaxAttempts)
	case attempt > 1 && time.Now().After(expires):
		return r.bury(sub, d, event.ReasonExpired, attempt-1)
	}

	stopExtending := r.extend(d)
	result := r.d.post(sub, sub.Sink, d, nil)
	stopExtending()
	r.observe(sub, result)
	if result.ok() {
		r.change(func() {
			r.stats.Delivered++
			r.stats.Failing = false
			r.open[d.Sequence()] = attempted{stored: d.Stored(), last: result}
		})
		return r.answer("acknowledge", d.Ack())
	}
	if r.d.push.Err() != nil { // cut off: no failure of the sink
		r.answer("give back", d.Retry(0))
		return false
	}
	r.change(func() {
		r.stats.Failing = true
		r.open[d.Sequence()] = attempted{stored: d.Stored(), last: result}
		r.stats.LastError = fmt.Sprintf("event %s, attempt %d of %d: %s", e.ID, attempt, sub.Retry.MaxAttempts, result.text())
	})
	if attempt >= sub.Retry.MaxAttempts {
		return r.bury(sub, d, event.ReasonAttemptsExhausted, attempt)
	}
	pause := max(sub.Retry.backoff(attempt), result.retryAfter)
	if time.Now().Add(pause).After(expires) {
		return r.bury(sub, d, event.ReasonExpired, attempt)
	}
	r.answer("retry", d.Retry(pause))
	return false
}

// last is the outcome of the attempt before, if this process made it.
func (r *runner) last(d event.Delivery) outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open[d.Sequence()].last
}

// bury stores the dead letter and acknowledges the event after that.
func (r *runner) bury(sub *Subscription, d event.Delivery, reason string, attempts int) (done bool) {
	last := r.last(d)
	letter := event.DeadLetter{
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
	if sub.DeadLetter != nil {
		if result := r.d.post(sub, *sub.DeadLetter, d, &letter); !result.ok() {
			r.log.Warn("the sink for dead letters did not take one; it is stored", "event", letter.Event.ID, "error", result.text())
		}
	}
	return r.answer("acknowledge", d.Ack())
}

// extend tells the broker now and then that the push goes on.
func (r *runner) extend(d event.Delivery) (stop func()) {
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

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
