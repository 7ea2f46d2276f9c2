package proxyauth

import (
	"bufio"
	"bytes"
	"container/list"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	user = "lambdamesh"
	// maxHeader and headerTimeout bound what a client that has proven nothing
	// may cost; maxUnproven is how many of them wait at once. Beyond it the one that
	// waits the longest makes room: clients that know the secret send it at once, and
	// whoever opens connections and is silent must not keep them out.
	maxHeader     = 64 << 10
	headerTimeout = 10 * time.Second
	maxUnproven   = 128
)

// Secret is what a client must know. It does not print itself.
type Secret struct{ text string }

// NewSecret returns a random one.
func NewSecret() Secret { return Secret{rand.Text()} }

// URL is the proxy at the address, for HTTP_PROXY: keep it from logs.
func (s Secret) URL(address net.Addr) *url.URL {
	return &url.URL{Scheme: "http", User: url.UserPassword(user, s.text), Host: address.String()}
}

// String implements fmt.Stringer.
func (Secret) String() string { return "REDACTED" }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return "REDACTED" }

// proven tells whether a request carries the secret, in constant time.
func (s Secret) proven(r *http.Request) bool {
	values := r.Header.Values("Proxy-Authorization")
	if s.text == "" || len(values) != 1 {
		return false
	}
	want := sha256.Sum256([]byte("Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+s.text))))
	got := sha256.Sum256([]byte(values[0]))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// Listen returns a listener that accepts those connections of inner whose first
// request carries the secret. Closing it closes inner.
func Listen(inner net.Listener, secret Secret) *Listener {
	l := &Listener{Listener: inner, secret: secret, proven: make(chan net.Conn), closed: make(chan struct{})}
	go l.accept()
	return l
}

// Listener accepts connections of clients that know the secret.
type Listener struct {
	net.Listener
	secret Secret
	proven chan net.Conn

	mu       sync.Mutex
	unproven list.List // of net.Conn, those that wait the longest in front

	once   sync.Once
	closed chan struct{}
	err    error // why accepting ended; read it after closed
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.proven:
		return c, nil
	case <-l.closed:
		return nil, l.err
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.end(net.ErrClosed)
	return l.Listener.Close()
}

// Again binds the address of a listener that was closed, and asks for the same
// secret.
func (l *Listener) Again(ctx context.Context) (net.Listener, error) {
	inner, err := (&net.ListenConfig{}).Listen(ctx, l.Addr().Network(), l.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("bind the proxy's address again: %w", err)
	}
	return Listen(inner, l.secret), nil
}

func (l *Listener) end(err error) {
	l.once.Do(func() {
		l.err = err
		close(l.closed)
	})
}

func (l *Listener) accept() {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				time.Sleep(10 * time.Millisecond) // out of file descriptors, most likely
				continue
			}
			l.end(err)
			return
		}
		go l.admit(c, l.wait(c))
	}
}

// wait enters a connection among those that have proven nothing.
func (l *Listener) wait(c net.Conn) *list.Element {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unproven.Len() >= maxUnproven {
		if oldest, ok := l.unproven.Remove(l.unproven.Front()).(net.Conn); ok {
			_ = oldest.Close() // which ends its admit
		}
	}
	return l.unproven.PushBack(c)
}

// admit looks at a connection's first request.
func (l *Listener) admit(c net.Conn, place *list.Element) {
	read, err := l.check(c)
	l.mu.Lock()
	l.unproven.Remove(place) // if it is still there
	l.mu.Unlock()
	if err != nil {
		_ = c.Close()
		return
	}
	select {
	case l.proven <- &conn{Conn: c, before: read}:
	case <-l.closed:
		_ = c.Close()
	}
}

var errUnproven = errors.New("the client does not know the secret")

// check returns what was read of a connection that may pass.
func (l *Listener) check(c net.Conn) (*bytes.Reader, error) {
	if err := c.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return nil, err
	}
	var read bytes.Buffer
	request, err := http.ReadRequest(bufio.NewReader(io.TeeReader(io.LimitReader(c, maxHeader), &read)))
	if err != nil {
		return nil, err
	}
	if !l.secret.proven(request) {
		return nil, errors.Join(errUnproven, refuse(c))
	}
	return bytes.NewReader(read.Bytes()), c.SetDeadline(time.Time{})
}

func refuse(c net.Conn) error {
	const body = `{"type":"about:blank","title":"Proxy Authentication Required","status":407,"detail":"this proxy is another process's: HTTP_PROXY of that process holds what it asks for"}`
	response := http.Response{
		StatusCode: http.StatusProxyAuthRequired, ProtoMajor: 1, ProtoMinor: 1, Close: true, ContentLength: int64(len(body)),
		Header: http.Header{"Proxy-Authenticate": {`Basic realm="lambdamesh"`}, "Content-Type": {"application/problem+json"}},
		Body:   io.NopCloser(bytes.NewReader([]byte(body))),
	}
	return response.Write(c)
}

// conn gives what was read of it once more.
type conn struct {
	net.Conn
	before *bytes.Reader
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	if c.before.Len() > 0 {
		return c.before.Read(p)
	}
	return c.Conn.Read(p)
}

// CloseWrite lets a server end its side and still read.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}
