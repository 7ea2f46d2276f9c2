package jetstream

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// attributePrefix begins the header of each attribute. Nothing else of an event
// becomes a header, so no publisher can reach NATS' own headers.
const attributePrefix = "ce-"

func encode(subject string, e *event.Event) *nats.Msg {
	msg := &nats.Msg{Subject: subject, Header: nats.Header{}, Data: e.Data}
	for name, value := range e.Attributes() {
		msg.Header[attributePrefix+name] = []string{event.EncodeHeaderValue(value)}
	}
	return msg
}

// decode reads an event. It does not validate: what was accepted once is
// delivered, whatever the rules are by then. With an error it returns what could
// be read.
func decode(header nats.Header, data []byte) (event.Event, error) {
	var e event.Event
	var errs []error
	for key, values := range header {
		name, ok := strings.CutPrefix(key, attributePrefix)
		if !ok {
			continue
		}
		if len(values) != 1 {
			errs = append(errs, fmt.Errorf("header %s is given %d times", key, len(values)))
			continue
		}
		value, err := event.DecodeHeaderValue(values[0])
		if err != nil {
			errs = append(errs, fmt.Errorf("header %s %w", key, err))
			continue
		}
		if wrong := e.SetAttribute(name, value); wrong != "" {
			errs = append(errs, fmt.Errorf("header %s %s", key, wrong))
		}
	}
	if len(data) > 0 {
		e.Data = data
	}
	if len(errs) == 0 {
		errs = append(errs, e.CheckStored())
	}
	return e, errors.Join(errs...)
}
