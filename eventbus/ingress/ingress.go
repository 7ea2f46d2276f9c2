package ingress

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/event/legacy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// Limits of a request. Structured mode may escape or base64-encode an event to
// more than its own size.
const (
	maxStructuredBytes = 2*event.MaxEventBytes + 64<<10
	maxBatchBytes      = 16 * event.MaxEventBytes
	publishTimeout     = 15 * time.Second
	// storeTimeout ends a call of the broker that nobody waits for any more. It is
	// only for one that never answers: what it was given is in memory until then.
	storeTimeout = 5 * time.Minute
)

// Publisher stores events; see [broker.ErrFull] and its neighbors for how it
// refuses.
type Publisher interface {
	Publish(ctx context.Context, events []event.Event) ([]broker.Receipt, error)
	// MaxEventBytes is the largest data of an event the publisher takes now.
	MaxEventBytes() int
	// Check returns nil when events can be published.
	Check() error
}

// Rememberer stores events whose ids it knows for longer than those of others.
type Rememberer interface {
	PublishOnce(ctx context.Context, e *event.Event) (broker.Receipt, error)
}

// EventType is a legacy type and version somebody subscribed to.
type EventType struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Config of a [Handler]. Publisher and Authorizer are required.
type Config struct {
	Publisher  Publisher
	Authorizer Authorizer
	// Rememberer of events whose publisher asks for it ([headers.DedupWindow]) and may
	// do so; nil: they are published as others are.
	Rememberer Rememberer
	// Subscribed returns the type patterns that subscriptions ask of an
	// application's events; nil answers none.
	Subscribed func(application string) []string
	// Owned tells whether somebody owns a source; events of others are refused, as
	// nobody may read them. nil: all are taken.
	Owned func(source string) bool
	// Budget bounds the memory that requests take; several handlers may share
	// one. Default one of [DefaultMaxBufferedBytes].
	Budget *Budget
	// Metrics, nil for none.
	Metrics *Metrics
	// Log of what clients are not told; default slog.Default.
	Log *slog.Logger
}

// Metrics of publishing.
type Metrics struct {
	requests *prometheus.CounterVec
	events   prometheus.Counter
	seconds  prometheus.Histogram
}

// NewMetrics registers the metrics of publishing.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_eventbus_publish_requests_total", Help: "Publish requests by answer.",
		}, []string{"code"}),
		events: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lambdamesh_eventbus_events_accepted_total", Help: "Events stored, duplicates not counted.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lambdamesh_eventbus_store_seconds", Help: "Time from a parsed request to its events being on disk.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}),
	}
	registry.MustRegister(m.requests, m.events, m.seconds)
	return m
}

// Handler serves the publishing API.
type Handler struct {
	config Config
	mux    *http.ServeMux
}

// New makes a handler.
func New(config Config) *Handler {
	if config.Budget == nil {
		config.Budget = NewBudget(DefaultMaxBufferedBytes)
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	h := &Handler{config: config, mux: http.NewServeMux()}
	h.handle("/publish", http.MethodPost, problems, h.cloudEvents)
	h.handle("/v1/events", http.MethodPost, legacyErrors, h.legacy)
	h.handle("/{application}/events", http.MethodPost, problems, h.cloudEvents)
	h.handle("/{application}/v1/events", http.MethodPost, legacyErrors, h.legacy)
	h.handle("/{application}/v1/events/subscribed", http.MethodGet, legacyErrors, h.subscribed)
	h.handle("/v1/status/ready", http.MethodGet, problems, h.ready)
	h.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		h.answerError(w, problems, &failure{status: http.StatusNotFound, detail: "there is nothing at " + r.URL.Path})
	})
	return h
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

// call serves one request and returns the body of a success.
type call func(w http.ResponseWriter, r *http.Request) (status int, body any, err error)

func (h *Handler) handle(pattern, method string, style errorStyle, serve call) {
	h.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method && (method != http.MethodGet || r.Method != http.MethodHead) {
			w.Header().Set("Allow", method)
			h.answerError(w, style, &failure{status: http.StatusMethodNotAllowed, detail: "use " + method})
			return
		}
		status, body, err := serve(w, r)
		if err != nil {
			h.answerError(w, style, err)
			return
		}
		h.count(status)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		// A client that went away cannot be told.
		_ = json.NewEncoder(w).Encode(body)
	})
}

