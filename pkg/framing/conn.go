package framing

import (
	"bytes"
	"net"
	"sync/atomic"
)

// Conn reads along while a request's header arrives.
type Conn struct {
	net.Conn

	off    atomic.Bool // inside a body
	http2  atomic.Bool // for good: frames are not lines
	header []byte
	bad    atomic.Pointer[string]
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

// maxScan bounds what is kept of a header; the server's own limit ends longer
// ones.
const maxScan = 1 << 20

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
	if c.http2.Load() {
		return // net/http2 reports idle connections too
	}
	c.header = c.header[:0]
	c.off.Store(false)
}

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
	c.header = append(c.header, b...)
	for {
		h := c.header
		if bytes.HasPrefix(h, http2Preface) {
			c.http2.Store(true)
			c.header = nil
			return
		}
		end, width := endOfHeader(h)
		if end < 0 {
			if len(h) > maxScan {
				c.off.Store(true)
				c.header = nil
			}
			return
		}
		reason, framed := inspect(h[:end])
		if reason != "" {
			c.bad.Store(&reason)
		}
		if framed || reason != "" {
			c.off.Store(true) // a body follows
			return
		}
		// What follows a request without a body is the next one's header.
		c.header = append(h[:0], h[end+width:]...)
		if len(c.header) == 0 {
			return
		}
	}
}

// endOfHeader finds the empty line.
func endOfHeader(b []byte) (end, width int) {
	crlf, lf := bytes.Index(b, []byte("\r\n\r\n")), bytes.Index(b, []byte("\n\n"))
	switch mixed := bytes.Index(b, []byte("\n\r\n")); {
	case lf >= 0 && (crlf < 0 || lf < crlf) && (mixed < 0 || lf < mixed):
		return lf + 1, 1
	case crlf >= 0 && (mixed < 0 || crlf <= mixed):
		return crlf + 2, 2
	case mixed >= 0:
		return mixed + 1, 2
	}
	return -1, 0
}

// inspect looks at the lines of a header for what lets two readers see
// different requests (RFC 9112, sections 2.2, 5.2 and 6.1). framed tells that a
// body follows.
func inspect(h []byte) (reason string, framed bool) {
	hasLength, hasEncoding := false, false
	first := true
	for len(h) > 0 {
		line, rest, _ := bytes.Cut(h, []byte("\n"))
		h = rest
		if !bytes.HasSuffix(line, []byte("\r")) {
			reason = "http1.bare_lf"
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		switch {
		case first:
			first = false
			continue
		case len(line) == 0:
			continue
		case line[0] == ' ' || line[0] == '\t':
			reason = "http1.obsolete_line_folding"
			continue
		}
		if bytes.IndexByte(line, '\r') >= 0 {
			reason = "http1.bare_cr"
		}
		name, _, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			hasLength = true
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			hasEncoding = true
		}
	}
	if hasLength && hasEncoding {
		reason = "http1.content_length_and_chunked"
	}
	return reason, hasLength || hasEncoding
}
