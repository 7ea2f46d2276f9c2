package framing

import (
	"bytes"
	"net"
	"sync/atomic"
)

// Conn reads along with all requests of a connection: their headers, and of their
// bodies where they end. What it keeps of them does not grow.
type Conn struct {
	net.Conn

	off     atomic.Bool // for good: what comes are no lines
	bad     atomic.Pointer[violation]
	http2   bool // a client may begin with its preface
	preface int  // bytes of it that have come; -1: something else has

	arrived, answered atomic.Int64 // requests, to their end

	at     part
	header header
	body   body

	// Of the header that is arriving or arrived last, and the most that one in the
	// last Read had.
	bytes, fields         int
	mostBytes, mostFields int
}

// violation is the first one of a connection.
type violation struct {
	reason string
	from   int64 // the first request, from 1, that no handler must see
}

// part is where in a request the next byte belongs.
type part int

const (
	inHeader part = iota
	inBody
	inTrailer
)

// New wraps a client's connection, decrypted, of a server of HTTP/1.
func New(c net.Conn) *Conn { return &Conn{Conn: c} }

// AllowHTTP2 tells that the server speaks HTTP/2 with a client that begins the
// connection with its preface (RFC 9113, section 3.4). Call it before Read.
func (c *Conn) AllowHTTP2() { c.http2 = true }

// CloseWrite lets the server end its side and still read.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}

// Read implements net.Conn, and reads along.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.off.Load() && !c.beginsHTTP2(p[:n]) {
		c.look(p[:n])
	}
	return n, err
}

// notImplemented begins net/http's answer to a Transfer-Encoding other than
// chunked, which no handler sees.
var notImplemented = []byte("HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n") //nolint:gochecknoglobals // read only

// Write makes net/http's 501 a 400: to a proxy such framing is not a wish that
// it does not fulfill but a request that two readers end at different places. An
// answer that a handler writes stays as it is, whatever it looks like.
func (c *Conn) Write(p []byte) (int, error) {
	bad := c.bad.Load()
	if bad == nil || c.answered.Load()+1 < bad.from || !bytes.HasPrefix(p, notImplemented) {
		return c.Conn.Write(p)
	}
	answer := bytes.Replace(p, []byte("501 Not Implemented"), []byte("400 Bad Request"), 1)
	if _, err := c.Conn.Write(answer); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Header is how long a header is, so far, of which the last [Conn.Read] had a
// part, and how many fields it has; of several the most. Call it where Read is
// called.
func (c *Conn) Header() (bytes, fields int) { return c.mostBytes, c.mostFields }

// Stop ends the looking: what comes is no HTTP any more.
func (c *Conn) Stop() { c.off.Store(true) }

// Violation tells what is wrong with the framing of a request of the connection;
// empty when nothing is. Answer 400 and close the connection.
func (c *Conn) Violation() string {
	if bad := c.bad.Load(); bad != nil {
		return bad.reason
	}
	return ""
}

// Answered tells that a request was answered and another may follow, which is
// when http.Server's ConnState says idle.
func (c *Conn) Answered() { c.answered.Add(1) }

// Arrived tells whether the request that is being answered, of HTTP/1, has come to
// its end: what is left of it waits for no client.
func (c *Conn) Arrived() bool { return c.arrived.Load() > c.answered.Load() }

// refuse refuses the request that is arriving: its handler has not begun.
func (c *Conn) refuse(reason string) { c.refuseFrom(c.arrived.Load()+1, reason) }

// refuseNext refuses those behind it: its handler may be reading it.
func (c *Conn) refuseNext(reason string) { c.refuseFrom(c.arrived.Load()+2, reason) }

func (c *Conn) refuseFrom(request int64, reason string) {
	if reason != "" {
		c.bad.CompareAndSwap(nil, &violation{reason, request})
	}
}

// arrive ends the request that is arriving.
func (c *Conn) arrive() {
	c.at = inHeader
	c.arrived.Add(1)
}

var http2Preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") //nolint:gochecknoglobals // read only

// beginsHTTP2 ends the looking when the whole preface is what came first: frames
// are not lines.
func (c *Conn) beginsHTTP2(b []byte) bool {
	if c.preface < 0 {
		return false
	}
	b = b[:min(len(b), len(http2Preface)-c.preface)]
	if !bytes.HasPrefix(http2Preface[c.preface:], b) {
		c.preface = -1
		return false
	}
	if c.preface += len(b); c.preface < len(http2Preface) {
		return false
	}
	c.preface = -1
	if !c.http2 {
		c.refuse("http1.preface_of_http2")
		return false
	}
	c.mostBytes, c.mostFields = 0, 0
	c.off.Store(true)
	return true
}

func (c *Conn) look(b []byte) {
	c.mostBytes, c.mostFields = 0, 0
	for len(b) > 0 && !c.off.Load() {
		if c.at == inBody {
			b = c.lookAtBody(b)
		} else {
			b = c.lookAtLine(b)
		}
	}
}

// lookAtBody looks at the part of a body that b begins with, and returns the rest.
func (c *Conn) lookAtBody(b []byte) []byte {
	rest, ended, ok := c.body.skip(b)
	switch {
	case !ok:
		// Nobody knows where it ends: net/http gives it up too.
		c.refuseNext(reasonChunk)
		c.off.Store(true)
	case ended && c.body.chunked:
		c.at, c.header = inTrailer, header{requestLine: true, line: c.header.line[:0]}
	case ended:
		c.arrive()
	}
	return rest
}

// lookAtLine looks at a part of a line that b begins with.
func (c *Conn) lookAtLine(b []byte) (rest []byte) {
	h := &c.header
	if c.at == inHeader && !h.arriving {
		h.arriving = true
		c.bytes, c.fields = 0, 0
	}
	line, rest, ended := bytes.Cut(b, []byte("\n"))
	h.add(line)
	field, last := false, false
	if ended {
		field, last = h.endLine()
	}
	if c.at == inHeader {
		c.bytes += len(b) - len(rest)
		if field {
			c.fields++
		}
		c.mostBytes, c.mostFields = max(c.mostBytes, c.bytes), max(c.mostFields, c.fields)
	}
	if !last {
		return rest
	}
	if c.at == inTrailer {
		c.refuseNext(h.reason)
		c.arrive()
	} else {
		c.refuse(h.verdict())
		c.body = body{chunked: h.hasEncoding, left: h.length}
		if h.hasEncoding || h.length > 0 {
			c.at = inBody
		} else {
			c.arrive()
		}
	}
	c.header = header{line: h.line[:0]}
	return rest
}
