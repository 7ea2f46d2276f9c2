package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// Source is where events come from.
type Source interface {
	Subscribe(ctx context.Context, spec broker.ConsumerSpec) (broker.Consumer, error)
	// Consumer returns one that exists, or fails with [broker.ErrNotFound].
	Consumer(ctx context.Context, name string) (broker.Consumer, error)
	Unsubscribe(ctx context.Context, name string) error
}

// DeadLetters keeps what could not be delivered.
type DeadLetters interface {
	StoreDeadLetter(ctx context.Context, letter *broker.DeadLetter) error
}

// Config of a [Dispatcher]. Source, DeadLetters, Mesh and Direct are required.
type Config struct {
	Source      Source
	DeadLetters DeadLetters
	// Mesh carries pushes to sinks in the mesh, Direct those to others.
	Mesh, Direct http.RoundTripper
	// Changed, if set, is called at most once per second for each subscription
	// whose stats changed.
	Changed func(namespace, name string)
	// DrainTimeout is how long pushes in flight may take when the dispatcher
	// stops; default 15 s. What is cut off is delivered again.
	DrainTimeout time.Duration
	// ExtendEvery is how often the broker is told that a push goes on; it must be
	// well below the broker's ack wait. Default 3 s.
	ExtendEvery time.Duration
	// MaxBytesInFlight bounds the memory that events on their way to sinks take
	// together; default a quarter of the process's memory limit (GOMEMLIMIT), 256
	// MiB without one. At least 4.5 MiB.
	MaxBytesInFlight int64
	// Attempts keeps what was attempted over restarts; nil: nobody does.
	Attempts Attempts
	// Replica names this process in what it keeps of attempts.
	Replica string
	// Metrics, nil for none.
	Metrics *Metrics
	Log     *slog.Logger // default slog.Default
}

// Metrics of dispatching.
type Metrics struct {
	pushes  *prometheus.CounterVec
	dead    *prometheus.CounterVec
	seconds prometheus.Histogram
}

// NewMetrics registers the metrics of dispatching.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_eventbus_pushes_total", Help: "Attempts to push an event, by outcome (ok, failed).",
		}, []string{"namespace", "subscription", "outcome"}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_eventbus_dead_letters_total", Help: "Events stored as dead letters.",
		}, []string{"namespace", "subscription", "reason"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lambdamesh_eventbus_push_seconds", Help: "Time until a sink answered.",
			Buckets: prometheus.ExponentialBuckets(.001, 2.5, 12),
		}),
	}
	registry.MustRegister(m.pushes, m.dead, m.seconds)
	return m
}

// Dispatcher runs all subscriptions. It is a component.
type Dispatcher struct {
	config Config
	mesh   *http.Client
	direct *http.Client
	ready  chan struct{}
	budget *budget

	journal *journal

	// Two ends of one life: the first when no more events are to be fetched, the
	// second when pushes in flight are to be cut off.
	pull context.Context //nolint:containedctx // the life of the dispatcher, not of a call
	push context.Context //nolint:containedctx // likewise
	stop func()
	cut  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	runners map[string]*runner // by UID
}

// New makes a dispatcher. Subscriptions may be set before it runs.
func New(config Config) *Dispatcher {
	if config.DrainTimeout <= 0 {
		config.DrainTimeout = 15 * time.Second
	}
	if config.ExtendEvery <= 0 {
		config.ExtendEvery = 3 * time.Second
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	d := &Dispatcher{
		config:  config,
		mesh:    client(config.Mesh),
		direct:  client(config.Direct),
		ready:   make(chan struct{}),
		budget:  newBudget(budgetOf(config.MaxBytesInFlight)),
		journal: newJournal(config.Attempts, config.Log),
		runners: map[string]*runner{},
	}
	d.pull, d.stop = context.WithCancel(context.Background())
	d.push, d.cut = context.WithCancel(context.Background())
	return d
}

// client does not follow redirects: a sink answers itself or fails.
func client(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Name returns "event-push".
func (d *Dispatcher) Name() string { return "event-push" }

// Ready is closed when Run began.
func (d *Dispatcher) Ready() <-chan struct{} { return d.ready }

// StopTimeout is the time Run may take to return once its context ended.
func (d *Dispatcher) StopTimeout() time.Duration {
	return d.config.DrainTimeout + storeTimeout + time.Second
}

// Run reports changed stats until ctx ends, and drains then.
func (d *Dispatcher) Run(ctx context.Context) error {
	close(d.ready)
	// It outlives the pushes, whose attempts it writes.
	writing, stopWriting := context.WithCancel(context.WithoutCancel(ctx))
	var writer sync.WaitGroup
	writer.Go(func() { d.journal.run(writing) })
	defer writer.Wait()
	defer stopWriting()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
			d.report()
		case <-ctx.Done():
		}
	}
	d.Drain()
	return nil
}

