package dispatch_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// fakeBroker is a source of events whose clock is that of the test's bubble. Every
// consumer has a queue of its own with all events, those from before it included.
type fakeBroker struct {
	mu        sync.Mutex
	consumers map[string]*consumer
	stored    []delivery
	acked     []uint64
	extended  int
	naks      []time.Duration
	nakked    []uint64 // sequences, in the order of naks
	removed   []string
	letters   []broker.DeadLetter
	lettersOK bool
	// storing, if set, is called before a dead letter is stored.
	storing  func()
	ackFails bool // the next one
	life     int  // of the stream: how often it began anew
	// ackWait, if set, is when a delivery that nobody answers is offered again.
	ackWait time.Duration
	// shuffle is the order in which those in flight are offered again after a kill.
	shuffle []uint64
}

// mortal is the broker as one process sees it: dead, it answers nothing more.
type mortal struct {
	*fakeBroker
	mu   sync.Mutex
	dead bool
}

func (m *mortal) die() {
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
}

func (m *mortal) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *mortal) Subscribe(ctx context.Context, spec broker.ConsumerSpec) (broker.Consumer, error) {
	c, err := m.fakeBroker.Subscribe(ctx, spec)
	return mortalConsumer{c, m}, err
}

func (m *mortal) StoreDeadLetter(ctx context.Context, letter *broker.DeadLetter) error {
	if m.isDead() {
		return broker.ErrUnavailable
	}
	return m.fakeBroker.StoreDeadLetter(ctx, letter)
}

type mortalConsumer struct {
	broker.Consumer
	m *mortal
}

func (c mortalConsumer) Fetch(ctx context.Context, window broker.Window, wait time.Duration, handle func(broker.Delivery)) (bool, error) {
	return c.Consumer.Fetch(ctx, window, wait, func(d broker.Delivery) { handle(mortalDelivery{d, c.m}) })
}

// mortalDelivery is answered by the living only.
type mortalDelivery struct {
	broker.Delivery
	m *mortal
}

func (d mortalDelivery) Ack() error {
	if d.m.isDead() {
		return broker.ErrUnavailable
	}
	return d.Delivery.Ack()
}

func (d mortalDelivery) Retry(pause time.Duration) error {
	if d.m.isDead() {
		return broker.ErrUnavailable
	}
	return d.Delivery.Retry(pause)
}

func (d mortalDelivery) Extend() error {
	if d.m.isDead() {
		return broker.ErrUnavailable
	}
	return d.Delivery.Extend()
}

// offerAgain offers events again that are in flight.
func (b *fakeBroker) offerAgain(sequences ...uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.consumers {
		for _, sequence := range sequences {
			for _, d := range b.stored {
				if d.seq == sequence {
					c.offer(d)
				}
			}
		}
	}
}

func newBroker() *fakeBroker {
	return &fakeBroker{consumers: map[string]*consumer{}, lettersOK: true}
}

type consumer struct {
	b        *fakeBroker
	changed  chan struct{}
	queue    []*delivery
	attempts map[uint64]int
	open     map[uint64]time.Time // when those were stored that are not acknowledged
	waiting  map[uint64]waiting   // pauses
	inFlight map[uint64]time.Time // until when those have that wait for an answer
}

type delivery struct {
	b       *fakeBroker
	c       *consumer
	e       event.Event
	bad     *broker.Unreadable
	seq     uint64
	stored  time.Time
	attempt int
	replay  string
	slow    time.Duration // how long reading it takes
	life    int
}

func (b *fakeBroker) add(seq uint64, id string) {
	b.put(delivery{seq: seq, stored: time.Now(), e: event.Event{
		ID: id, Source: "commerce", Type: "order.created.v1", DataContentType: "application/json", Data: []byte(`{}`),
	}})
}

// put stores an event.
func (b *fakeBroker) put(d delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d.b, d.life = b, b.life
	b.stored = append(b.stored, d)
	for _, c := range b.consumers {
		c.offer(d)
	}
}

