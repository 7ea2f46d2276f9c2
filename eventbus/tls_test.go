package eventbus_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/natsclient"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// safeBuffer is a log that the test reads while it is written.
type safeBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *safeBuffer) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(line)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// files are what a pod has in its volumes.
type files struct {
	*testing.T
	dir string
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

// write replaces a file as a whole.
func (f files) write(name string, content []byte) {
	f.Helper()
	require.NoError(f, os.WriteFile(f.path(name)+".next", content, 0o600))
	require.NoError(f, os.Rename(f.path(name)+".next", f.path(name)))
}

func TestThePublicPortSpeaksTLSWithTheCertificateOfToday(t *testing.T) {
	old, renewed := testkit.NewAuthority(t), testkit.NewAuthority(t)
	volume := files{t, t.TempDir()}
	certify := func(a *testkit.Authority) {
		certificate, key := a.Issue(t, "eventbus-public.lambdamesh-system.svc")
		volume.write("tls.key", key)
		volume.write("tls.crt", certificate)
	}
	certify(old)
	listener := listen(t)
	startBus(t, t.TempDir(), func(c *eventbus.Config) {
		c.REST, c.TokenListener = testkit.KubeAPI(t, manifests.CRDs), listener
		c.TokenCertFile, c.TokenKeyFile = volume.path("tls.crt"), volume.path("tls.key")
	})
	publish := func(scheme string, a *testkit.Authority) (int, error) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.Pool(), ServerName: "eventbus-public.lambdamesh-system.svc"}}
		defer transport.CloseIdleConnections()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, scheme+"://"+listener.Addr().String()+"/publish", strings.NewReader("{}"))
		require.NoError(t, err)
		response, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(request)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	status, err := publish("https", old)
	require.NoError(t, err)
	require.Equal(t, http.StatusUnauthorized, status, "it asks for a token")
	status, err = publish("http", old)
	require.True(t, err != nil || status >= http.StatusBadRequest, "a token in plain text: %d", status)

	certify(renewed)
	testkit.Eventually(t, time.Minute, func() error {
		status, err := publish("https", renewed)
		if err == nil && status != http.StatusUnauthorized {
			err = errors.New(http.StatusText(status))
		}
		return err
	}, "the renewed certificate is not shown")
}

func TestNATSIsKnownByItsCertificateAndKnowsTheBusByItsPassword(t *testing.T) {
	log := &safeBuffer{}
	authority, stranger := testkit.NewAuthority(t), testkit.NewAuthority(t)
	volume := files{t, t.TempDir()}
	certificate, key := authority.Issue(t, "127.0.0.1")
	volume.write("tls.crt", certificate)
	volume.write("tls.key", key)
	volume.write("ca.crt", authority.RootPEM())
	volume.write("stranger.crt", stranger.RootPEM())
	volume.write("user", []byte("eventbus\n"))
	volume.write("password", []byte("guess\n"))
	volume.write("client.conf", []byte("user: eventbus\npassword: secret\n"))
	address := listen(t)
	require.NoError(t, address.Close())
	volume.write("nats.conf", []byte(`
listen: "`+address.Addr().String()+`"
tls { cert_file: "`+volume.path("tls.crt")+`", key_file: "`+volume.path("tls.key")+`", ca_file: "`+volume.path("ca.crt")+`", verify: true, timeout: 60 }
authorization {
  include ./client.conf
  timeout: 60
}
jetstream { store_dir: "`+t.TempDir()+`", sync_interval: always }`))
	nats, err := natsserver.NewProgram(natsserver.ProgramConfig{File: volume.path("nats.conf"), Poll: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(log, nil))})
	require.NoError(t, err)
	run(t, nats)

	open := func(ca string) *jetstream.Store {
		store, err := jetstream.New(jetstream.Config{URL: "nats://" + address.Addr().String(), Logger: slog.New(slog.DiscardHandler), Access: natsclient.Access{
			UserFile: volume.path("user"), PasswordFile: volume.path("password"), CAFile: volume.path(ca),
			CertFile: volume.path("tls.crt"), KeyFile: volume.path("tls.key"),
		}})
		require.NoError(t, err)
		return store
	}
	publish := func(store *jetstream.Store) error {
		_, err := store.Publish(t.Context(), []event.Event{{ID: "1", Source: "commerce", Type: "t"}})
		return err
	}
	good, deceived := open("ca.crt"), open("stranger.crt")
	for _, store := range []*jetstream.Store{good, deceived} {
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- store.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			require.NoError(t, <-done)
		})
	}
	require.Error(t, publish(good), "with a wrong password")
	volume.write("password", []byte("secret\n"))
	testkit.Eventually(t, time.Minute, func() error { return publish(good) }, "the password of today is not tried")
	require.Error(t, publish(deceived), "NATS is not who it should be")

	// Another password reaches NATS first, and the bus a minute later: it was
	// refused more than once by then.
	refusals := func() int { return strings.Count(log.String(), "authentication error") }
	before := refusals()
	volume.write("client.conf", []byte("user: eventbus\npassword: other\n"))
	testkit.Eventually(t, time.Minute, func() error {
		if refused := refusals() - before; refused < 3 {
			return fmt.Errorf("refused %d times", refused)
		}
		return nil
	}, "the bus does not try again")
	volume.write("password", []byte("other\n"))
	testkit.Eventually(t, time.Minute, func() error { return publish(good) }, "the bus has given up")
}

func TestAccessThatContradictsItselfIsRefused(t *testing.T) {
	for want, access := range map[string]natsclient.Access{
		"user and of the password": {UserFile: "user"},
		"not both":                 {UserFile: "user", PasswordFile: "password", CredentialsFile: "creds"},
		"certificate and key":      {CertFile: "tls.crt"},
	} {
		_, err := jetstream.New(jetstream.Config{URL: "nats://nats:4222", Access: access})
		require.ErrorContains(t, err, want)
	}
}
