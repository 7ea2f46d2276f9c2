package serve

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// How much of a body that nobody wants any more is read on, and for how long.
const (
	lingerBytes = 64 << 20
	lingerTime  = 2 * time.Second
)

// unfinished tells whether the answer comes before the end of the request.
// HTTP/2 ends such a stream by itself.
func (e *exchange) unfinished() bool {
	return e.sending != nil && e.HTTP.ProtoMajor == 1 && !e.sending.ended.Load()
}

// linger goes on reading such a request for a while before its connection is
// closed: a client that is still sending when it is reset never reads the
// answer (RFC 9112, section 9.6).
func (e *exchange) linger() {
	if !e.unfinished() {
		return
	}
	control := http.NewResponseController(e.w)
	if control.Flush() != nil || control.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	body := e.HTTP.Body
	if limited, ok := body.(*limitedBody); ok {
		body = limited.ReadCloser
	}
	_, _ = io.CopyN(io.Discard, body, lingerBytes) // it is over anyway
}

// earlyAnswerConn lets an answer through that comes before the request was sent
// to its end, such as a 413 after which the server closes. http.Transport gives
// a failed write precedence over an answer that lies ready to be read; here what
// is written to a closed connection goes nowhere, and the next read tells: the
// answer, or that there is none.
//
// The first write of a request fails as ever: nothing was sent, and it may be
// sent again on another connection.
type earlyAnswerConn struct {
	net.Conn
	sent atomic.Bool                 // something of this request
	seen atomic.Pointer[atomic.Bool] // the same, for who sends it
	gone atomic.Bool                 // the other end takes no more
}

// patient wraps what was dialed for HTTP/1, where a connection serves one
// request at a time.
func patient(http2 bool) func(net.Conn, error) (net.Conn, error) {
	return func(c net.Conn, err error) (net.Conn, error) {
		if err != nil || http2 {
			return c, err
		}
		return &earlyAnswerConn{Conn: c}, nil
	}
}

// begin tells that a request follows, and where to note that some of it was sent.
func (c *earlyAnswerConn) begin(seen *atomic.Bool) {
	c.sent.Store(false)
	c.seen.Store(seen)
}

// Write implements net.Conn.
func (c *earlyAnswerConn) Write(p []byte) (int, error) {
	if c.gone.Load() {
		return len(p), nil
	}
	n, err := c.Conn.Write(p)
	if err != nil && c.sent.Load() && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		c.gone.Store(true)
		return len(p), nil
	}
	if n > 0 {
		c.sent.Store(true)
		if seen := c.seen.Load(); seen != nil {
			seen.Store(true)
		}
	}
	return n, err
}
