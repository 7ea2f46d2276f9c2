package migrate_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/migrate"
)

// memory is a store that takes no more than room events and letters.
type memory struct {
	room    int
	events  []event.Event
	letters []broker.DeadLetter
}

func (m *memory) Events(_ context.Context, handle func(*event.Event) error) error {
	for i := range m.events {
		if err := handle(&m.events[i]); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) Keys(ctx context.Context, handle func(string) error) error {
	return m.Events(ctx, func(e *event.Event) error { return handle(e.Key()) })
}

func (m *memory) Publish(_ context.Context, events []event.Event) ([]broker.Receipt, error) {
	if len(m.events)+len(events) > m.room {
		return nil, broker.ErrFull
	}
	m.events = append(m.events, events...)
	return make([]broker.Receipt, len(events)), nil
}

func (m *memory) DeadLetters(_ context.Context, _ string, after uint64, limit int) ([]broker.DeadLetter, error) {
	rest := m.letters[min(after, uint64(len(m.letters))):]
	return rest[:min(limit, len(rest))], nil
}

func (m *memory) StoreDeadLetter(_ context.Context, letter *broker.DeadLetter) error {
	if len(m.letters) == m.room {
		return broker.ErrFull
	}
	stored := *letter
	stored.ID = uint64(len(m.letters) + 1)
	m.letters = append(m.letters, stored)
	return nil
}

func TestPassThatFailsIsContinuedByTheNext(t *testing.T) {
	from := &memory{room: 10_000}
	var events []event.Event
	for i := range 1300 {
		// Every hundredth ID comes twice: stored again after the dedup window.
		events = append(events, event.Event{ID: fmt.Sprint(i - i%100/99), Source: "s", Type: "t"})
	}
	_, err := from.Publish(t.Context(), events)
	require.NoError(t, err)
	for i := range 120 {
		require.NoError(t, from.StoreDeadLetter(t.Context(), &broker.DeadLetter{Consumer: fmt.Sprint("c", i%2), Sequence: uint64(i / 2), Event: events[i/2]}))
	}
	to := &memory{room: 600}
	pass := func() (migrate.Progress, error) { return migrate.Run(t.Context(), from, to, func(migrate.Progress) {}) }

	progress, err := pass()
	require.ErrorIs(t, err, broker.ErrFull)
	require.Equal(t, migrate.Count{Copied: 500, Present: 10}, progress.Events)

	to.room = 1287
	progress, err = pass()
	require.NoError(t, err)
	require.Equal(t, migrate.Progress{Events: migrate.Count{Copied: 787, Present: 513}, DeadLetters: migrate.Count{Copied: 120}}, progress)
	last := -1
	for _, e := range to.events {
		var n int
		_, err := fmt.Sscan(e.ID, &n)
		require.NoError(t, err)
		require.Greater(t, n, last, "in order and once")
		last = n
	}

	progress, err = pass()
	require.NoError(t, err)
	require.Equal(t, migrate.Progress{Events: migrate.Count{Present: 1300}, DeadLetters: migrate.Count{Present: 120}}, progress)
}
