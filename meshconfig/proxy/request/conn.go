package request

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

// Conn is a client's connection, decrypted, whose framing is looked at.
//
// It hides that it is a TLS connection, so that the server takes it for a plain
// one and detects HTTP/2 by its preface.
type Conn struct {
	*framing.Conn
	TLS *tls.ConnectionState // nil: plain text

	port     uint32
	xfccOnce sync.Once
	xfccText string
}

// NewConn looks at c; state is that of its handshake, nil for plain text.
func NewConn(c net.Conn, state *tls.ConnectionState) *Conn {
	out := &Conn{Conn: framing.New(c), TLS: state}
	if tcp, ok := c.LocalAddr().(*net.TCPAddr); ok {
		out.port = uint32(tcp.Port) //nolint:gosec // a port fits
	}
	return out
}

// LocalPort is the port that the client connected to.
func (c *Conn) LocalPort() uint32 { return c.port }

// ServerName is what the client asked for in its handshake (SNI); "" for plain
// text.
func (c *Conn) ServerName() string {
	if c.TLS == nil {
		return ""
	}
	return c.TLS.ServerName
}

// Peer is the client's certificate, nil without. It was verified in the
// handshake.
func (c *Conn) Peer() *x509.Certificate {
	if c.TLS == nil || len(c.TLS.PeerCertificates) == 0 {
		return nil
	}
	return c.TLS.PeerCertificates[0]
}

// PeerURIs are the URI SANs of the client's certificate.
func (c *Conn) PeerURIs() []string {
	cert := c.Peer()
	if cert == nil {
		return nil
	}
	return URISANs(cert)
}

// XFCC is the element for X-Forwarded-Client-Cert. All requests of a connection
// have the same.
func (c *Conn) XFCC(subject, uris, names bool) string {
	c.xfccOnce.Do(func() {
		cert := c.Peer()
		sum := sha256.Sum256(cert.Raw)
		parts := []string{"Hash=" + hex.EncodeToString(sum[:])}
		if subject {
			parts = append(parts, `Subject="`+strings.ReplaceAll(cert.Subject.String(), `"`, `\"`)+`"`)
		}
		if uris {
			for _, uri := range URISANs(cert) {
				parts = append(parts, "URI="+xfccValue(uri))
			}
		}
		if names {
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

// URISANs are the URI SANs of a certificate.
func URISANs(cert *x509.Certificate) []string {
	out := make([]string, len(cert.URIs))
	for i, uri := range cert.URIs {
		out[i] = uri.String()
	}
	return out
}
