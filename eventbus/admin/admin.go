package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Limits of one page.
const (
	defaultLimit = 100
	maxLimit     = 1000
	// maxPageBytes is how much data a page has before it is said to go on in the
	// next; it is written as it is read.
	maxPageBytes = 16 << 20
)

// DeadLetters is where dead letters are kept.
type DeadLetters interface {
	// DeadLetters returns at most limit dead letters with an ID above after, of
	// one consumer or, when it is empty, of all: fewer when they are large, and
	// none only when there are no more.
	DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]broker.DeadLetter, error)
}

// Store is a broker that can be looked into and repaired.
type Store interface {
	broker.Reader
	Consumer(ctx context.Context, name string) (broker.Consumer, error)
	// AttemptsSince calls handle for what was attempted since a time, in order.
	AttemptsSince(ctx context.Context, since time.Time, handle func(*broker.Attempt)) error
	Replay(ctx context.Context, replay broker.Replay) error
	DeadLetter(ctx context.Context, id uint64) (*broker.DeadLetter, error)
	DeleteDeadLetter(ctx context.Context, id uint64) error
}

// Directory knows what namespaces may read, and their subscriptions.
type Directory interface {
	// Readable selects what a namespace may read, and perhaps more.
	Readable(ctx context.Context, namespace string) ([]broker.Selector, error)
	// MayRead reports whether a namespace may read the events of a source.
	MayRead(ctx context.Context, namespace, source string) (bool, error)
	// Subscriptions are those of a namespace, or of all when it is empty.
	Subscriptions(ctx context.Context, namespace string) ([]dispatch.Known, error)
}

// Config of the administrative port.
type Config struct {
	DeadLetters DeadLetters
	// Store and Directory: nil where the broker, or a bus without an API server,
	// cannot tell; what needs them answers 501.
	Store     Store
	Directory Directory
	// Ready returns nil when the bus can do its work.
	Ready func(ctx context.Context) error
	// Metrics to serve; nil serves none.
	Metrics prometheus.Gatherer
	// Authorize admits requests to /admin; nil admits all, for a port that only
	// the operator can reach. Health and metrics are open to all.
	Authorize Authorize
}

// New makes the handler.
func New(config Config) http.Handler {
	mux := httpserver.Health(config.Ready)
	mux.HandleFunc("/", httpserver.NotFound)
	if config.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(config.Metrics, promhttp.HandlerOpts{}))
	}
	c := &config
	handle := func(method, path, subresource, verb string, next http.HandlerFunc) {
		mux.Handle(method+" /admin/v1"+path, c.guard(subresource, verb, next))
		mux.Handle(method+" /admin/v1/namespaces/{namespace}"+path, c.guard(subresource, verb, next))
	}
	handle(http.MethodGet, "/dead-letters", "deadletters", "list", c.listDeadLetters)
	handle(http.MethodGet, "/dead-letters/{id}", "deadletters", "get", c.needs(c.showDeadLetter))
	handle(http.MethodPost, "/dead-letters/{id}/redrive", "deadletters", "update", c.needs(c.redrive))
	handle(http.MethodDelete, "/dead-letters/{id}", "deadletters", "delete", c.needs(c.purge))
	handle(http.MethodGet, "/events", "events", "list", c.needs(c.listEvents))
	handle(http.MethodGet, "/explain", "events", "get", c.needs(c.explain))
	mux.Handle("POST /admin/v1/namespaces/{namespace}/subscriptions/{name}/replay", c.guard("events", "create", c.needs(c.replay)))
	return mux
}

// needs answers for a bus that cannot look into its broker.
func (c *Config) needs(next http.HandlerFunc) http.HandlerFunc {
	if c.Store != nil && c.Directory != nil {
		return next
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		httpserver.Problem(w, http.StatusNotImplemented, "", "the bus cannot tell: its broker is NATS Streaming, or it has no API server")
	}
}

// failed answers for an error of the broker or of the API server.
func failed(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, broker.ErrNotFound):
		httpserver.Problem(w, http.StatusNotFound, "", "there is no such thing")
	case errors.Is(err, broker.ErrFull):
		w.Header().Set("Retry-After", "30")
		httpserver.Problem(w, http.StatusInsufficientStorage, "", "the storage for events is full")
	case errors.Is(err, broker.ErrUnavailable):
		w.Header().Set("Retry-After", "2")
		httpserver.Problem(w, http.StatusServiceUnavailable, "", "the event store is not available")
	default:
		httpserver.Problem(w, http.StatusInternalServerError, "", "this is a fault of the event bus")
	}
}

// mayRead reports whether the namespace of a request, if it has one, may read a
// source; an empty one belongs to what cannot be read as an event.
func (c *Config) mayRead(r *http.Request, source string) (bool, error) {
	namespace := r.PathValue("namespace")
	if namespace == "" || source == "" || c.Directory == nil {
		return true, nil
	}
	return c.Directory.MayRead(r.Context(), namespace, source)
}

// parameters reads the query of a request, and notes everything that is wrong.
type parameters struct {
	values url.Values
	wrong  []httpserver.FieldError
}

func (p *parameters) refuse(name, format string, args ...any) {
	p.wrong = append(p.wrong, httpserver.FieldError{Field: name, Detail: fmt.Sprintf(format, args...)})
}

func (p *parameters) number(name string, fallback, most uint64) uint64 {
	text := p.values.Get(name)
	if text == "" {
		return fallback
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > most {
		p.refuse(name, "must be a number up to %d", most)
	}
	return n
}

func (p *parameters) time(name string) (at time.Time) {
	text := p.values.Get(name)
	if text == "" {
		return at
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		p.refuse(name, "must be an RFC 3339 time such as 2018-11-02T22:08:41Z")
	}
	return at
}

func (p *parameters) flag(name string) bool {
	switch p.values.Get(name) {
	case "", "false":
		return false
	case "true":
		return true
	}
	p.refuse(name, "must be true or false")
	return false
}

// refused answers when something is wrong.
func (p *parameters) refused(w http.ResponseWriter) bool {
	if len(p.wrong) == 0 {
		return false
	}
	httpserver.Problem(w, http.StatusBadRequest, "Invalid query", "", p.wrong...)
	return true
}

// answer writes a value as JSON. A client that went away cannot be told.
func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

// pageWriter writes {"items":[...],"next":n} one item after the other. A client that
// went away cannot be told, so no error is looked at.
type pageWriter struct {
	w       io.Writer
	encoder *json.Encoder
	items   uint64
	bytes   int
	limit   uint64
}

func newPage(w http.ResponseWriter, limit uint64) *pageWriter {
	w.Header().Set("Content-Type", "application/json")
	p := &pageWriter{w: w, encoder: json.NewEncoder(w), limit: limit}
	p.text(`{"items":[`)
	return p
}

func (p *pageWriter) text(s string) { _, _ = io.WriteString(p.w, s) }

// item writes one that has so much data, and reports whether the page is full.
func (p *pageWriter) item(value any, bytes int) (full bool) {
	if p.items > 0 {
		p.text(",")
	}
	_ = p.encoder.Encode(value)
	p.items++
	p.bytes += bytes
	return p.items == p.limit || p.bytes >= maxPageBytes
}

// end ends the page; next is where the one that follows begins, 0 for none.
func (p *pageWriter) end(next uint64) {
	p.text("]")
	if next > 0 {
		p.text(`,"next":` + strconv.FormatUint(next, 10))
	}
	p.text("}")
}
