package jetstream_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/pkg/component"
)

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T, options conformance.Options) (conformance.Tested, func()) {
		server, store, stop := open(t, natsserver.Config{Dir: options.Dir}, jetstream.Config{MaxBytes: options.MaxBytes, AckWait: options.AckWait})
		return tested{store, connect(t, server)}, stop
	}, nil)
}

// tested is a store and another connection to its server.
type tested struct {
	*jetstream.Store
	nats *nats.Conn
}

func connect(t *testing.T, server *natsserver.Server) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(server))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

func (b tested) WriteRaw(t *testing.T, attributes map[string]string, data []byte, broken bool) {
	t.Helper()
	msg := nats.NewMsg("lambdamesh.events." + broker.SubjectOf(attributes["source"], attributes["type"]))
	msg.Data = data
	for name, value := range attributes {
		msg.Header["ce-"+name] = []string{event.EncodeHeaderValue(value)}
	}
	if broken {
		msg.Header["ce-time"] = []string{"yesterday", "%zz"}
	}
	js, err := natsjs.New(b.nats)
	require.NoError(t, err)
	_, err = js.PublishMsg(t.Context(), msg)
	require.NoError(t, err)
}

// open runs an embedded server and a store on it until stop is called or the
// test ends.
func open(t *testing.T, nats natsserver.Config, config jetstream.Config) (*natsserver.Server, *jetstream.Store, func()) {
	t.Helper()
	server, err := natsserver.New(nats)
	require.NoError(t, err)
	stopServer := run(t, server)
	config.InProcess = server
	if config.PublishTimeout == 0 {
		config.PublishTimeout = time.Minute // a disk may be busy
	}
	store, err := jetstream.New(config)
	require.NoError(t, err)
	stopStore := run(t, store)
	return server, store, func() { stopStore(); stopServer() }
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

func TestNATSAwayIsUnavailableAndHeals(t *testing.T) {
	dir := t.TempDir()
	listen := natsserver.Config{Dir: dir, Listen: "127.0.0.1:0"}
	server, err := natsserver.New(listen)
	require.NoError(t, err)
	stop := run(t, server)
	listen.Listen = server.Address()
	store, err := jetstream.New(jetstream.Config{URL: server.URL()})
	require.NoError(t, err)
	run(t, store)
	conformance.Publish(t, store, conformance.Event("1"))
	require.NoError(t, store.Check())

	stop()
	begin := time.Now()
	_, err = store.Publish(t.Context(), []event.Event{conformance.Event("2")})
	require.ErrorIs(t, err, broker.ErrUnavailable)
	require.Less(t, time.Since(begin), time.Minute)
	require.ErrorIs(t, store.Check(), broker.ErrUnavailable)

	again, err := natsserver.New(listen)
	require.NoError(t, err)
	run(t, again)
	require.Eventually(t, func() bool {
		_, err := store.Publish(t.Context(), []event.Event{conformance.Event("2")})
		return err == nil
	}, time.Minute, 50*time.Millisecond)
}

func TestStreamsAreUpdatedOnlyWhenTheirConfigChanged(t *testing.T) {
	server, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	run(t, server)
	nc, err := nats.Connect(server.URL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	const advisory = "$JS.EVENT.ADVISORY.STREAM.UPDATED."
	updates, err := nc.SubscribeSync(advisory + "*")
	require.NoError(t, err)
	require.NoError(t, nc.Flush())
	// Changed one by one and not in the order the store looks at them, so that an
	// update too many shows.
	for _, config := range []jetstream.Config{
		{},
		{},
		{DeadLetterMaxBytes: 1 << 20},
		{DeadLetterMaxBytes: 1 << 20, MaxBytes: 1 << 20},
	} {
		config.URL = server.URL()
		store, err := jetstream.New(config)
		require.NoError(t, err)
		run(t, store)()
	}
	for _, want := range []string{jetstream.DeadLetterStream, jetstream.AttemptStream, jetstream.SeenStream, jetstream.EventStream} {
		update, err := updates.NextMsg(20 * time.Second)
		require.NoError(t, err)
		require.Equal(t, advisory+want, update.Subject)
	}
}

// A bus that starts beside another one, or again, finds the streams where the store
// has no room for as much once more; and changes what it is told to.
func TestStreamsAreFoundWhereThereIsNoRoomForASecondTime(t *testing.T) {
	server, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", MaxStoreBytes: 10 << 20})
	require.NoError(t, err)
	run(t, server)
	for i, size := range []int64{7 << 20, 7 << 20, 6 << 20} {
		store, err := jetstream.New(jetstream.Config{URL: server.URL(), MaxBytes: size, DeadLetterMaxBytes: 1 << 20})
		require.NoError(t, err)
		run(t, store)
		id := fmt.Sprint(i)
		require.Eventually(t, func() bool {
			_, err := store.Publish(t.Context(), []event.Event{conformance.Event(id)})
			return err == nil
		}, time.Minute, 20*time.Millisecond)
	}
	js, err := natsjs.New(connect(t, server))
	require.NoError(t, err)
	stream, err := js.Stream(t.Context(), jetstream.EventStream)
	require.NoError(t, err)
	require.EqualValues(t, 6<<20, stream.CachedInfo().Config.MaxBytes)
}

func TestUnavailableBeforeNATSWasSeen(t *testing.T) {
	store, err := jetstream.New(jetstream.Config{URL: "nats://127.0.0.1:1"})
	require.NoError(t, err)
	_, err = store.Publish(t.Context(), []event.Event{conformance.Event("1")})
	require.ErrorIs(t, err, broker.ErrUnavailable)
	_, err = store.Subscribe(t.Context(), broker.ConsumerSpec{Name: "c"})
	require.ErrorIs(t, err, broker.ErrUnavailable)
}

func TestSmallNATSPayloadLowersTheLimit(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir(), MaxPayload: 64 << 10}, jetstream.Config{})
	require.Equal(t, 60<<10, store.MaxEventBytes())
	e := conformance.Event("1")
	e.Data = make([]byte, 62<<10)
	_, err := store.Publish(t.Context(), []event.Event{e})
	require.ErrorIs(t, err, event.ErrTooLarge)
	e.Data = make([]byte, 50<<10)
	conformance.Publish(t, store, e)
}

