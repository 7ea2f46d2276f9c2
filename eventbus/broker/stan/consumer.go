package stan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/stan.go"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// The server sends again what is not acknowledged after its own ack wait. As
// everything it sent is watched here, and a new connection gets it at once, that
// is for messages that got lost; were it shorter, waiting events would be sent
// again and again.
const minServerAckWait = 5 * time.Minute

// maxHeldBytes bounds what all consumers together hold in memory. Above it only
// sequences are held, and an event is read again when it is handed out.
const maxHeldBytes = 32 << 20

// startMargin is how much earlier a consumer that starts at a time asks the
// server to begin: the request names a time by how long ago it was, which moves
// with the clocks and the network. What is too early is skipped here.
const startMargin = time.Minute

// Subscribe creates the durable consumer, or changes what an existing one
// selects; its position stays.
func (s *Store) Subscribe(_ context.Context, spec broker.ConsumerSpec) (broker.Consumer, error) {
	if len(spec.Selectors) == 0 {
		return nil, fmt.Errorf("consumer %s selects nothing", spec.Name)
	}
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	c, ok := s.consumers[spec.Name]
	if !ok {
		c = newConsumer(s, spec)
	}
	c.selectOnly(spec.Selectors)
	if err := s.attach(c); err != nil {
		return nil, err
	}
	s.consumers[spec.Name] = c
	return c, nil
}

// Consumer returns a consumer that this process subscribed. NATS Streaming tells
// nobody which others there are.
func (s *Store) Consumer(_ context.Context, name string) (broker.Consumer, error) {
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	c, ok := s.consumers[name]
	if !ok {
		return nil, fmt.Errorf("consumer %s: %w", name, broker.ErrNotFound)
	}
	return c, nil
}

// Unsubscribe deletes the consumer and with it its position. One that is not
// there is no error.
func (s *Store) Unsubscribe(_ context.Context, name string) error {
	s.subscribing.Lock()
	defer s.subscribing.Unlock()
	l, err := s.consumption()
	if err != nil {
		return err
	}
	c, ok := s.consumers[name]
	if ok {
		c.end()
		delete(s.consumers, name)
	}
	var sub stan.Subscription
	if ok && c.link == l {
		sub = c.sub
	} else {
		// Only who has a durable subscription can delete it.
		sub, err = l.Subscribe(EventChannel, func(*stan.Msg) {}, stan.DurableName(name), stan.SetManualAckMode(), stan.MaxInflight(1))
		if err != nil {
			return fmt.Errorf("delete consumer %s: %w", name, translate(err))
		}
	}
	if err := sub.Unsubscribe(); err != nil {
		return fmt.Errorf("delete consumer %s: %w", name, translate(err))
	}
	return nil
}

// consumption returns the connection that owns the positions. Call it with
// subscribing held.
func (s *Store) consumption() (*link, error) {
	if _, err := s.connected(); err != nil || s.stopped {
		return nil, fmt.Errorf("%w: not connected to NATS Streaming", broker.ErrUnavailable)
	}
	if s.consuming != nil && !s.consuming.isLost() {
		return s.consuming, nil
	}
	if s.consuming != nil {
		s.close(s.consuming)
	}
	l, err := s.connect(s.config.ClientID)
	if err != nil {
		return nil, err
	}
	s.consuming = l
	return l, nil
}

// attach subscribes the consumer on the present connection, if it is not yet.
// Call it with subscribing held.
func (s *Store) attach(c *consumer) error {
	l, err := s.consumption()
	if err != nil {
		return err
	}
	if c.link == l {
		return nil
	}
	opts := []stan.SubscriptionOption{
		stan.DurableName(c.name), stan.SetManualAckMode(), stan.MaxInflight(s.config.MaxInflight),
		stan.AckWait(max(minServerAckWait, 3*s.config.AckWait).Round(time.Second)),
	}
	switch { // the server ignores it when the durable exists
	case c.start.Earliest:
		opts = append(opts, stan.DeliverAllAvailable())
	case c.start.Sequence > 0:
		opts = append(opts, stan.StartAtSequence(c.start.Sequence))
	case !c.start.Time.IsZero():
		opts = append(opts, stan.StartAtTime(c.start.Time.Add(-startMargin)))
	}
	c.mu.Lock()
	c.received = 0
	c.mu.Unlock()
	sub, err := l.Subscribe(EventChannel, c.receive, opts...)
	if err != nil {
		return fmt.Errorf("consumer %s: %w", c.name, translate(err))
	}
	c.sub = sub
	c.mu.Lock()
	c.link = l
	c.mu.Unlock()
	return nil
}

