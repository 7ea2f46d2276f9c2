package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The stream has no age limit and refuses what does not fit, so that nothing
// accepted is lost to either. What goes is removed here: from the oldest event on,
// when it is older than Config.MaxAge or space gets scarce, and never one that a
// consumer is not done with, which is delivered or a dead letter; nor one inside
// the dedup window, which the server would forget at its next start.
const (
	trimAbove = 0.8 // of the space
	trimTo    = 0.7
	trimEvery = 10 * time.Second
	// Old events go in portions: each removal rewrites a file of the stream.
	trimPortion = 100 // parts of MaxAge
)

// trimLoop trims now and then, and soon when something was refused.
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
			case <-time.After(500 * time.Millisecond):
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
			s.log.Warn("removing old events failed; trying again", "error", err)
		case removed > 0:
			s.log.Info("removed the oldest events that every subscription is done with", "events", removed)
		}
	}
}

// trim removes what may go, if some is too old or space is scarce, and returns
// how many events that were.
func (s *Store) trim(ctx context.Context, l *link) (uint64, error) {
	info, err := l.events.Info(ctx)
	if err != nil {
		return 0, translate(err)
	}
	state, limit := info.State, float64(s.config.MaxBytes)
	scarce := float64(state.Bytes) >= trimAbove*limit
	old := time.Since(state.FirstTime) > s.config.MaxAge+s.config.MaxAge/trimPortion
	if state.Msgs == 0 || !scarce && !old {
		return 0, nil
	}
	// Everything up to state.LastSeq was there before the consumers are looked
	// at, so a consumer without a backlog has all of it.
	keep, by, err := s.firstWantedByAny(ctx, l, state.LastSeq+1)
	if err != nil {
		return 0, err
	}
	forgotten, err := s.before(ctx, l, state, time.Now().Add(-s.config.DedupWindow))
	if err != nil {
		return 0, err
	}
	until := state.FirstSeq
	if old {
		if until, err = s.before(ctx, l, state, time.Now().Add(-s.config.MaxAge)); err != nil {
			return 0, err
		}
		s.tellHolder(by, keep < until)
	}
	if scarce {
		average := float64(state.Bytes) / float64(state.Msgs)
		until = max(until, state.FirstSeq+uint64((float64(state.Bytes)-trimTo*limit)/average))
	}
	keep = min(keep, forgotten, until)
	if keep <= state.FirstSeq {
		return 0, nil
	}
	if err := l.events.Purge(ctx, jetstream.WithPurgeSequence(keep)); err != nil {
		return 0, fmt.Errorf("purge: %w", translate(err))
	}
	return keep - state.FirstSeq, nil
}

// tellHolder says who holds events beyond their age. Those of a subscription are
// dead letters before that, unless nothing was dispatched for long; so it may be
// one that is not there any more and whose consumer was left behind.
func (s *Store) tellHolder(consumer string, holds bool) {
	if !holds {
		s.holder = ""
		return
	}
	if s.holder != consumer { // one line per fact
		s.holder = consumer
		s.log.Warn("a subscription is not done with events that are older than the age they are kept to; if there is none with this UID, delete the consumer",
			"stream", EventStream, "consumer", consumer)
	}
}

// firstWantedByAny is the lowest sequence that a consumer is not done with, and
// which one; or none. It fails when one consumer cannot be asked: in a cluster, a list of all
// leaves out those whose server does not answer.
func (s *Store) firstWantedByAny(ctx context.Context, l *link, none uint64) (first uint64, by string, err error) {
	first = none
	names := l.events.ConsumerNames(ctx)
	for name := range names.Name() {
		c, err := l.events.Consumer(ctx, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return 0, "", fmt.Errorf("consumer %s: %w", name, translate(err))
		}
		msg, err := firstWanted(ctx, l, c.CachedInfo())
		if err != nil {
			return 0, "", err
		}
		if msg != nil && msg.Sequence < first {
			first, by = msg.Sequence, name
		}
	}
	if err := names.Err(); err != nil {
		return 0, "", fmt.Errorf("list consumers: %w", translate(err))
	}
	return first, by, nil
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
