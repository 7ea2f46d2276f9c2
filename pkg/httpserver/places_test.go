package httpserver_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// client is a connection to a server, and what it answers.
type client struct {
	net.Conn
	r *bufio.Reader
}

// dialFrom connects from an address of this machine.
func dialFrom(t *testing.T, from, url string) *client {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(url, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return &client{c, bufio.NewReader(c)}
}

func dialHere(t *testing.T, url string) *client {
	t.Helper()
	return dialFrom(t, "127.0.0.1", url)
}

func (c *client) send(t *testing.T, text string) {
	t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
}

// answer is the status of the next answer, 0 when the connection ended instead.
func (c *client) answer(t *testing.T) (int, string) {
	t.Helper()
	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		var late net.Error
		require.False(t, errors.As(err, &late) && late.Timeout(), "neither an answer nor an end")
		return 0, ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(body)
}

func (c *client) ask(t *testing.T, path string) int {
	t.Helper()
	c.send(t, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n")
	status, _ := c.answer(t)
	return status
}

// crowd is a server on which requests for /held wait until they are let go, and
// those for /large get much.
type crowd struct {
	url      string
	held     chan struct{} // one for each that came
	free     chan struct{}
	registry *prometheus.Registry
}

func startCrowd(t *testing.T, config httpserver.Config) *crowd {
	t.Helper()
	s := &crowd{held: make(chan struct{}, 100), free: make(chan struct{}), registry: prometheus.NewRegistry()}
	config.ReadHeaderTimeout = time.Minute // who is silent waits
	config.Metrics = httpserver.NewMetrics(s.registry)
	config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/held":
			s.held <- struct{}{}
			<-s.free
		case "/large": // more than all buffers take
			s.held <- struct{}{}
			_, _ = w.Write(make([]byte, 64<<20))
		}
	})
	s.url, _, _ = start(t, config)
	t.Cleanup(func() { close(s.free) })
	return s
}

// hold takes a place with a request in flight.
func (s *crowd) hold(t *testing.T, from, more string) *client {
	t.Helper()
	c := dialFrom(t, from, s.url)
	c.send(t, "GET /held HTTP/1.1\r\nHost: x\r\n"+more+"\r\n")
	<-s.held
	return c
}

// serves waits until a new connection is served: a client has its answer before
// the server takes its connection for idle.
func (s *crowd) serves(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, time.Minute, func() error {
		status, _, err := get(t, s.url)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("answered %d", status)
		}
		return err
	}, "a new connection is served")
}

func (s *crowd) metric(t *testing.T, line string) {
	t.Helper()
	testkit.Eventually(t, time.Minute, func() error {
		w := httptest.NewRecorder()
		promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		if !strings.Contains(w.Body.String(), line+"\n") {
			return fmt.Errorf("no %s in %s", line, w.Body)
		}
		return nil
	}, "the metric")
}

func TestConnectionsWithoutARequestMakeRoom(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 3})
	silent, oldest, youngest := dialHere(t, s.url), dialHere(t, s.url), dialHere(t, s.url)
	s.metric(t, `lambdamesh_http_connections{server="test"} 3`)
	s.hold(t, "127.0.0.1", "")
	status, _ := silent.answer(t)
	require.Zero(t, status)
	s.hold(t, "127.0.0.1", "")
	status, _ = oldest.answer(t)
	require.Zero(t, status)
	require.Equal(t, http.StatusOK, youngest.ask(t, "/"))
	s.metric(t, `lambdamesh_http_connections_evicted_total{server="test"} 2`)
	s.metric(t, `lambdamesh_http_connections{server="test"} 3`)
}

func TestABusyServerRefusesWithAReason(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 2})
	first, _ := s.hold(t, "127.0.0.1", ""), s.hold(t, "127.0.0.1", "")
	status, body := dialHere(t, s.url).answer(t)
	require.Equal(t, http.StatusServiceUnavailable, status)
	var problem struct{ Detail string }
	require.NoError(t, json.Unmarshal([]byte(body), &problem))
	require.Contains(t, problem.Detail, "places")
	s.metric(t, `lambdamesh_http_connections_refused_total{reason="full",server="test"} 1`)
	s.free <- struct{}{}
	s.free <- struct{}{}
	status, _ = first.answer(t)
	require.Equal(t, http.StatusOK, status)
	s.serves(t)
}

