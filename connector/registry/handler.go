package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"k8s.io/utils/lru"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/documents"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

const (
	// maxBody is two documents, and what else there is in a service.
	maxBody = 2*documents.MaxBytes + 64<<10
	// A body is decoded and its documents are read by that many at once: each may
	// take some tens of MiB for a moment.
	maxWriters = 4
	// maxBodies of all applications together: bodies are read before there is a place
	// among the writers, one at a time of each application.
	maxBodies = 64 << 20
	// Each application may ask so often; catalogs are written, not polled.
	requestsPerSecond, requestsAtOnce = 20, 100
	// limiters are kept for that many applications.
	limiters = 4096
	// DefaultMaxServices of an application.
	DefaultMaxServices = 4000
	// maxDocuments and maxEventTypes are what one application may have stored.
	maxDocuments  = 64 << 20
	maxEventTypes = 5000
	// patience is how long a request may take, the API server included.
	patience = 30 * time.Second
)

// Config of a [Handler]. Objects, Live, Client and Targets are required.
type Config struct {
	// Objects reads out of a cache, with the fields of [catalog.Index].
	Objects client.Reader
	// Live reads from the API server: what the cache does not keep, and what it
	// may not have yet.
	Live client.Reader
	// Client writes.
	Client client.Client
	// Targets that may be called.
	Targets *targets.Policy
	// MaxServices of an application; default [DefaultMaxServices].
	MaxServices int
	// Log, default none.
	Log *slog.Logger
}

// Handler serves the catalog.
type Handler struct {
	config  Config
	writers *semaphore.Weighted
	bodies  *semaphore.Weighted // bytes

	mu     sync.Mutex
	limits *lru.Cache       // of *rate.Limiter, by application
	turns  map[string]*turn // of applications that write
}

