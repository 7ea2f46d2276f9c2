package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Limits of one page of dead letters.
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

// ErrForbidden is what [Config.Authorize] returns for callers who are known and
// may not; for others [tokens.ErrUnauthenticated] and its neighbor.
var ErrForbidden = errors.New("not allowed")

// Config of the administrative port.
type Config struct {
	DeadLetters DeadLetters
	// Ready returns nil when the bus can do its work.
	Ready func(ctx context.Context) error
	// Metrics to serve; nil serves none.
	Metrics prometheus.Gatherer
	// Authorize admits requests to /admin; nil admits all, for a port that only
	// the operator can reach. Health and metrics are open to all.
	Authorize func(r *http.Request) error
}

// New makes the handler.
func New(config Config) http.Handler {
	mux := httpserver.Health(config.Ready)
	mux.HandleFunc("/", httpserver.NotFound)
	if config.Metrics != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(config.Metrics, promhttp.HandlerOpts{}))
	}
	mux.Handle("GET /admin/v1/dead-letters", config.guard(config.deadLetters))
	return mux
}

func (c Config) guard(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.Authorize != nil {
			switch err := c.Authorize(r); {
			case errors.Is(err, tokens.ErrUnauthenticated):
				w.Header().Set("WWW-Authenticate", "Bearer")
				httpserver.Problem(w, http.StatusUnauthorized, "", tokens.Hint)
				return
			case errors.Is(err, tokens.ErrTooMany):
				w.Header().Set("Retry-After", "1")
				httpserver.Problem(w, http.StatusTooManyRequests, "", "too many tokens that are not known were sent at once")
				return
			case errors.Is(err, ErrForbidden):
				httpserver.Problem(w, http.StatusForbidden, "", "a ClusterRole must allow this nonResourceURL")
				return
			case err != nil:
				httpserver.Problem(w, http.StatusServiceUnavailable, "", "the API server could not be asked about the token")
				return
			}
		}
		next(w, r)
	})
}

func (c Config) deadLetters(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	var wrong []httpserver.FieldError
	number := func(name string, fallback, most uint64) uint64 {
		text := query.Get(name)
		if text == "" {
			return fallback
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n > most {
			wrong = append(wrong, httpserver.FieldError{Field: name, Detail: fmt.Sprintf("must be a number up to %d", most)})
		}
		return n
	}
	after := number("after", 0, 1<<62)
	limit := number("limit", defaultLimit, maxLimit)
	subscription := query.Get("subscription")
	if subscription != "" && strings.Count(subscription, "/") != 1 {
		wrong = append(wrong, httpserver.FieldError{Field: "subscription", Detail: "must be NAMESPACE/NAME"})
	}
	if len(wrong) > 0 {
		httpserver.Problem(w, http.StatusBadRequest, "Invalid query", "", wrong...)
		return
	}
	letters, err := c.DeadLetters.DeadLetters(r.Context(), "", after, defaultLimit)
	if err != nil {
		httpserver.Problem(w, http.StatusServiceUnavailable, "", "the event store is not available")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	p := pageWriter{w: w, encoder: json.NewEncoder(w)}
	p.text(`{"items":[`)
	for items, bytes := uint64(0), 0; len(letters) > 0 && p.next == 0; {
		for i := range letters {
			letter := &letters[i]
			after = letter.ID
			if subscription != "" && letter.Subscription != subscription {
				continue
			}
			bytes += p.item(letter)
			if items++; items == limit || bytes >= maxPageBytes {
				p.next = after
				break
			}
		}
		if p.next == 0 {
			if letters, err = c.DeadLetters.DeadLetters(r.Context(), "", after, defaultLimit); err != nil {
				panic(http.ErrAbortHandler) // half an answer must not look like a whole one
			}
		}
	}
	p.text("]")
	if p.next > 0 {
		p.text(`,"next":` + strconv.FormatUint(p.next, 10))
	}
	p.text("}")
}

// pageWriter writes a page one dead letter after the other. A client that went
// away cannot be told, so no error is looked at.
type pageWriter struct {
	w       io.Writer
	encoder *json.Encoder
	some    bool
	// next is the value of after for the next page; 0 when this is the last.
	next uint64
}

func (p *pageWriter) text(s string) { _, _ = io.WriteString(p.w, s) }

// item writes one and returns how much data it has.
func (p *pageWriter) item(letter *broker.DeadLetter) (bytes int) {
	if p.some {
		p.text(",")
	}
	p.some = true
	bytes = len(letter.Event.Data)
	if letter.Raw != nil {
		letter.Raw.Cut()
		bytes += len(letter.Raw.Data)
	}
	_ = p.encoder.Encode(letter)
	return bytes
}
