package dispatch

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/time/rate"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Format of a push.
type Format string

// Formats.
const (
	Binary     Format = "binary"
	Structured Format = "structured"
	Legacy     Format = "legacy"
)

// Sink is where events are posted to.
type Sink struct {
	URL string
	// Mesh sends through the mesh, where the sink knows us by our identity;
	// otherwise the request goes out directly, guarded.
	Mesh bool
	// Auth makes the requests known to the sink; nil: nothing does. It must be
	// comparable, as a pointer is: another one makes another sink.
	Auth Auth
}

// Auth makes the requests to a sink known to it.
type Auth interface {
	// Authorize adds to a request what its sink asks for. message names what is sent
	// and is the same in each attempt. When it fails, nothing is sent.
	Authorize(r *http.Request, message string, body []byte) error
	// Answered takes notice of the answer to an authorized request.
	Answered(r *http.Request, status int)
	// Transport carries the requests in place of Config.Direct; nil: it does not.
	Transport() http.RoundTripper
}

// Subscription says what is pushed where. It is complete: defaults are filled in
// by whoever makes it.
type Subscription struct {
	UID       string // names the durable consumer
	Namespace string
	Name      string
	// Created bounds the age of events: those stored before count from then on.
	Created time.Time

	// Selectors of the events; nil when it is not known what is selected, while
	// the subscription is held.
	Selectors []broker.Selector
	Start     broker.Start
	// Filter decides further which events are pushed; nil: all selected ones.
	Filter Filter
	// Permit tells whether the subscription may be given events of a source; nil:
	// all of them. It is asked whenever an event is pushed or given up, because
	// what was permitted when the event was accepted may be no longer. What it
	// denies is acknowledged and leaves no dead letter; when it fails, the event
	// stays and is tried again.
	Permit func(ctx context.Context, source string) (bool, error)
	// OrderBy is an attribute or extension: events with one value of it are
	// pushed one after another, in the order they were accepted, an event waiting
	// until the one before is delivered or dead. Those that wait count towards
	// MaxInFlight. Empty: no order.
	OrderBy string

	Sink        Sink
	DeadLetter  *Sink // gets exhausted events too, once, after they are stored
	Format      Format
	Timeout     time.Duration
	MaxInFlight int
	Retry       Retry

	// Rate bounds how many events are sent; zero: it does not.
	Rate Rate

	// Generation of the object. A sink that is gone (410) is asked again when it
	// changes.
	Generation int64

	// Hold keeps the position and pushes nothing: paused, or the sink is not
	// there. What gets older than Retry.MaxAge becomes a dead letter all the same.
	Hold bool
}

// selects reports whether an event that the broker offers is for the subscription.
func (s *Subscription) selects(e *event.Event) bool {
	if s.Selectors != nil && !broker.Selects(s.Selectors, e.Source, e.Type) {
		return false
	}
	return s.Filter == nil || s.Filter(e)
}

// expires is when an event that was stored at a time is given up. What was there
// before the subscription counts from its creation, so that nothing it asked for
// is too old from the beginning.
func (s *Subscription) expires(stored time.Time) time.Time {
	if s.Created.After(stored) {
		stored = s.Created
	}
	return stored.Add(s.Retry.MaxAge)
}

// Rate is how many requests may be sent in a time.
type Rate struct {
	Events int
	Per    time.Duration
}

// burst is how much of a rate may be sent at once, so that a fast sink is not asked
// event by event.
const burst = 50 * time.Millisecond

// limiter is nil for the zero value.
func (r Rate) limiter() *rate.Limiter {
	if r.Events <= 0 || r.Per <= 0 {
		return nil
	}
	perSecond := float64(r.Events) / r.Per.Seconds()
	return rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond*burst.Seconds())))
}

// Stats of a subscription since this process began to dispatch it.
type Stats struct {
	Delivered    int64
	Redelivered  int64 // attempts after the first
	DeadLettered int64
	InFlight     int64 // pushes that wait for their answer

	// LastError of a push or of the broker, "" if there was none.
	LastError string
	// Failing is set while the latest attempt failed.
	Failing bool
	// Gone is set when the sink answered that it is gone for good: nothing is sent
	// until the subscription is changed.
	Gone bool
	// HeldBack is set while the sink is not reachable, and only asked now and then
	// whether it is back.
	HeldBack bool
	// Oldest is when the oldest event that was tried and not yet done with was
	// accepted; zero if there is none.
	Oldest time.Time
}
