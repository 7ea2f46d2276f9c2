package jetstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Keys calls handle with the key of every event that is stored now, in order.
func (s *Store) Keys(ctx context.Context, handle func(key string) error) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	last, err := l.events.GetLastMsgForSubject(ctx, eventPrefix+">")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", EventStream, translate(err))
	}
	consumer, err := l.js.OrderedConsumer(ctx, EventStream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverAllPolicy, HeadersOnly: true,
	})
	if err != nil {
		return fmt.Errorf("read %s: %w", EventStream, translate(err))
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read %s: %w", EventStream, translate(err))
	}
	defer messages.Stop()
	for {
		msg, err := next(ctx, s, messages)
		if err != nil {
			return fmt.Errorf("read %s: %w", EventStream, translate(err))
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("read %s: %w", EventStream, err)
		}
		if key := msg.Headers().Get(jetstream.MsgIDHeader); key != "" {
			if err := handle(key); err != nil {
				return err
			}
		}
		if meta.NumPending == 0 || meta.Sequence.Stream >= last.Sequence {
			return nil
		}
	}
}

func next(ctx context.Context, s *Store, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	return messages.Next(jetstream.NextContext(ctx))
}
