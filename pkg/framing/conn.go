package framing

import (
	"bytes"
	"net"
	"sync/atomic"
)

// Conn reads along while a request's header arrives. What it keeps of it does not
// grow with the header.
type Conn struct {
	net.Conn

	off    atomic.Bool // inside a body
	http2  atomic.Bool // for good: frames are not lines
	header header
	bad    atomic.Pointer[string]

	// Of the header that is arriving, or arrived last.
	bytes, fields int
}

// New wraps a client's connection, decrypted.
func New(c net.Conn) *Conn { return &Conn{Conn: c} }

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
	if n > 0 && !c.off.Load() && !c.http2.Load() {
		c.look(p[:n])
	}
	return n, err
}

// notImplemented begins net/http's answer to a Transfer-Encoding other than
// chunked, which no handler sees.
var notImplemented = []byte("HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n") //nolint:gochecknoglobals // read only

// Write makes net/http's 501 a 400: to a proxy such framing is not a wish that
// it does not fulfill but a request that two readers end at different places.
func (c *Conn) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(p, notImplemented) {
		return c.Conn.Write(p)
	}
	answer := bytes.Replace(p, []byte("501 Not Implemented"), []byte("400 Bad Request"), 1)
	if _, err := c.Conn.Write(answer); err != nil {
		return 0, err
	}
	return len(p), nil
}

// NextRequest tells that the server waits for another request: for
// http.Server's ConnState, at http.StateIdle.
func (c *Conn) NextRequest() {
	if c.http2.Load() || !c.off.Load() {
		return // net/http2 reports idle connections too; a header may have begun to arrive
	}
	c.header = header{line: c.header.line[:0]}
	c.off.Store(false)
}

// Header is how long the header is that is arriving or has arrived last, so far,
// and how many fields it has. Call it where [Conn.Read] is called.
func (c *Conn) Header() (bytes, fields int) { return c.bytes, c.fields }

// Stop ends the looking: what comes is no HTTP any more.
func (c *Conn) Stop() { c.off.Store(true) }

// Violation tells what is wrong with the framing of the request that is being
// served; empty when nothing is. Answer 400 and close the connection.
func (c *Conn) Violation() string {
	if reason := c.bad.Load(); reason != nil {
		return *reason
	}
	return ""
}

var http2Preface = []byte("PRI * HTTP/2.0") //nolint:gochecknoglobals // read only

func (c *Conn) look(b []byte) {
	for len(b) > 0 {
		h := &c.header
		if !h.arriving {
			h.arriving = true
			c.bytes, c.fields = 0, 0
		}
		part, rest, ended := bytes.Cut(b, []byte("\n"))
		h.add(part)
		c.bytes += len(b) - len(rest)
		if !h.requestLine && bytes.HasPrefix(h.line, http2Preface) {
			c.http2.Store(true)
			return
		}
		if !ended {
			return
		}
		b = rest
		if field, last := h.endLine(); !last {
			if field {
				c.fields++
			}
			continue
		}
		reason, framed := h.verdict()
		if reason != "" {
			c.bad.Store(&reason)
		}
		// What follows a request without a body is the next one's header.
		c.header = header{line: h.line[:0]}
		if framed || reason != "" {
			c.off.Store(true) // a body follows
			return
		}
	}
}

// maxName is longer than the names that matter, and the preface of HTTP/2.
const maxName = 32

// header is a header of which not all has arrived: what lets two readers see
// different requests (RFC 9112, sections 2.2, 5.2 and 6.1).
type header struct {
	arriving    bool
	requestLine bool // has ended

	// The line that is arriving.
	line   []byte // its beginning
	length int
	cr     bool // it ends in a carriage return so far
	bareCR bool // there is one before its end

	hasLength, hasEncoding bool
	reason                 string
}

// add adds a part of a line.
func (h *header) add(part []byte) {
	if len(part) == 0 {
		return
	}
	h.bareCR = h.bareCR || h.cr || bytes.IndexByte(part[:len(part)-1], '\r') >= 0
	h.cr = part[len(part)-1] == '\r'
	h.length += len(part)
	h.line = append(h.line, part[:min(len(part), maxName-len(h.line))]...)
}

// endLine judges the line that has ended. last is the empty one behind a header.
func (h *header) endLine() (field, last bool) {
	first, line, length, bareCR := !h.requestLine, h.line, h.length, h.bareCR
	if h.cr {
		length--
		line = line[:min(len(line), length)]
	} else {
		h.reason = "http1.bare_lf"
	}
	h.requestLine, h.line, h.length, h.cr, h.bareCR = true, h.line[:0], 0, false, false
	switch {
	case first:
		return false, false
	case length == 0:
		return false, true
	case line[0] == ' ' || line[0] == '\t':
		h.reason = "http1.obsolete_line_folding"
		return true, false
	case bareCR:
		h.reason = "http1.bare_cr"
	}
	name, _, _ := bytes.Cut(line, []byte(":"))
	switch {
	case bytes.EqualFold(name, []byte("content-length")):
		h.hasLength = true
	case bytes.EqualFold(name, []byte("transfer-encoding")):
		h.hasEncoding = true
	}
	return true, false
}

// verdict tells what is wrong with a header that has ended, and whether a body
// follows.
func (h *header) verdict() (reason string, framed bool) {
	if h.hasLength && h.hasEncoding {
		return "http1.content_length_and_chunked", true
	}
	return h.reason, h.hasLength || h.hasEncoding
}
