package lambda

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// idleTimeout is longer than a proxy keeps an idle connection (Envoy: 1 h), so
// that it is never this side that closes one under a request.
const idleTimeout = 65 * time.Minute

const (
	// mostAbandoned is how many handlers may run on beyond their time: more of
	// them are a leak that only a new process ends. It is the number of threads
	// that the Python server has.
	mostAbandoned = 256
	// abandonedGrace is how long there may be as many; the same in every language.
	abandonedGrace = 5 * time.Second
	// lingerBytes and lingerTime: how much of a body that is too large is read on
	// after the answer, and for how long; the same in every language.
	lingerBytes = 64 << 20
	lingerTime  = 5 * time.Second
)

// Handler is a function that can be a lambda.
type Handler interface {
	func(context.Context, *Event) (any, error) | func(http.ResponseWriter, *http.Request)
}

// Start serves the handler until the process is told to stop, then finishes
// what is in flight. The main function that a build generates calls it.
func Start[H Handler](handler H) {
	logger := slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.MessageKey {
				a.Key = "message"
			}
			if len(groups) == 0 && a.Key == slog.LevelKey {
				a.Value = slog.StringValue(levelName(a.Value))
			}
			return a
		},
	}))
	config, err := configFromEnv()
	if err == nil {
		logger = logger.With("lambda", config.lambda, "namespace", config.namespace)
		slog.SetDefault(logger)
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		err = newServer(config, any(handler), logger).run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "lambda %s/%s: %v\n", config.namespace, config.lambda, err)
		os.Exit(1) //nolint:forbidigo // this is all that a lambda's main does
	}
}

func levelName(level slog.Value) string {
	switch l, _ := level.Any().(slog.Level); {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	default:
		return "debug"
	}
}

type server struct {
	config  config
	handler any
	logger  *slog.Logger
	client  *http.Client
	metrics *metrics
	places  *places
	ready   atomic.Bool

	abandoned atomic.Int64 // handlers that run beyond their time
	fullSince atomic.Int64 // Unix time in ns; 0: there are not too many
}

func newServer(config config, handler any, logger *slog.Logger) *server {
	return &server{config: config, handler: handler, logger: logger, client: newClient(), metrics: newMetrics(config.namespace, config.lambda), places: newPlaces(config.concurrency)}
}

// run serves until ctx ends, then drains: no new connections, what runs
// finishes.
func (s *server) run(ctx context.Context) error {
	main, err := listen(ctx, s.config.listen)
	if err != nil {
		return err
	}
	admin, err := listen(ctx, s.config.adminListen)
	if err != nil {
		_ = main.Close()
		return err
	}
	invocations := &http.Server{Handler: http.HandlerFunc(s.invoke), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTimeout}
	adminServer := &http.Server{Handler: s.adminHandler(), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 2)
	serve := func(server *http.Server, listener net.Listener) {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			failed <- err
		}
	}
	go serve(invocations, main)
	go serve(adminServer, admin)
	s.ready.Store(true)
	s.logger.Info("ready", "listen", s.config.listen)

	select {
	case err = <-failed:
	case <-ctx.Done():
		s.logger.Info("draining")
	}
	s.ready.Store(false)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.timeout+5*time.Second)
	defer cancel()
	err = errors.Join(err, invocations.Shutdown(drain))
	_ = adminServer.Close()
	return err
}

