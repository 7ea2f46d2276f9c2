package httpserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// pipes is a listener whose connections have no buffers: an answer is sent when
// its client reads it.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }
func (l *pipes) Close() error   { close(l.closed); return nil }
func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// piped runs test with a client of a server, in a bubble of its own. Paths of the
// server say what it does with the body before it answers; the answer tells
// whether the request's context has ended.
func piped(t *testing.T, test func(t *testing.T, c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		server := httpserver.New(httpserver.Config{Name: "pipes", Listener: l, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/read":
				_, _ = io.Copy(io.Discard, r.Body)
			case "/sent": // partly, before the handler is done
				_ = http.NewResponseController(w).Flush()
			case "/duplex":
				_ = http.NewResponseController(w).EnableFullDuplex()
			}
			fmt.Fprintf(w, "%s: %v", r.URL.Path, r.Context().Err())
		})})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- server.Run(ctx) }()
		near, far := net.Pipe()
		defer func() {
			near.Close()
			cancel()
			require.NoError(t, <-done)
		}()
		l.conns <- far
		test(t, &client{near, bufio.NewReader(near)})
	})
}

// Connections are shared: whose answer was slow to be taken must not matter to
// the next caller.
func TestWhoTakesAnAnswerSlowlySpoilsNoLaterRequest(t *testing.T) {
	for _, path := range []string{"/read", "/unread", "/sent"} {
		for coding, body := range map[string]string{
			"a length": "Content-Length: 3\r\n\r\nabc",
			"chunks":   "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		} {
			t.Run(path+" "+coding, func(t *testing.T) {
				piped(t, func(t *testing.T, c *client) {
					c.send(t, "POST "+path+" HTTP/1.1\r\nHost: x\r\n"+body)
					if path == "/sent" {
						_, err := c.r.ReadByte() // and with it all that was sent
						require.NoError(t, err)
						require.NoError(t, c.r.UnreadByte())
					}
					time.Sleep(10 * time.Second)
					status, _ := c.answer(t)
					require.Equal(t, http.StatusOK, status)
					for range 3 {
						c.send(t, "GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
						_, text := c.answer(t)
						require.Equal(t, "/next: <nil>", text)
					}
				})
			})
		}
	}
}

// What a handler leaves of a body is read and the connection kept, as long as it
// comes.
func TestABodyThatComesLateKeepsItsConnection(t *testing.T) {
	piped(t, func(t *testing.T, c *client) {
		c.send(t, "POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc")
		synctest.Wait() // the handler is done
		time.Sleep(100 * time.Millisecond)
		c.send(t, "def")
		for range 3 {
			status, text := c.answer(t)
			require.Equal(t, http.StatusOK, status)
			require.Contains(t, text, ": <nil>")
			c.send(t, "GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
		}
	})
}

// Requests may come along with the one before, whatever is there of them.
func TestARequestBehindABodyIsAnsweredWhenItsOwnIsStillComing(t *testing.T) {
	piped(t, func(t *testing.T, c *client) {
		const post = "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nabc"
		c.send(t, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"+post+"def"+post)
		for range 2 { // net/http answers the first one itself
			time.Sleep(10 * time.Second)
			status, _ := c.answer(t)
			require.Equal(t, http.StatusOK, status)
		}
		c.send(t, "def")
		_, text := c.answer(t)
		require.Equal(t, "/read: <nil>", text)
	})
}

// The rest of a body that was given up is no request.
func TestABodyThatWasGivenUpEndsTheConnection(t *testing.T) {
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, path := range []string{"/unread", "/duplex"} {
		t.Run(path, func(t *testing.T) {
			piped(t, func(t *testing.T, c *client) {
				c.send(t, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nabc", path, 3+len(smuggled)))
				status, _ := c.answer(t)
				require.Equal(t, http.StatusOK, status)
				time.Sleep(10 * time.Second)
				_, err := io.WriteString(c, smuggled)
				require.True(t, errors.Is(err, io.ErrClosedPipe), "%v", err)
				_, text := c.answer(t)
				require.Empty(t, text)
			})
		})
	}
}
