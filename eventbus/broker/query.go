package broker

import (
	"context"
	"errors"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// ErrUnsupported: the backend cannot do it, and never will.
var ErrUnsupported = errors.New("the broker cannot do this")

// Query says which stored events are read.
type Query struct {
	// Selectors of the events; none selects nothing.
	Selectors []Selector
	// Start is the first: a sequence or a time; the zero value is the earliest, and
	// never "new" unless Follow is set.
	Start Start
	// Follow goes on with what is accepted from now on.
	Follow bool
	// Data is read as well; without it the events have none.
	Data bool
}

// Stored is an event as it lies in the store.
type Stored struct {
	Sequence uint64
	Stored   time.Time
	Event    event.Event
}

// Reader reads stored events.
type Reader interface {
	// Events calls handle for the stored events that a query selects, in order, until
	// handle returns false, there are no more, or ctx ends, which is no error. What
	// was replayed is left out, and so is what cannot be read.
	Events(ctx context.Context, query Query, handle func(*Stored) bool) error
}

// Replay is an event that is delivered again, to one consumer.
type Replay struct {
	Consumer string
	// Name of the replay, which deliveries of it carry.
	Name string
	// Sequence of the event when it was published; the same one is replayed once
	// under one name, within the dedup window.
	Sequence uint64
	Event    *event.Event
}
