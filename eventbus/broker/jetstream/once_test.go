package jetstream_test

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const shortWindow = 100 * time.Millisecond // the server's shortest

// forgotten returns when the stream of events knows nothing any more of what was
// published before.
func forgotten(t *testing.T, store *jetstream.Store) {
	t.Helper()
	conformance.Publish(t, store, conformance.Event("probe"))
	testkit.Eventually(t, time.Minute, func() error {
		if conformance.Publish(t, store, conformance.Event("probe"))[0].Duplicate {
			return errors.New("it is known still")
		}
		return nil
	}, "the dedup window should pass")
}

func once(t *testing.T, store *jetstream.Store, id, data string) broker.Receipt {
	t.Helper()
	e := conformance.Event(id)
	e.Data = []byte(data)
	receipt, err := store.PublishOnce(t.Context(), &e)
	require.NoError(t, err)
	require.Equal(t, id, receipt.ID)
	return receipt
}

func TestWhatIsPublishedOnceIsKnownBeyondTheWindowAndRestarts(t *testing.T) {
	dir := t.TempDir()
	config := jetstream.Config{DedupWindow: shortWindow}
	_, store, stop := open(t, natsserver.Config{Dir: dir}, config)
	first := once(t, store, "1", "a")
	require.False(t, first.Duplicate)
	known := broker.Receipt{ID: "1", Sequence: first.Sequence, Duplicate: true}
	require.Equal(t, known, once(t, store, "1", "another body"))
	require.False(t, once(t, store, "2", "a").Duplicate)
	forgotten(t, store)
	require.Equal(t, known, once(t, store, "1", "another body"))
	stop()

	server, store, _ := open(t, natsserver.Config{Dir: dir}, config)
	require.Equal(t, known, once(t, store, "1", "a"))
	js, err := natsjs.New(connect(t, server))
	require.NoError(t, err)
	seen, err := js.Stream(t.Context(), jetstream.SeenStream)
	require.NoError(t, err)
	require.Equal(t, 7*24*time.Hour, seen.CachedInfo().Config.MaxAge)
	require.EqualValues(t, 2, seen.CachedInfo().State.Msgs)
}

// Who claims a key may fail before the event is stored.
func TestAClaimWithoutItsEventIsNoEvent(t *testing.T) {
	server, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{DedupWindow: shortWindow})
	js, err := natsjs.New(connect(t, server))
	require.NoError(t, err)
	young, old := conformance.Event("young"), conformance.Event("old")
	claim := func(key string) {
		events, err := js.Stream(t.Context(), jetstream.EventStream)
		require.NoError(t, err)
		_, err = js.Publish(t.Context(), "lambdamesh.seen."+key, strconv.AppendUint(nil, events.CachedInfo().State.LastSeq, 10))
		require.NoError(t, err)
	}
	conformance.Publish(t, store, conformance.Event("before"))
	claim(old.Key())
	forgotten(t, store) // and there are events of the same source and type after it
	claim(young.Key())
	for _, id := range []string{"young", "old"} {
		stored := once(t, store, id, "a")
		require.False(t, stored.Duplicate, id)
		again := once(t, store, id, "a")
		require.True(t, again.Duplicate, id)
		require.Equal(t, stored.Sequence, again.Sequence, id)
	}
	forgotten(t, store)
	require.True(t, once(t, store, "old", "a").Duplicate)
}

// Who is refused comes again, maybe when what was stored meanwhile is removed: what
// was never stored is stored then, and what was is known still.
func TestWhatWasRefusedIsStoredWhenItComesAgain(t *testing.T) {
	config := jetstream.Config{DedupWindow: shortWindow, MaxBytes: 64 << 10}
	server, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, config)
	js, err := natsjs.New(connect(t, server))
	require.NoError(t, err)
	events, err := js.Stream(t.Context(), jetstream.EventStream)
	require.NoError(t, err)
	stored := once(t, store, "stored", `"a"`)
	full := conformance.Event("filler")
	full.Data = []byte(`"` + strings.Repeat("a", 4<<10) + `"`)
	for i := range 100 {
		full.ID = strconv.Itoa(i)
		if _, err = store.Publish(t.Context(), []event.Event{full}); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, broker.ErrFull)
	refused := conformance.Event("refused")
	refused.Data = full.Data
	_, err = store.PublishOnce(t.Context(), &refused)
	require.ErrorIs(t, err, broker.ErrFull)

	require.NoError(t, events.Purge(t.Context()))
	forgotten(t, store)
	require.NoError(t, events.Purge(t.Context()))
	receipt, err := store.PublishOnce(t.Context(), &refused)
	require.NoError(t, err)
	require.False(t, receipt.Duplicate, "it was never stored")
	_, err = events.GetMsg(t.Context(), receipt.Sequence)
	require.NoError(t, err)
	known := broker.Receipt{ID: "stored", Sequence: stored.Sequence, Duplicate: true}
	require.Equal(t, known, once(t, store, "stored", `"a"`), "it was stored, and is gone")
}

func TestManyWhoPublishOneEventAtOnceStoreItOnce(t *testing.T) {
	server, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{})
	other, err := jetstream.New(jetstream.Config{InProcess: server, PublishTimeout: time.Minute})
	require.NoError(t, err)
	run(t, other)
	var mu sync.Mutex
	var all []broker.Receipt
	var publishers sync.WaitGroup
	for i := range 16 {
		publishers.Go(func() {
			e := conformance.Event("1")
			receipt, err := []*jetstream.Store{store, other}[i%2].PublishOnce(t.Context(), &e)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			all = append(all, receipt)
		})
	}
	publishers.Wait()
	first := 0
	for _, receipt := range all {
		require.Equal(t, all[0].Sequence, receipt.Sequence)
		if !receipt.Duplicate {
			first++
		}
	}
	require.Equal(t, 1, first)
}
