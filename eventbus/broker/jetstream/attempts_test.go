package jetstream_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

func TestAttemptsAreKeptOverARestart(t *testing.T) {
	dir := t.TempDir()
	_, store, stop := open(t, natsserver.Config{Dir: dir}, jetstream.Config{})
	at := time.Date(2026, 1, 1, 0, 0, 0, 123, time.UTC)
	want := []broker.Attempt{
		{Consumer: "c1", Sequence: 1, Stored: at, Key: "k", Number: 1, At: at, Took: time.Second, Status: 503, Replica: "a", Decision: broker.Again, Next: at.Add(time.Minute)},
		{Consumer: "c1", Sequence: 1, Stored: at, Key: "k", Number: 2, At: at, Error: "refused \"x\"", Decision: broker.Dead, Reason: broker.ReasonExpired},
		{Consumer: "c2", Sequence: 2, Stored: at, Key: "l", Replay: "r1", Number: 1, Probe: true, At: at, Decision: broker.Delivered},
	}
	require.NoError(t, store.StoreAttempts(t.Context(), want[:2]))
	stop()
	_, store, _ = open(t, natsserver.Config{Dir: dir}, jetstream.Config{})
	read := func(after uint64) (got []broker.Attempt, position uint64) {
		position, err := store.Attempts(t.Context(), after, func(a *broker.Attempt) { got = append(got, *a) })
		require.NoError(t, err)
		return got, position
	}
	got, position := read(0)
	require.Empty(t, cmp.Diff(want[:2], got))
	require.NoError(t, store.StoreAttempts(t.Context(), want[2:]))
	got, position = read(position)
	require.Empty(t, cmp.Diff(want[2:], got))
	got, _ = read(position)
	require.Empty(t, got)

	var since []broker.Attempt
	require.NoError(t, store.AttemptsSince(t.Context(), time.Now().Add(-time.Hour), func(a *broker.Attempt) { since = append(since, *a) }))
	require.Len(t, since, 3)
	require.NoError(t, store.AttemptsSince(t.Context(), time.Now().Add(time.Hour), func(*broker.Attempt) { t.Fatal("none is as new") }))
}

func TestReplayReachesOneConsumerBehindItsBacklog(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{})
	one := conformance.Subscribe(t, store, "c1", broker.Start{}, "/shop/cart", "**")
	other := conformance.Subscribe(t, store, "c2", broker.Start{}, "", "**")
	first := conformance.Publish(t, store, conformance.Event("1"), conformance.Event("2"))
	for _, c := range []broker.Consumer{one, other} {
		require.NoError(t, conformance.Take(t, c, 1)[0].Ack())
	}
	e := conformance.Event("1")
	replay := broker.Replay{Consumer: "c1", Name: "r1", Sequence: first[0].Sequence, Event: &e}
	require.NoError(t, store.Replay(t.Context(), replay))
	require.NoError(t, store.Replay(t.Context(), replay), "once under one name")
	got := conformance.Take(t, one, 2)
	require.Equal(t, "2", got[0].Event().ID)
	require.Empty(t, got[0].Replay())
	require.Equal(t, "1", got[1].Event().ID)
	require.Equal(t, "r1", got[1].Replay())
	require.Empty(t, cmp.Diff(e, *got[1].Event()))
	for _, d := range got {
		require.NoError(t, d.Ack())
	}
	require.NoError(t, conformance.Take(t, other, 1)[0].Ack())
	conformance.Nothing(t, one)
	conformance.Nothing(t, other)
	require.Equal(t, []string{"1", "2"}, ids(t, store, broker.Query{Selectors: everything}), "a replay is no event of its own")
}

// everything that workloads of the namespace shop publish.
var everything = []broker.Selector{{Owner: "shop", Type: "**"}}

func ids(t *testing.T, store *jetstream.Store, query broker.Query) (ids []string) {
	t.Helper()
	require.NoError(t, store.Events(t.Context(), query, func(e *broker.Stored) bool {
		ids = append(ids, e.Event.ID)
		return true
	}))
	return ids
}

func TestStoredEventsAreRead(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{})
	require.Empty(t, ids(t, store, broker.Query{Selectors: everything}), "an empty store")
	var receipts []broker.Receipt
	for i := range 5 {
		e := conformance.Event(fmt.Sprint(i))
		if i == 2 {
			e.Source = "/other/cart"
		}
		receipts = append(receipts, conformance.Publish(t, store, e)...)
	}
	require.Equal(t, []string{"0", "1", "3", "4"}, ids(t, store, broker.Query{Selectors: everything}))
	require.Empty(t, ids(t, store, broker.Query{}), "who may read nothing reads nothing")
	require.Equal(t, []string{"3", "4"}, ids(t, store, broker.Query{Selectors: everything, Start: broker.Start{Sequence: receipts[2].Sequence}}))
	require.Empty(t, ids(t, store, broker.Query{Selectors: everything, Start: broker.Start{Time: time.Now().Add(time.Hour)}}))
	require.NoError(t, store.Events(t.Context(), broker.Query{Selectors: everything}, func(e *broker.Stored) bool {
		require.Empty(t, e.Event.Data, "it was not asked for")
		return false
	}))
	require.NoError(t, store.Events(t.Context(), broker.Query{Selectors: everything, Data: true}, func(e *broker.Stored) bool {
		require.NotEmpty(t, e.Event.Data)
		return true
	}))
	stored, err := store.Event(t.Context(), receipts[0].Sequence)
	require.NoError(t, err)
	require.Equal(t, "0", stored.Event.ID)
	_, err = store.Event(t.Context(), 999)
	require.ErrorIs(t, err, broker.ErrNotFound)

	followed := make(chan string, 1)
	failed := make(chan error, 1)
	go func() {
		failed <- store.Events(t.Context(), broker.Query{Selectors: everything, Follow: true, Start: broker.Start{Sequence: receipts[4].Sequence + 1}}, func(e *broker.Stored) bool {
			followed <- e.Event.ID
			return false
		})
	}()
	conformance.Publish(t, store, conformance.Event("new"))
	require.NoError(t, <-failed)
	require.Equal(t, "new", <-followed)
}

func TestADeadLetterIsStoredOnceHoweverLate(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{DedupWindow: 100 * time.Millisecond})
	letter := broker.DeadLetter{Consumer: "c1", Sequence: 7, Stored: time.Now().UTC(), Reason: broker.ReasonExpired, Event: conformance.Event("1")}
	for range 2 {
		require.NoError(t, store.StoreDeadLetter(t.Context(), &letter))
		<-time.After(300 * time.Millisecond) // the window is over
	}
	letter.Sequence = 8
	require.NoError(t, store.StoreDeadLetter(t.Context(), &letter))
	for _, consumer := range []string{"", "c1"} {
		got, err := store.DeadLetters(t.Context(), consumer, 0, 10)
		require.NoError(t, err)
		require.Len(t, got, 2)
	}
	got, err := store.DeadLetters(t.Context(), "c", 0, 10)
	require.NoError(t, err)
	require.Empty(t, got)
}
