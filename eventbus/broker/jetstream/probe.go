package jetstream

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

const (
	// probeSubject is in the stream of events and selected by no subscription.
	probeSubject = eventPrefix + "probe"
	// probeBytes is about the largest of ordinary events: a store that has no room
	// for one stores nothing that counts.
	probeBytes = 64 << 10
	probeEvery = time.Second
)

// probeLoop looks whether events can be stored when a write failed, and again
// until one succeeds, so that a bus that is not ready, and gets no events
// therefore, becomes ready again.
func (s *Store) probeLoop(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if s.failing.Load() == nil {
				continue
			}
		case <-s.doubt:
		case <-ctx.Done():
			return
		}
		if l, err := s.connected(); err == nil {
			s.probe(ctx, l)
		}
	}
}

// probe writes into the stream of events and removes what it wrote. Nothing less
// tells whether events can be stored: a stream whose disk fails, or that is full,
// answers every question.
func (s *Store) probe(ctx context.Context, l *link) {
	ctx, cancel := context.WithTimeout(ctx, s.config.PublishTimeout)
	defer cancel()
	ack, err := l.js.Publish(ctx, probeSubject, make([]byte, min(probeBytes, s.MaxEventBytes()/2)), jetstream.WithExpectStream(EventStream))
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			s.stores(translate(err))
		}
		return
	}
	s.stores(nil)
	if err := l.events.DeleteMsg(ctx, ack.Sequence); err != nil {
		s.log.Debug("what was written to see whether events can be stored stays until it is old", "error", err)
	}
}

// stores notes whether events can be stored.
func (s *Store) stores(err error) {
	if err == nil {
		if s.failing.Swap(nil) != nil {
			s.log.Info("JetStream stores events")
		}
		return
	}
	if s.failing.Swap(&err) == nil {
		s.log.Warn("JetStream does not store events; not ready until a write succeeds", "error", err)
	}
}

// learn notes what a commit says about whether events can be
// stored. A duplicate says nothing: nothing was written for it. That one event
// did not fit does not either: a smaller one may.
func (s *Store) learn(events []*pending) {
	var failed error
	for _, p := range events {
		switch {
		case p.err == nil && !p.receipt.Duplicate:
			s.stores(nil)
			return
		case errors.Is(p.err, broker.ErrUnavailable):
			failed = p.err
		case errors.Is(p.err, broker.ErrFull):
			signal(s.full)
			signal(s.doubt)
		}
	}
	if failed != nil {
		s.stores(failed)
	}
}