func (h *Handler) cloudEvents(w http.ResponseWriter, r *http.Request) (int, any, error) {
	caller, application, err := h.admit(r)
	if err != nil {
		return 0, nil, err
	}
	mode, err := event.ModeOf(r.Header)
	if err != nil {
		return 0, nil, err
	}
	source := caller.Source
	if application != "" {
		source = application
	}
	read, err := h.open(w, r, caller, mode)
	if err != nil {
		return 0, nil, err
	}
	handedOn := false
	defer func() {
		if !handedOn {
			read.share.close()
		}
	}()
	var events []event.Event
	if mode == event.ModeBatched {
		events, err = read.batch(source)
	} else {
		var e event.Event
		e, err = read.one(mode == event.ModeBinary, func(raw []byte) (event.Event, error) {
			parsed, err := event.ParseHTTP(r.Header, raw, source)
			if err != nil {
				return event.Event{}, err
			}
			return parsed[0], nil // one, in these modes
		})
		events = []event.Event{e}
	}
	if err != nil {
		return 0, nil, err
	}
	if application != "" {
		for i := range events {
			events[i].Source = application
		}
	}
	handedOn = true
	receipts, err := h.publish(r, caller, events, read.share)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, struct {
		Events []broker.Receipt `json:"events"`
	}{receipts}, nil
}

func (h *Handler) legacy(w http.ResponseWriter, r *http.Request) (int, any, error) {
	caller, application, err := h.admit(r)
	if err != nil {
		return 0, nil, err
	}
	if mode, err := event.ModeOf(r.Header); err != nil || mode != event.ModeBinary {
		return 0, nil, fmt.Errorf("%w: this path takes the legacy format; CloudEvents go to /publish", event.ErrUnsupportedMediaType)
	}
	if contentType := r.Header.Get("Content-Type"); !maybeJSON(contentType) {
		return 0, nil, fmt.Errorf("%w: %s: legacy events are application/json", event.ErrUnsupportedMediaType, contentType)
	}
	read, err := h.open(w, r, caller, event.ModeBinary)
	if err != nil {
		return 0, nil, err
	}
	handedOn := false
	defer func() {
		if !handedOn {
			read.share.close()
		}
	}()
	e, err := read.one(false, func(raw []byte) (event.Event, error) { return legacy.Parse(raw, application, newID) })
	if err != nil {
		return 0, nil, err
	}
	handedOn = true
	receipts, err := h.publish(r, caller, []event.Event{e}, read.share)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, map[string]string{"event-id": receipts[0].ID}, nil
}

// maybeJSON tells whether a body of the type may be JSON: it says so, or says
// what clients say when nobody told them.
func maybeJSON(contentType string) bool {
	mediaType, _, _ := strings.Cut(strings.ToLower(contentType), ";")
	switch mediaType = strings.TrimSpace(mediaType); mediaType {
	case "", "application/json", "application/octet-stream", "application/x-www-form-urlencoded":
		return true
	}
	return strings.HasSuffix(mediaType, "+json")
}

// admit tells who calls and which application the path names, if any.
func (h *Handler) admit(r *http.Request) (caller Caller, application string, err error) {
	caller, err = h.config.Authorizer.Authorize(r)
	if err != nil {
		return caller, "", err
	}
	application = r.PathValue("application")
	if application != "" && !IsApplication(application) {
		return caller, "", &failure{status: http.StatusNotFound, detail: fmt.Sprintf("%q is no name of an application", application)}
	}
	return caller, application, nil
}

// open begins to read a body of the mode, for the caller.
func (h *Handler) open(w http.ResponseWriter, r *http.Request, caller Caller, mode event.Mode) (*body, error) {
	limit := int64(h.config.Publisher.MaxEventBytes())
	switch mode {
	case event.ModeStructured:
		limit = maxStructuredBytes
	case event.ModeBatched:
		limit = maxBatchBytes
	}
	if r.ContentLength > limit {
		return nil, &http.MaxBytesError{Limit: limit}
	}
	return newBody(h.config.Budget, caller.Name, w, r, limit)
}

