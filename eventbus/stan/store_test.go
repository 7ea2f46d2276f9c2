package stan_test

import (
	"context"
	"testing"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	stand "github.com/nats-io/nats-streaming-server/server"
	"github.com/nats-io/nats-streaming-server/stores"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/bustest"
	"github.com/lambdamesh/lambdamesh/eventbus/stan"
	"github.com/lambdamesh/lambdamesh/pkg/component"
)

const clusterID = "shop"

// What docs/nats-streaming.md tells users too.
var lacks = bustest.Lacks{
	bustest.RefusesWhenFull:        "NATS Streaming removes its oldest messages at its limits, delivered or not",
	bustest.AttemptsOutliveRestart: "NATS Streaming counts its own redeliveries only; attempts are counted in memory",
}

func TestConformance(t *testing.T) {
	bustest.Run(t, func(t *testing.T, options bustest.Options) (bustest.Backend, func()) {
		server := startServer(t, options.Dir, 0, nil)
		store, stop := open(t, stan.Config{URL: server.ClientURL(), AckWait: options.AckWait})
		return store, func() { stop(); server.Shutdown() }
	}, lacks)
}

// startServer runs a real NATS Streaming server that syncs each batch it stores,
// until it is shut down or the test ends. Port 0 takes a free one.
func startServer(t *testing.T, dir string, port int, change func(*stand.Options, *natsd.Options)) *stand.StanServer {
	t.Helper()
	opts := stand.GetDefaultOptions()
	opts.ID, opts.StoreType, opts.FilestoreDir = clusterID, stores.TypeFile, dir
	opts.FileStoreOpts.DoSync = true
	nats := &natsd.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, MaxPayload: 2 << 20}
	if port == 0 {
		nats.Port = natsd.RANDOM_PORT
	}
	if change != nil {
		change(opts, nats)
	}
	server, err := stand.RunServerWithOpts(opts, nats)
	require.NoError(t, err)
	t.Cleanup(server.Shutdown)
	return server
}

// open runs a store until stop is called or the test ends.
func open(t *testing.T, config stan.Config) (*stan.Store, func()) {
	t.Helper()
	config.ClusterID = clusterID
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