func TestLargestEventFitsAsDeadLetterToo(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{})
	require.Equal(t, event.MaxEventBytes, store.MaxEventBytes())
	e := conformance.Event("1")
	e.Data = make([]byte, event.MaxEventBytes)
	conformance.Publish(t, store, e)
	require.NoError(t, store.StoreDeadLetter(t.Context(), &broker.DeadLetter{Consumer: "c", Event: e}))
}

func TestConfigIsChecked(t *testing.T) {
	_, err := jetstream.New(jetstream.Config{Replicas: 9, DedupWindow: 30 * 24 * time.Hour, AckWait: time.Millisecond, MaxBytes: -1})
	for _, part := range []string{"no NATS server", "dedup window", "9 replicas", "ack wait", "must be limited"} {
		require.ErrorContains(t, err, part)
	}
}

func TestServersAreNamedWithoutPasswords(t *testing.T) {
	config := jetstream.Config{URL: "nats://eventbus:secret@a:4222, nats://b:4222,://secret@"}
	require.Equal(t, "nats://eventbus:xxxxx@a:4222,nats://b:4222,a URL that cannot be read", config.Servers())
}

func TestFullStorageMakesRoomFromWhatEverybodyHas(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{MaxBytes: 512 << 10, DedupWindow: 500 * time.Millisecond})
	slow := conformance.Subscribe(t, store, "slow", broker.Start{}, "", "**")
	fill := func(prefix string) (accepted []string) {
		for i := 0; ; i++ {
			e := conformance.Event(fmt.Sprint(prefix, i))
			e.Data = make([]byte, 16<<10)
			if _, err := store.Publish(t.Context(), []event.Event{e}); err != nil {
				require.ErrorIs(t, err, broker.ErrFull)
				return accepted
			}
			accepted = append(accepted, e.ID)
		}
	}
	accepted := fill("a")
	deliveries := conformance.Take(t, slow, len(accepted))
	require.Never(t, func() bool {
		_, err := store.Publish(t.Context(), []event.Event{{ID: "b", Source: "/shop/cart", Type: "t", Data: make([]byte, 16<<10)}})
		return err == nil
	}, 1500*time.Millisecond, 100*time.Millisecond, "nothing goes that a consumer has still to acknowledge")

	for _, d := range deliveries {
		require.NoError(t, d.Ack())
	}
	require.Eventually(t, func() bool { return len(fill("c")) > 0 }, time.Minute, 100*time.Millisecond, "room is made")
	require.NotEmpty(t, conformance.Take(t, slow, 1))
}

func TestLargeRequestsShareNoBatchThatIsTooLarge(t *testing.T) {
	_, store, _ := open(t, natsserver.Config{Dir: t.TempDir()}, jetstream.Config{})
	many := func(prefix string, n, size int) []event.Event {
		events := make([]event.Event, n)
		for i := range events {
			events[i] = conformance.Event(fmt.Sprint(prefix, i))
			events[i].Data = make([]byte, size)
		}
		return events
	}
	errs := make(chan error)
	go func() { _, err := store.Publish(t.Context(), many("a", 600, 100)); errs <- err }()
	go func() { _, err := store.Publish(t.Context(), many("b", 600, 100)); errs <- err }()
	go func() { _, err := store.Publish(t.Context(), many("c", 1000, 100)); errs <- err }()
	go func() { _, err := store.Publish(t.Context(), many("d", 15, event.MaxEventBytes)); errs <- err }()
	for range 4 {
		require.NoError(t, <-errs)
	}
	c := conformance.Subscribe(t, store, "c", broker.Start{Earliest: true}, "", "**")
	require.Eventually(t, func() bool {
		info, err := c.Info(t.Context())
		return err == nil && info.Pending == 2215
	}, time.Minute, 10*time.Millisecond)
}

func TestJetStreamThatIsDisabledMakesTheStoreUnready(t *testing.T) {
	opts := &server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true}
	nats, err := server.NewServer(opts)
	require.NoError(t, err)
	nats.Start()
	t.Cleanup(nats.Shutdown)
	store, err := jetstream.New(jetstream.Config{InProcess: nats, PublishTimeout: time.Minute})
	require.NoError(t, err)
	run(t, store)
	conformance.Publish(t, store, conformance.Event("1"))
	require.NoError(t, store.Check())

	require.NoError(t, nats.DisableJetStream()) // what the server does when its disk is full
	_, err = store.Publish(t.Context(), []event.Event{conformance.Event("2")})
	require.ErrorIs(t, err, broker.ErrUnavailable)
	require.ErrorIs(t, store.Check(), broker.ErrUnavailable)

	require.NoError(t, nats.EnableJetStream(&server.JetStreamConfig{StoreDir: opts.StoreDir}))
	require.Eventually(t, func() bool { return store.Check() == nil }, time.Minute, 50*time.Millisecond)
	require.True(t, conformance.Publish(t, store, conformance.Event("1"))[0].Duplicate)
}