// consumer holds the events of one durable subscription between the server and
// those who fetch.
type consumer struct {
	s     *Store
	name  string
	start broker.Start
	sub   stan.Subscription // guarded by Store.subscribing

	mu        sync.Mutex
	link      *link // changed with Store.subscribing held too
	ended     bool
	selectors []broker.Selector
	received  uint64 // the highest sequence sent for the first time on this link
	held      map[uint64]*held
	ready     []uint64 // sequences to hand out, lowest first
	changed   chan struct{}

	// What was acknowledged lately: sent again it was not lost on the way here
	// but on the way back.
	done      map[uint64]bool
	doneOrder []uint64
}

func newConsumer(s *Store, spec broker.ConsumerSpec) *consumer {
	return &consumer{
		s: s, name: spec.Name, start: spec.Start, changed: make(chan struct{}),
		held: map[uint64]*held{}, done: map[uint64]bool{},
	}
}

type state int

const (
	ready   state = iota // to be handed out
	handed               // handed out, until the timer
	resting              // waits for the timer before its next attempt
)

// held is an event that the server waits to be acknowledged.
type held struct {
	msg     *stan.Msg    // to acknowledge; without its data
	size    int          // of the message
	event   *event.Event // nil when there was no room for it
	bytes   int          // held in memory
	attempt int
	state   state
	timer   *time.Timer
}

func (c *consumer) selectOnly(selectors []broker.Selector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.selectors = selectors
}

// end makes the consumer unusable.
func (c *consumer) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	for _, h := range c.held {
		h.stopTimer()
		c.s.held.Add(-int64(h.bytes))
	}
	clear(c.held)
	c.ready = nil
	c.broadcast()
}

// broadcast wakes those who fetch. Call it with mu held.
func (c *consumer) broadcast() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// receive takes what the server sends.
func (c *consumer) receive(msg *stan.Msg) {
	log := c.s.log.With("consumer", c.name, "sequence", msg.Sequence)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	if !msg.Redelivered {
		if c.received > 0 && msg.Sequence > c.received+1 {
			log.Warn("the server skipped events of a consumer: it removed them because of its limits, or they come later", "events", msg.Sequence-c.received-1)
		}
		c.received = max(c.received, msg.Sequence)
	}
	if h, ok := c.held[msg.Sequence]; ok {
		msg.Data = nil
		h.msg = msg // the subscription to acknowledge on may be another one
		return
	}
	e, wanted, err := c.wants(msg)
	if err != nil && wanted {
		log.Error("a message in the event channel is no event: it becomes a dead letter", "error", err)
	}
	if !wanted || c.done[msg.Sequence] {
		if err := msg.Ack(); err != nil { // else it comes again
			log.Debug("acknowledging an event that is not wanted failed", "error", err)
		}
		return
	}
	h := &held{msg: msg, size: len(msg.Data)}
	if err == nil && c.s.hold(len(msg.Data)) {
		h.event, h.bytes = &e, len(msg.Data)
	}
	msg.Data = nil
	c.held[msg.Sequence] = h
	c.push(msg.Sequence)
}

// hold takes memory for an event, if there is some.
func (s *Store) hold(bytes int) bool {
	if s.held.Add(int64(bytes)) <= maxHeldBytes {
		return true
	}
	s.held.Add(-int64(bytes))
	return false
}

