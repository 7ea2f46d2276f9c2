package natsserver_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

// start runs a server until the test ends or stop is called.
func start(t *testing.T, config natsserver.Config) (server *natsserver.Server, stop func()) {
	t.Helper()
	server, err := natsserver.New(config)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	select {
	case <-server.Ready():
	case err := <-done:
		cancel()
		t.Fatalf("the server ended: %v", err)
	case <-time.After(time.Minute):
		cancel()
		t.Fatal("the server did not become ready")
	}
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
	return server, stop
}

func TestOpensNoPortUnlessAsked(t *testing.T) {
	server, stop := start(t, natsserver.Config{Dir: t.TempDir()})
	require.Empty(t, server.URL())
	conn, err := server.InProcessConn()
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	stop()
	_, err = server.InProcessConn()
	require.Error(t, err)
}

func TestListensWhereAsked(t *testing.T) {
	server, _ := start(t, natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.Regexp(t, `^nats://127\.0\.0\.1:[1-9][0-9]*$`, server.URL())
}

func TestBadDataDirectoryIsOneLine(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	server, err := natsserver.New(natsserver.Config{Dir: file})
	require.NoError(t, err)
	err = server.Run(t.Context())
	require.ErrorContains(t, err, "data directory")
	require.NotContains(t, err.Error(), "\n")
}

func TestDataDirectoryInUseIsRefused(t *testing.T) {
	dir := t.TempDir()
	start(t, natsserver.Config{Dir: dir})
	second, err := natsserver.New(natsserver.Config{Dir: dir})
	require.NoError(t, err)
	require.ErrorContains(t, second.Run(t.Context()), "in use by another process")
}

func TestValidate(t *testing.T) {
	_, err := natsserver.New(natsserver.Config{Listen: "nowhere", MaxPayload: -1})
	require.ErrorContains(t, err, "data directory is not set")
	require.ErrorContains(t, err, "max payload")
	require.ErrorContains(t, err, "listen address")
}