// Drain fetches no more events, lets pushes in flight finish up to the drain timeout
// and gives the rest back to the broker: when it returns, another process may
// dispatch. It may be called before Run's context ends, and more than once.
func (d *Dispatcher) Drain() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()
	done := make(chan struct{})
	go func() {
		d.work.Wait()
		close(done)
	}()
	timer := time.NewTimer(d.config.DrainTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		d.cut()
		<-done
	}
	d.cut()
}

func (d *Dispatcher) report() {
	if d.config.Changed == nil {
		return
	}
	d.mu.Lock()
	var changed []Subscription
	for _, r := range d.runners {
		if sub, dirty := r.takeDirty(); dirty {
			changed = append(changed, sub)
		}
	}
	d.mu.Unlock()
	for _, sub := range changed {
		d.config.Changed(sub.Namespace, sub.Name)
	}
}

// Set makes the dispatcher push what sub says from now on. The durable consumer
// is created when it is missing; an existing one keeps its position.
func (d *Dispatcher) Set(ctx context.Context, sub Subscription) error {
	consumer, err := d.config.Source.Subscribe(ctx, broker.ConsumerSpec{Name: sub.UID, Selectors: sub.Selectors, Start: sub.Start})
	if err != nil {
		return fmt.Errorf("subscription %s/%s: %w", sub.Namespace, sub.Name, err)
	}
	return d.start(ctx, sub, consumer, func(r *runner) { r.update(sub, consumer) })
}

// Hold stops pushing for a subscription; its position and backlog stay until they
// are too old. Of sub only its identity, its creation, its filter, its retries and
// what it is permitted count. One that was never dispatched has no position, which is no
// error.
func (d *Dispatcher) Hold(ctx context.Context, sub Subscription) error {
	if d.holdRunning(sub.UID) {
		return nil
	}
	consumer, err := d.config.Source.Consumer(ctx, sub.UID)
	if errors.Is(err, broker.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("subscription %s/%s: %w", sub.Namespace, sub.Name, err)
	}
	sub.Hold, sub.DeadLetter = true, nil
	sub.Selectors, sub.OrderBy = nil, ""
	return d.start(ctx, sub, consumer, (*runner).hold)
}

func (d *Dispatcher) holdRunning(uid string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	r, ok := d.runners[uid]
	if ok {
		r.hold()
	}
	return ok
}

// start begins to dispatch, unless a runner does already, which is told then.
func (d *Dispatcher) start(ctx context.Context, sub Subscription, consumer broker.Consumer, tell func(*runner)) error {
	d.mu.Lock()
	_, ok := d.runners[sub.UID]
	d.mu.Unlock()
	var known ledger
	if !ok {
		known = d.journal.history(ctx, sub.UID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r, ok := d.runners[sub.UID]; ok {
		tell(r)
		return nil
	}
	if d.closed {
		return errors.New("the dispatcher is stopping")
	}
	r := newRunner(d, sub, consumer, known)
	d.runners[sub.UID] = r
	d.work.Go(r.run)
	return nil
}

// Remove stops pushing for a subscription and deletes its consumer and backlog.
func (d *Dispatcher) Remove(ctx context.Context, uid string) error {
	d.mu.Lock()
	r, ok := d.runners[uid]
	delete(d.runners, uid)
	d.mu.Unlock()
	if ok {
		r.stop()
	}
	d.journal.forget(uid)
	return d.config.Source.Unsubscribe(ctx, uid)
}

// Stats returns the stats of a subscription, and false when it is not
// dispatched.
func (d *Dispatcher) Stats(uid string) (Stats, bool) {
	d.mu.Lock()
	r, ok := d.runners[uid]
	d.mu.Unlock()
	if !ok {
		return Stats{}, false
	}
	return r.snapshot(), true
}

// Info returns what the broker knows about the consumer of a subscription that
// is dispatched.
func (d *Dispatcher) Info(ctx context.Context, uid string) (broker.ConsumerInfo, error) {
	d.mu.Lock()
	r, ok := d.runners[uid]
	d.mu.Unlock()
	if !ok {
		return broker.ConsumerInfo{}, fmt.Errorf("subscription %s: %w", uid, broker.ErrNotFound)
	}
	_, consumer := r.current()
	return consumer.Info(ctx)
}
