package stan_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	stango "github.com/nats-io/stan.go"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan/stantest"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/pkg/component"
)

// What docs/nats-streaming.md tells users too.
var lacks = conformance.Lacks{
	conformance.RefusesWhenFull:        "NATS Streaming removes its oldest messages at its limits, delivered or not",
	conformance.AttemptsOutliveRestart: "NATS Streaming counts its own redeliveries only; attempts are counted in memory",
}

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T, options conformance.Options) (conformance.Tested, func()) {
		server := stantest.Start(t, stantest.Options{Dir: options.Dir})
		store, stop := open(t, stan.Config{URL: server.URL, AckWait: options.AckWait})
		return tested{store, server.URL}, func() { stop(); server.Stop() }
	}, lacks)
}

// tested is a store and where its server is.
type tested struct {
	*stan.Store
	url string
}

func (b tested) WriteRaw(t *testing.T, attributes map[string]string, data []byte, broken bool) {
	t.Helper()
	payload := "lambdamesh/1 event\n"
	for name, value := range attributes {
		payload += "ce-" + name + ": " + event.EncodeHeaderValue(value) + "\n"
	}
	if broken {
		payload += "ce-time: %zz\n"
	}
	writeRaw(t, b.url, payload+"\n"+string(data))
}

// writeRaw puts a payload into the channel of events.
func writeRaw(t *testing.T, url, payload string) {
	t.Helper()
	conn, err := stango.Connect(stantest.ClusterID, "somebody", stango.NatsURL(url))
	require.NoError(t, err)
	require.NoError(t, conn.Publish(stan.EventChannel, []byte(payload)))
	require.NoError(t, conn.Close())
}

func TestWhatIsNoEventAtAllComesToEveryConsumer(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	store, _ := open(t, stan.Config{URL: server.URL})
	one := conformance.Subscribe(t, store, "c1", broker.Start{}, "/shop/cart", "**")
	two := conformance.Subscribe(t, store, "c2", broker.Start{}, "/shop/other", "**")
	writeRaw(t, server.URL, "not written by a bus")
	for _, c := range []broker.Consumer{one, two} {
		d := conformance.Take(t, c, 1)[0]
		require.Equal(t, "not written by a bus", string(d.Unreadable().Data))
		require.NoError(t, d.Ack())
	}
}

// open runs a store until stop is called or the test ends.
func open(t *testing.T, config stan.Config) (*stan.Store, func()) {
	t.Helper()
	config.ClusterID = stantest.ClusterID
	store, err := stan.New(config)
	require.NoError(t, err)
	return store, run(t, store)
}

// run runs a component until stop is called or the test ends.
func run(t *testing.T, c component.Component) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		require.NoError(t, <-done)
	}
	t.Cleanup(stop)
	select {
	case <-c.Ready():
	case err := <-done:
		stopped = true
		require.NoError(t, err)
		t.Fatalf("%s ended", c.Name())
	case <-time.After(time.Minute):
		t.Fatalf("%s did not become ready", c.Name())
	}
	return stop
}

func publishEventually(t *testing.T, store *stan.Store, e event.Event) (receipt broker.Receipt) {
	t.Helper()
	require.Eventually(t, func() bool {
		receipts, err := store.Publish(t.Context(), []event.Event{e})
		if err == nil {
			receipt = receipts[0]
		}
		return err == nil
	}, time.Minute, 50*time.Millisecond)
	return receipt
}

func TestServerThatRestartsIsUnavailableAndHeals(t *testing.T) {
	options := stantest.Options{Dir: t.TempDir()}
	server := stantest.Start(t, options)
	options.Port = server.Port
	store, _ := open(t, stan.Config{URL: server.URL})
	c := conformance.Subscribe(t, store, "c", broker.Start{}, "", "**")
	conformance.Publish(t, store, conformance.Event("1"), conformance.Event("2"))
	held := conformance.Take(t, c, 1)[0]
	require.NoError(t, store.Check())

	server.Stop()
	begin := time.Now()
	_, err := store.Publish(t.Context(), []event.Event{conformance.Event("3")})
	require.ErrorIs(t, err, broker.ErrUnavailable)
	require.ErrorIs(t, store.Check(), broker.ErrUnavailable)
	require.ErrorIs(t, store.StoreDeadLetter(t.Context(), &broker.DeadLetter{Consumer: "c", Event: conformance.Event("1")}), broker.ErrUnavailable)
	require.Less(t, time.Since(begin), time.Minute)

	stantest.Start(t, options)
	require.False(t, publishEventually(t, store, conformance.Event("3")).Duplicate)
	require.True(t, publishEventually(t, store, conformance.Event("1")).Duplicate)
	require.NoError(t, store.Check())
	require.NoError(t, held.Ack())
	for i, d := range conformance.Take(t, c, 2) {
		require.Equal(t, fmt.Sprint(i+2), d.Event().ID)
		require.Equal(t, 1, d.Attempt())
		require.NoError(t, d.Ack())
	}
	conformance.Nothing(t, c)
}

