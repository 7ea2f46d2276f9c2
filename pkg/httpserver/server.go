package httpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"time"
)

// Defaults of [Config].
const (
	DefaultReadHeaderTimeout = 5 * time.Second
	DefaultIdleTimeout       = 2 * time.Minute
	DefaultSendTimeout       = 15 * time.Second
	DefaultMaxHeaderBytes    = 64 << 10
	DefaultMaxHeaderFields   = 128
	DefaultDrainTimeout      = 15 * time.Second
)

// Config of a [Server]. Name, Listener and Handler are required.
type Config struct {
	// Name in logs and errors.
	Name string
	// Listener to serve; the server closes it. See [Listen].
	Listener net.Listener
	// TLS that clients must speak, nil for plain text. A listener that speaks it
	// itself would have a client's handshake come before its place.
	TLS *tls.Config
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
	// SendTimeout closes a connection whose client takes nothing of an answer for
	// so long; default 15s. A stream that is read may last.
	SendTimeout time.Duration
	// MaxHeaderBytes of a request, beyond which it is answered 431; default 64 KiB.
	MaxHeaderBytes int
	// MaxHeaderFields of a request, beyond which it is answered 431: each takes
	// much more memory than its text. Default 128.
	MaxHeaderFields int
	// MaxConns open at once; headers beyond 16 KiB count as further ones, one for
	// each 16 KiB. When they are reached, those that wait for a request make room,
	// and where there are none a new one is answered 503 and closed. Default
	// [DefaultMaxConns].
	MaxConns int
	// MaxConnsPerRemote is how many of them one address may have; default any. Not
	// for a listener on which all come from one proxy.
	MaxConnsPerRemote int
	// Metrics, nil for none.
	Metrics *Metrics
	// DrainTimeout is how long requests may take to finish when the server
	// stops; default 15s.
	DrainTimeout time.Duration
	// Log for panics and failed connections; default none.
	Log *slog.Logger
}

// Bounds of an administrative port.
const (
	adminReadTimeout = 10 * time.Second
	adminHeaderBytes = 16 << 10 // a token's
	adminConns       = 256
)

// Administrative is the config with bounds that fit a port for probes, Prometheus
// and a few people.
func (c Config) Administrative() Config {
	c.ReadTimeout, c.MaxHeaderBytes = adminReadTimeout, adminHeaderBytes
	c.MaxConns, c.MaxConnsPerRemote = adminConns, adminConns/2
	return c
}

func (c Config) withDefaults() Config {
	setDefault(&c.ReadHeaderTimeout, DefaultReadHeaderTimeout)
	setDefault(&c.IdleTimeout, DefaultIdleTimeout)
	setDefault(&c.SendTimeout, DefaultSendTimeout)
	setDefault(&c.MaxHeaderBytes, DefaultMaxHeaderBytes)
	setDefault(&c.MaxHeaderFields, DefaultMaxHeaderFields)
	setDefault(&c.MaxConns, DefaultMaxConns())
	setDefault(&c.DrainTimeout, DefaultDrainTimeout)
	if c.TLS != nil {
		c.TLS = c.TLS.Clone()
		c.TLS.NextProtos = []string{"http/1.1"}
	}
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
			Handler:           judged(recovered(config.Log, config.Handler)),
			ReadHeaderTimeout: config.ReadHeaderTimeout,
			ReadTimeout:       config.ReadTimeout,
			IdleTimeout:       config.IdleTimeout,
			MaxHeaderBytes:    config.MaxHeaderBytes,
			ErrorLog:          slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
			ConnContext:       connContext,
			ConnState:         state,
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
	go func() { served <- s.server.Serve(s.limited()) }()
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

// limited bounds what the connections of the listener may take.
func (s *Server) limited() net.Listener {
	c := s.config
	return &listener{
		Listener: c.Listener, tls: c.TLS, sendTimeout: c.SendTimeout,
		maxHeaderBytes: c.MaxHeaderBytes, maxFields: c.MaxHeaderFields,
		places: &places{
			server: c.Name, all: c.MaxConns, share: c.MaxConnsPerRemote, metrics: c.Metrics,
			remotes: map[netip.Prefix]int{},
		},
	}
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
