package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// maxUnacknowledged is how many events of one consumer may be in flight or wait
// for their next attempt before no new ones are handed out. It is far above what
// is pushed at once, so that events in backoff do not hold up healthy ones.
const maxUnacknowledged = 10_000

// Subscribe creates the consumer, or changes what an existing one selects; its
// position stays.
func (s *Store) Subscribe(ctx context.Context, spec event.ConsumerSpec) (event.Consumer, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	filters := event.Filters(spec.Selectors)
	if len(filters) == 0 {
		return nil, fmt.Errorf("consumer %s selects nothing", spec.Name)
	}
	for i, f := range filters {
		filters[i] = eventPrefix + f
	}
	existing, err := l.events.Consumer(ctx, spec.Name)
	if err == nil {
		config := existing.CachedInfo().Config
		if slices.Equal(config.FilterSubjects, filters) && config.AckWait == s.config.AckWait && config.MaxAckPending == maxUnacknowledged {
			return &consumer{Consumer: existing, log: s.log}, nil
		}
		config.FilterSubject, config.FilterSubjects = "", filters
		config.AckWait, config.MaxAckPending = s.config.AckWait, maxUnacknowledged
		return s.apply(ctx, l, config)
	}
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, translate(err)
	}

	config := jetstream.ConsumerConfig{
		Durable:        spec.Name,
		FilterSubjects: filters,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        s.config.AckWait,
		MaxDeliver:     -1, // attempts are counted by the dispatcher
		MaxAckPending:  maxUnacknowledged,
		DeliverPolicy:  jetstream.DeliverNewPolicy,
	}
	switch start := spec.Start; {
	case start.Earliest:
		config.DeliverPolicy = jetstream.DeliverAllPolicy
	case start.Sequence > 0:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, start.Sequence
	case !start.Time.IsZero():
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &start.Time
	}
	return s.apply(ctx, l, config)
}

func (s *Store) apply(ctx context.Context, l *link, config jetstream.ConsumerConfig) (event.Consumer, error) {
	c, err := l.events.CreateOrUpdateConsumer(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", config.Durable, translate(err))
	}
	return &consumer{Consumer: c, log: s.log}, nil
}

// Unsubscribe deletes the consumer and with it its position. One that is not
// there is no error.
func (s *Store) Unsubscribe(ctx context.Context, name string) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	if err := l.events.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("delete consumer %s: %w", name, translate(err))
	}
	return nil
}

// maxFetchBytes bounds what one fetch brings at once. Many fetches of large
// events would otherwise fill the server's buffer for this connection, and the
// server drops a connection whose buffer is full.
const maxFetchBytes = 4 << 20

// heartbeat is how often the server says that a fetch still waits. Two of them
// missing end it: a server that was restarted does not know of it any more.
const heartbeat = 2 * time.Second

type consumer struct {
	jetstream.Consumer
	log *slog.Logger
}

// Fetch implements [event.Consumer].
func (c *consumer) Fetch(ctx context.Context, n int, wait time.Duration, handle func(event.Delivery)) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	opts := []jetstream.FetchOpt{jetstream.FetchContext(ctx), jetstream.FetchMaxBytes(maxFetchBytes)}
	if wait > 4*heartbeat {
		opts = append(opts, jetstream.FetchHeartbeat(heartbeat))
	}
	batch, err := c.Consumer.Fetch(n, opts...)
	if err != nil {
		return translate(err)
	}
	for msg := range batch.Messages() {
		d, err := newDelivery(msg)
		if err != nil {
			// Not written by this bus; no attempt would read it any better.
			c.log.Error("a message in the event stream is no event: skipped", "subject", msg.Subject(), "error", err)
			if err := msg.TermWithReason("no event"); err != nil {
				return translate(err)
			}
			continue
		}
		handle(d)
	}
	if err := batch.Error(); err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return translate(err)
	}
	return nil
}

// Info implements [event.Consumer].
func (c *consumer) Info(ctx context.Context) (event.ConsumerInfo, error) {
	info, err := c.Consumer.Info(ctx)
	if err != nil {
		return event.ConsumerInfo{}, translate(err)
	}
	return event.ConsumerInfo{Pending: info.NumPending, Unacknowledged: uint64(max(0, info.NumAckPending))}, nil
}

type delivery struct {
	msg   jetstream.Msg
	meta  *jetstream.MsgMetadata
	event event.Event
}

func newDelivery(msg jetstream.Msg) (*delivery, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	e, err := decode(msg.Headers(), msg.Data())
	if err != nil {
		return nil, err
	}
	return &delivery{msg: msg, meta: meta, event: e}, nil
}

func (d *delivery) Event() *event.Event { return &d.event }
func (d *delivery) Sequence() uint64    { return d.meta.Sequence.Stream }
func (d *delivery) Stored() time.Time   { return d.meta.Timestamp }
func (d *delivery) Attempt() int        { return int(d.meta.NumDelivered) }
func (d *delivery) Ack() error          { return translate(d.msg.Ack()) }
func (d *delivery) Extend() error       { return translate(d.msg.InProgress()) }

func (d *delivery) Retry(delay time.Duration) error {
	if delay <= 0 {
		return translate(d.msg.Nak())
	}
	return translate(d.msg.NakWithDelay(delay))
}
