package httpserver

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/framing"
)

// lingering is how long a client that was refused may take to read why, and to
// send the rest of what nobody wants.
const lingering = 500 * time.Millisecond

// listener accepts the connections that find a place.
type listener struct {
	net.Listener
	tls                       *tls.Config // nil: plain text
	sendTimeout               time.Duration
	places                    *places
	maxHeaderBytes, maxFields int
}

// Accept implements net.Listener. It waits for no client but the next: a
// handshake is for who serves the connection.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := l.wrap(raw)
		refused := l.places.enter(c)
		if refused == "" {
			return c, nil
		}
		l.turnAway(raw, noRoom(refused))
	}
}

func (l *listener) wrap(raw net.Conn) *conn {
	var inner net.Conn = &patient{Conn: raw, patience: l.sendTimeout}
	if l.tls != nil {
		inner = tls.Server(inner, l.tls)
	}
	return &conn{Conn: framing.New(inner), raw: raw, listener: l, holder: holder{remote: remoteOf(raw)}}
}

// turnAway closes a connection for which there is no place. The client is told
// why where that cannot wait: in plain text, into the empty buffer of a new
// socket. When its request is here already it may see a reset instead.
func (l *listener) turnAway(raw net.Conn, why refusal) {
	switch raw.(type) {
	case *net.TCPConn, *net.UnixConn:
		if l.tls == nil {
			_ = raw.SetDeadline(time.Now().Add(lingering))
			why.write(raw)
		}
	}
	raw.Close()
}

// conn is a client's connection.
type conn struct {
	*framing.Conn
	raw      net.Conn // below TLS: its Close waits for nobody
	listener *listener
	holder

	secured  *tls.ConnectionState // since the first request; nil: plain text
	counted  int                  // bytes of the header that have their places
	refused  atomic.Pointer[refusal]
	answered atomic.Bool // the refusal, by whoever came first
	hijacked atomic.Bool
	until    time.Time // a body that has not come is waited for; zero: all has
}

// refusal is the answer to a request whose header is too much.
type refusal struct {
	status int
	detail string
}

func noRoom(reason string) refusal {
	detail := "all places for connections are taken"
	if reason == refusedRemote {
		detail = "too many connections of your address are open"
	}
	return refusal{status: http.StatusServiceUnavailable, detail: detail}
}

// Read implements net.Conn. It ends a connection whose header is too much, with
// an answer: net/http has none for what no handler sees.
func (c *conn) Read(p []byte) (int, error) {
	if why := c.refused.Load(); why != nil {
		if c.answered.CompareAndSwap(false, true) {
			c.refuse(*why)
		}
		// An error of a read that net/http answers nothing to.
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed}
	}
	n, err := c.Conn.Read(p)
	if size, fields := c.Header(); n > 0 && size > c.counted {
		c.count(size, fields)
	}
	return n, err
}

// count takes the places that a header needs.
func (c *conn) count(size, fields int) {
	l := c.listener
	switch {
	case size > l.maxHeaderBytes:
		c.refused.Store(&refusal{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the headers are larger than %d bytes", l.maxHeaderBytes)})
	case fields > l.maxFields:
		c.refused.Store(&refusal{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("there are more than %d header fields", l.maxFields)})
	default:
		if n := (size-1)/headersPerPlace - max(c.counted-1, 0)/headersPerPlace; n > 0 {
			if reason := l.places.more(c, n); reason != "" {
				why := noRoom(reason)
				why.detail = "there is no room for headers as large as these: " + why.detail
				c.refused.Store(&why)
			}
		}
	}
	c.counted = size
}

// security is what a handler finds in its request's TLS field; net/http would look
// for it in a connection that is no other's.
func (c *conn) security() *tls.ConnectionState {
	if inner, ok := c.Conn.Conn.(*tls.Conn); ok && c.secured == nil {
		c.secured = new(inner.ConnectionState())
	}
	return c.secured
}

// refuse answers, and reads on for a moment: a connection that is closed with
// bytes unread is reset, and the client does not see the answer.
func (c *conn) refuse(why refusal) {
	inner := c.Conn.Conn
	_ = inner.SetDeadline(time.Now().Add(lingering))
	why.write(inner)
	_ = c.CloseWrite()
	_, _ = io.CopyN(io.Discard, inner, 256<<10)
}

// write writes what [Problem] does where there is no ResponseWriter.
func (r refusal) write(w io.Writer) {
	body, err := json.Marshal(problem{Title: http.StatusText(r.status), Status: r.status, Detail: r.detail})
	if err != nil {
		return
	}
	header := http.Header{"Content-Type": {"application/problem+json"}, "Cache-Control": {"no-store"}}
	r.retryAfter(header)
	response := http.Response{
		StatusCode: r.status, ProtoMajor: 1, ProtoMinor: 1, Close: true, Header: header,
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
	}
	_ = response.Write(w) // a client that went away cannot be told
}

func (r refusal) retryAfter(header http.Header) {
	if r.status == http.StatusServiceUnavailable {
		header.Set("Retry-After", "1")
	}
}

// Close implements net.Conn and gives the places back.
func (c *conn) Close() error {
	c.listener.places.leave(c)
	return c.Conn.Close()
}

// state is for http.Server's ConnState.
func state(c net.Conn, state http.ConnState) {
	own, ok := c.(*conn)
	if !ok {
		return
	}
	switch state {
	case http.StateActive:
		own.listener.places.busy(own)
	case http.StateIdle:
		if !own.fit() {
			_ = own.Close() // which net/http finds
			return
		}
		own.Answered()
		own.until = time.Time{}
		own.counted = 0
		own.listener.places.idle(own)
	case http.StateHijacked:
		own.hijacked.Store(true)
		own.Stop()
	}
}

type connKey struct{}

// connContext is for http.Server's ConnContext.
func connContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// judged refuses requests whose header is too much, and those whose framing
// another server may read differently.
func judged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, ok := r.Context().Value(connKey{}).(*conn)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		defer c.waitNoMore()
		if why := c.refused.Load(); why != nil {
			if !c.answered.CompareAndSwap(false, true) {
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Connection", "close")
			why.retryAfter(w.Header())
			Problem(w, why.status, "", why.detail)
			return
		}
		if reason := c.Violation(); reason != "" {
			w.Header().Set("Connection", "close")
			Problem(w, http.StatusBadRequest, "Bad Request", "the request's framing is ambiguous: "+reason)
			return
		}
		// A request that was read along with the one before makes net/http tell
		// nothing of it.
		if !c.listener.places.busy(c) {
			panic(http.ErrAbortHandler) // it made room: nobody would see the answer
		}
		r.TLS = c.security()
		next.ServeHTTP(w, r)
	})
}

// waitNoMore bounds the wait for a body that has not come when its handler is
// done: net/http reads it before it answers, and who was refused must not keep its
// places by not sending it.
func (c *conn) waitNoMore() {
	if !c.Arrived() && !c.hijacked.Load() {
		c.until = time.Now().Add(lingering)
		_ = c.SetReadDeadline(c.until)
	}
}

// fit tells whether the connection may serve another request. Where a body was
// given up its rest would be taken for one; and a deadline that passes, be it only
// while the answer is sent, makes net/http cancel the context of all that follow.
func (c *conn) fit() bool {
	return c.until.IsZero() || c.Arrived() && time.Now().Before(c.until)
}
