package serve

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
)

// upstreamError is a request that got no answer.
type upstreamError struct {
	reason  compile.ResetReason
	refused bool // the server said that it did nothing (HTTP/2 REFUSED_STREAM)
	waited  bool // the time was over before there was a connection
	err     error
}

func (u *upstreamError) Error() string { return u.err.Error() }

// attempt is what is known of one while it is under way.
type attempt struct {
	// seen: the endpoint may have read something of the request (HTTP/1). Over
	// HTTP/2 net/http sends again only what the endpoint said that it did not do.
	seen      atomic.Bool
	connected bool        // there was a connection
	patience  *time.Timer // until then there must be one; nil: no limit but the dialer's
}

var (
	errRouteTimeout = errors.New("the route's timeout is over")
	errTryTimeout   = errors.New("the timeout of one try is over")
	errNotConnected = errors.New("no connection in the time that leaves some for another endpoint")
	errStreamIdle   = errors.New("the stream was idle for too long")
)

// send makes one attempt, given up when there is no connection after patience (0:
// the cluster's limit only). The answer's body must be closed.
func (e *exchange) send(ctx context.Context, h *host, header http.Header, body io.ReadCloser, length int64, patience time.Duration) (*http.Response, *upstreamError) {
	f := e.route.Forward
	path := f.Rewrite(e.Path)
	u := &url.URL{Scheme: "http", Host: h.Key, RawQuery: e.Query, Opaque: path}
	if strings.HasPrefix(path, "//") || !strings.HasPrefix(path, "/") {
		// An opaque value that begins with // would be taken for an authority.
		u.Opaque = ""
		u.Path, u.RawPath = path, path
		if p, err := url.PathUnescape(path); err == nil {
			u.Path = p
		}
	}
	if h.transport.socket.TLS != nil {
		u.Scheme = "https"
	}
	authority := e.Host
	switch {
	case e.weighted != nil && e.weighted.HostRewrite != "":
		authority = e.weighted.HostRewrite
	case f.HostRewrite != "":
		authority = f.HostRewrite
	case f.AutoHost && h.Hostname != "":
		authority = h.Hostname
	case f.AutoHost && e.state.clusters[e.cluster].config.DNS:
		authority, _, _ = strings.Cut(h.Addr, ":")
	}
	req := &http.Request{
		Method: e.HTTP.Method, URL: u, Host: authority, Header: header, Body: body, ContentLength: length, Trailer: e.HTTP.Trailer,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	trip := h.transport.http1
	if trip == nil || h.transport.http2 != nil && e.HTTP.ProtoMajor == 2 {
		trip = h.transport.http2
	}
	if body == nil {
		req.Header = once(header)
	}
	e.attempt = &attempt{}
	if patience > 0 {
		limited, giveUp := context.WithCancelCause(ctx) // ends with ctx, which bounds the answer
		e.attempt.patience = time.AfterFunc(patience, func() { giveUp(errNotConnected) })
		defer e.attempt.patience.Stop()
		ctx = limited
	}
	resp, err := trip.RoundTrip(req.WithContext(ctx))
	if err == nil {
		return resp, nil
	}
	failure := &upstreamError{reason: compile.ReasonReset, err: err}
	var connect errConnect
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errNotConnected):
		if failure.err = cause; !e.attempt.connected {
			failure.reason = compile.ReasonConnect
		}
	case cause != nil:
		failure.reason, failure.err = compile.ReasonTimeout, cause
		failure.waited = !e.attempt.connected && (errors.Is(cause, errRouteTimeout) || errors.Is(cause, errTryTimeout))
	case errors.As(err, &connect) && !e.attempt.seen.Load():
		// Where it was seen, a kept connection broke and net/http called again in
		// vain: the endpoint may have done what was asked.
		failure.reason = compile.ReasonConnect
	case strings.Contains(err.Error(), "REFUSED_STREAM"):
		failure.refused = true
	}
	return nil, failure
}

// once has http.Transport not send a request again whose kept connection broke
// after it was written, as it does where it finds one of these headers: the client
// may, who knows what its key is good for. net/http looks for the canonical
// spelling only; to everybody else case does not matter (RFC 9110, section 5.1).
func once(header http.Header) http.Header {
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := header[name]; ok {
			header = header.Clone()
			delete(header, name)
			header[strings.ToLower(name)] = values
		}
	}
	return header
}

// informational passes 1xx answers on, 100 and 101 excepted, until done is
// called: a round trip that was given up may still bring one.
func (e *exchange) informational(ctx context.Context) (traced context.Context, done func()) {
	var mu sync.Mutex
	over := false
	traced = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { // by who sends, before anything is written
			e.attempt.connected = true
			if e.attempt.patience != nil {
				e.attempt.patience.Stop()
			}
			if c, ok := info.Conn.(*earlyAnswerConn); ok {
				c.begin(&e.attempt.seen)
			}
		},
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			if over || code == http.StatusContinue || code == http.StatusSwitchingProtocols {
				return nil
			}
			h := e.w.Header()
			for k, v := range header {
				h[k] = v
			}
			e.w.WriteHeader(code)
			for k := range header {
				delete(h, k)
			}
			return nil
		},
	})
	return traced, func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
	}
}

// requestBody is the body on its way up. It tells when the last byte was read,
// which starts the route's timeout.
type requestBody struct {
	io.ReadCloser
	touched atomic.Bool
	broken  atomic.Bool // the client sent what is no body
	tooBig  atomic.Bool // the body is larger than it may be
	ended   atomic.Bool // its last byte was read
	done    func()
	active  func()
	once    sync.Once
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	n, err := b.ReadCloser.Read(p)
	b.active()
	if err != nil {
		b.ended.Store(errors.Is(err, io.EOF))
		if errors.Is(err, errBodyTooLarge) {
			b.tooBig.Store(true)
		} else if malformed(err) {
			b.broken.Store(true)
		}
		b.once.Do(b.done)
	}
	return n, err
}

// malformed tells whether reading a body failed for what the client sent, not
// for the connection.
func malformed(err error) bool {
	var network net.Error
	return !errors.Is(err, io.EOF) && !errors.Is(err, http.ErrBodyReadAfterClose) && !errors.As(err, &network)
}

// Close leaves the body open: the server closes it, and another attempt may
// still need it.
func (b *requestBody) Close() error { return nil }

// buffers for copying answers.
var bufferPool = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }} //nolint:gochecknoglobals // a pool is shared by its nature

// clock bounds an exchange: the route's timeout from the end of the request on,
// and how long nothing may move.
type clock struct {
	cancel  context.CancelCauseFunc
	route   time.Duration
	routeT  atomic.Pointer[time.Timer]
	idle    time.Duration
	idleT   *time.Timer
	stopped atomic.Bool
}

func newClock(cancel context.CancelCauseFunc, route, idle time.Duration) *clock {
	c := &clock{cancel: cancel, route: route, idle: idle}
	if idle > 0 {
		c.idleT = time.AfterFunc(idle, func() { cancel(errStreamIdle) })
	}
	return c
}

func (c *clock) requestDone() {
	if c.route > 0 && !c.stopped.Load() {
		c.routeT.Store(time.AfterFunc(c.route, func() { c.cancel(errRouteTimeout) }))
	}
}

func (c *clock) active() {
	if c.idleT != nil && !c.stopped.Load() {
		c.idleT.Reset(c.idle)
	}
}

func (c *clock) stop() {
	c.stopped.Store(true)
	if c.idleT != nil {
		c.idleT.Stop()
	}
	if t := c.routeT.Load(); t != nil {
		t.Stop()
	}
}
