package httpserver

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// patient is a connection, below TLS, whose writes end when the client takes
// nothing of them for too long: who does not read answers must not keep a place
// by it. As long as something is taken a write may last.
type patient struct {
	net.Conn
	patience time.Duration

	mu    sync.Mutex
	until time.Time // as the server or TLS set it; zero: none
}

// NetConn returns the connection below, for who finds this one in a TLS handshake.
func (c *patient) NetConn() net.Conn { return c.Conn }

// Write implements net.Conn.
func (c *patient) Write(p []byte) (written int, err error) {
	for {
		if err := c.setDeadline(); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(p[written:])
		written += n
		if n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) || c.expired() {
			return written, err
		}
	}
}

func (c *patient) setDeadline() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Now().Add(c.patience)
	if !c.until.IsZero() && c.until.Before(at) {
		at = c.until
	}
	return c.Conn.SetWriteDeadline(at)
}

func (c *patient) expired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.until.IsZero() && !time.Now().Before(c.until)
}

// SetWriteDeadline implements net.Conn.
func (c *patient) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	c.until = t
	c.mu.Unlock()
	return c.setDeadline()
}

// SetDeadline implements net.Conn.
func (c *patient) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// CloseWrite lets the server end its side and still read.
func (c *patient) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}