// wants tells whether a message is for this consumer. One that cannot be read is,
// unless what could be read of it says otherwise.
func (c *consumer) wants(msg *stan.Msg) (e event.Event, wanted bool, err error) {
	if time.Unix(0, msg.Timestamp).Before(c.start.Time) {
		return e, false, nil
	}
	e, marker, err := readEvent(msg.Data)
	if marker {
		return e, false, nil
	}
	if err != nil && (e.Source == "" || e.Type == "") {
		return e, true, err
	}
	return e, broker.Selects(c.selectors, e.Source, e.Type), err
}

// push makes a held event ready. Call it with mu held.
func (c *consumer) push(sequence uint64) {
	c.held[sequence].state = ready
	at, _ := slices.BinarySearch(c.ready, sequence)
	c.ready = slices.Insert(c.ready, at, sequence)
	c.broadcast()
}

// pushAfter makes a held event ready after a while, unless it was answered or
// extended before. Call it with mu held.
func (c *consumer) pushAfter(sequence uint64, pause time.Duration, state state) {
	h := c.held[sequence]
	h.stopTimer()
	h.state = state
	var timer *time.Timer
	timer = time.AfterFunc(pause, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.held[sequence] == h && h.timer == timer {
			h.timer = nil
			c.push(sequence)
		}
	})
	h.timer = timer
}

func (h *held) stopTimer() {
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
}

// pop hands out the next event, if there is one that is not larger than room,
// perhaps without the event itself. Otherwise the channel is closed when there may
// be one; it is nil when the next event is too large.
func (c *consumer) pop(room int) (*delivery, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ready) == 0 {
		return nil, c.changed
	}
	sequence := c.ready[0]
	h := c.held[sequence]
	if h.size > room {
		return nil, nil
	}
	c.ready = c.ready[1:]
	h.attempt++
	c.pushAfter(sequence, c.s.config.AckWait, handed)
	return &delivery{
		c: c, sequence: sequence, stored: time.Unix(0, h.msg.Timestamp).UTC(), attempt: h.attempt, event: h.event, bytes: h.size,
	}, nil
}

// load reads the event of a delivery if it is not held in memory.
func (d *delivery) load(ctx context.Context, l *link) error {
	if d.event != nil {
		return nil
	}
	payload, err := d.c.s.events.readOne(ctx, l, d.sequence)
	if err == nil {
		var e event.Event
		if e, _, err = readEvent(payload); err != nil {
			d.unreadable = &broker.Unreadable{Raw: broker.Raw{Data: payload}, Err: err}
		}
		d.event = &e
		return nil
	}
	if errors.Is(err, broker.ErrNotFound) {
		d.event = &event.Event{}
		d.unreadable = &broker.Unreadable{Err: errors.New("NATS Streaming removed the event before it was delivered, because of its limits")}
		return nil
	}
	d.answer(func() { // no attempt was made
		h := d.c.held[d.sequence]
		h.attempt--
		h.stopTimer()
		d.c.push(d.sequence)
	})
	return err
}

// Fetch implements [broker.Consumer].
func (c *consumer) Fetch(ctx context.Context, window broker.Window, wait time.Duration, handle func(broker.Delivery)) (more bool, err error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for window.Events > 0 {
		l, err := c.attached()
		if err != nil {
			return false, err
		}
		d, changed := c.pop(window.Bytes)
		if d != nil {
			if err := d.load(ctx, l); err != nil {
				return false, err
			}
			window.Events--
			window.Bytes -= d.bytes
			handle(d)
			if ctx.Err() != nil {
				return false, nil
			}
			continue
		}
		if changed == nil {
			return true, nil
		}
		select {
		case <-changed:
		case <-l.lost:
		case <-timer.C:
			return false, nil
		case <-ctx.Done():
			return false, nil
		}
	}
	return false, nil
}

// attached returns the link the consumer is subscribed on, a new one when the
// last was lost.
func (c *consumer) attached() (*link, error) {
	c.mu.Lock()
	l, ended := c.link, c.ended
	c.mu.Unlock()
	if ended {
		return nil, fmt.Errorf("consumer %s: %w", c.name, broker.ErrNotFound)
	}
	if !l.isLost() {
		return l, nil
	}
	c.s.subscribing.Lock()
	defer c.s.subscribing.Unlock()
	if err := c.s.attach(c); err != nil {
		return nil, err
	}
	return c.s.consuming, nil
}

