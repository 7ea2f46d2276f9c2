package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// maxUnacknowledged is how many events of one consumer may be in flight or wait
// for their next attempt before no new ones are handed out. It is far above what
// is pushed at once, so that events in backoff do not hold up healthy ones.
const maxUnacknowledged = 10_000

// Subscribe creates the consumer, or changes what an existing one selects; its
// position stays.
func (s *Store) Subscribe(ctx context.Context, spec broker.ConsumerSpec) (broker.Consumer, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	filters := broker.Filters(spec.Selectors)
	if len(filters) == 0 {
		return nil, fmt.Errorf("consumer %s selects nothing", spec.Name)
	}
	for i, f := range filters {
		filters[i] = eventPrefix + f
	}
	filters = append(filters, replayPrefix+spec.Name)
	existing, err := l.events.Consumer(ctx, spec.Name)
	if err == nil {
		config := existing.CachedInfo().Config
		if slices.Equal(config.FilterSubjects, filters) && config.AckWait == s.config.AckWait && config.MaxAckPending == maxUnacknowledged {
			return &consumer{Consumer: existing, store: s}, nil
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

func (s *Store) apply(ctx context.Context, l *link, config jetstream.ConsumerConfig) (broker.Consumer, error) {
	c, err := l.events.CreateOrUpdateConsumer(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", config.Durable, translate(err))
	}
	return &consumer{Consumer: c, store: s}, nil
}

// Consumer returns a consumer that exists, or fails with [broker.ErrNotFound].
func (s *Store) Consumer(ctx context.Context, name string) (broker.Consumer, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	c, err := l.events.Consumer(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", name, translate(err))
	}
	return &consumer{Consumer: c, store: s}, nil
}

// Consumers are the names of those that Subscribe has made: UUIDs, which no other
// reader of the stream is named by.
func (s *Store) Consumers(ctx context.Context) ([]string, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	var names []string
	all := l.events.ConsumerNames(ctx)
	for name := range all.Name() {
		if uuid.Validate(name) == nil {
			names = append(names, name)
		}
	}
	if err := all.Err(); err != nil {
		return nil, fmt.Errorf("list consumers: %w", translate(err))
	}
	return names, nil
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

type consumer struct {
	jetstream.Consumer
	store *Store
}

// Info implements [broker.Consumer].
func (c *consumer) Info(ctx context.Context) (broker.ConsumerInfo, error) {
	info, err := c.Consumer.Info(ctx)
	if err != nil {
		return broker.ConsumerInfo{}, translate(err)
	}
	return broker.ConsumerInfo{
		Pending: info.NumPending, Unacknowledged: uint64(max(0, info.NumAckPending)),
		Delivered: info.Delivered.Stream, Done: info.AckFloor.Stream,
	}, nil
}

// Oldest implements [broker.Consumer].
func (c *consumer) Oldest(ctx context.Context) (time.Time, error) {
	l, err := c.store.connected()
	if err != nil {
		return time.Time{}, err
	}
	info, err := c.Consumer.Info(ctx)
	if err != nil {
		return time.Time{}, translate(err)
	}
	msg, err := firstWanted(ctx, l, info)
	if err != nil || msg == nil {
		return time.Time{}, err
	}
	return msg.Time, nil
}

// firstWanted returns the oldest message that a consumer is not done with, nil
// if there is none.
func firstWanted(ctx context.Context, l *link, info *jetstream.ConsumerInfo) (*jetstream.RawStreamMsg, error) {
	if info.NumPending == 0 && info.NumAckPending == 0 {
		return nil, nil //nolint:nilnil // there is none
	}
	filters := info.Config.FilterSubjects
	if len(filters) == 0 {
		filters = []string{info.Config.FilterSubject}
	}
	// All up to the floor is done with; what comes next and is selected is not.
	first, err := firstOf(ctx, l.events, info.AckFloor.Stream+1, filters)
	if err != nil {
		return nil, fmt.Errorf("read the backlog of consumer %s: %w", info.Name, translate(err))
	}
	return first, nil
}

// firstOf returns the first message of a stream from a sequence on that one of the
// filters selects, nil if there is none.
func firstOf(ctx context.Context, stream jetstream.Stream, from uint64, filters []string) (first *jetstream.RawStreamMsg, err error) {
	for _, filter := range filters {
		msg, err := stream.GetMsg(ctx, from, jetstream.WithGetMsgSubject(filter))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if first == nil || msg.Sequence < first.Sequence {
			first = msg
		}
	}
	return first, nil
}

type delivery struct {
	msg        *nats.Msg
	meta       *nats.MsgMetadata
	event      event.Event
	unreadable *broker.Unreadable
}

func newDelivery(msg *nats.Msg) (*delivery, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return nil, err
	}
	d := &delivery{msg: msg, meta: meta}
	if d.event, err = decode(msg.Header, msg.Data); err != nil {
		d.unreadable = &broker.Unreadable{Raw: broker.Raw{Header: msg.Header, Data: msg.Data}, Err: err}
	}
	return d, nil
}

func (d *delivery) Event() *event.Event            { return &d.event }
func (d *delivery) Unreadable() *broker.Unreadable { return d.unreadable }
func (d *delivery) Sequence() uint64               { return d.meta.Sequence.Stream }
func (d *delivery) Stored() time.Time              { return d.meta.Timestamp }
func (d *delivery) Attempt() int                   { return int(d.meta.NumDelivered) }
func (d *delivery) Replay() string                 { return d.msg.Header.Get(headerReplay) }
func (d *delivery) Ack() error                     { return translate(d.msg.Ack()) }
func (d *delivery) Extend() error                  { return translate(d.msg.InProgress()) }

// Recall implements [broker.Delivery]. The server takes a second -NAK, without a
// delay, for an event whose delay is not over; a message that was answered sends
// none.
func (d *delivery) Recall() func() error {
	reply, sub := d.msg.Reply, d.msg.Sub
	return func() error {
		again := &nats.Msg{Reply: reply, Sub: sub}
		return translate(again.Nak())
	}
}

func (d *delivery) Retry(delay time.Duration) error {
	if delay <= 0 {
		return translate(d.msg.Nak())
	}
	return translate(d.msg.NakWithDelay(delay))
}
