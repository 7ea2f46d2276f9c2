package stan

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/stan.go"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// maxRemembered bounds the memory of the dedup window, to about 100 MB.
const maxRemembered = 1_000_000

// headerMarker tells markers apart.
const headerMarker = "lambdamesh-marker"

// channel publishes to a channel of the server and reads along with it, from the
// beginning of the dedup window on.
type channel struct {
	name    string
	window  time.Duration
	timeout time.Duration
	log     *slog.Logger

	mu       sync.Mutex
	last     uint64 // the highest sequence seen
	seen     map[key]uint64
	order    []remembered // of seen, oldest first
	waiting  map[key]*publication
	doubtful map[key]time.Time // published without an answer: perhaps stored
}

type remembered struct {
	key    key
	stored time.Time
}

// publication is a message on its way into the channel. It is done when the
// server acknowledged it and it was seen there, or when it failed.
type publication struct {
	done     chan struct{}
	finished bool
	acked    bool
	sequence uint64
	err      error
}

func newChannel(name string, config *Config) *channel {
	return &channel{
		name: name, window: config.DedupWindow, timeout: config.PublishTimeout, log: config.Logger,
		seen: map[key]uint64{}, waiting: map[key]*publication{}, doubtful: map[key]time.Time{},
	}
}

// follow reads along from where it was left, or from the beginning of the dedup
// window, and returns when everything that is there was seen.
func (c *channel) follow(ctx context.Context, conn stan.Conn) error {
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	from := stan.StartAtTimeDelta(c.window)
	if last > 0 {
		from = stan.StartAtSequence(last + 1)
	}
	if _, err := conn.Subscribe(c.name, c.received, from); err != nil {
		return fmt.Errorf("channel %s: %w", c.name, translate(err))
	}
	end, err := c.sync(ctx, conn)
	if err != nil {
		return fmt.Errorf("channel %s: %w", c.name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if end < last {
		c.last, c.order = 0, nil
		clear(c.seen)
		return fmt.Errorf("%w: channel %s ends at %d and had %d messages before: the server lost its data", broker.ErrUnavailable, c.name, end, last)
	}
	return nil
}

// received takes what the server sends in the order of the channel.
func (c *channel) received(msg *stan.Msg) {
	m, err := decode(msg.Data)
	if err != nil {
		c.log.Error("a message in the channel was not written by the bus", "channel", c.name, "sequence", msg.Sequence, "error", err)
	}
	k := m.key()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, msg.Sequence)
	if err != nil {
		return
	}
	if _, again := c.seen[k]; !again {
		c.seen[k] = msg.Sequence
		c.order = append(c.order, remembered{k, time.Unix(0, msg.Timestamp)})
	}
	if p := c.waiting[k]; p != nil {
		p.sequence = c.seen[k]
		if p.acked {
			c.finish(k, p, nil)
		}
	}
	for len(c.order) > 0 && (len(c.order) > maxRemembered || time.Since(c.order[0].stored) > c.window) {
		delete(c.seen, c.order[0].key)
		c.order = c.order[1:]
	}
}

// publish sends a message and returns its publication; that of an earlier one
// when the same is there or on its way already.
func (c *channel) publish(conn stan.Conn, k key, payload []byte) (p *publication, duplicate bool) {
	c.mu.Lock()
	if sequence, ok := c.seen[k]; ok {
		c.mu.Unlock()
		p = &publication{done: make(chan struct{}), finished: true, sequence: sequence}
		close(p.done)
		return p, true
	}
	if p, ok := c.waiting[k]; ok {
		c.mu.Unlock()
		return p, true
	}
	p = &publication{done: make(chan struct{})}
	c.waiting[k] = p
	c.mu.Unlock()
	if _, err := conn.PublishAsync(c.name, payload, func(_ string, err error) { c.answered(k, p, err) }); err != nil {
		c.answered(k, p, err)
	}
	return p, false
}

func (c *channel) answered(k key, p *publication, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case p.finished:
	case err != nil:
		c.finish(k, p, translate(err))
	default:
		p.acked = true
		if p.sequence > 0 {
			c.finish(k, p, nil)
		}
	}
}

// finish ends a publication. Call it with mu held.
func (c *channel) finish(k key, p *publication, err error) {
	p.finished, p.err = true, err
	delete(c.waiting, k)
	if err != nil {
		c.doubtful[k] = time.Now()
	}
	close(p.done)
}

// wait returns the sequence of a publication.
func (c *channel) wait(ctx context.Context, k key, p *publication) (uint64, error) {
	// The acknowledgement has a time limit of its own; another one for the way
	// back of the message.
	timer := time.NewTimer(2 * c.timeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.sequence, p.err
	case <-timer.C:
		c.mu.Lock()
		defer c.mu.Unlock()
		if !p.finished {
			c.finish(k, p, fmt.Errorf("%w: NATS Streaming did not send back what it stored in %s", broker.ErrUnavailable, c.name))
		}
		return p.sequence, p.err
	case <-ctx.Done():
		// Others may wait for it, so it goes on.
		return 0, fmt.Errorf("%w: %w", broker.ErrUnavailable, ctx.Err())
	}
}

