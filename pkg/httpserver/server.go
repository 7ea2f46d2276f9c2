package httpserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/framing"
)

// Defaults of [Config].
const (
	DefaultReadHeaderTimeout = 5 * time.Second
	DefaultIdleTimeout       = 2 * time.Minute
	DefaultMaxHeaderBytes    = 64 << 10
	DefaultMaxConns          = 10_000
	DefaultDrainTimeout      = 15 * time.Second
)

// Config of a [Server]. Name, Listener and Handler are required.
type Config struct {
	// Name in logs and errors.
	Name string
	// Listener to serve; the server closes it. See [Listen].
	Listener net.Listener
	// Handler of the requests. Its panics are logged and answered 500.
	Handler http.Handler
	// ReadHeaderTimeout closes a connection whose request headers take longer;
	// default 5s.
	ReadHeaderTimeout time.Duration
	// ReadTimeout bounds reading a whole request, body included; default none,
	// for handlers that stream.
	ReadTimeout time.Duration
	// IdleTimeout closes a connection without a request; default 2m.
	IdleTimeout time.Duration
	// MaxHeaderBytes of a request, beyond which it is answered 431; default 64 KiB.
	MaxHeaderBytes int
	// MaxConns open at once; further ones wait to be accepted. Default 10,000.
	MaxConns int
	// DrainTimeout is how long requests may take to finish when the server
	// stops; default 15s.
	DrainTimeout time.Duration
	// Log for panics and failed connections; default none.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	setDefault(&c.ReadHeaderTimeout, DefaultReadHeaderTimeout)
	setDefault(&c.IdleTimeout, DefaultIdleTimeout)
	setDefault(&c.MaxHeaderBytes, DefaultMaxHeaderBytes)
	setDefault(&c.MaxConns, DefaultMaxConns)
	setDefault(&c.DrainTimeout, DefaultDrainTimeout)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server serves HTTP on a listener. It is a component.Component.
type Server struct {
	config Config
	server *http.Server
	ready  chan struct{}
}

// New makes a server of config. It panics without a listener or a handler,
// which only a mistake in the wiring leaves out.
func New(config Config) *Server {
	config = config.withDefaults()
	if config.Listener == nil || config.Handler == nil {
		panic(fmt.Sprintf("httpserver %q: a listener and a handler are required", config.Name))
	}
	return &Server{
		config: config,
		server: &http.Server{
			Handler:           framed(recovered(config.Log, config.Handler)),
			ReadHeaderTimeout: config.ReadHeaderTimeout,
			ReadTimeout:       config.ReadTimeout,
			IdleTimeout:       config.IdleTimeout,
			MaxHeaderBytes:    config.MaxHeaderBytes,
			ErrorLog:          slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				return context.WithValue(ctx, connKey{}, c)
			},
			ConnState: func(c net.Conn, state http.ConnState) {
				if own, ok := c.(*placed); ok && state == http.StateIdle {
					own.NextRequest()
				}
			},
		},
		ready: make(chan struct{}),
	}
}

// Name returns the name of the server.
func (s *Server) Name() string { return s.config.Name }

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.config.Listener.Addr() }

// Ready is closed when the server accepts connections.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// StopTimeout is the time Run may take to return once its context ended.
func (s *Server) StopTimeout() time.Duration { return s.config.DrainTimeout + time.Second }

// Run serves until ctx ends, then lets the requests in flight finish. Those
// that take longer than the drain timeout are cut off.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(limit(s.config.Listener, s.config.MaxConns)) }()
	close(s.ready)
	select {
	case err := <-served:
		return fmt.Errorf("serving %s: %w", s.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.DrainTimeout)
	defer cancel()
	err := s.server.Shutdown(drain)
	if errors.Is(err, context.DeadlineExceeded) {
		s.config.Log.Warn("cut off requests that did not finish in time",
			"server", s.config.Name, "drainTimeout", s.config.DrainTimeout)
		err = s.server.Close()
	}
	<-served //nolint:errcheck // it is http.ErrServerClosed
	return err
}

// limit bounds the connections open at once: Accept waits for a free place, so
// that further clients queue in the kernel instead of taking memory here.
func limit(l net.Listener, n int) net.Listener {
	return &limited{Listener: l, places: make(chan struct{}, n), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	places chan struct{}
	closed chan struct{}
	once   sync.Once
}

// Accept waits for a place and a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.places <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.places
		return nil, err
	}
	return &placed{Conn: framing.New(conn), places: l.places}, nil
}

// Close ends the listener and those who wait in Accept.
func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type placed struct {
	*framing.Conn
	places chan struct{}
	once   sync.Once
}

// Close gives the place back, once.
func (c *placed) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.places })
	return err
}

type connKey struct{}

// framed refuses requests whose framing another server may read differently.
func framed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*placed); ok {
			if reason := c.Violation(); reason != "" {
				w.Header().Set("Connection", "close")
				Problem(w, http.StatusBadRequest, "Bad Request", "the request's framing is ambiguous: "+reason)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// recovered answers 500 for a handler that panics and logs the stack. When the
// answer has begun, the connection is cut, so that the client sees that it is
// not whole.
func recovered(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tracked := &startedWriter{ResponseWriter: w}
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(v) // how a handler cuts a connection on purpose
			}
			log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
			if tracked.started {
				panic(http.ErrAbortHandler)
			}
			Problem(w, http.StatusInternalServerError, "Internal error", "")
		}()
		next.ServeHTTP(tracked, r)
	})
}

// startedWriter knows whether the answer has begun. Flush and Hijack work
// through http.ResponseController.
type startedWriter struct {
	http.ResponseWriter
	started bool
}

// WriteHeader begins the answer; informational ones (1xx) do not.
func (w *startedWriter) WriteHeader(status int) {
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		w.started = true
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write begins the answer.
func (w *startedWriter) Write(b []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *startedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
