package jetstream_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/natsclient"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// While NATS takes both, the bus becomes the other user, and no event that
// somebody publishes fails for it; then the first one is good no more.
func TestAnotherUserIsTakenBetweenTwoEvents(t *testing.T) {
	first, second := &server.User{Username: "first", Password: "1"}, &server.User{Username: "second", Password: "2"}
	options := &server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
		Users: []*server.User{first, second},
	}
	nats, err := server.NewServer(options)
	require.NoError(t, err)
	go nats.Start()
	t.Cleanup(func() { nats.Shutdown(); nats.WaitForShutdown() })
	require.True(t, nats.ReadyForConnections(time.Minute))

	dir := t.TempDir()
	access := natsclient.Access{UserFile: filepath.Join(dir, "user"), PasswordFile: filepath.Join(dir, "password")}
	become := func(u *server.User) {
		for file, text := range map[string]string{access.UserFile: u.Username, access.PasswordFile: u.Password} {
			require.NoError(t, os.WriteFile(file+".next", []byte(text), 0o600))
			require.NoError(t, os.Rename(file+".next", file))
		}
	}
	become(first)
	store, err := jetstream.New(jetstream.Config{URL: nats.ClientURL(), Access: access, PublishTimeout: 30 * time.Second})
	require.NoError(t, err)
	run(t, store)

	published := 0
	until := func(check func() error, what string) {
		testkit.Eventually(t, time.Minute, func() error {
			published++
			_, err := store.Publish(t.Context(), []event.Event{conformance.Event(fmt.Sprint(published))})
			require.NoError(t, err, "event %d", published)
			return check()
		}, what)
	}
	user := func() error {
		connections, err := nats.Connz(&server.ConnzOptions{Username: true})
		require.NoError(t, err)
		for _, c := range connections.Conns {
			if c.AuthorizedUser != second.Username {
				return fmt.Errorf("it is %s", c.AuthorizedUser)
			}
		}
		return nil
	}
	until(func() error { return nil }, "")
	require.Error(t, user())
	become(second)
	until(user, "it does not take the other user")

	reloaded := options.Clone()
	reloaded.Users = []*server.User{second}
	require.NoError(t, nats.ReloadOptions(reloaded))
	for range 20 {
		until(func() error { return nil }, "")
	}
}