// lose lets the stream begin anew.
func (b *fakeBroker) lose() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.life++
	b.stored = nil
	for _, c := range b.consumers {
		c.queue = nil
		clear(c.attempts)
		clear(c.open)
	}
}

// offer puts a delivery into the queue: what was handed out before, before what was
// not. Call it with mu held.
func (c *consumer) offer(d delivery) {
	d.c = c
	if at := slices.IndexFunc(c.queue, func(q *delivery) bool { return c.attempts[q.seq] == 0 }); at >= 0 && c.attempts[d.seq] > 0 {
		c.queue = slices.Insert(c.queue, at, &d)
	} else {
		c.queue = append(c.queue, &d)
	}
	c.open[d.seq] = d.stored
	close(c.changed)
	c.changed = make(chan struct{})
}

// again offers a delivery after a while.
func (d *delivery) again(after time.Duration) {
	copied := *d
	c := d.c
	offer := func() {
		d.b.mu.Lock()
		defer d.b.mu.Unlock()
		delete(c.waiting, d.seq)
		if _, open := c.open[d.seq]; open && copied.life == d.b.life {
			c.offer(copied)
		}
	}
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	c.waiting[d.seq] = waiting{time.AfterFunc(after, offer), offer}
}

// waiting is the pause of a delivery.
type waiting struct {
	timer *time.Timer
	offer func()
}

func (d *delivery) Recall() func() error {
	c, seq := d.c, d.seq
	return func() error {
		c.b.mu.Lock()
		w, ok := c.waiting[seq]
		c.b.mu.Unlock()
		if ok && w.timer.Stop() {
			w.offer()
		}
		return nil
	}
}

func (b *fakeBroker) Subscribe(_ context.Context, spec broker.ConsumerSpec) (broker.Consumer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, ok := b.consumers[spec.Name]
	if !ok {
		c = &consumer{b: b, changed: make(chan struct{}), attempts: map[uint64]int{}, open: map[uint64]time.Time{}, inFlight: map[uint64]time.Time{}, waiting: map[uint64]waiting{}}
		for _, d := range b.stored {
			c.offer(d)
		}
		b.consumers[spec.Name] = c
	}
	return c, nil
}

func (b *fakeBroker) Consumer(_ context.Context, name string) (broker.Consumer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c, ok := b.consumers[name]; ok {
		return c, nil
	}
	return nil, broker.ErrNotFound
}

func (b *fakeBroker) Unsubscribe(_ context.Context, name string) error {
	b.removed = append(b.removed, name)
	return nil
}

func (c *consumer) Info(context.Context) (broker.ConsumerInfo, error) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	return broker.ConsumerInfo{Unacknowledged: uint64(len(c.inFlight))}, nil
}

// watch offers a delivery again that is not answered in time. Call it with mu held.
func (c *consumer) watch(d *delivery) {
	if c.b.ackWait == 0 {
		return
	}
	c.inFlight[d.seq] = time.Now().Add(c.b.ackWait)
	var look func()
	look = func() {
		c.b.mu.Lock()
		defer c.b.mu.Unlock()
		until, ok := c.inFlight[d.seq]
		switch {
		case !ok || d.life != c.b.life:
		case time.Now().Before(until):
			time.AfterFunc(time.Until(until)+c.b.turn(d.seq), look)
		default:
			delete(c.inFlight, d.seq)
			c.offer(*d)
		}
	}
	time.AfterFunc(c.b.ackWait+c.b.turn(d.seq), look)
}

// turn delays the offers of those that were shuffled, a little.
func (b *fakeBroker) turn(seq uint64) time.Duration {
	return time.Duration(slices.Index(b.shuffle, seq)+1) * time.Millisecond
}

func (c *consumer) Oldest(context.Context) (oldest time.Time, err error) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	for _, stored := range c.open {
		if oldest.IsZero() || stored.Before(oldest) {
			oldest = stored
		}
	}
	return oldest, nil
}

