// Package stantest runs real NATS Streaming servers for tests.
//
// What may enter: starting such servers. It is imported by tests only.
package stantest

import (
	"testing"

	natsd "github.com/nats-io/nats-server/v2/server"
	stand "github.com/nats-io/nats-streaming-server/server"
	"github.com/nats-io/nats-streaming-server/stores"
	"github.com/stretchr/testify/require"
)

// ClusterID of the servers.
const ClusterID = "shop"

// Options of a server.
type Options struct {
	// Dir holds the data.
	Dir string
	// Port to listen on; 0 takes a free one.
	Port int
	// MaxPayload of NATS in bytes; default 2 MiB.
	MaxPayload int32
	// MaxMsgs a channel keeps; 0: no limit.
	MaxMsgs int
}

// Server is a running server.
type Server struct {
	URL  string
	Port int
	// Stop ends the server; its data stays. Stopping twice does nothing.
	Stop func()
}

// Start runs a server that keeps everything in files and syncs them before it
// acknowledges, until the end of the test.
func Start(t testing.TB, options Options) Server {
	t.Helper()
	opts := stand.GetDefaultOptions()
	opts.ID, opts.StoreType, opts.FilestoreDir = ClusterID, stores.TypeFile, options.Dir
	opts.FileStoreOpts.DoSync = true
	opts.MaxMsgs, opts.MaxBytes = options.MaxMsgs, 0
	nats := &natsd.Options{Host: "127.0.0.1", Port: options.Port, NoSigs: true, NoLog: true, MaxPayload: options.MaxPayload}
	if nats.Port == 0 {
		nats.Port = natsd.RANDOM_PORT
	}
	if nats.MaxPayload == 0 {
		nats.MaxPayload = 2 << 20
	}
	server, err := stand.RunServerWithOpts(opts, nats)
	require.NoError(t, err)
	t.Cleanup(server.Shutdown)
	// The server fills in the port it took.
	return Server{URL: server.ClientURL(), Port: nats.Port, Stop: server.Shutdown}
}