func TestServerThatLostItsDataIsUsedAsItIs(t *testing.T) {
	options := stantest.Options{Dir: t.TempDir()}
	server := stantest.Start(t, options)
	store, _ := open(t, stan.Config{URL: server.URL})
	c := conformance.Subscribe(t, store, "c", broker.Start{}, "", "**")
	for i := range 10 {
		conformance.Publish(t, store, conformance.Event(fmt.Sprint("old", i)))
	}
	for _, d := range conformance.Take(t, c, 10) {
		require.NoError(t, d.Ack())
	}

	server.Stop()
	stantest.Start(t, stantest.Options{Dir: t.TempDir(), Port: server.Port})
	fetched := make(chan string, 10)
	stop := make(chan struct{})
	var fetcher sync.WaitGroup
	fetcher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default: // it fails until the server is there again
				_, _ = c.Fetch(t.Context(), broker.Window{Events: 1, Bytes: 1 << 20}, 100*time.Millisecond, func(d broker.Delivery) { fetched <- d.Event().ID })
			}
		}
	})
	defer fetcher.Wait()
	defer close(stop)
	publishEventually(t, store, conformance.Event("new"))
	require.False(t, publishEventually(t, store, conformance.Event("old1")).Duplicate, "the server does not have it any more")
	require.Eventually(t, func() bool {
		// The consumer begins at "new" when it is made again, which may be later.
		publishEventually(t, store, conformance.Event(time.Now().String()))
		return len(fetched) > 0
	}, time.Minute, 50*time.Millisecond)
}

func TestUnavailableBeforeTheServerWasSeen(t *testing.T) {
	store, err := stan.New(stan.Config{URL: "nats://127.0.0.1:1", ClusterID: "c"})
	require.NoError(t, err)
	_, err = store.Publish(t.Context(), []event.Event{conformance.Event("1")})
	require.ErrorIs(t, err, broker.ErrUnavailable)
	_, err = store.Subscribe(t.Context(), broker.ConsumerSpec{Name: "c", Selectors: []broker.Selector{{Owner: "shop", Type: "**"}}})
	require.ErrorIs(t, err, broker.ErrUnavailable)
}

func TestReplicasPublishTogetherAndOneDispatches(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	config := stan.Config{URL: server.URL}
	first, stopFirst := open(t, config)
	second, _ := open(t, config)

	spec := broker.ConsumerSpec{Name: "c", Selectors: []broker.Selector{{Owner: "shop", Type: "**"}}}
	c, err := first.Subscribe(t.Context(), spec)
	require.NoError(t, err)
	_, err = second.Subscribe(t.Context(), spec)
	require.ErrorIs(t, err, broker.ErrUnavailable)
	require.ErrorContains(t, err, "already registered")

	receipts := conformance.Publish(t, second, conformance.Event("1"), conformance.Event("2"))
	require.Eventually(t, func() bool {
		got, err := first.Publish(t.Context(), []event.Event{conformance.Event("1")})
		return err == nil && got[0].Duplicate && got[0].Sequence == receipts[0].Sequence
	}, time.Minute, 10*time.Millisecond)
	require.NoError(t, conformance.Take(t, c, 1)[0].Ack())

	stopFirst()
	c, err = second.Subscribe(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, "2", conformance.Take(t, c, 1)[0].Event().ID, "the position is handed on")
}

func TestConsumerIsDeletedAlsoAfterARestart(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	store, stop := open(t, stan.Config{URL: server.URL})
	conformance.Subscribe(t, store, "c", broker.Start{}, "", "**")
	conformance.Publish(t, store, conformance.Event("1"))
	stop()
	store, _ = open(t, stan.Config{URL: server.URL})
	require.NoError(t, store.Unsubscribe(t.Context(), "c"))
	conformance.Nothing(t, conformance.Subscribe(t, store, "c", broker.Start{}, "", "**"))
}

func TestConsumerHoldsNoMoreThanItMay(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	store, _ := open(t, stan.Config{URL: server.URL, MaxInflight: 3})
	c := conformance.Subscribe(t, store, "c", broker.Start{}, "", "**")
	var events []event.Event
	for i := range 10 {
		events = append(events, conformance.Event(fmt.Sprint(i)))
	}
	conformance.Publish(t, store, events...)
	require.Eventually(t, func() bool {
		info, err := c.Info(t.Context())
		return err == nil && info.Pending == 10
	}, time.Minute, 10*time.Millisecond, "also what is not held yet is counted")
	deliveries := conformance.Take(t, c, 3)
	conformance.Nothing(t, c)
	for _, d := range deliveries {
		require.NoError(t, d.Ack())
	}
	require.Equal(t, "3", conformance.Take(t, c, 1)[0].Event().ID)
}

