package natsserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// output is a log that the test reads while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// installation is a program's files as a cluster mounts them.
type installation struct {
	dir, file, address string
	log                output
}

func (i *installation) write(t *testing.T, name, content string) {
	t.Helper()
	// Replaced as a whole, as the kubelet does it.
	next := filepath.Join(i.dir, name+".next")
	require.NoError(t, os.WriteFile(next, []byte(content), 0o600))
	require.NoError(t, os.Rename(next, filepath.Join(i.dir, name)))
}

// certify writes a new certificate and returns what verifies it.
func (i *installation) certify(t *testing.T) *x509.CertPool {
	t.Helper()
	authority := testkit.NewAuthority(t)
	certificate, key := authority.Issue(t, "127.0.0.1")
	i.write(t, "tls.pem", string(key)+string(certificate))
	return authority.Pool()
}

func (i *installation) connect(pool *x509.CertPool, password string, options ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("tls://"+i.address, append(options,
		nats.Secure(&tls.Config{RootCAs: pool}), nats.UserInfo("eventbus", password), nats.Timeout(time.Minute))...)
}

// awaitConnection connects, and closes the connection when the test ends.
func (i *installation) awaitConnection(t *testing.T, pool *x509.CertPool, password string, options ...nats.Option) *nats.Conn {
	t.Helper()
	var nc *nats.Conn
	testkit.Eventually(t, time.Minute, func() (err error) {
		nc, err = i.connect(pool, password, options...)
		return err
	}, "no connection")
	t.Cleanup(nc.Close)
	return nc
}

func newInstallation(t *testing.T, jetstream string) *installation {
	t.Helper()
	i := &installation{dir: t.TempDir()}
	i.file = filepath.Join(i.dir, "nats.conf")
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a free port, asked for once
	require.NoError(t, err)
	i.address = listener.Addr().String()
	require.NoError(t, listener.Close())
	i.write(t, "client.conf", "user: eventbus\npassword: \"first\"\n")
	i.write(t, "nats.conf", fmt.Sprintf(`
listen: %q
lame_duck_grace_period: 10ms
tls { cert_file: "%[2]s/tls.pem", key_file: "%[2]s/tls.pem", timeout: 60 }
authorization {
  include ./client.conf
  timeout: 60
}
%s`, i.address, i.dir, jetstream))
	return i
}

// run runs the program until the test ends or stop is called.
func (i *installation) run(t *testing.T) (stop func()) {
	t.Helper()
	program, err := natsserver.NewProgram(natsserver.ProgramConfig{
		File: i.file, Poll: 20 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&i.log, nil)),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- program.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
	})
	select {
	case <-program.Ready():
	case err := <-done:
		t.Fatalf("the server ended: %v", err)
	}
	t.Cleanup(stop)
	return stop
}

func TestAProgramTakesChangedPasswordsAndCertificates(t *testing.T) {
	i := newInstallation(t, fmt.Sprintf("jetstream { store_dir: %q, sync_interval: always }", t.TempDir()))
	pool := i.certify(t)
	i.run(t)
	nc := i.awaitConnection(t, pool, "first")
	_, err := i.connect(pool, "guess")
	require.ErrorIs(t, err, nats.ErrAuthorization)

	renewed := i.certify(t)
	i.awaitConnection(t, renewed, "first")
	_, err = i.connect(pool, "first")
	require.Error(t, err, "the old certificate is shown no more")

	i.write(t, "client.conf", "user: eventbus\npassword: \"second\"\n")
	i.awaitConnection(t, renewed, "second")
	_, err = i.connect(renewed, "first")
	require.ErrorIs(t, err, nats.ErrAuthorization)
	testkit.Eventually(t, time.Minute, func() error {
		if nc.IsConnected() {
			return errors.New("still connected")
		}
		return nil
	}, "who came with the old password is let go")
}

func TestAProgramGoesOnWhenAChangeIsWrong(t *testing.T) {
	i := newInstallation(t, fmt.Sprintf("jetstream { store_dir: %q, sync_interval: always }", t.TempDir()))
	pool := i.certify(t)
	i.run(t)
	i.awaitConnection(t, pool, "first")
	for name, broken := range map[string]string{
		"nats.conf":   "jetstream { sync_interval: 2m }",
		"client.conf": "user: [",
		"tls.pem":     "no certificate",
	} {
		good, err := os.ReadFile(filepath.Join(i.dir, name))
		require.NoError(t, err)
		before := len(i.log.String())
		i.write(t, name, broken)
		testkit.Eventually(t, time.Minute, func() error {
			if !bytes.Contains([]byte(i.log.String()[before:]), []byte("going on with the last one")) {
				return errors.New("nothing is said")
			}
			return nil
		}, name)
		i.awaitConnection(t, pool, "first")
		i.write(t, name, string(good))
	}
	i.write(t, "client.conf", "user: eventbus\npassword: \"third\"\n")
	i.awaitConnection(t, pool, "third")
}

func TestAStoppedProgramIsALameDuckFirst(t *testing.T) {
	i := newInstallation(t, fmt.Sprintf("jetstream { store_dir: %q, sync_interval: always }", t.TempDir()))
	pool := i.certify(t)
	stop := i.run(t)
	warned := make(chan struct{}, 1)
	i.awaitConnection(t, pool, "first", nats.LameDuckModeHandler(func(*nats.Conn) { warned <- struct{}{} }))
	stop()
	select {
	case <-warned:
	case <-time.After(time.Minute):
		t.Fatal("the client was not told")
	}
}

func TestAProgramRefusesToLoseEvents(t *testing.T) {
	for want, jetstream := range map[string]string{
		"no jetstream block":    "",
		"sync_interval: always": fmt.Sprintf("jetstream { store_dir: %q }", t.TempDir()),
	} {
		i := newInstallation(t, jetstream)
		i.certify(t)
		program, err := natsserver.NewProgram(natsserver.ProgramConfig{File: i.file})
		require.NoError(t, err)
		require.ErrorContains(t, program.Run(t.Context()), want)
	}
}
