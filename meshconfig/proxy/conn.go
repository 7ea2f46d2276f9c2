package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"net"
	"strings"
	"sync"

	"github.com/lambdamesh/lambdamesh/pkg/framing"
)

// conn is a client's connection, decrypted, whose framing is looked at.
//
// It hides that it is a TLS connection, so that the server takes it for a plain
// one and detects HTTP/2 by its preface.
type conn struct {
	*framing.Conn
	tls *tls.ConnectionState // nil: plain text

	port     uint32
	xfccOnce sync.Once
	xfccText string
}

func newConn(c net.Conn, state *tls.ConnectionState) *conn {
	out := &conn{Conn: framing.New(c), tls: state}
	if tcp, ok := c.LocalAddr().(*net.TCPAddr); ok {
		out.port = uint32(tcp.Port) //nolint:gosec // a port fits
	}
	return out
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
