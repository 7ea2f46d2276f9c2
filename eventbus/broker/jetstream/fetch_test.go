package jetstream_test

import (
	"fmt"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// threeServers are a NATS cluster; the URLs of all.
func threeServers(t *testing.T) string {
	t.Helper()
	// They have to know each other before they start.
	var routes []*url.URL
	var ports []int
	for range 3 {
		free, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, free.Close())
		routes = append(routes, &url.URL{Scheme: "nats-route", Host: free.Addr().String()})
		ports = append(ports, free.Addr().(*net.TCPAddr).Port)
	}
	var urls string
	for i := range 3 {
		nats, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprintf("nats-%d", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
			JetStream: true, StoreDir: t.TempDir(), Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: ports[i]}, Routes: routes,
		})
		require.NoError(t, err)
		go nats.Start()
		t.Cleanup(func() { nats.Shutdown(); nats.WaitForShutdown() })
		require.True(t, nats.ReadyForConnections(time.Minute))
		urls += nats.ClientURL() + ","
	}
	return urls[:len(urls)-1]
}

// Servers with copies of a consumer send the messages of a request later than
// the word that it is done.
func TestABacklogIsFetchedFromReplicasWithoutWaitingForItToComeAgain(t *testing.T) {
	store, err := jetstream.New(jetstream.Config{URL: threeServers(t), Replicas: 3, PublishTimeout: 30 * time.Second, AckWait: 2 * time.Minute})
	require.NoError(t, err)
	run(t, store)
	first := conformance.Event("0")
	all := broker.Selector{Source: first.Source, Type: first.Type}
	var consumer broker.Consumer
	testkit.Eventually(t, 2*time.Minute, func() (err error) {
		consumer, err = store.Subscribe(t.Context(), broker.ConsumerSpec{Name: "c", Selectors: []broker.Selector{all}, Start: broker.Start{Earliest: true}})
		return err
	}, "no consumer")
	const backlog, window = 200, 20
	var events []event.Event
	for i := range backlog {
		events = append(events, conformance.Event(fmt.Sprint(i)))
	}
	testkit.Eventually(t, 2*time.Minute, func() error {
		_, err := store.Publish(t.Context(), events)
		return err
	}, "no quorum")

	for _, test := range []struct {
		name  string
		bytes int
		more  bool
	}{{"as many as asked for", 1 << 20, false}, {"as many as fit", 1500, true}} {
		t.Run(test.name, func(t *testing.T) {
			got := 0
			for got < backlog/2-window {
				n := 0
				more, err := consumer.Fetch(t.Context(), broker.Window{Events: window, Bytes: test.bytes}, 30*time.Second, func(d broker.Delivery) {
					require.Equal(t, 1, d.Attempt(), "it had been sent before, and was not taken")
					require.NoError(t, d.Ack())
					n++
				})
				require.NoError(t, err)
				require.Equal(t, test.more, more)
				require.Positive(t, n)
				if !test.more {
					require.Equal(t, window, n)
				}
				got += n
			}
		})
	}
}
