package proxy

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
	"strings"
	"sync"
	"sync/atomic"
)

// conn is a client's connection, decrypted. It reads along while a header
// arrives, because net/http accepts some framing that a proxy must refuse and
// does not tell afterwards.
//
// It hides that it is a TLS connection, so that the server takes it for a plain
// one and detects HTTP/2 by its preface.
type conn struct {
	net.Conn
	tls *tls.ConnectionState // nil: plain text

	scan struct {
		off    atomic.Bool // inside a body
		http2  atomic.Bool // for good: frames are not lines
		header []byte
		bad    atomic.Pointer[string]
	}

	port     uint32
	xfccOnce sync.Once
	xfccText string
}

func newConn(c net.Conn, state *tls.ConnectionState) *conn {
	out := &conn{Conn: c, tls: state}
	if tcp, ok := c.LocalAddr().(*net.TCPAddr); ok {
		out.port = uint32(tcp.Port) //nolint:gosec // a port fits
	}
	return out
}

// CloseWrite lets the server end its side and still read.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}

func (c *conn) localPort() uint32 { return c.port }

func (c *conn) serverName() string {
	if c.tls == nil {
		return ""
	}
	return c.tls.ServerName
}

// peer is the client's certificate, nil without. It was verified in the
// handshake.
func (c *conn) peer() *x509.Certificate {
	if c.tls == nil || len(c.tls.PeerCertificates) == 0 {
		return nil
	}
	return c.tls.PeerCertificates[0]
}

func (c *conn) peerURIs() []string {
	cert := c.peer()
	if cert == nil {
		return nil
	}
	return uriSANs(cert)
}

// xfcc is the element for X-Forwarded-Client-Cert. All requests of a connection
// have the same.
func (c *conn) xfcc(h *hcm) string {
	c.xfccOnce.Do(func() {
		cert := c.peer()
		sum := sha256.Sum256(cert.Raw)
		parts := []string{"Hash=" + hex.EncodeToString(sum[:])}
		if h.xfccSubject {
			parts = append(parts, `Subject="`+strings.ReplaceAll(cert.Subject.String(), `"`, `\"`)+`"`)
		}
		if h.xfccURI {
			for _, uri := range uriSANs(cert) {
				parts = append(parts, "URI="+xfccValue(uri))
			}
		}
		if h.xfccDNS {
			for _, name := range cert.DNSNames {
				parts = append(parts, "DNS="+xfccValue(name))
			}
		}
		c.xfccText = strings.Join(parts, ";")
	})
	return c.xfccText
}

// xfccValue quotes a value that holds the header's own separators.
func xfccValue(s string) string {
	if strings.ContainsAny(s, `,;="`) {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return s
}

// maxScan bounds what is kept of a header; the server's own limit ends longer
// ones.
const maxScan = 1 << 20

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && !c.scan.off.Load() && !c.scan.http2.Load() {
		c.look(p[:n])
	}
	return n, err
}

// notImplemented begins net/http's answer to a Transfer-Encoding other than
// chunked, which no handler sees.
var notImplemented = []byte("HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n") //nolint:gochecknoglobals // read only

// Write makes net/http's 501 a 400: to a proxy such framing is not a wish that
// it does not fulfill but a request that two readers end at different places.
func (c *conn) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(p, notImplemented) {
		return c.Conn.Write(p)
	}
	answer := bytes.Replace(p, []byte("501 Not Implemented"), []byte("400 Bad Request"), 1)
	if _, err := c.Conn.Write(answer); err != nil {
		return 0, err
	}
	return len(p), nil
}

// nextRequest is called when the server waits for another request.
func (c *conn) nextRequest() {
	if c.scan.http2.Load() {
		return // net/http2 reports idle connections too
	}
	c.scan.header = c.scan.header[:0]
	c.scan.off.Store(false)
}

// violation tells what is wrong with the framing of the request.
func (c *conn) violation() string {
	if reason := c.scan.bad.Load(); reason != nil {
		return *reason
	}
	return ""
}

var http2Preface = []byte("PRI * HTTP/2.0") //nolint:gochecknoglobals // read only

func (c *conn) look(b []byte) {
	c.scan.header = append(c.scan.header, b...)
	for {
		h := c.scan.header
		if bytes.HasPrefix(h, http2Preface) {
			c.scan.http2.Store(true)
			c.scan.header = nil
			return
		}
		end, width := endOfHeader(h)
		if end < 0 {
			if len(h) > maxScan {
				c.scan.off.Store(true)
				c.scan.header = nil
			}
			return
		}
		reason, framed := inspect(h[:end])
		if reason != "" {
			c.scan.bad.Store(&reason)
		}
		if framed || reason != "" {
			c.scan.off.Store(true) // a body follows
			return
		}
		// What follows a request without a body is the next one's header.
		c.scan.header = append(h[:0], h[end+width:]...)
		if len(c.scan.header) == 0 {
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