// sync publishes a marker and waits until it is seen: everything published
// before on this connection was then seen too, if it was stored. It returns the
// marker's sequence.
func (c *channel) sync(ctx context.Context, conn stan.Conn) (uint64, error) {
	began := time.Now()
	marker := &message{kind: kindMarker, header: map[string]string{headerMarker: rand.Text()}}
	k := marker.key()
	p, _ := c.publish(conn, k, marker.encode())
	sequence, err := c.wait(ctx, k, p)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, at := range c.doubtful {
		if at.Before(began) {
			delete(c.doubtful, k)
		}
	}
	return sequence, nil
}

// settle makes sure that it is known whether these were stored before.
func (c *channel) settle(ctx context.Context, conn stan.Conn, keys ...key) error {
	c.mu.Lock()
	doubt := false
	for _, k := range keys {
		_, doubtful := c.doubtful[k]
		doubt = doubt || doubtful
	}
	c.mu.Unlock()
	if !doubt {
		return nil
	}
	_, err := c.sync(ctx, conn)
	return err
}

// lastSequence is the highest sequence seen so far.
func (c *channel) lastSequence() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// readAhead is how many messages the server sends before they are handled.
const readAhead = 256

// errEnough ends a read before the end.
var errEnough = errors.New("enough was read")

// read calls handle for each message from a sequence on, up to what is there
// now, in order.
func (c *channel) read(ctx context.Context, conn stan.Conn, from uint64, handle func(sequence uint64, stored time.Time, payload []byte) error) error {
	end, err := c.sync(ctx, conn)
	if err != nil {
		return err
	}
	if from >= end {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages := make(chan *stan.Msg)
	sub, err := conn.Subscribe(c.name, func(msg *stan.Msg) {
		select {
		case messages <- msg:
		case <-ctx.Done():
		}
	}, stan.StartAtSequence(from), stan.MaxInflight(readAhead))
	if err != nil {
		return translate(err)
	}
	defer func() {
		cancel()
		if err := sub.Unsubscribe(); err != nil {
			c.log.Debug("ending a read failed", "channel", c.name, "error", err)
		}
	}()
	for last := uint64(0); last < end; {
		var msg *stan.Msg
		idle := time.NewTimer(c.timeout)
		select {
		case msg = <-messages:
			idle.Stop()
		case <-idle.C:
			return fmt.Errorf("%w: NATS Streaming sent nothing after message %d of %d in %s", broker.ErrUnavailable, last, end, c.name)
		case <-ctx.Done():
			idle.Stop()
			return fmt.Errorf("%w: %w", broker.ErrUnavailable, ctx.Err())
		}
		if msg.Sequence <= last {
			continue // sent again because we were slow
		}
		if last > 0 && msg.Sequence != last+1 {
			return fmt.Errorf("%w: messages %d to %d of %s are missing: removed meanwhile, or the connection was interrupted; try again",
				broker.ErrUnavailable, last+1, msg.Sequence-1, c.name)
		}
		last = msg.Sequence
		if m, err := decode(msg.Data); err == nil && m.kind == kindMarker {
			continue
		}
		if err := handle(msg.Sequence, time.Unix(0, msg.Timestamp).UTC(), msg.Data); err != nil {
			if errors.Is(err, errEnough) {
				return nil
			}
			return err
		}
	}
	return nil
}

// readOne reads one message that was there, or says ErrNotFound.
func (c *channel) readOne(ctx context.Context, conn stan.Conn, sequence uint64) ([]byte, error) {
	first := make(chan *stan.Msg, 1)
	sub, err := conn.Subscribe(c.name, func(msg *stan.Msg) {
		select {
		case first <- msg:
		default:
		}
	}, stan.StartAtSequence(sequence), stan.MaxInflight(1), stan.SetManualAckMode())
	if err != nil {
		return nil, translate(err)
	}
	defer func() {
		if err := sub.Unsubscribe(); err != nil {
			c.log.Debug("ending a read failed", "channel", c.name, "error", err)
		}
	}()
	timer := time.NewTimer(c.timeout)
	defer timer.Stop()
	select {
	case msg := <-first:
		if msg.Sequence != sequence {
			return nil, fmt.Errorf("message %d of %s: %w", sequence, c.name, broker.ErrNotFound)
		}
		return msg.Data, nil
	case <-timer.C:
		return nil, fmt.Errorf("%w: NATS Streaming did not send message %d of %s", broker.ErrUnavailable, sequence, c.name)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", broker.ErrUnavailable, ctx.Err())
	}
}

// translate maps an error of NATS Streaming to the vocabulary of package broker.
// Those of the server come as text only.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%w: %w", event.ErrTooLarge, err)
	case contains(err, "no space left on device", "disk quota exceeded", "too many channels"):
		return fmt.Errorf("%w: %w", broker.ErrFull, err)
	}
	return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
}
