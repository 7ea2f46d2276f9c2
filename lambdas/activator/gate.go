package activator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Config configures a [Gate].
type Config struct {
	// Wake is called when a request waits for a process; it must not block.
	Wake func()
	// MaxWaiting is how many requests may wait at once; default 1000. A request
	// that waits holds no more than its headers.
	MaxWaiting int
	// MaxWait is how long one waits; default 30s.
	MaxWait time.Duration
	Log     *slog.Logger
}

// Gate passes requests to a process that comes and goes. It is an
// [http.Handler].
type Gate struct {
	config Config

	mu       sync.Mutex
	backend  *Backend      // nil: none runs
	changed  chan struct{} // closed and replaced when backend or failure changes
	waiting  int
	failure  error // why none runs
	retryAt  time.Time
	lastUsed time.Time
}

// New returns a gate without a process behind it.
func New(config Config) *Gate {
	if config.MaxWaiting == 0 {
		config.MaxWaiting = 1000
	}
	if config.MaxWait == 0 {
		config.MaxWait = 30 * time.Second
	}
	if config.Wake == nil {
		config.Wake = func() {}
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return &Gate{config: config, changed: make(chan struct{}), lastUsed: time.Now()}
}

// Backend is a process behind a gate.
type Backend struct {
	proxy     *httputil.ReverseProxy
	transport *http.Transport
	inFlight  int           // guarded by the gate's mu
	left      bool          // it gets no further request
	drained   chan struct{} // closed when it has left and nothing is in flight
}

// Drained is closed when the process has got its last request and has answered
// it.
func (b *Backend) Drained() <-chan struct{} { return b.drained }

// Open has requests go to the process that serves HTTP/1.1 on a Unix socket, those
// that wait included. It returns it, and the one that got them so far, or nil.
func (g *Gate) Open(socket string) (now, before *Backend) {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true, MaxIdleConnsPerHost: 256,
	}
	next := &Backend{transport: transport, drained: make(chan struct{})}
	next.proxy = &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1, ErrorLog: slog.NewLogLogger(g.config.Log.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "lambda", r.In.Host
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			// The sidecar's, who knows; this is no hop of its own.
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values, has := r.In.Header[name]; has {
					r.Out.Header[name] = values
				}
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				return // who asked is gone
			}
			g.config.Log.Debug("a lambda's process did not answer", "error", err)
			unavailable(w, "the lambda's process ended while it answered", time.Second)
		},
	}
	return next, g.replace(next, nil, 0)
}

// Shut has requests wait, when it is this process that gets them: it has ended, or
// will.
func (g *Gate) Shut(b *Backend) {
	g.mu.Lock()
	mine := g.backend == b
	g.mu.Unlock()
	if mine {
		g.replace(nil, nil, 0)
	}
}

// Fail answers those that wait, and those that come before the time is over, with
// 503: the process cannot be started, and will be tried again then.
func (g *Gate) Fail(err error, retryAfter time.Duration) { g.replace(nil, err, retryAfter) }

func (g *Gate) replace(next *Backend, failure error, retryAfter time.Duration) *Backend {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := g.backend
	if before != nil {
		before.leave()
	}
	g.backend, g.failure, g.retryAt = next, failure, time.Now().Add(retryAfter)
	close(g.changed)
	g.changed = make(chan struct{})
	return before
}

// leave is called once, with the gate's mu held.
func (b *Backend) leave() {
	b.left = true
	b.settle()
}

// settle is called with the gate's mu held.
func (b *Backend) settle() {
	if b.left && b.inFlight == 0 {
		b.transport.CloseIdleConnections() // so that it need not wait for them
		close(b.drained)
	}
}

// Sleep shuts the gate when there was nothing to do for so long, and tells
// whether it did: then no request is lost when the process is stopped.
func (g *Gate) Sleep(idle time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	busy := g.waiting > 0 || g.backend != nil && g.backend.inFlight > 0
	if busy || time.Since(g.lastUsed) < idle {
		return false
	}
	if g.backend != nil {
		g.backend.leave()
		g.backend = nil
	}
	g.failure = nil
	return true
}

// Waiting counts the requests that wait for a process.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting
}

// ServeHTTP passes a request on, now or when there is a process.
func (g *Gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	backend, refused := g.enter(r.Context())
	if refused != nil {
		if r.Context().Err() == nil {
			unavailable(w, refused.why, refused.retryAfter)
		}
		return
	}
	defer g.exit(backend) // also when the proxy panics to cut an answer off
	backend.proxy.ServeHTTP(w, r)
}

// refusal is why a request finds no process.
type refusal struct {
	why        string
	retryAfter time.Duration
}

func (g *Gate) enter(ctx context.Context) (*Backend, *refusal) {
	var deadline <-chan time.Time
	waits := false
	g.mu.Lock()
	defer g.mu.Unlock()
	defer func() {
		if waits {
			g.waiting--
		}
	}()
	for {
		g.lastUsed = time.Now()
		if g.backend != nil {
			g.backend.inFlight++
			return g.backend, nil
		}
		if left := time.Until(g.retryAt); g.failure != nil && left > 0 {
			return nil, &refusal{"the lambda does not start; its log and its conditions tell why", left}
		}
		if !waits {
			if g.waiting >= g.config.MaxWaiting {
				return nil, &refusal{fmt.Sprintf("the lambda is being started, and %d requests wait for it already", g.waiting), time.Second}
			}
			g.waiting++
			waits = true
			timer := time.NewTimer(g.config.MaxWait)
			defer timer.Stop()
			deadline = timer.C
		}
		changed := g.changed
		g.mu.Unlock()
		g.config.Wake()
		var refused *refusal
		select {
		case <-changed:
		case <-ctx.Done():
			refused = &refusal{ctx.Err().Error(), 0}
		case <-deadline:
			refused = &refusal{fmt.Sprintf("the lambda did not start within %s", g.config.MaxWait), time.Second}
		}
		g.mu.Lock()
		if refused != nil {
			return nil, refused
		}
	}
}

func (g *Gate) exit(b *Backend) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lastUsed = time.Now()
	b.inFlight--
	b.settle()
}

func unavailable(w http.ResponseWriter, why string, retryAfter time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(retryAfter.Seconds())))))
	httpserver.Problem(w, http.StatusServiceUnavailable, "", why)
}

// idleTimeout is longer than a proxy keeps an idle connection (Envoy: 1 h), so
// that it is never this side that closes one under a request.
const idleTimeout = 65 * time.Minute

// Serve serves the gate on a listener until ctx ends, then cuts off what is left:
// requests are let finish before.
func (g *Gate) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: g, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout, MaxHeaderBytes: 1 << 20,
		ErrorLog: slog.NewLogLogger(g.config.Log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve a lambda's socket: %w", err)
	}
	return nil
}