func (c *consumer) Fetch(ctx context.Context, window broker.Window, wait time.Duration, handle func(broker.Delivery)) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for window.Events > 0 {
		c.b.mu.Lock()
		changed := c.changed
		var next *delivery
		if len(c.queue) > 0 && ctx.Err() == nil {
			if next = c.queue[0]; len(next.e.Data) > window.Bytes {
				c.b.mu.Unlock()
				return true, nil
			}
			c.queue = c.queue[1:]
			c.attempts[next.seq]++
			next.attempt = c.attempts[next.seq]
			c.watch(next)
		}
		c.b.mu.Unlock()
		if next != nil {
			window.Events--
			window.Bytes -= len(next.e.Data)
			handle(next)
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, nil
		}
	}
	return false, nil
}

func (b *fakeBroker) StoreDeadLetter(_ context.Context, letter *broker.DeadLetter) error {
	if b.storing != nil {
		b.storing()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.lettersOK {
		return errors.New("no space")
	}
	b.letters = append(b.letters, *letter)
	return nil
}

// dead returns the letters so far; a test that goes on afterwards may not look at
// the field, which is written again.
func (b *fakeBroker) dead() []broker.DeadLetter {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.letters)
}

func (d *delivery) Event() *event.Event {
	time.Sleep(d.slow)
	return &d.e
}

func (d *delivery) Unreadable() *broker.Unreadable { return d.bad }
func (d *delivery) Sequence() uint64               { return d.seq }
func (d *delivery) Stored() time.Time              { return d.stored }
func (d *delivery) Attempt() int                   { return d.attempt }
func (d *delivery) Replay() string                 { return d.replay }

func (d *delivery) Ack() error {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	if d.b.ackFails {
		d.b.ackFails = false
		go d.again(10 * time.Second) // the ack wait
		return errors.New("disconnected")
	}
	d.b.acked = append(d.b.acked, d.seq)
	delete(d.c.open, d.seq)
	delete(d.c.inFlight, d.seq)
	return nil
}

func (d *delivery) Retry(delay time.Duration) error {
	d.b.mu.Lock()
	d.b.naks = append(d.b.naks, delay)
	d.b.nakked = append(d.b.nakked, d.seq)
	delete(d.c.inFlight, d.seq)
	d.b.mu.Unlock()
	d.again(delay)
	return nil
}

func (d *delivery) Extend() error {
	d.b.mu.Lock()
	defer d.b.mu.Unlock()
	d.b.extended++
	if _, ok := d.c.inFlight[d.seq]; ok {
		d.c.inFlight[d.seq] = time.Now().Add(d.b.ackWait)
	}
	return nil
}

// sink answers requests of the dispatcher without a network.
type sink func(r *http.Request) (*http.Response, error)

func (s sink) RoundTrip(r *http.Request) (*http.Response, error) { return s(r) }

func answer(status int, header ...string) *http.Response {
	r := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("body"))}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func subscription(uid string) dispatch.Subscription {
	return dispatch.Subscription{
		UID: uid, Namespace: "shop", Name: "sub-" + uid,
		Selectors: []broker.Selector{{Source: "commerce", Type: "order.**"}},
		Sink:      dispatch.Sink{URL: "http://last-order.shop.svc/", Mesh: true}, Format: dispatch.Binary,
		Timeout: 30 * time.Second, MaxInFlight: 10,
		Retry: dispatch.Retry{MaxAttempts: 4, MinBackoff: time.Second, MaxBackoff: 3 * time.Second, MaxAge: time.Hour},
	}
}

// bubble runs a dispatcher inside a synctest bubble.
func bubble(t *testing.T, s sink, test func(t *testing.T, b *fakeBroker, d *dispatch.Dispatcher)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		d := dispatch.New(dispatch.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		test(t, b, d)
		cancel()
		require.NoError(t, <-done)
	})
}