func TestARemoteHasItsShare(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 4, MaxConnsPerRemote: 2})
	const stranger = "127.0.0.2"
	idle := dialFrom(t, stranger, s.url)
	s.hold(t, stranger, "")
	s.hold(t, stranger, "") // in the place of its own idle one
	status, _ := idle.answer(t)
	require.Zero(t, status)
	status, body := dialFrom(t, stranger, s.url).answer(t)
	require.Equal(t, http.StatusServiceUnavailable, status)
	require.Contains(t, body, "your address")
	s.metric(t, `lambdamesh_http_connections_refused_total{reason="remote",server="test"} 1`)
	s.hold(t, "127.0.0.1", "")
	s.hold(t, "127.0.0.1", "")
}

func TestWhoHasTheMostMakesRoomFirst(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 4, MaxConnsPerRemote: 3})
	modest := dialFrom(t, "127.0.0.3", s.url)
	var flood []*client
	for range 3 {
		flood = append(flood, dialFrom(t, "127.0.0.2", s.url))
	}
	s.hold(t, "127.0.0.1", "")
	status, _ := flood[0].answer(t)
	require.Zero(t, status)
	require.Equal(t, http.StatusOK, modest.ask(t, "/"))
}

func TestLargeHeadersTakeFurtherPlaces(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 5})
	large := "X: " + strings.Repeat("x", 60<<10) + "\r\n"
	first := s.hold(t, "127.0.0.1", large)
	second := dialHere(t, s.url)
	second.send(t, "GET / HTTP/1.1\r\nHost: x\r\n"+large+"\r\n")
	status, body := second.answer(t)
	require.Equal(t, http.StatusServiceUnavailable, status, "one place is left, and four are wanted")
	require.Contains(t, body, "headers")
	s.metric(t, `lambdamesh_http_connections_refused_total{reason="headers",server="test"} 1`)
	require.Equal(t, http.StatusOK, dialHere(t, s.url).ask(t, "/"))
	s.free <- struct{}{}
	status, _ = first.answer(t)
	require.Equal(t, http.StatusOK, status)
}

func TestHeadersThatAreTooMuchAreAnswered431(t *testing.T) {
	for name, tt := range map[string]struct {
		limit           int
		headers, detail string
	}{
		"large":                  {1 << 10, "X: " + strings.Repeat("x", 200<<10) + "\r\n", "1024 bytes"},
		"large, in one piece":    {1 << 10, "X: " + strings.Repeat("x", 1<<10) + "\r\n", "1024 bytes"},
		"many":                   {64 << 10, strings.Repeat("X: y\r\n", 50), "10 header fields"},
		"many, beyond one piece": {64 << 10, strings.Repeat("X: y\r\n", 5000), "10 header fields"},
		"many, all in one list":  {64 << 10, "X: y\r\n" + strings.Repeat(" y\r\n", 50), "10 header fields"},
	} {
		t.Run(name, func(t *testing.T) {
			url, _, _ := start(t, httpserver.Config{MaxHeaderBytes: tt.limit, MaxHeaderFields: 10, Handler: http.HandlerFunc(httpserver.NotFound)})
			for _, body := range []string{"", "Content-Length: 1000\r\n"} {
				c := dialHere(t, url)
				c.send(t, "POST / HTTP/1.1\r\nHost: x\r\n"+body+tt.headers+"\r\n")
				status, answer := c.answer(t)
				require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, status)
				var problem struct {
					Status int
					Detail string
				}
				require.NoError(t, json.Unmarshal([]byte(answer), &problem), answer)
				require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, problem.Status)
				require.Contains(t, problem.Detail, tt.detail)
				status, _ = c.answer(t)
				require.Zero(t, status, "answered once")
			}
		})
	}
}

func TestHeadersThatFitAreServedAgainAndAgain(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 4})
	c := dialHere(t, s.url)
	for range 5 {
		c.send(t, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 60<<10)+"\r\n\r\n")
		status, _ := c.answer(t)
		require.Equal(t, http.StatusOK, status)
	}
}

func TestABodyThatNobodyWantsHoldsNoPlace(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 1})
	c := dialHere(t, s.url)
	c.send(t, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	status, _ := c.answer(t)
	require.Equal(t, http.StatusOK, status, "answered although it does not come")
	s.serves(t)
}
