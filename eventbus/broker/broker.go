package broker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// What a broker answers when it does not store an event; one that is too large for
// it is [event.ErrTooLarge]. Backends wrap these.
var (
	// ErrUnavailable: the broker is away, or its answer did not come in time;
	// the event may or may not be stored. Publishing it again is safe.
	ErrUnavailable = errors.New("the broker is not available")
	// ErrFull: the storage limit is reached; nothing was stored.
	ErrFull = errors.New("the storage is full")
	// ErrBacklog: as many events of the source wait to be stored as may; nothing
	// was stored.
	ErrBacklog = errors.New("too many events wait to be stored")
	// ErrNotFound: there is no such consumer or event.
	ErrNotFound = errors.New("not found")
)

// Receipt says where an accepted event is stored.
type Receipt struct {
	ID       string `json:"id"`
	Sequence uint64 `json:"sequence"`
	// Duplicate is set when the event was stored before.
	Duplicate bool `json:"-"`
}

// Start is where a new consumer begins. The zero value is "new": events that
// are accepted after the consumer exists.
type Start struct {
	Earliest bool
	Time     time.Time // events stored at or after
	Sequence uint64    // this one and all after
}

// ConsumerSpec describes a durable position in the event store.
type ConsumerSpec struct {
	// Name tells consumers apart: the UID of the subscription.
	Name      string
	Selectors []Selector
	// Start counts when the consumer is created and is ignored afterwards.
	Start Start
}

// ConsumerInfo is what a broker knows about a consumer.
type ConsumerInfo struct {
	// Pending counts events that match and were never delivered.
	Pending uint64
	// Unacknowledged counts events that were delivered and wait for an answer
	// or for their next attempt.
	Unacknowledged uint64
	// Delivered is the sequence of the last event that was delivered, and Done that
	// up to which the consumer is done with all; 0 where the broker does not tell.
	Delivered, Done uint64
}

// Delivery is one attempt to hand an event to a consumer. It is answered once,
// with Ack or Retry; one that is not answered in time comes again.
type Delivery interface {
	// Event is what was stored. Of a message that cannot be read it holds no more
	// than what could be.
	Event() *event.Event
	// Unreadable is what is stored instead of an event, nil when it is one. No
	// attempt would read it any better.
	Unreadable() *Unreadable
	// Sequence is the position of the event in the store.
	Sequence() uint64
	// Stored is when the event was accepted.
	Stored() time.Time
	// Attempt counts the deliveries of this event to this consumer, from 1. What was
	// delivered was not therefore sent to anybody: see [Attempt].
	Attempt() int
	// Replay names the replay that the delivery belongs to; "" for one that was
	// published.
	Replay() string

	// Ack says the event is done with.
	Ack() error
	// Retry asks for the event again after delay.
	Retry(delay time.Duration) error
	// Recall returns what asks at once for an event that Retry has put off. It keeps
	// nothing of the event, and does nothing when that has come again meanwhile and
	// has its end.
	Recall() func() error
	// Extend says the work goes on: the answer will take longer.
	Extend() error
}

// Unreadable is a stored message that cannot be read as an event.
type Unreadable struct {
	Raw
	Err error // why
}

// Raw is a stored message as it is.
type Raw struct {
	Header map[string][]string `json:"header,omitempty"`
	Data   []byte              `json:"data,omitempty"`
	// Bytes is the size of header and data when they are longer than what is
	// given here.
	Bytes int `json:"bytes,omitempty"`
}

// Cut shortens what is longer than a list should show of one message.
func (r *Raw) Cut() {
	size := len(r.Data)
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(value)
		}
	}
	if size <= maxRawShown {
		return
	}
	r.Bytes = max(r.Bytes, size)
	left := maxRawShown
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, value := range r.Header[name] {
			left -= len(name) + len(value)
		}
		if left < 0 {
			delete(r.Header, name)
		}
	}
	r.Data = r.Data[:min(len(r.Data), max(0, left))]
}

// maxRawShown is how much of an unreadable message is shown.
const maxRawShown = 64 << 10

// Window bounds what one fetch brings.
type Window struct {
	Events int
	// Bytes of all events together. A next event that does not fit ends the
	// fetch, and stays where it is.
	Bytes int
}

// Consumer fetches the events of one durable position.
type Consumer interface {
	// Fetch hands deliveries to handle as they come, and returns when the window
	// is used up, when wait is over, or when ctx ends; it may return earlier. more
	// says that the next event did not fit into what was left of the window.
	// It may be called concurrently. One call runs handle for one delivery after
	// the other, so handle must not block.
	Fetch(ctx context.Context, window Window, wait time.Duration, handle func(Delivery)) (more bool, err error)
	Info(ctx context.Context) (ConsumerInfo, error)
	// Oldest is when the oldest event was stored that the consumer is not done
	// with; zero if there is none.
	Oldest(ctx context.Context) (time.Time, error)
}
