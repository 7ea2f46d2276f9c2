package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// runner dispatches one subscription: window.go fetches what can be sent, gate.go
// says whether an event may be sent now, send.go sends it, decide.go says what
// becomes of it, and settle.go does that.
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
	gone     bool            // the sink said so, and the subscription was not changed since
	fetching context.Context //nolint:containedctx // ends when the running fetches are to stop
	unfetch  context.CancelFunc
	demanded int // events asked of the broker and not yet here
	inFlight int
	backlog  bool  // more is there than a fetch brings unasked
	need     int64 // bytes the next event needs, when it did not fit
	average  int64 // bytes of an event, lately
	ledger   ledger
	breaker  breaker
	limiter  *rate.Limiter    // nil: none
	lanes    map[string]*lane // by key of ordered events
	// gathering is how many deliveries are to come before the lanes begin.
	gathering int
	stats     Stats
	dirty     bool
}

func newRunner(d *Dispatcher, sub Subscription, consumer broker.Consumer, known ledger) *runner {
	r := &runner{
		d: d, sub: sub, consumer: consumer,
		log:    d.config.Log.With("subscription", sub.Namespace+"/"+sub.Name),
		wake:   make(chan struct{}, 1),
		ledger: known, lanes: map[string]*lane{},
		limiter: sub.Rate.limiter(),
	}
	r.account = d.budget.account(sub.Namespace, r.signal)
	r.ctx, r.end = context.WithCancel(d.pull)
	r.fetching, r.unfetch = context.WithCancel(r.ctx)
	return r
}

func (r *runner) stop() { r.end() }

// update changes what is pushed from the next event on.
func (r *runner) update(sub Subscription, consumer broker.Consumer) {
	r.recall(r.updateLocked(sub, consumer))
}

// updateLocked returns what asks for the events that may be tried now.
func (r *runner) updateLocked(sub Subscription, consumer broker.Consumer) (all []func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sub.Generation != r.sub.Generation {
		r.gone, r.stats.Gone = false, false
	}
	if sub.Sink != r.sub.Sink { // another one may be reachable
		r.breaker = breaker{probes: r.breaker.probes, stale: r.breaker.stale, row: r.breaker.row + 1, closed: r.breaker.closed + 1}
		r.stats.HeldBack = false
		for _, e := range r.ledger { // also what is in hand, or waits since a restart
			e.next, e.asked = time.Time{}, time.Time{}
		}
		all = r.ledger.recall(func(*entry) bool { return true })
	}
	if sub.Rate != r.sub.Rate {
		r.limiter = sub.Rate.limiter()
	}
	r.sub, r.consumer = sub, consumer
	if sub.Hold {
		r.stopFetching()
	}
	r.signal()
	return all
}

// hold pushes nothing more, nor dead letters: whatever is there waits.
func (r *runner) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sub.Hold, r.sub.DeadLetter = true, nil
	r.stopFetching()
	r.signal()
}

// resting reports whether nothing is to be sent. Call it with mu held.
func (r *runner) resting() bool { return r.sub.Hold || r.gone }

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
	s.HeldBack = r.breaker.open
	s.Oldest = r.ledger.oldest()
	return s
}

// change applies fn to what the lock guards, of which the stats are told.
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
	r.awaitRedelivery()
	for {
		f, ok := r.reserve()
		if !ok {
			break
		}
		work.Go(func() { r.fetch(&f) })
	}
	work.Wait()
}

// wait returns false when the runner ends meanwhile.
func (r *runner) wait(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// extend tells the broker now and then that the work on a delivery goes on.
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
			r.told("extend", d.Extend())
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

// told notes when the broker could not be told; the event comes again then.
func (r *runner) told(what string, err error) bool {
	if err != nil {
		r.log.Warn("the broker could not be told about an event; it will come again", "what", what, "error", err)
	}
	return err == nil
}