// Info implements [broker.Consumer]. What waits is counted exactly as long as it
// fits into what the consumer holds; all events above that are counted, whether
// they are selected or not.
func (c *consumer) Info(context.Context) (broker.ConsumerInfo, error) {
	last := c.s.events.lastSequence()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return broker.ConsumerInfo{}, fmt.Errorf("consumer %s: %w", c.name, broker.ErrNotFound)
	}
	var info broker.ConsumerInfo
	for _, h := range c.held {
		if h.attempt == 0 {
			info.Pending++
		} else {
			info.Unacknowledged++
		}
	}
	if len(c.held) >= c.s.config.MaxInflight && last > c.received {
		info.Pending += last - c.received
	}
	return info, nil
}

// Oldest implements [broker.Consumer]. What the server has not sent yet is younger
// than what is held.
func (c *consumer) Oldest(context.Context) (oldest time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		if at := time.Unix(0, h.msg.Timestamp); oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	return oldest, nil
}

type delivery struct {
	c          *consumer
	sequence   uint64
	stored     time.Time
	attempt    int
	bytes      int
	event      *event.Event
	unreadable *broker.Unreadable
}

func (d *delivery) Event() *event.Event            { return d.event }
func (d *delivery) Unreadable() *broker.Unreadable { return d.unreadable }
func (d *delivery) Sequence() uint64               { return d.sequence }
func (d *delivery) Stored() time.Time              { return d.stored }
func (d *delivery) Attempt() int                   { return d.attempt }

// Replay is none: NATS Streaming has no place for what one consumer gets alone.
func (d *delivery) Replay() string { return "" }

// Ack counts even when the event was handed out again meanwhile, and when the
// server cannot be told now: it will send the event again, and is told then.
func (d *delivery) Ack() error {
	c := d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.held[d.sequence]
	if !ok {
		return nil
	}
	if err := h.msg.Ack(); err != nil {
		c.s.log.Debug("an acknowledgement waits until the event comes again", "consumer", c.name, "sequence", d.sequence, "error", err)
	}
	h.stopTimer()
	if at, found := slices.BinarySearch(c.ready, d.sequence); found {
		c.ready = slices.Delete(c.ready, at, at+1)
	}
	delete(c.held, d.sequence)
	c.s.held.Add(-int64(h.bytes))
	c.done[d.sequence] = true
	c.doneOrder = append(c.doneOrder, d.sequence)
	if len(c.doneOrder) > c.s.config.MaxInflight {
		delete(c.done, c.doneOrder[0])
		c.doneOrder = c.doneOrder[1:]
	}
	return nil
}

// Retry is done here: the server knows nothing of it, and sends the event again
// if this process ends before.
func (d *delivery) Retry(delay time.Duration) error {
	d.answer(func() {
		if delay > 0 {
			d.c.pushAfter(d.sequence, delay, resting)
			return
		}
		d.c.held[d.sequence].stopTimer()
		d.c.push(d.sequence)
	})
	return nil
}

// Recall implements [broker.Delivery].
func (d *delivery) Recall() func() error {
	c, sequence, attempt := d.c, d.sequence, d.attempt
	return func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if h, ok := c.held[sequence]; ok && h.state == resting && h.attempt == attempt {
			h.stopTimer()
			c.push(sequence)
		}
		return nil
	}
}

// Extend starts the ack wait anew.
func (d *delivery) Extend() error {
	d.answer(func() { d.c.pushAfter(d.sequence, d.c.s.config.AckWait, handed) })
	return nil
}

// answer calls fn if this delivery is the one that is waited for.
func (d *delivery) answer(fn func()) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if h, ok := d.c.held[d.sequence]; ok && h.state == handed && h.attempt == d.attempt {
		fn()
	}
}