// New makes a handler.
func New(config Config) *Handler {
	if config.MaxServices == 0 {
		config.MaxServices = DefaultMaxServices
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	return &Handler{
		config: config, writers: semaphore.NewWeighted(maxWriters), bodies: semaphore.NewWeighted(maxBodies),
		limits: lru.New(limiters), turns: map[string]*turn{},
	}
}

// refusal is an answer that is not what was asked for.
type refusal struct {
	status  int
	message string
}

// Error implements error.
func (r *refusal) Error() string { return r.message }

func refuse(status int, format string, args ...any) error {
	return &refusal{status: status, message: fmt.Sprintf(format, args...)}
}

// Services serves /{application}/v1/metadata/services for an application that the
// caller has authenticated: the name in the request's path does not count.
func (h *Handler) Services(w http.ResponseWriter, r *http.Request, application string) {
	h.serve(w, r, application, func(r *http.Request, app *v1alpha1.Application) (int, any, error) {
		switch r.Method {
		case http.MethodGet:
			return h.list(r.Context(), app)
		case http.MethodPost:
			return h.write(w, r, app.Name, func(ctx context.Context, d *details) (int, any, error) { return h.create(ctx, app, d) })
		default:
			return 0, nil, notAllowed(w, http.MethodGet, http.MethodPost)
		}
	})
}

// Service serves /{application}/v1/metadata/services/{id} likewise.
func (h *Handler) Service(w http.ResponseWriter, r *http.Request, application, id string) {
	h.serve(w, r, application, func(r *http.Request, app *v1alpha1.Application) (int, any, error) {
		switch r.Method {
		case http.MethodGet:
			return h.get(r.Context(), app, id)
		case http.MethodPut:
			return h.write(w, r, app.Name, func(ctx context.Context, d *details) (int, any, error) { return h.update(ctx, app, id, d) })
		case http.MethodDelete:
			return h.remove(r.Context(), app, id)
		default:
			return 0, nil, notAllowed(w, http.MethodGet, http.MethodPut, http.MethodDelete)
		}
	})
}

// serve has a request answered for an application that exists.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, application string, next func(*http.Request, *v1alpha1.Application) (int, any, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	status, answer, err := h.admit(r.WithContext(ctx), application, next)
	if err != nil {
		var refused *refusal
		if !errors.As(err, &refused) {
			h.config.Log.Error("registry request failed", "application", application, "method", r.Method, "error", err)
			refused = &refusal{http.StatusInternalServerError, "internal error: try again"}
		}
		status, answer = refused.status, map[string]any{"code": refused.status, "error": refused.message}
		if status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "1")
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if answer == nil {
		w.WriteHeader(status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(answer) // a client that went away cannot be told
}

func (h *Handler) admit(r *http.Request, application string, next func(*http.Request, *v1alpha1.Application) (int, any, error)) (status int, answer any, err error) {
	if !h.limiter(application).Allow() {
		return 0, nil, refuse(http.StatusTooManyRequests, "the application %s asks too often: at most %d times a second", application, requestsPerSecond)
	}
	app, err := h.application(r.Context(), application)
	if err != nil {
		return 0, nil, err
	}
	return next(r, app)
}

func notAllowed(w http.ResponseWriter, methods ...string) error {
	w.Header().Set("Allow", strings.Join(methods, ", "))
	return refuse(http.StatusMethodNotAllowed, "use %s", strings.Join(methods, ", "))
}

func (h *Handler) limiter(application string) *rate.Limiter {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.limits.Get(application); ok {
		limiter, _ := known.(*rate.Limiter)
		return limiter
	}
	limiter := rate.NewLimiter(requestsPerSecond, requestsAtOnce)
	h.limits.Add(application, limiter)
	return limiter
}

// turn lets one request of an application write after the other.
type turn struct {
	place   chan struct{}
	waiting int // who has it included
}

// await waits for an application's turn. The function ends it.
func (h *Handler) await(ctx context.Context, application string) (end func(), err error) {
	h.mu.Lock()
	own, ok := h.turns[application]
	if !ok {
		own = &turn{place: make(chan struct{}, 1)}
		h.turns[application] = own
	}
	own.waiting++
	h.mu.Unlock()
	leave := func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if own.waiting--; own.waiting == 0 {
			delete(h.turns, application)
		}
	}
	select {
	case own.place <- struct{}{}:
		return func() { <-own.place; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// write reads the body of a request and has it stored. Who sends slowly keeps its
// own application waiting, and no other.
func (h *Handler) write(w http.ResponseWriter, r *http.Request, application string, store func(context.Context, *details) (int, any, error)) (int, any, error) {
	tooMany := refuse(http.StatusServiceUnavailable, "too many write at once: try again")
	end, err := h.await(r.Context(), application)
	if err != nil {
		return 0, nil, tooMany
	}
	defer end()
	size := int64(maxBody)
	if r.ContentLength >= 0 {
		size = min(size, r.ContentLength)
	}
	if err := h.bodies.Acquire(r.Context(), size); err != nil {
		return 0, nil, tooMany
	}
	defer h.bodies.Release(size)
	raw, err := read(w, r)
	if err != nil {
		return 0, nil, err
	}
	if err := h.writers.Acquire(r.Context(), 1); err != nil {
		return 0, nil, tooMany
	}
	defer h.writers.Release(1)
	d, err := decode(raw)
	if err != nil {
		return 0, nil, err
	}
	return store(r.Context(), d)
}

// read reads the body of a request until the time of its context.
func read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	if until, ok := r.Context().Deadline(); ok {
		_ = control.SetReadDeadline(until) // writers that have none are those of tests
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, refuse(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", maxBody)
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "the body cannot be read")
	}
	_ = control.SetReadDeadline(time.Time{}) // the next request has its own
	return raw, nil
}

// decode reads a service. Fields that are not known are left out, as clients of
// other versions send them.
func decode(raw []byte) (*details, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	var d details
	if err := decoder.Decode(&d); err != nil {
		var field *json.UnmarshalTypeError
		if errors.As(err, &field) && field.Field != "" {
			return nil, refuse(http.StatusBadRequest, "%s is no %s", field.Field, kindOf(field))
		}
		return nil, refuse(http.StatusBadRequest, "the body is no JSON object")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, refuse(http.StatusBadRequest, "the body is more than one JSON object")
	}
	return &d, nil
}

func kindOf(field *json.UnmarshalTypeError) string {
	switch kind := field.Type.Kind().String(); kind {
	case "struct", "map":
		return "object"
	case "slice":
		return "list"
	default:
		return kind
	}
}
