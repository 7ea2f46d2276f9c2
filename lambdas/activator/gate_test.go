package activator_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/lambdas/activator"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// serveOn answers on a Unix socket and returns its path.
func serveOn(t *testing.T, handler http.Handler) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "p.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	require.NoError(t, err)
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}}
	server.Start()
	t.Cleanup(server.Close)
	return socket
}

func ask(t *testing.T, gate *httptest.Server, path string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, gate.URL+path, strings.NewReader("body"))
	require.NoError(t, err)
	request.Header.Set("X-Forwarded-For", "192.0.2.1")
	response, err := gate.Client().Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, string(body)
}

func TestARequestWaitsForAProcess(t *testing.T) {
	woken := make(chan struct{}, 10)
	gate := activator.New(activator.Config{Wake: func() { woken <- struct{}{} }})
	server := httptest.NewServer(gate)
	defer server.Close()
	socket := serveOn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, r.Method+" "+r.RequestURI+" "+string(body)+" "+r.Header.Get("X-Forwarded-For"))
	}))
	go func() {
		<-woken
		gate.Open(socket)
	}()
	response, body := ask(t, server, "/a%2Fb?x=1;y")
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "POST /a%2Fb?x=1;y body 192.0.2.1", body, "it arrives as it was sent")

	require.True(t, gate.Sleep(0))
	require.Zero(t, gate.Waiting())
	go func() {
		<-woken
		gate.Open(socket)
	}()
	response, _ = ask(t, server, "/again")
	require.Equal(t, http.StatusOK, response.StatusCode)
}

func TestAGateThatIsUsedDoesNotSleep(t *testing.T) {
	gate := activator.New(activator.Config{})
	server := httptest.NewServer(gate)
	defer server.Close()
	arrived, answer := make(chan struct{}), make(chan struct{})
	gate.Open(serveOn(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(arrived)
		<-answer
	})))
	var asking sync.WaitGroup
	asking.Go(func() { ask(t, server, "/") })
	<-arrived
	require.False(t, gate.Sleep(0), "a request is in flight")
	close(answer)
	asking.Wait()
	require.False(t, gate.Sleep(time.Hour), "it was used just now")
	testkit.Eventually(t, time.Minute, func() error {
		if !gate.Sleep(0) {
			return errors.New("it does not sleep") // the answer is read before the gate has seen its end
		}
		return nil
	}, "it sleeps")
}

func TestOldProcessAnswersWhatItGot(t *testing.T) {
	gate := activator.New(activator.Config{})
	server := httptest.NewServer(gate)
	defer server.Close()
	arrived, answer := make(chan struct{}), make(chan struct{})
	gate.Open(serveOn(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-answer
		_, _ = io.WriteString(w, "old")
	})))
	got := make(chan string, 1)
	go func() {
		_, body := ask(t, server, "/")
		got <- body
	}()
	<-arrived
	_, old := gate.Open(serveOn(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "new") })))
	_, body := ask(t, server, "/")
	require.Equal(t, "new", body)
	select {
	case <-old.Drained():
		t.Fatal("it has not answered yet")
	default:
	}
	close(answer)
	<-old.Drained()
	require.Equal(t, "old", <-got)
}

func TestWhatCannotWait(t *testing.T) {
	t.Run("too long", func(t *testing.T) {
		server := httptest.NewServer(activator.New(activator.Config{MaxWait: time.Millisecond}))
		defer server.Close()
		requireUnavailable(t, server, "did not start within 1ms", 1)
	})
	t.Run("too many", func(t *testing.T) {
		waits := make(chan struct{}, 1)
		gate := activator.New(activator.Config{MaxWaiting: 1, Wake: func() { waits <- struct{}{} }})
		server := httptest.NewServer(gate)
		defer server.Close()
		ctx, cancel := context.WithCancel(t.Context())
		var first sync.WaitGroup
		first.Go(func() {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
			if err == nil {
				if response, err := server.Client().Do(request); err == nil {
					response.Body.Close()
				}
			}
		})
		<-waits
		requireUnavailable(t, server, "1 requests wait", 1)
		cancel()
		first.Wait()
	})
	t.Run("a start that failed", func(t *testing.T) {
		var wakes atomic.Int32
		var gate *activator.Gate
		gate = activator.New(activator.Config{Wake: func() {
			wakes.Add(1)
			gate.Fail(errors.New("no license"), time.Hour)
		}})
		server := httptest.NewServer(gate)
		defer server.Close()
		requireUnavailable(t, server, "does not start", 3600)
		requireUnavailable(t, server, "does not start", 3600)
		require.Equal(t, int32(1), wakes.Load(), "it is not tried before its time")
	})
}

func requireUnavailable(t *testing.T, server *httptest.Server, why string, retryAfter int) {
	t.Helper()
	response, body := ask(t, server, "/")
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
	require.Equal(t, strconv.Itoa(retryAfter), response.Header.Get("Retry-After"))
	require.Contains(t, body, why)
}

// Requests come all the time, and the process goes whenever none is in flight.
func TestNoRequestIsLostBetweenSleepAndWake(t *testing.T) {
	socket := serveOn(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	}))
	wake := make(chan struct{}, 1)
	gate := activator.New(activator.Config{Wake: func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}})
	server := httptest.NewServer(gate)
	defer server.Close()
	ctx, stop := context.WithCancel(t.Context())
	var owner sync.WaitGroup
	var slept atomic.Int32
	owner.Go(func() {
		for ctx.Err() == nil {
			if gate.Sleep(0) {
				slept.Add(1)
				select {
				case <-wake:
				case <-ctx.Done():
					return
				}
				gate.Open(socket)
			}
		}
	})
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() {
			for slept.Load() < 20 {
				if response, body := ask(t, server, "/"); response.StatusCode != http.StatusOK || body != "body" {
					t.Errorf("%s: %q", response.Status, body)
				}
			}
		})
	}
	clients.Wait()
	stop()
	owner.Wait()
}