// publish checks what remains to be checked and stores the events. It closes the
// share when the broker has answered, which may be after the publisher left: until
// then the broker holds the events.
func (h *Handler) publish(r *http.Request, caller Caller, events []event.Event, memory *share) ([]broker.Receipt, error) {
	if err := h.check(r, caller, events); err != nil {
		memory.close()
		return nil, err
	}
	type answer struct {
		receipts []broker.Receipt
		err      error
	}
	answered := make(chan answer, 1)
	begin := time.Now()
	go func() {
		defer memory.close()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), storeTimeout)
		defer cancel()
		receipts, err := h.store(ctx, r, caller, events)
		answered <- answer{receipts, err}
	}()
	timeout := time.NewTimer(publishTimeout)
	defer timeout.Stop()
	var a answer
	select {
	case a = <-answered:
	case <-r.Context().Done():
		a.err = fmt.Errorf("%w: the publisher left: %w", broker.ErrUnavailable, r.Context().Err())
	case <-timeout.C:
		a.err = fmt.Errorf("%w: no answer within %s", broker.ErrUnavailable, publishTimeout)
	}
	if a.err != nil {
		return nil, a.err
	}
	if m := h.config.Metrics; m != nil {
		m.seconds.Observe(time.Since(begin).Seconds())
		for _, receipt := range a.receipts {
			if !receipt.Duplicate {
				m.events.Inc()
			}
		}
	}
	return a.receipts, nil
}

// store stores the events. Ids that are known for long take space that all share:
// that is for what the connector takes from outside.
func (h *Handler) store(ctx context.Context, r *http.Request, caller Caller, events []event.Event) ([]broker.Receipt, error) {
	if h.config.Rememberer == nil || !caller.Applications || len(events) != 1 || r.Header.Get(headers.DedupWindow) == "" {
		return h.config.Publisher.Publish(ctx, events)
	}
	receipt, err := h.config.Rememberer.PublishOnce(ctx, &events[0])
	return []broker.Receipt{receipt}, err
}

// check tells whether the caller may publish the events, and they are not too
// large.
func (h *Handler) check(r *http.Request, caller Caller, events []event.Event) error {
	limit := h.config.Publisher.MaxEventBytes()
	for i := range events {
		e := &events[i]
		if !caller.MayPublish(e.Source) {
			detail := fmt.Sprintf("%s may not publish events of source %q", caller.Name, e.Source)
			if caller.Source != "" {
				detail += fmt.Sprintf(": leave the source out or send %q", caller.Source)
			}
			return &failure{status: http.StatusForbidden, detail: detail}
		}
		if h.config.Owned != nil && !h.config.Owned(e.Source) {
			return &failure{status: http.StatusForbidden, detail: fmt.Sprintf(
				"nobody owns the source %q: make an Application of that name, or name it in the spec.sources of one", e.Source)}
		}
		if len(e.Data) > limit {
			return fmt.Errorf("%w: the data of event %q has %d bytes, the limit is %d", event.ErrTooLarge, e.ID, len(e.Data), limit)
		}
		addTrace(e, r.Header)
	}
	return nil
}

var traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// addTrace carries the trace of the request (W3C Trace Context) in the event, if
// it has none of its own (CloudEvents Distributed Tracing extension) and is valid
// with it: what is stored is what was validated.
func addTrace(e *event.Event, header http.Header) {
	if _, ok := e.Extensions["traceparent"]; ok {
		return
	}
	parent := header.Get("Traceparent")
	if !traceparent.MatchString(parent) {
		return
	}
	addValid(e, "traceparent", parent)
	if state := header.Get("Tracestate"); state != "" && len(state) <= 512 {
		addValid(e, "tracestate", state)
	}
}

// addValid sets an extension unless the event had it already or is not valid with
// it.
func addValid(e *event.Event, name, value string) {
	if _, ok := e.Extensions[name]; ok {
		return
	}
	_ = e.SetAttribute(name, value) // any text is one of an extension
	if e.Validate() != nil {
		delete(e.Extensions, name)
	}
}

func (h *Handler) subscribed(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	caller, application, err := h.admit(r)
	if err != nil {
		return 0, nil, err
	}
	if !caller.MayPublish(application) {
		return 0, nil, &failure{status: http.StatusForbidden, detail: fmt.Sprintf("%s may not ask about application %q", caller.Name, application)}
	}
	types := []EventType{}
	if h.config.Subscribed != nil {
		for _, pattern := range h.config.Subscribed(application) {
			name, version := legacy.Type(pattern)
			types = append(types, EventType{Name: name, Version: version})
		}
	}
	return http.StatusOK, map[string]any{"eventsInfo": types}, nil
}

func (h *Handler) ready(http.ResponseWriter, *http.Request) (int, any, error) {
	if err := h.config.Publisher.Check(); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, map[string]string{"status": "ready"}, nil
}

// newID makes a UUID version 4 (RFC 9562).
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see its doc
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	s := fmt.Sprintf("%x", b)
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}
