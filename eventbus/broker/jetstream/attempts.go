package jetstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// AttemptStream keeps what was attempted: the oldest goes when it is full.
const (
	AttemptStream   = "LAMBDAMESH_ATTEMPTS"
	attemptSubject  = "lambdamesh.attempts"
	maxAttemptBytes = 64 << 20
)

// attemptConfig is no larger than a quarter of the space for dead letters.
func (s *Store) attemptConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        AttemptStream,
		Description: "Lambdamesh: attempts to deliver events",
		Subjects:    []string{attemptSubject},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		MaxBytes:    min(maxAttemptBytes, max(s.config.DeadLetterMaxBytes/4, 1<<16)),
		MaxAge:      s.config.MaxAge,
		Compression: jetstream.S2Compression,
		Replicas:    s.config.Replicas,
		AllowDirect: true,
	}
}

// StoreAttempts returns when the attempts are on disk, in one message: one in JSON a
// line.
func (s *Store) StoreAttempts(ctx context.Context, attempts []broker.Attempt) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	for i := range attempts {
		if err := encoder.Encode(&attempts[i]); err != nil {
			return fmt.Errorf("attempts: %w", err)
		}
	}
	if _, err := l.js.Publish(ctx, attemptSubject, b.Bytes(), jetstream.WithExpectStream(AttemptStream)); err != nil {
		return fmt.Errorf("attempts: %w", translate(err))
	}
	return nil
}

// Attempts calls handle for the attempts behind a position, in order, and returns
// the position behind them. Those that cannot be read are left out.
func (s *Store) Attempts(ctx context.Context, after uint64, handle func(*broker.Attempt)) (position uint64, err error) {
	l, err := s.connected()
	if err != nil {
		return after, err
	}
	stream, err := l.js.Stream(ctx, AttemptStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return after, nil
	}
	if err != nil {
		return after, fmt.Errorf("stream %s: %w", AttemptStream, translate(err))
	}
	last := stream.CachedInfo().State.LastSeq
	if last <= after || stream.CachedInfo().State.Msgs == 0 {
		return max(after, last), nil
	}
	return s.attemptsFrom(ctx, l, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1}, last, handle)
}

// AttemptsSince is Attempts of those that were stored at or after a time.
func (s *Store) AttemptsSince(ctx context.Context, since time.Time, handle func(*broker.Attempt)) error {
	l, err := s.connected()
	if err != nil {
		return err
	}
	stream, err := l.js.Stream(ctx, AttemptStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", AttemptStream, translate(err))
	}
	state := stream.CachedInfo().State
	if state.Msgs == 0 || state.LastTime.Before(since) {
		return nil
	}
	_, err = s.attemptsFrom(ctx, l, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since}, state.LastSeq, handle)
	return err
}

func (s *Store) attemptsFrom(ctx context.Context, l *link, config jetstream.OrderedConsumerConfig, last uint64, handle func(*broker.Attempt)) (position uint64, err error) {
	consumer, err := l.js.OrderedConsumer(ctx, AttemptStream, config)
	if err != nil {
		return position, fmt.Errorf("read %s: %w", AttemptStream, translate(err))
	}
	messages, err := consumer.Messages()
	if err != nil {
		return position, fmt.Errorf("read %s: %w", AttemptStream, translate(err))
	}
	defer messages.Stop()
	for position < last {
		msg, err := next(ctx, s, messages)
		if err != nil {
			return position, fmt.Errorf("read %s: %w", AttemptStream, translate(err))
		}
		meta, err := msg.Metadata()
		if err != nil {
			return position, fmt.Errorf("read %s: %w", AttemptStream, err)
		}
		position = meta.Sequence.Stream
		for decoder := json.NewDecoder(bytes.NewReader(msg.Data())); ; {
			var a broker.Attempt
			if err := decoder.Decode(&a); err != nil {
				break
			}
			handle(&a)
		}
	}
	return position, nil
}
