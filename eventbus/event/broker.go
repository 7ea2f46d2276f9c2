package event

import (
	"context"
	"errors"
	"time"
)

// What a broker answers when it does not store an event. Backends wrap these.
var (
	// ErrUnavailable: the broker is away, or its answer did not come in time;
	// the event may or may not be stored. Publishing it again is safe.
	ErrUnavailable = errors.New("the broker is not available")
	// ErrFull: the storage limit is reached; nothing was stored.
	ErrFull = errors.New("the storage is full")
	// ErrTooLarge: the broker does not take messages of this size.
	ErrTooLarge = errors.New("the event is too large")
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
}

// Delivery is one attempt to hand an event to a consumer. It is answered once,
// with Ack or Retry; one that is not answered in time comes again.
type Delivery interface {
	Event() *Event
	// Sequence is the position of the event in the store.
	Sequence() uint64
	// Stored is when the event was accepted.
	Stored() time.Time
	// Attempt counts the deliveries of this event to this consumer, from 1.
	Attempt() int

	// Ack says the event is done with.
	Ack() error
	// Retry asks for the event again after delay.
	Retry(delay time.Duration) error
	// Extend says the work goes on: the answer will take longer.
	Extend() error
}

// Consumer fetches the events of one durable position.
type Consumer interface {
	// Fetch hands at most n deliveries to handle as they come, and returns when
	// that many came, when wait is over, or when ctx ends; it may return earlier.
	// It may be called concurrently. One call runs handle for one delivery after
	// the other, so handle must not block.
	Fetch(ctx context.Context, n int, wait time.Duration, handle func(Delivery)) error
	Info(ctx context.Context) (ConsumerInfo, error)
}

// DeadLetter is an event that one subscription could not be given.
type DeadLetter struct {
	// ID identifies the dead letter in its store.
	ID           uint64    `json:"id"`
	Subscription string    `json:"subscription"` // namespace/name
	Consumer     string    `json:"consumer"`     // UID
	Sequence     uint64    `json:"sequence"`     // of the event in the event store
	Stored       time.Time `json:"stored"`       // when the event was accepted
	Died         time.Time `json:"died"`
	Reason       string    `json:"reason"`
	Attempts     int       `json:"attempts"`
	LastStatus   int       `json:"lastStatus,omitempty"` // HTTP status, 0 if there was no answer
	LastError    string    `json:"lastError,omitempty"`
	Event        Event     `json:"event"`
}

// Reasons of dead letters.
const (
	ReasonAttemptsExhausted = "AttemptsExhausted"
	ReasonExpired           = "Expired"
)
