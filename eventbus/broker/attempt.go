package broker

import "time"

// Attempt is one request with which a subscription's sink was asked to take an
// event, or the end of an event that took none.
type Attempt struct {
	Consumer string    `json:"consumer"`         // UID of the subscription
	Sequence uint64    `json:"sequence"`         // of the event in the event store
	Stored   time.Time `json:"stored"`           // when the event was accepted
	Key      string    `json:"key"`              // of the event, see [event.Event.Key]
	Replay   string    `json:"replay,omitempty"` // the replay it belongs to

	// Number counts the requests that were sent for the event, from 1. A probe of a
	// sink that was not reachable counts none, nor does the end of an event without
	// a request.
	Number int  `json:"number"`
	Probe  bool `json:"probe,omitempty"`

	At       time.Time     `json:"at"`
	Took     time.Duration `json:"took"`              // nanoseconds
	Status   int           `json:"status,omitempty"`  // HTTP status, 0 if there was no answer
	Error    string        `json:"error,omitempty"`   // why there was no answer
	Replica  string        `json:"replica,omitempty"` // of the bus
	Decision Decision      `json:"decision"`
	// Next is when the event is tried again, if it is.
	Next time.Time `json:"next,omitzero"`
	// Reason of the dead letter, if it is one.
	Reason string `json:"reason,omitempty"`
}

// Decision is what becomes of an event after an attempt.
type Decision string

// The decisions.
const (
	// Delivered: the sink took it.
	Delivered Decision = "delivered"
	// Again: it is tried again, not before [Attempt.Next].
	Again Decision = "again"
	// Dead: it is a dead letter.
	Dead Decision = "dead"
	// Gone: the sink said that it is gone for good; the subscription is paused, and
	// the event waits.
	Gone Decision = "gone"
)

// Done reports whether nothing follows the attempt.
func (a *Attempt) Done() bool { return a.Decision == Delivered || a.Decision == Dead }
