package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Limits of one page of dead letters.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// DeadLetters is where dead letters are kept.
type DeadLetters interface {
	// DeadLetters returns at most limit dead letters with an ID above after, of
	// one consumer or, when it is empty, of all.
	DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]event.DeadLetter, error)
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
	page := page{Items: []event.DeadLetter{}}
	for uint64(len(page.Items)) < limit {
		letters, err := c.DeadLetters.DeadLetters(r.Context(), "", after, defaultLimit)
		if err != nil {
			httpserver.Problem(w, http.StatusServiceUnavailable, "", "the event store is not available")
			return
		}
		if len(letters) == 0 {
			break
		}
		for i := range letters {
			if uint64(len(page.Items)) == limit {
				break
			}
			after = letters[i].ID
			if subscription == "" || letters[i].Subscription == subscription {
				page.Items = append(page.Items, letters[i])
			}
		}
	}
	if uint64(len(page.Items)) == limit {
		page.Next = after
	}
	w.Header().Set("Content-Type", "application/json")
	// A client that went away cannot be told.
	_ = json.NewEncoder(w).Encode(&page)
}

type page struct {
	Items []event.DeadLetter `json:"items"`
	// Next is the value of after for the next page; 0 when this is the last.
	Next uint64 `json:"next,omitempty"`
}