func (s *server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if trouble := s.trouble(time.Now()); trouble != "" {
			http.Error(w, trouble, http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /metrics", s.metrics.serve)
	return mux
}

// trouble tells why the process should be replaced, if it should. A goroutine
// that computes does not keep others from running, so the number of those that
// never end is what is looked at.
func (s *server) trouble(now time.Time) string {
	abandoned := s.abandoned.Load()
	if abandoned < mostAbandoned {
		s.fullSince.Store(0)
		return ""
	}
	s.fullSince.CompareAndSwap(0, now.UnixNano())
	since := now.Sub(time.Unix(0, s.fullSince.Load()))
	if since <= abandonedGrace {
		return ""
	}
	return fmt.Sprintf("%d handlers have been running beyond their time for %s: let them heed ctx.Done()", abandoned, since.Round(time.Second))
}

// invoke runs one invocation under its deadline.
func (s *server) invoke(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	c := s.config.newContext(s.logger, s.client)
	c.Invocation = firstOf(r.Header.Get("X-Request-Id"), newID())
	c.traceparent = r.Header.Get("Traceparent")
	c.Caller = s.config.identities.caller(r.Header)
	c.Claims = claimsOf(c.Caller, r.Header)
	hideIdentity(c.Caller, r.Header)
	c.Logger = s.logger.With("invocation", c.Invocation)
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), contextKey{}, c), s.config.timeout)
	defer cancel()

	s.metrics.begin()
	late := func() bool { return errors.Is(ctx.Err(), context.DeadlineExceeded) }
	guarded := newGuardedWriter(w, late)
	defer func() { s.metrics.end(guarded.statusCode(), time.Since(begin)) }()

	if r.ContentLength > s.config.maxBodyBytes {
		s.tooLarge(guarded, r.Body, c)
		return
	}
	leave, ok := s.places.take(ctx)
	if !ok {
		guarded.claim(http.StatusServiceUnavailable)
		w.Header().Set("Retry-After", "1")
		writeProblem(w, c, http.StatusServiceUnavailable, busyDetail)
		return
	}
	defer leave()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer guarded.end()
		defer func() {
			if cause := recover(); cause != nil {
				c.Logger.Error("handler panicked", "error", fmt.Sprint(cause), "stack", string(debug.Stack()))
				writeProblem(guarded, c, http.StatusInternalServerError, failedDetail)
			}
		}()
		s.handle(ctx, c, guarded, r)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		if !late() {
			<-done // the caller went away; let the handler see that
		}
	}
	begun, ended := guarded.shut()
	if ended {
		return
	}
	s.abandoned.Add(1)
	go func() {
		<-done
		s.abandoned.Add(-1)
	}()
	c.Logger.Error("invocation timed out", "timeout", s.config.timeout.String())
	if begun {
		panic(http.ErrAbortHandler) // half a response is out: break it off
	}
	writeProblem(w, c, http.StatusGatewayTimeout, "the lambda did not answer within "+s.config.timeout.String())
}

// handle calls the handler and answers with what it returned. What it answers
// after the deadline goes nowhere.
func (s *server) handle(ctx context.Context, c *Context, w *guardedWriter, r *http.Request) {
	whole := r.Body
	r.Body = http.MaxBytesReader(w, whole, s.config.maxBodyBytes)
	switch handler := s.handler.(type) {
	case func(http.ResponseWriter, *http.Request):
		r.Body = &limitedBody{ReadCloser: r.Body, over: func() {
			if w.reset() {
				s.tooLarge(w, whole, c)
			}
		}}
		handler(w, r.WithContext(ctx))
		w.WriteHeader(http.StatusOK) // sends the headers of a handler that wrote nothing; otherwise without effect
	case func(context.Context, *Event) (any, error):
		body, err := io.ReadAll(r.Body)
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			s.tooLarge(w, whole, c)
			return
		} else if err != nil {
			writeProblem(w, c, http.StatusBadRequest, "the body could not be read")
			return
		}
		event, err := parseEvent(r, body, c.Caller.Kind == CallerEventBus)
		if refused := (*requestError)(nil); errors.As(err, &refused) {
			writeProblem(w, c, refused.status, refused.detail)
			return
		} else if err != nil {
			writeProblem(w, c, http.StatusBadRequest, err.Error())
			return
		}
		c.traceparent = firstOf(c.traceparent, event.Extensions["traceparent"])
		result, err := handler(ctx, event)
		if err == nil {
			err = c.respond(ctx, w, result)
		}
		if err != nil {
			c.Logger.Error("handler failed", "error", err)
			writeProblem(w, c, http.StatusInternalServerError, failedDetail)
		}
	}
}

// limitedBody calls over when more than the limit is read. A handler that has
// not begun to answer need not look at the error for that to be a 413.
type limitedBody struct {
	io.ReadCloser
	over func()
	once sync.Once
}

// Read implements io.Reader.
func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		b.once.Do(b.over)
	}
	return n, err
}

// tooLarge answers 413 and goes on reading for a while before the connection
// ends: who is still sending when it is reset never reads the answer.
func (s *server) tooLarge(w *guardedWriter, body io.Reader, c *Context) {
	control := http.NewResponseController(w.inner)
	_ = control.EnableFullDuplex() // else the answer waits for the body; HTTP/2 does not need it
	w.Header().Set("Connection", "close")
	writeProblem(w, c, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is over the limit of %d bytes", s.config.maxBodyBytes))
	w.Flush()
	if control.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, body, lingerBytes) // it is over anyway
	}
}
