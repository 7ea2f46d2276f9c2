package broker

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// DeadLetter is an event that one subscription could not be given.
type DeadLetter struct {
	// ID identifies the dead letter in its store.
	ID           uint64      `json:"id"`
	Subscription string      `json:"subscription"` // namespace/name
	Consumer     string      `json:"consumer"`     // UID
	Sequence     uint64      `json:"sequence"`     // of the event in the event store
	Stored       time.Time   `json:"stored"`       // when the event was accepted
	Died         time.Time   `json:"died"`
	Reason       string      `json:"reason"`
	Attempts     int         `json:"attempts"`
	LastStatus   int         `json:"lastStatus,omitempty"` // HTTP status, 0 if there was no answer
	LastError    string      `json:"lastError,omitempty"`
	Event        event.Event `json:"event"`
	// Raw is what was stored when that cannot be read as an event; Event holds
	// what could be read of it.
	Raw *Raw `json:"raw,omitempty"`
}

// Reasons of dead letters.
const (
	ReasonAttemptsExhausted = "AttemptsExhausted"
	ReasonExpired           = "Expired"
	ReasonUnreadable        = "Unreadable"
	// ReasonRejected: the sink said that the event itself is wrong (400, 413, 415, 422).
	ReasonRejected = "Rejected"
)

// Headers under which backends keep a dead letter, beside its event.
const (
	HeaderSubscription = "lambdamesh-subscription"
	HeaderConsumer     = "lambdamesh-consumer"
	HeaderSequence     = "lambdamesh-sequence"
	headerStored       = "lambdamesh-stored"
	headerReason       = "lambdamesh-reason"
	headerAttempts     = "lambdamesh-attempts"
	headerLastStatus   = "lambdamesh-last-status"
	headerLastError    = "lambdamesh-last-error"
)

// maxLastError bounds the text of the last error.
const maxLastError = 512

// Headers are what a backend keeps of a dead letter besides its event or Raw; ID
// and Died are the backend's own sequence and time.
func (d *DeadLetter) Headers() map[string]string {
	return map[string]string{
		HeaderSubscription: d.Subscription,
		HeaderConsumer:     d.Consumer,
		HeaderSequence:     strconv.FormatUint(d.Sequence, 10),
		headerStored:       d.Stored.Format(time.RFC3339Nano),
		headerReason:       d.Reason,
		headerAttempts:     strconv.Itoa(d.Attempts),
		headerLastStatus:   strconv.Itoa(d.LastStatus),
		headerLastError:    strings.ToValidUTF8(d.LastError[:min(len(d.LastError), maxLastError)], ""),
	}
}

// ReadHeaders reverses Headers; get returns the value of a header. With an error
// it has read what could be.
func (d *DeadLetter) ReadHeaders(get func(name string) (string, error)) error {
	var errs []error
	text := func(name string) string {
		value, err := get(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("header %s %w", name, err))
		}
		return value
	}
	number := func(name string) uint64 {
		n, err := strconv.ParseUint(text(name), 10, 63)
		if err != nil {
			errs = append(errs, fmt.Errorf("header %s: %w", name, err))
		}
		return n
	}
	d.Subscription = text(HeaderSubscription)
	d.Consumer = text(HeaderConsumer)
	d.Sequence = number(HeaderSequence)
	d.Reason = text(headerReason)
	d.Attempts = int(number(headerAttempts))
	d.LastStatus = int(number(headerLastStatus))
	d.LastError = text(headerLastError)
	stored, err := time.Parse(time.RFC3339Nano, text(headerStored))
	if err != nil {
		errs = append(errs, fmt.Errorf("header %s: %w", headerStored, err))
	}
	d.Stored = stored
	return errors.Join(errs...)
}
