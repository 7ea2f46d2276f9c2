package admin

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// storedEvent is an event as the API shows it.
type storedEvent struct {
	Sequence uint64       `json:"sequence"`
	Accepted time.Time    `json:"accepted"`
	Event    *event.Event `json:"event"`
}

func isNotFound(err error) bool { return errors.Is(err, broker.ErrNotFound) }

// readable selects what the namespace of a request may read, of one source and type
// where the request names them.
func (c *Config) readable(r *http.Request, source, pattern string) ([]broker.Selector, error) {
	if pattern == "" {
		pattern = "**"
	}
	if source != "" {
		return []broker.Selector{{Source: source, Type: pattern}}, nil // what may be read is asked for each
	}
	namespace := r.PathValue("namespace")
	if namespace == "" {
		return []broker.Selector{{Owner: "*", Type: pattern}}, nil
	}
	selectors, err := c.Directory.Readable(r.Context(), namespace)
	for i := range selectors {
		selectors[i].Type = pattern
	}
	return selectors, err
}

// listEvents answers a page of stored events, oldest first, or goes on for ever with
// one in JSON a line.
func (c *Config) listEvents(w http.ResponseWriter, r *http.Request) {
	p := parameters{values: r.URL.Query()}
	limit := p.number("limit", defaultLimit, maxLimit)
	query := broker.Query{
		Start: broker.Start{Sequence: p.number("sequence", 0, 1<<62), Time: p.time("since")},
		Data:  p.flag("data"), Follow: p.flag("follow"),
	}
	source, pattern := p.values.Get("source"), p.values.Get("type")
	if pattern != "" {
		if err := broker.CheckTypePattern(pattern); err != nil {
			p.refuse("type", "%v", err)
		}
	}
	if p.refused(w) {
		return
	}
	var err error
	if query.Selectors, err = c.readable(r, source, pattern); err != nil {
		failed(w, err)
		return
	}
	if query.Follow {
		c.followEvents(w, r, query)
		return
	}
	page, next := newPage(w, limit), uint64(0)
	err = c.Store.Events(r.Context(), query, func(e *broker.Stored) bool {
		if may, err := c.mayRead(r, e.Event.Source); err != nil || !may {
			return true
		}
		if page.item(storedEvent{Sequence: e.Sequence, Accepted: e.Stored, Event: &e.Event}, len(e.Event.Data)) {
			next = e.Sequence + 1
			return false
		}
		return true
	})
	if err != nil {
		panic(http.ErrAbortHandler) // half an answer must not look like a whole one
	}
	page.end(next)
}

func (c *Config) followEvents(w http.ResponseWriter, r *http.Request, query broker.Query) {
	flush := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	if flush.Flush() != nil {
		return
	}
	encoder := json.NewEncoder(w)
	_ = c.Store.Events(r.Context(), query, func(e *broker.Stored) bool {
		if may, err := c.mayRead(r, e.Event.Source); err != nil || !may {
			return true
		}
		return encoder.Encode(storedEvent{Sequence: e.Sequence, Accepted: e.Stored, Event: &e.Event}) == nil && flush.Flush() == nil
	})
}

// replayRequest asks for the events of a subscription once more, a page at a time.
type replayRequest struct {
	// Name of the replay; an event is replayed once under one.
	Name string `json:"name"`
	// From a time or a sequence on; until the moment of the request.
	From     time.Time `json:"from,omitzero"`
	Sequence uint64    `json:"sequence,omitempty"`
	// Filters that must let an event through, besides those of the subscription.
	Filters []json.RawMessage `json:"filters,omitempty"`
	// Limit of the page; default 100.
	Limit  int  `json:"limit,omitempty"`
	DryRun bool `json:"dryRun,omitempty"`
}

type replayAnswer struct {
	// Events that were replayed, or would have been.
	Events []storedEvent `json:"events"`
	// Next is the sequence from which the next page begins; 0 when there is none.
	Next uint64 `json:"next,omitempty"`
}

// maxReplayBody bounds the body of a request.
const maxReplayBody = 64 << 10

func (c *Config) replay(w http.ResponseWriter, r *http.Request) {
	var request replayRequest
	decoder := json.NewDecoder(io.LimitReader(r.Body, maxReplayBody))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&request); err != nil {
		httpserver.Problem(w, http.StatusBadRequest, "", "the body is no replay: "+err.Error())
		return
	}
	p := parameters{}
	if request.Limit == 0 {
		request.Limit = defaultLimit
	}
	if request.Limit < 1 || request.Limit > maxLimit {
		p.refuse("limit", "must be from 1 to %d", maxLimit)
	}
	if n := len(request.Name); n == 0 || n > 64 {
		p.refuse("name", "is required, and has at most 64 bytes")
	}
	if request.From.IsZero() && request.Sequence == 0 {
		p.refuse("from", "or sequence must say where to begin")
	}
	filter, err := dispatch.CompileFilters(request.Filters)
	if err != nil {
		p.refuse("filters", "%v", err)
	}
	if p.refused(w) {
		return
	}
	known, err := c.subscription(r)
	if err != nil {
		failed(w, err)
		return
	}
	if known.Selectors == nil {
		httpserver.Problem(w, http.StatusConflict, "", "the Subscription is refused: "+known.Refused)
		return
	}
	if _, err := c.Store.Consumer(r.Context(), known.UID); err != nil {
		failed(w, err)
		return
	}
	result, err := c.replayPage(r, known, &request, filter)
	if err != nil {
		failed(w, err)
		return
	}
	answer(w, result)
}

func (c *Config) replayPage(r *http.Request, known *dispatch.Known, request *replayRequest, filter dispatch.Filter) (*replayAnswer, error) {
	result := &replayAnswer{Events: []storedEvent{}}
	query := broker.Query{Selectors: known.Selectors, Start: broker.Start{Sequence: request.Sequence, Time: request.From}, Data: true}
	var failure error
	err := c.Store.Events(r.Context(), query, func(e *broker.Stored) bool {
		matches, _, err := known.Matches(r.Context(), &e.Event)
		if err != nil {
			failure = err
			return false
		}
		if !matches || filter != nil && !filter(&e.Event) {
			return true
		}
		if !request.DryRun {
			failure = c.Store.Replay(r.Context(), broker.Replay{Consumer: known.UID, Name: request.Name, Sequence: e.Sequence, Event: &e.Event})
			if failure != nil {
				return false
			}
		}
		shown := e.Event
		shown.Data = nil
		result.Events = append(result.Events, storedEvent{Sequence: e.Sequence, Accepted: e.Stored, Event: &shown})
		if len(result.Events) == request.Limit {
			result.Next = e.Sequence + 1
			return false
		}
		return true
	})
	return result, errors.Join(err, failure)
}

// subscription is the one that a request names.
func (c *Config) subscription(r *http.Request) (*dispatch.Known, error) {
	all, err := c.Directory.Subscriptions(r.Context(), r.PathValue("namespace"))
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].Name == r.PathValue("name") {
			return &all[i], nil
		}
	}
	return nil, broker.ErrNotFound
}
