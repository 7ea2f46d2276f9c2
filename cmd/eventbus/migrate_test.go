package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan/stantest"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/pkg/component"
)

// start runs a component until the test ends.
func start(t *testing.T, c component.Component) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	select {
	case <-c.Ready():
	case <-time.After(time.Minute):
		t.Fatalf("%s is not ready", c.Name())
	}
}

func order(n int) event.Event {
	return event.Event{ID: fmt.Sprint(n), Source: "commerce", Type: "order.created.v1", Subject: "é", Data: []byte{0, byte(n)}}
}

// orders returns the IDs of the events a store holds, in order.
func orders(t *testing.T, store *jetstream.Store) (ids []string) {
	t.Helper()
	spec := broker.ConsumerSpec{Name: "reader", Selectors: []broker.Selector{{Source: "commerce", Type: "**"}}, Start: broker.Start{Earliest: true}}
	c, err := store.Subscribe(t.Context(), spec)
	require.NoError(t, err)
	for {
		info, err := c.Info(t.Context())
		require.NoError(t, err)
		if info.Pending == 0 {
			require.NoError(t, store.Unsubscribe(t.Context(), spec.Name))
			return ids
		}
		window := broker.Window{Events: int(info.Pending), Bytes: 1 << 20}
		_, err = c.Fetch(t.Context(), window, 10*time.Second, func(d broker.Delivery) { ids = append(ids, d.Event().ID) })
		require.NoError(t, err)
	}
}

func TestMigrateCopiesWhatIsMissingInOrder(t *testing.T) {
	streaming := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	server, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	start(t, server)
	from, err := stan.New(stan.Config{URL: streaming.URL, ClusterID: stantest.ClusterID})
	require.NoError(t, err)
	start(t, from)
	to, err := jetstream.New(jetstream.Config{URL: server.URL(), DedupWindow: time.Second})
	require.NoError(t, err)
	start(t, to)
	migrate := func() string {
		var out bytes.Buffer
		cmd := command(func(string) (string, bool) { return "", false })
		cmd.SetOut(&out)
		cmd.SetErr(&bytes.Buffer{})
		// With a window this short, JetStream itself deduplicates next to nothing.
		cmd.SetArgs([]string{"migrate", "--from-stan", streaming.URL, "--stan-cluster-id", stantest.ClusterID, "--to", server.URL(), "--dedup-window", "100ms"})
		require.NoError(t, cmd.ExecuteContext(t.Context()))
		return out.String()
	}

	require.Contains(t, migrate(), "events: 0 copied, 0 were there; dead letters: 0 copied, 0 were there", "empty stores are no failure")

	const n = 1200 // more than two batches
	var all []event.Event
	var want []string
	for i := range n {
		all = append(all, order(i))
		want = append(want, fmt.Sprint(i))
	}
	_, err = from.Publish(t.Context(), all)
	require.NoError(t, err)
	letter := broker.DeadLetter{
		Subscription: "shop/orders", Consumer: "uid", Sequence: 8, Stored: time.Now().UTC(), Reason: broker.ReasonExpired,
		Attempts: 4, LastStatus: 503, LastError: "busy", Event: order(7),
	}
	require.NoError(t, from.StoreDeadLetter(t.Context(), &letter))

	// Half of it is there already, as after a pass that was broken off.
	_, err = to.Publish(t.Context(), all[:n/2])
	require.NoError(t, err)
	out := migrate()
	require.Contains(t, out, "events: 600 copied, 600 were there; dead letters: 1 copied, 0 were there")
	require.Contains(t, out, "not copied: positions of subscriptions")
	require.Equal(t, want, orders(t, to))
	letters, err := to.DeadLetters(t.Context(), "", 0, 10)
	require.NoError(t, err)
	require.Len(t, letters, 1)
	letter.ID, letter.Died = letters[0].ID, letters[0].Died
	require.Equal(t, letter, letters[0])

	// The bus went on with NATS Streaming; the last pass brings the rest.
	_, err = from.Publish(t.Context(), []event.Event{order(n)})
	require.NoError(t, err)
	require.Contains(t, migrate(), "events: 1 copied, 1200 were there; dead letters: 0 copied, 1 were there")
	require.Contains(t, migrate(), "events: 0 copied, 1201 were there; dead letters: 0 copied, 1 were there", "once more is harmless")
	require.Equal(t, append(want, fmt.Sprint(n)), orders(t, to))
}

func TestMigrateNamesWhatIsNotSet(t *testing.T) {
	cmd := command(func(string) (string, bool) { return "", false })
	cmd.SetArgs([]string{"migrate", "--to", "nats://127.0.0.1:1"})
	cmd.SetErr(&bytes.Buffer{})
	err := cmd.ExecuteContext(t.Context())
	require.ErrorContains(t, err, "set its URL")
	require.ErrorContains(t, err, "cluster ID is not set")
}

func TestSettingsTheBackendIgnoresAreRefused(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--backend=stan --stan-cluster-id=c --max-bytes=5", "--max-bytes: NATS Streaming keeps and limits"},
		{"--stan-cluster-id=c", "--stan-cluster-id counts with --backend stan only"},
	} {
		cmd := command(func(string) (string, bool) { return "", false })
		require.NoError(t, cmd.ParseFlags(strings.Fields(test.args)))
		require.ErrorContains(t, cmd.PreRunE(cmd, nil), test.want)
	}
}
