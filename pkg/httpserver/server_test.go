package httpserver_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// start runs a server until the test ends. The channel gives what Run returned.
func start(t *testing.T, config httpserver.Config) (url string, stop context.CancelFunc, result <-chan error) {
	t.Helper()
	listener, err := httpserver.Listen(t.Context(), "127.0.0.1:0", "")
	require.NoError(t, err)
	config.Name, config.Listener = "test", listener
	server := httpserver.New(config)
	var _ component.Component = server
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	<-server.Ready()
	t.Cleanup(cancel)
	return "http://" + server.Addr().String(), cancel, done
}

func get(t *testing.T, url string) (int, string, error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

func TestAStoppedServerFinishesRequestsInFlight(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	url, stop, result := start(t, httpserver.Config{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-release
			_, _ = io.WriteString(w, "whole")
		}),
	})
	body := make(chan string, 1)
	go func() {
		_, text, _ := get(t, url)
		body <- text
	}()
	<-entered
	stop()
	testkit.Eventually(t, time.Minute, func() error {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err == nil {
			conn.Close()
			return errors.New("it accepts connections")
		}
		return nil
	}, "a draining server takes no new connections")
	close(release)
	require.Equal(t, "whole", <-body)
	require.NoError(t, <-result)
}

func TestRequestsThatOutlastTheDrainTimeoutAreCutOff(t *testing.T) {
	entered := make(chan struct{})
	url, stop, result := start(t, httpserver.Config{
		DrainTimeout: 20 * time.Millisecond,
		Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
		}),
	})
	failed := make(chan error, 1)
	go func() {
		_, _, err := get(t, url)
		failed <- err
	}()
	<-entered
	stop()
	require.Error(t, <-failed)
	require.NoError(t, <-result)
}

func TestAPanicIsLoggedAndAnsweredWithoutItsText(t *testing.T) {
	var logged bytes.Buffer
	url, stop, result := start(t, httpserver.Config{
		Log:     slog.New(slog.NewTextHandler(&logged, nil)),
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("inner secret") }),
	})
	status, body, err := get(t, url+"/p")
	require.NoError(t, err)
	require.Equal(t, http.StatusInternalServerError, status)
	require.JSONEq(t, `{"title":"Internal error","status":500}`, body)
	stop()
	require.NoError(t, <-result)
	require.Contains(t, logged.String(), "inner secret")
	require.Contains(t, logged.String(), "server_test.go")
}

func TestAPanicInTheMiddleOfAnAnswerCutsIt(t *testing.T) {
	url, _, _ := start(t, httpserver.Config{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			panic("late")
		}),
	})
	_, _, err := get(t, url)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestSlowHeadersCloseTheConnection(t *testing.T) {
	url, _, _ := start(t, httpserver.Config{ReadHeaderTimeout: 30 * time.Millisecond, Handler: http.HandlerFunc(httpserver.NotFound)})
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost:") // which may be too late already
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = io.ReadAll(conn)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the server closes the connection before our deadline")
}

func TestListenErrorsNameTheAddressAndTheNextStep(t *testing.T) {
	taken, err := httpserver.Listen(t.Context(), "127.0.0.1:0", "")
	require.NoError(t, err)
	defer taken.Close()
	_, err = httpserver.Listen(t.Context(), taken.Addr().String(), "--x-address")
	require.EqualError(t, err, "listening on "+taken.Addr().String()+
		": the port is in use: stop what uses it, or pass --x-address 127.0.0.1:0 for any free one")

	_, err = httpserver.Listen(t.Context(), "nonsense", "--x-address")
	require.ErrorContains(t, err, "an address is host:port, such as 127.0.0.1:8080, or unix:/path")

	_, err = httpserver.Listen(t.Context(), "unix:/"+strings.Repeat("long/", 30)+"s", "")
	require.ErrorContains(t, err, "use a shorter directory")
}

func TestUnixSockets(t *testing.T) {
	path := filepath.Join(testkit.TempSocketDir(t), "s")
	first, err := httpserver.Listen(t.Context(), "unix:"+path, "")
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	_, err = httpserver.Listen(t.Context(), "unix:"+path, "")
	require.ErrorContains(t, err, "another process serves this socket")

	unix, ok := first.(*net.UnixListener)
	require.True(t, ok)
	unix.SetUnlinkOnClose(false) // as after kill -9
	first.Close()
	second, err := httpserver.Listen(t.Context(), "unix:"+path, "")
	require.NoError(t, err, "a stale socket is replaced")
	second.Close()

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = httpserver.Listen(t.Context(), "unix:"+path, "")
	require.ErrorContains(t, err, "a file that is no socket")
	require.FileExists(t, path)
}

func TestHealth(t *testing.T) {
	notReady := errors.New("the cache has not synced")
	mux := httpserver.Health(func(context.Context) error { return notReady })
	call := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w
	}
	require.Equal(t, http.StatusOK, call("/healthz").Code)
	require.Equal(t, http.StatusServiceUnavailable, call("/readyz").Code)
	require.Contains(t, call("/readyz").Body.String(), "the cache has not synced")
	notReady = nil
	require.Equal(t, http.StatusOK, call("/readyz").Code)
}

func TestProblemReplacesWhatTheHandlerPromised(t *testing.T) {
	w := httptest.NewRecorder()
	w.Header().Set("Content-Length", "3")
	w.Header().Set("Content-Encoding", "gzip")
	httpserver.Problem(w, http.StatusBadRequest, "", "two fields are wrong",
		httpserver.FieldError{Field: "type", Detail: "is missing"}, httpserver.FieldError{Field: "id", Detail: "is empty"})
	require.Equal(t, http.StatusBadRequest, w.Code)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	require.Empty(t, w.Header().Get("Content-Length"))
	require.Empty(t, w.Header().Get("Content-Encoding"))
	require.JSONEq(t, `{"title":"Bad Request","status":400,"detail":"two fields are wrong",
		"errors":[{"field":"type","detail":"is missing"},{"field":"id","detail":"is empty"}]}`, w.Body.String())
}