func TestLargeEventsAreReadAgainWhenThereWasNoRoomForThem(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	store, _ := open(t, stan.Config{URL: server.URL})
	c := conformance.Subscribe(t, store, "c", broker.Start{}, "", "**")
	const n = 40 // MiB, of which 32 are held
	for i := range n {
		e := conformance.Event(fmt.Sprint(i))
		e.Data = bytes.Repeat([]byte{byte(i)}, event.MaxEventBytes)
		conformance.Publish(t, store, e)
	}
	require.Eventually(t, func() bool {
		info, err := c.Info(t.Context())
		return err == nil && info.Pending == n
	}, time.Minute, 10*time.Millisecond)
	for i := range n {
		d := conformance.Take(t, c, 1)[0]
		require.Equal(t, fmt.Sprint(i), d.Event().ID)
		require.Equal(t, 1, d.Attempt())
		require.Len(t, d.Event().Data, event.MaxEventBytes)
		require.Equal(t, byte(i), d.Event().Data[0])
		require.NoError(t, d.Ack())
	}
}

func TestEventsTheServerRemovedAreReported(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir(), MaxMsgs: 10})
	var mu sync.Mutex
	var log bytes.Buffer
	config := stan.Config{URL: server.URL, MaxInflight: 1, Logger: slog.New(slog.NewTextHandler(locked{&mu, &log}, nil))}
	store, _ := open(t, config)
	c := conformance.Subscribe(t, store, "c", broker.Start{}, "", "**")
	for i := range 30 {
		conformance.Publish(t, store, conformance.Event(fmt.Sprint(i)))
	}
	for range 2 {
		require.NoError(t, conformance.Take(t, c, 1)[0].Ack())
	}
	mu.Lock()
	defer mu.Unlock()
	require.Contains(t, log.String(), "the server skipped events of a consumer")
}

func TestEventThatWasRemovedBeforeItWasReadAgainComesAsUnreadable(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir(), MaxMsgs: 20})
	store, _ := open(t, stan.Config{URL: server.URL})
	c := conformance.Subscribe(t, store, "c", broker.Start{}, "", "**")
	waits := func(n uint64) {
		require.Eventually(t, func() bool {
			info, err := c.Info(t.Context())
			return err == nil && info.Pending == n
		}, time.Minute, 10*time.Millisecond)
	}
	const large = 40
	for i := range large {
		e := conformance.Event(fmt.Sprint(i))
		e.Data = make([]byte, event.MaxEventBytes)
		conformance.Publish(t, store, e)
	}
	waits(large)
	for i := range large {
		conformance.Publish(t, store, conformance.Event(fmt.Sprint(large+i)))
	}
	waits(2 * large)
	const held = 31 // of 1 MiB and their attributes, in 32 MiB
	for i, d := range conformance.Take(t, c, large+large) {
		if i < held || i >= large {
			require.Equal(t, fmt.Sprint(i), d.Event().ID)
		} else {
			require.ErrorContains(t, d.Unreadable().Err, "removed the event before it was delivered")
		}
		require.NoError(t, d.Ack())
	}
	conformance.Nothing(t, c)
}

// locked lets several goroutines write.
type locked struct {
	mu *sync.Mutex
	w  *bytes.Buffer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestLargestEventFitsAsDeadLetterToo(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	store, _ := open(t, stan.Config{URL: server.URL})
	require.Equal(t, event.MaxEventBytes, store.MaxEventBytes())
	e := conformance.Event("1")
	e.Data = make([]byte, event.MaxEventBytes)
	conformance.Publish(t, store, e)
	require.NoError(t, store.StoreDeadLetter(t.Context(), &broker.DeadLetter{Consumer: "c", Event: e}))
}

func TestSmallNATSPayloadLowersTheLimit(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir(), MaxPayload: 64 << 10})
	store, _ := open(t, stan.Config{URL: server.URL})
	require.Equal(t, 60<<10, store.MaxEventBytes())
	e := conformance.Event("1")
	e.Data = make([]byte, 62<<10)
	_, err := store.Publish(t.Context(), []event.Event{e})
	require.ErrorIs(t, err, event.ErrTooLarge)
	e.Data = make([]byte, 50<<10)
	conformance.Publish(t, store, e)
}

func TestConfigIsChecked(t *testing.T) {
	_, err := stan.New(stan.Config{ClientID: "a b", AckWait: time.Millisecond, MaxInflight: -1, DedupWindow: -1})
	for _, part := range []string{"no NATS server", "cluster ID", "client ID", "ack wait", "max in flight", "dedup window"} {
		require.ErrorContains(t, err, part)
	}
}
