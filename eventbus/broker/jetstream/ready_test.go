package jetstream_test

import (
	"fmt"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

// The space of the whole server may be used up by others.
func TestServerThatIsFullRefusesAndMakesTheStoreUnready(t *testing.T) {
	server, store, _ := open(t, natsserver.Config{Dir: t.TempDir(), MaxStoreBytes: 4 << 20}, jetstream.Config{MaxBytes: 1 << 20, DeadLetterMaxBytes: 1 << 20})
	require.NoError(t, store.Check(), "ready from the beginning: a write succeeded")
	js, err := natsjs.New(connect(t, server))
	require.NoError(t, err)
	other, err := js.CreateStream(t.Context(), natsjs.StreamConfig{Name: "OTHER", Subjects: []string{"other"}})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err = js.Publish(t.Context(), "other", make([]byte, 512<<10))
		return err != nil
	}, time.Minute, time.Millisecond)
	require.ErrorContains(t, err, "insufficient resources")

	_, err = store.Publish(t.Context(), []event.Event{conformance.Event("1")})
	require.ErrorIs(t, err, broker.ErrFull)
	require.Eventually(t, func() bool { return store.Check() != nil }, time.Minute, 10*time.Millisecond)
	require.ErrorIs(t, store.Check(), broker.ErrFull)
	require.Never(t, func() bool { return store.Check() == nil }, 2500*time.Millisecond, 10*time.Millisecond, "that NATS answers is not enough")
	require.NoError(t, other.Purge(t.Context()))
	require.Eventually(t, func() bool { return store.Check() == nil }, time.Minute, 10*time.Millisecond)
	conformance.Publish(t, store, conformance.Event("1"))
}

func TestStoreWithoutRoomForAnyEventIsUnreadyUntilThereIsSome(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{MaxBytes: 2 << 20, DedupWindow: 100 * time.Millisecond})
	slow := conformance.Subscribe(t, store, "slow", broker.Start{}, "", "**")
	n := 0
	large := func(size int) error {
		n++
		e := conformance.Event(fmt.Sprint(n))
		e.Data = make([]byte, size)
		_, err := store.Publish(t.Context(), []event.Event{e})
		return err
	}
	require.NoError(t, large(1<<20))
	require.ErrorIs(t, large(1<<20), broker.ErrFull)
	require.Never(t, func() bool { return store.Check() != nil }, time.Second, 10*time.Millisecond, "smaller ones have room")
	accepted := 1
	for large(16<<10) == nil {
		accepted++
	}
	require.Eventually(t, func() bool { return store.Check() != nil }, time.Minute, 10*time.Millisecond)
	for _, d := range conformance.Take(t, slow, accepted) {
		require.NoError(t, d.Ack())
	}
	require.Eventually(t, func() bool { return store.Check() == nil }, time.Minute, 10*time.Millisecond)
	require.NoError(t, large(16<<10))
}
