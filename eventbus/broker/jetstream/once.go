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
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// SeenStream knows the keys of events that must be stored once for longer than the
// dedup window of the stream of events, which the server keeps in memory for every
// event, and which nothing may be removed from before its end.
const (
	SeenStream = "LAMBDAMESH_SEEN"
	seenPrefix = "lambdamesh.seen."
)

// Bounds of it: beyond them the oldest keys are forgotten. One takes some 200 bytes
// on disk, and in the server's memory.
const (
	maxSeen      = 1_000_000
	maxSeenBytes = 256 << 20
)

// maxClaims is how often a key is tried that others claim at the same time.
const maxClaims = 5

// otherLastSequence tells whether somebody else has made a claim.
func otherLastSequence(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == codeOtherLastSequence || api.ErrorCode == codeOtherLastSequenceConstant)
}

// seenConfig is no larger than a quarter of the space for dead letters.
func (s *Store) seenConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              SeenStream,
		Description:       "Lambdamesh: keys of events that are stored once for long",
		Subjects:          []string{seenPrefix + "*"},
		Storage:           jetstream.FileStorage,
		Retention:         jetstream.LimitsPolicy,
		Discard:           jetstream.DiscardOld,
		MaxMsgs:           maxSeen,
		MaxMsgsPerSubject: 1,
		MaxBytes:          min(maxSeenBytes, max(s.config.DeadLetterMaxBytes/4, 1<<16)),
		MaxAge:            s.config.LongDedupWindow,
		Replicas:          s.config.Replicas,
	}
}

// PublishOnce stores an event whose key is known for Config.LongDedupWindow. It
// answers as Publish does, at the cost of two more writes.
//
// The key is claimed first, in a stream of its own, the event is stored then, and
// the claim says at last where. A claim that does not say so is no proof: who made
// it may have been refused, or may have failed in between. While it is young the
// event is published again, and the dedup window of the stream tells; later the
// event is looked for where it must be, if it is. What cannot be found is published
// again: twice rather than never.
func (s *Store) PublishOnce(ctx context.Context, e *event.Event) (broker.Receipt, error) {
	l, err := s.connected()
	if err != nil {
		return broker.Receipt{}, err
	}
	var last uint64 // the claim that ours takes the place of; 0: none
	for range maxClaims {
		ours, err := s.claim(ctx, l, e.Key(), last)
		if err == nil {
			return s.publishClaimed(ctx, l, e, ours)
		}
		if !otherLastSequence(err) {
			return broker.Receipt{}, fmt.Errorf("claim the key of event %q: %w", e.ID, translate(err))
		}
		claimed, err := s.claimed(ctx, l, e.Key())
		if errors.Is(err, broker.ErrNotFound) { // it has just expired
			last = 0
			continue
		}
		if err != nil {
			return broker.Receipt{}, err
		}
		sequence, stored, err := place(claimed)
		switch {
		case err != nil:
			return broker.Receipt{}, fmt.Errorf("stream %s: the claim of event %q: %w", SeenStream, e.ID, err)
		case stored:
			return broker.Receipt{ID: e.ID, Sequence: sequence, Duplicate: true}, nil
		case time.Since(claimed.Time) < s.config.DedupWindow/2: // far from its end, by anybody's clock
			return s.publishClaimed(ctx, l, e, claimed.Sequence)
		}
		found, err := s.search(ctx, l, e, sequence+1, claimed.Time.Add(s.config.DedupWindow+late))
		if err != nil {
			return broker.Receipt{}, err
		}
		if found > 0 {
			s.confirm(ctx, l, e.Key(), claimed.Sequence, found)
			return broker.Receipt{ID: e.ID, Sequence: found, Duplicate: true}, nil
		}
		last = claimed.Sequence
	}
	return broker.Receipt{}, fmt.Errorf("%w: others publish event %q at the same time", broker.ErrUnavailable, e.ID)
}

// publishClaimed stores an event under the claim with the sequence claim.
func (s *Store) publishClaimed(ctx context.Context, l *link, e *event.Event, claim uint64) (broker.Receipt, error) {
	receipts, err := s.Publish(ctx, []event.Event{*e})
	if err != nil {
		return broker.Receipt{}, err
	}
	s.confirm(ctx, l, e.Key(), claim, receipts[0].Sequence)
	return receipts[0], nil
}

// storedAt begins what a claim says whose event is stored, before its sequence.
const storedAt = "stored "

// place is what a claim says: the sequence of its event, or the one that its event
// comes after, if it is stored.
func place(claimed *jetstream.RawStreamMsg) (sequence uint64, stored bool, err error) {
	text, stored := strings.CutPrefix(string(claimed.Data), storedAt)
	sequence, err = strconv.ParseUint(text, 10, 64)
	return sequence, stored, err
}

// confirm notes that the event of a claim is stored, unless somebody has claimed its
// key anew. Where it fails the event is stored all the same, and a repeat looks for
// it: nobody needs to be told.
func (s *Store) confirm(ctx context.Context, l *link, key string, claim, sequence uint64) {
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	msg := nats.NewMsg(seenPrefix + key)
	msg.Data = strconv.AppendUint([]byte(storedAt), sequence, 10)
	_, _ = l.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(SeenStream), jetstream.WithExpectLastSequencePerSubject(claim))
}

// claim notes a key, and after which event its own comes, unless somebody has since
// the claim with the sequence last. It returns the sequence of this one.
func (s *Store) claim(ctx context.Context, l *link, key string, last uint64) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	info, err := l.events.Info(ctx)
	if err != nil {
		return 0, err
	}
	msg := nats.NewMsg(seenPrefix + key)
	msg.Data = strconv.AppendUint(nil, info.State.LastSeq, 10)
	ack, err := l.js.PublishMsg(ctx, msg, jetstream.WithExpectStream(SeenStream), jetstream.WithExpectLastSequencePerSubject(last))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// claimed reads the claim of a key.
func (s *Store) claimed(ctx context.Context, l *link, key string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	seen, err := l.js.Stream(ctx, SeenStream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", SeenStream, translate(err))
	}
	// Not a direct read, which a replica may answer that has not heard of it yet.
	msg, err := seen.GetLastMsgForSubject(ctx, seenPrefix+key)
	if err != nil {
		return nil, fmt.Errorf("read a key of stream %s: %w", SeenStream, translate(err))
	}
	return msg, nil
}

// late is how long after a claim its event may still be stored by who is at it.
const late = 10 * time.Minute

// search returns the sequence of an event that was stored between a sequence and a
// time; 0: it is not there.
func (s *Store) search(ctx context.Context, l *link, e *event.Event, from uint64, until time.Time) (uint64, error) {
	consumer, err := l.js.OrderedConsumer(ctx, EventStream, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{eventPrefix + broker.SubjectOf(e.Source, e.Type)},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, HeadersOnly: true,
	})
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", EventStream, translate(err))
	}
	if consumer.CachedInfo().NumPending == 0 {
		return 0, nil
	}
	messages, err := consumer.Messages()
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", EventStream, translate(err))
	}
	defer messages.Stop()
	for {
		msg, err := next(ctx, s, messages)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", EventStream, translate(err))
		}
		meta, err := msg.Metadata()
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", EventStream, err)
		}
		switch {
		case msg.Headers().Get(jetstream.MsgIDHeader) == e.Key():
			return meta.Sequence.Stream, nil
		case meta.NumPending == 0, meta.Timestamp.After(until):
			return 0, nil
		}
	}
}
