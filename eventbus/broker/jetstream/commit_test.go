package jetstream_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

// sent counts what the store sends to the stream of events.
type sent struct {
	batches map[string]int // messages of each atomic batch
	singles int            // that the server would store one by one
}

// watch returns a function that returns what was sent until it is called.
func watch(t *testing.T, server *natsserver.Server) func() sent {
	t.Helper()
	nc := connect(t, server)
	all, err := nc.SubscribeSync("lambdamesh.events.>")
	require.NoError(t, err)
	require.NoError(t, all.SetPendingLimits(-1, -1))
	require.NoError(t, nc.Flush())
	end := "lambdamesh.events.end" // published last, so that nothing is missed
	return func() sent {
		t.Helper()
		other := connect(t, server)
		require.NoError(t, other.PublishMsg(&nats.Msg{Subject: end, Header: nats.Header{natsjs.ExpectedStreamHeader: {"none"}}}))
		s := sent{batches: map[string]int{}}
		for {
			msg, err := all.NextMsg(time.Minute)
			require.NoError(t, err)
			id := msg.Header.Get("Nats-Batch-Id")
			switch {
			case msg.Subject == end:
				return s
			case msg.Subject == "lambdamesh.events.probe": // decides about readiness
			case id != "":
				s.batches[id]++
			case msg.Header.Get(natsjs.ExpectedLastMsgIDHeader) == "":
				s.singles++
			}
		}
	}
}

func many(prefix string, n int) []event.Event {
	events := make([]event.Event, n)
	for i := range events {
		events[i] = conformance.Event(fmt.Sprint(prefix, i))
	}
	return events
}

// One event that is stored already must not make a batch a thousand messages that
// are synced one by one.
func TestABatchWithDuplicatesIsABatchWithoutThem(t *testing.T) {
	server, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{})
	dup := conformance.Publish(t, store, conformance.Event("dup"))[0]
	middle := conformance.Publish(t, store, conformance.Event("a500"))[0]
	count := watch(t, server)

	events := many("a", 1000)
	events[0], events[700], events[701] = conformance.Event("dup"), conformance.Event("a3"), conformance.Event("dup")
	receipts := conformance.Publish(t, store, events...)
	got := count()
	require.Zero(t, got.singles)
	require.Len(t, got.batches, 2, "with them, and without")

	// A write that decides about readiness may have taken a number before the
	// batch, never within it.
	next := receipts[1].Sequence
	require.Greater(t, next, middle.Sequence)
	for i, r := range receipts {
		require.Equal(t, events[i].ID, r.ID)
		switch i {
		case 0, 701:
			require.Equal(t, dup.Sequence, r.Sequence)
			require.True(t, r.Duplicate)
		case 500:
			require.Equal(t, middle.Sequence, r.Sequence)
			require.True(t, r.Duplicate)
		case 700:
			require.Equal(t, receipts[3].Sequence, r.Sequence)
			require.True(t, r.Duplicate)
		default:
			require.Equal(t, next, r.Sequence, "in order, without a gap")
			require.False(t, r.Duplicate)
			next++
		}
	}
	requireStored(t, store, 998)
	keys := map[string]int{}
	require.NoError(t, store.Keys(t.Context(), func(key string) error { keys[key]++; return nil }))
	for i := range events {
		require.Equal(t, 1, keys[events[i].Key()], events[i].ID)
	}

	count = watch(t, server)
	for i, r := range conformance.Publish(t, store, events...) {
		require.True(t, r.Duplicate)
		require.Equal(t, receipts[i].Sequence, r.Sequence)
	}
	got = count()
	require.Zero(t, got.singles, "all are stored")
	require.Len(t, got.batches, 1)
	requireStored(t, store, 998)
}

// requireStored asserts that the store holds n events.
func requireStored(t *testing.T, store *jetstream.Store, n uint64) {
	t.Helper()
	c := conformance.Subscribe(t, store, fmt.Sprint("count", time.Now().UnixNano()), broker.Start{Earliest: true}, "", "**")
	info, err := c.Info(t.Context())
	require.NoError(t, err)
	require.Equal(t, n, info.Pending)
}

// Two replicas of the bus that are sent the same batches at the same time store
// each event once, and what they answer is stored.
func TestReplicasThatStoreTheSameBatchesStoreEachEventOnce(t *testing.T) {
	server, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{})
	another, err := jetstream.New(jetstream.Config{InProcess: server, PublishTimeout: time.Minute})
	require.NoError(t, err)
	run(t, another)
	var wg sync.WaitGroup
	var mu sync.Mutex
	sequences, stored := map[string]uint64{}, 0
	for i := range 8 {
		for _, s := range []*jetstream.Store{store, another} {
			wg.Go(func() {
				events := many("a", 100*(i+1))
				receipts, err := s.Publish(t.Context(), events)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
					return
				}
				for _, r := range receipts {
					if known, ok := sequences[r.ID]; ok && known != r.Sequence {
						t.Errorf("%s is said to be at %d and at %d", r.ID, known, r.Sequence)
					}
					sequences[r.ID] = r.Sequence
					if !r.Duplicate {
						stored++
					}
				}
			})
		}
	}
	wg.Wait()
	require.Len(t, sequences, 800)
	require.Equal(t, 800, stored)
	requireStored(t, store, 800)
}
