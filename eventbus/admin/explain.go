package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Where an event is, seen from a subscription.
const (
	stateNotSelected = "NotSelected" // it is not for the subscription
	stateDelivered   = "Delivered"
	stateDead        = "DeadLetter"
	stateRetrying    = "Retrying" // it was tried, and waits for the next attempt
	stateInFlight    = "InFlight" // it is being tried
	statePending     = "Pending"  // it waits for its first attempt
	stateDone        = "Done"     // and no attempt is known any more
)

// explanation says what became of an event.
type explanation struct {
	storedEvent
	Subscriptions []fate `json:"subscriptions"`
}

// fate of an event for one subscription.
type fate struct {
	Subscription string `json:"subscription"` // namespace/name
	Matched      bool   `json:"matched"`
	State        string `json:"state"`
	// Detail says why it is not selected, or what it waits for.
	Detail     string           `json:"detail,omitempty"`
	Attempts   []broker.Attempt `json:"attempts"`
	DeadLetter uint64           `json:"deadLetter,omitempty"` // ID
}

// maxExplained events with one id are explained: ids are unique with their source.
const maxExplained = 10

func (c *Config) explain(w http.ResponseWriter, r *http.Request) {
	p := parameters{values: r.URL.Query()}
	id, source := p.values.Get("id"), p.values.Get("source")
	if id == "" {
		p.refuse("id", "is required")
	}
	if p.refused(w) {
		return
	}
	events, err := c.eventsWithID(r, id, source)
	if err != nil {
		failed(w, err)
		return
	}
	if len(events) == 0 {
		httpserver.Problem(w, http.StatusNotFound, "", "no event with the id "+id+" is stored that may be read here")
		return
	}
	subs, err := c.Directory.Subscriptions(r.Context(), r.PathValue("namespace"))
	if err != nil {
		failed(w, err)
		return
	}
	items := make([]explanation, 0, len(events))
	for i := range events {
		e, err := c.explainOne(r.Context(), &events[i], subs)
		if err != nil {
			failed(w, err)
			return
		}
		items = append(items, *e)
	}
	answer(w, map[string]any{"items": items})
}

// eventsWithID are the stored events with an id that the namespace of the request
// may read.
func (c *Config) eventsWithID(r *http.Request, id, source string) ([]broker.Stored, error) {
	selectors, err := c.readable(r, source, "")
	if err != nil {
		return nil, err
	}
	var found []broker.Stored
	var failure error
	err = c.Store.Events(r.Context(), broker.Query{Selectors: selectors}, func(e *broker.Stored) bool {
		if e.Event.ID != id {
			return true
		}
		var may bool
		if may, failure = c.mayRead(r, e.Event.Source); may {
			found = append(found, *e)
		}
		return failure == nil && len(found) < maxExplained
	})
	if failure != nil {
		err = failure
	}
	if err != nil {
		return nil, err
	}
	// Data matters to filters.
	for i := range found {
		at := found[i].Sequence
		err := c.Store.Events(r.Context(), broker.Query{Selectors: selectors, Start: broker.Start{Sequence: at}, Data: true}, func(e *broker.Stored) bool {
			if e.Sequence == at {
				found[i].Event.Data = e.Event.Data
			}
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (c *Config) explainOne(ctx context.Context, e *broker.Stored, subs []dispatch.Known) (*explanation, error) {
	key := e.Event.Key()
	attempts := map[string][]broker.Attempt{}
	err := c.Store.AttemptsSince(ctx, e.Stored.Add(-time.Minute), func(a *broker.Attempt) {
		if a.Key == key && (a.Sequence == e.Sequence || a.Replay != "") {
			attempts[a.Consumer] = append(attempts[a.Consumer], *a)
		}
	})
	if err != nil {
		return nil, err
	}
	shown := &explanation{storedEvent: storedEvent{Sequence: e.Sequence, Accepted: e.Stored, Event: &e.Event}, Subscriptions: []fate{}}
	for i := range subs {
		f, err := c.fate(ctx, e, &subs[i], attempts[subs[i].UID])
		if err != nil {
			return nil, err
		}
		shown.Subscriptions = append(shown.Subscriptions, *f)
	}
	return shown, nil
}

func (c *Config) fate(ctx context.Context, e *broker.Stored, sub *dispatch.Known, attempts []broker.Attempt) (*fate, error) {
	f := &fate{Subscription: sub.Namespace + "/" + sub.Name, Attempts: attempts}
	if f.Attempts == nil {
		f.Attempts = []broker.Attempt{}
	}
	var err error
	if f.Matched, f.Detail, err = sub.Matches(ctx, &e.Event); err != nil {
		return nil, err
	}
	if !f.Matched {
		f.State = stateNotSelected
		return f, nil
	}
	if len(attempts) > 0 {
		return f, c.fateOf(ctx, f, sub, &attempts[len(attempts)-1])
	}
	consumer, err := c.Store.Consumer(ctx, sub.UID)
	if isNotFound(err) {
		f.Matched, f.State, f.Detail = false, stateNotSelected, "the subscription has no position yet"
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := consumer.Info(ctx)
	if err != nil {
		return nil, err
	}
	switch {
	case e.Stored.Before(sub.Created) && sub.Start == (broker.Start{}):
		f.Matched, f.State, f.Detail = false, stateNotSelected, "it was accepted before the subscription began, which was at "+sub.Created.UTC().Format(time.RFC3339)
	case e.Sequence <= info.Done:
		f.State, f.Detail = stateDone, "the subscription is done with it; what was attempted is not known any more"
	case e.Sequence <= info.Delivered:
		f.State = stateInFlight
	default:
		f.State, f.Detail = statePending, fmt.Sprintf("%d events wait for their first attempt", info.Pending)
	}
	if sub.Waits != "" && f.State != stateDone {
		f.Detail = "events wait: " + sub.Waits
	}
	return f, nil
}

// fateOf tells from the last attempt where an event is.
func (c *Config) fateOf(ctx context.Context, f *fate, sub *dispatch.Known, last *broker.Attempt) error {
	switch last.Decision {
	case broker.Delivered:
		f.State = stateDelivered
		return nil
	case broker.Dead:
		f.State, f.Detail = stateDead, last.Reason
		letters, err := c.DeadLetters.DeadLetters(ctx, sub.UID, 0, maxLimit)
		for i := range letters {
			if letters[i].Sequence == last.Sequence {
				f.DeadLetter = letters[i].ID
			}
		}
		return err
	case broker.Gone:
		f.State, f.Detail = stateRetrying, "the sink is gone (410): the subscription is paused until it is changed"
		return nil
	}
	f.State, f.Detail = stateRetrying, "not before "+last.Next.UTC().Format(time.RFC3339Nano)
	if sub.Waits != "" {
		f.Detail = "events wait: " + sub.Waits
	}
	return nil
}
