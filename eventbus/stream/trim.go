package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The stream refuses what does not fit, so that nothing accepted is lost. To
// not stay full of events nobody waits for any more, the oldest of those are
// removed when space gets scarce: never one that a consumer has still to
// acknowledge, and never one inside the dedup window, which the server would
// forget at its next start.
const (
	trimAbove = 0.8 // of the space
	trimTo    = 0.7
	trimEvery = 10 * time.Second
)

// trimLoop trims now and then, and at once when something was refused.
func (s *Store) trimLoop(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.full:
			// One look per interval of this length, however many are refused.
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
		l, err := s.connected()
		if err != nil {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, trimEvery)
		removed, err := s.trim(bounded, l)
		cancel()
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Warn("making room for events failed", "error", err)
		case removed > 0:
			s.log.Info("made room: removed the oldest events that every subscription has", "events", removed)
		}
	}
}

// trim removes what may go if space is scarce and returns how many events that
// were.
func (s *Store) trim(ctx context.Context, l *link) (uint64, error) {
	info, err := l.events.Info(ctx)
	if err != nil {
		return 0, translate(err)
	}
	state, limit := info.State, float64(s.config.MaxBytes)
	if state.Msgs == 0 || float64(state.Bytes) < trimAbove*limit {
		return 0, nil
	}
	// Everything up to state.LastSeq was there before the consumers are looked
	// at, so a consumer without a backlog has all of it.
	done := state.LastSeq
	consumers := l.events.ListConsumers(ctx)
	for c := range consumers.Info() {
		if c.NumPending > 0 || c.NumAckPending > 0 {
			done = min(done, c.AckFloor.Stream)
		}
	}
	if err := consumers.Err(); err != nil {
		return 0, fmt.Errorf("list consumers: %w", translate(err))
	}
	old, err := s.before(ctx, l, state, time.Now().Add(-s.config.DedupWindow))
	if err != nil {
		return 0, err
	}
	average := float64(state.Bytes) / float64(state.Msgs)
	enough := state.FirstSeq + uint64((float64(state.Bytes)-trimTo*limit)/average)
	keep := min(enough, done+1, old)
	if keep <= state.FirstSeq {
		return 0, nil
	}
	if err := l.events.Purge(ctx, jetstream.WithPurgeSequence(keep)); err != nil {
		return 0, fmt.Errorf("purge: %w", translate(err))
	}
	return keep - state.FirstSeq, nil
}

// before returns the first sequence that was stored at or after a time, by
// bisection.
func (s *Store) before(ctx context.Context, l *link, state jetstream.StreamState, at time.Time) (uint64, error) {
	low, high := state.FirstSeq, state.LastSeq+1
	for low < high {
		middle := low + (high-low)/2
		msg, err := l.events.GetMsg(ctx, middle, jetstream.WithGetMsgSubject(eventPrefix+">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			high = middle
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read event %d: %w", middle, translate(err))
		}
		if msg.Time.Before(at) {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low, nil
}
