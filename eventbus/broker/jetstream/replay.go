package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

const (
	// replayPrefix begins the subjects of replays, which one consumer selects each.
	// No owner has a percent sign: no selector of events selects them.
	replayPrefix = eventPrefix + "%replay."
	// headerReplay names the replay.
	headerReplay = "lambdamesh-replay"
)

// Replay stores an event once more, for one consumer only, behind all that it has to
// deliver.
func (s *Store) Replay(ctx context.Context, replay broker.Replay) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	msg := encode(replayPrefix+replay.Consumer, replay.Event)
	msg.Header[headerReplay] = []string{replay.Name}
	msg.Header.Set(nats.MsgIdHdr, "replay-"+replay.Name+"-"+replay.Consumer+"-"+strconv.FormatUint(replay.Sequence, 10))
	if _, err := l.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(EventStream)); err != nil {
		return fmt.Errorf("replay event %s: %w", replay.Event.ID, translate(err))
	}
	return nil
}

// Events implements [broker.Reader].
func (s *Store) Events(ctx context.Context, query broker.Query, handle func(*broker.Stored) bool) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	filters := broker.Filters(query.Selectors)
	if len(filters) == 0 {
		return nil
	}
	for i, f := range filters {
		filters[i] = eventPrefix + f
	}
	info, err := l.events.Info(ctx)
	if err != nil {
		return fmt.Errorf("stream %s: %w", EventStream, translate(err))
	}
	config := jetstream.OrderedConsumerConfig{FilterSubjects: filters, HeadersOnly: !query.Data, DeliverPolicy: jetstream.DeliverAllPolicy}
	switch start := query.Start; {
	case start.Sequence > 0:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, start.Sequence
	case !start.Time.IsZero():
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &start.Time
	case query.Follow && !start.Earliest:
		config.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	consumer, err := l.js.OrderedConsumer(ctx, EventStream, config)
	if err != nil {
		return fmt.Errorf("read %s: %w", EventStream, translate(err))
	}
	if !query.Follow {
		if created, err := consumer.Info(ctx); err == nil && created.NumPending == 0 {
			return nil
		}
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read %s: %w", EventStream, translate(err))
	}
	defer messages.Stop()
	for {
		msg, err := s.nextEvent(ctx, query, messages)
		if err != nil || msg == nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read %s: %w", EventStream, err)
		}
		if more := give(msg, meta, query, handle); !more || !query.Follow && (meta.NumPending == 0 || meta.Sequence.Stream >= info.State.LastSeq) {
			return nil
		}
	}
}

// nextEvent returns nil when ctx ended.
func (s *Store) nextEvent(ctx context.Context, query broker.Query, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if !query.Follow {
		bounded, cancel = context.WithTimeout(ctx, s.config.PublishTimeout)
	}
	defer cancel()
	msg, err := messages.Next(jetstream.NextContext(bounded))
	switch {
	case ctx.Err() != nil:
		return nil, nil //nolint:nilnil // nobody asks any more
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fmt.Errorf("read %s: %w", EventStream, broker.ErrUnavailable)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", EventStream, translate(err))
	}
	return msg, nil
}

// give hands an event over; it returns false when no more are wanted.
func give(msg jetstream.Msg, meta *jetstream.MsgMetadata, query broker.Query, handle func(*broker.Stored) bool) (more bool) {
	if msg.Subject() == probeSubject || strings.HasPrefix(msg.Subject(), replayPrefix) {
		return true
	}
	e, err := decode(msg.Headers(), msg.Data())
	if err != nil || !broker.Selects(query.Selectors, e.Source, e.Type) {
		return true
	}
	return handle(&broker.Stored{Sequence: meta.Sequence.Stream, Stored: meta.Timestamp, Event: e})
}

// Event returns the event that is stored under a sequence, or fails with
// [broker.ErrNotFound].
func (s *Store) Event(ctx context.Context, sequence uint64) (*broker.Stored, error) {
	l, err := s.connected()
	if err != nil {
		return nil, err
	}
	msg, err := l.events.GetMsg(ctx, sequence)
	if err != nil {
		return nil, fmt.Errorf("event %d: %w", sequence, translate(err))
	}
	e, err := decode(msg.Header, msg.Data)
	if err != nil {
		return nil, fmt.Errorf("event %d: %w: %w", sequence, broker.ErrNotFound, err)
	}
	return &broker.Stored{Sequence: msg.Sequence, Stored: msg.Time.Truncate(time.Nanosecond), Event: e}, nil
}
