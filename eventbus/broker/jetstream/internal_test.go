package jetstream

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

func TestErrorsOfTheServerSayWhatIsWrong(t *testing.T) {
	for id, want := range map[server.ErrorIdentifier]error{
		server.JSAccountResourcesExceededErr:    broker.ErrFull,
		server.JSInsufficientResourcesErr:       broker.ErrFull,
		server.JSMemoryResourcesExceededErr:     broker.ErrFull,
		server.JSStorageResourcesExceededErr:    broker.ErrFull,
		server.JSStreamStoreFailedF:             broker.ErrFull,
		server.JSStreamMessageExceedsMaximumErr: event.ErrTooLarge,
		server.JSStreamHeaderExceedsMaximumErr:  event.ErrTooLarge,
		server.JSNotEnabledErr:                  broker.ErrUnavailable,
		server.JSNotEnabledForAccountErr:        broker.ErrUnavailable,
		server.JSClusterNotAvailErr:             broker.ErrUnavailable,
		server.JSClusterNotLeaderErr:            broker.ErrUnavailable,
		server.JSNoAccountErr:                   broker.ErrUnavailable,
		server.JSStreamOfflineErr:               broker.ErrUnavailable,
		server.JSStreamNotMatchErr:              broker.ErrUnavailable,
		server.JSRaftGeneralErrF:                broker.ErrUnavailable,
		server.JSConsumerNotFoundErr:            broker.ErrNotFound,
		server.JSNoMessageFoundErr:              broker.ErrNotFound,
	} {
		api := server.ApiErrors[id]
		err := translate(&jetstream.APIError{Code: api.Code, ErrorCode: jetstream.ErrorCode(api.ErrCode), Description: api.Description})
		require.ErrorIs(t, err, want, "%d %s", api.ErrCode, api.Description)
	}
	tooLarge := server.NewJSStreamStoreFailedError(server.ErrMsgTooLarge)
	require.ErrorIs(t, translate(&jetstream.APIError{ErrorCode: jetstream.ErrorCode(tooLarge.ErrCode), Description: tooLarge.Description}), event.ErrTooLarge)
	require.ErrorIs(t, translate(nats.ErrMaxPayload), event.ErrTooLarge)
	require.ErrorIs(t, translate(nats.ErrNoResponders), broker.ErrUnavailable)
	require.NoError(t, translate(nil))
}

// served is a NATS server of the test's own, with what an older version left.
func served(t *testing.T) (*server.Server, *nats.Conn, jetstream.JetStream) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, MaxPayload: 2 << 20})
	require.NoError(t, err)
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(t, err)
	// What an older version left: events go after a while, wanted or not.
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: EventStream, Subjects: []string{eventPrefix + ">"}, Discard: jetstream.DiscardNew,
		MaxAge: 7 * 24 * time.Hour, MaxBytes: 1 << 30, Duplicates: 10 * time.Minute,
	})
	require.NoError(t, err)
	return srv, nc, js
}

// committing is a store on a served NATS that stores what is published and does
// nothing of itself: the test does the rest.
func committing(t *testing.T, config Config) (*Store, *link) {
	t.Helper()
	srv, nc, js := served(t)
	config.InProcess, config.PublishTimeout = srv, time.Minute
	s, err := New(config)
	require.NoError(t, err)
	l, err := s.ensureStreams(t.Context(), nc, js)
	require.NoError(t, err)
	s.link.Store(l)
	ctx, cancel := context.WithCancel(context.Background())
	var loop sync.WaitGroup
	loop.Go(func() { s.commitLoop(ctx) })
	t.Cleanup(func() { cancel(); loop.Wait() })
	return s, l
}

func TestOldEventsGoWhenEverySubscriptionIsDoneWithThem(t *testing.T) {
	config := Config{MaxAge: 100 * time.Millisecond, DedupWindow: 100 * time.Millisecond}
	s, l := committing(t, config)
	require.Zero(t, l.events.CachedInfo().Config.MaxAge, "nothing goes by age alone")
	subscribe := func(name, eventType string) broker.Consumer {
		c, err := s.Subscribe(t.Context(), broker.ConsumerSpec{Name: name, Selectors: []broker.Selector{{Source: "s", Type: eventType}}})
		require.NoError(t, err)
		return c
	}
	slow := subscribe("slow", "rare")
	subscribe("deleted", "**") // never takes anything
	for i := range 20 {
		e := event.Event{ID: fmt.Sprint(i), Source: "s", Type: "often"}
		if i == 10 {
			e.Type = "rare"
		}
		_, err := s.Publish(t.Context(), []event.Event{e})
		require.NoError(t, err)
	}
	left := func() uint64 {
		_, err := s.trim(t.Context(), l)
		require.NoError(t, err)
		info, err := l.events.Info(t.Context())
		require.NoError(t, err)
		return info.State.Msgs
	}
	for published := time.Now(); time.Since(published) < 2*config.MaxAge; {
		require.EqualValues(t, 20, left(), "one waits for all of them")
	}
	require.EqualValues(t, 20, left(), "although they are old")
	require.NoError(t, s.Unsubscribe(t.Context(), "deleted"))
	require.EqualValues(t, 10, left(), "what comes before the one that is waited for went: a subscription that is deleted holds nothing")
	var d broker.Delivery
	_, err := slow.Fetch(t.Context(), broker.Window{Events: 1, Bytes: 1 << 20}, time.Minute, func(got broker.Delivery) { d = got })
	require.NoError(t, err)
	require.EqualValues(t, 10, left(), "delivered and not acknowledged")
	require.NoError(t, d.Ack())
	require.Eventually(t, func() bool { return left() == 0 }, time.Minute, 20*time.Millisecond)
}

// What could not be asked is not known to be missing: a batch without the answer
// would store some events twice, or none of them.
func TestWhetherEventsAreStoredIsNotGuessed(t *testing.T) {
	// A store that does not run: one that does makes a missing stream again, and
	// an empty stream does answer.
	srv, nc, js := served(t)
	s, err := New(Config{InProcess: srv})
	require.NoError(t, err)
	l, err := s.ensureStreams(t.Context(), nc, js)
	require.NoError(t, err)
	ask := func() ([]*pending, error) {
		e := event.Event{ID: "1", Source: "s", Type: "t"}
		msg := encode(eventPrefix+broker.SubjectOf(e.Source, e.Type), &e)
		msg.Header.Set(jetstream.MsgIDHeader, e.Key())
		return s.withoutStored(l, []*pending{{msg: msg}})
	}
	rest, err := ask()
	require.NoError(t, err)
	require.Len(t, rest, 1, "it is not stored")

	require.NoError(t, js.DeleteStream(t.Context(), EventStream))
	rest, err = ask()
	require.ErrorIs(t, err, broker.ErrUnavailable, "nobody answers")
	require.Len(t, rest, 1)
	_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ANOTHER", Subjects: []string{eventPrefix + ">"}})
	require.NoError(t, err)
	rest, err = ask()
	require.ErrorIs(t, err, broker.ErrUnavailable, "another stream answers")
	require.Len(t, rest, 1)
}
