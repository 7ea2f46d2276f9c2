package stream

import (
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

func decode(header nats.Header, data []byte) (event.Event, error) {
	var e event.Event
	for key, values := range header {
		name, ok := strings.CutPrefix(key, attributePrefix)
		if !ok {
			continue
		}
		if len(values) != 1 {
			return e, fmt.Errorf("header %s is given %d times", key, len(values))
		}
		value, err := event.DecodeHeaderValue(values[0])
		if err != nil {
			return e, fmt.Errorf("header %s %w", key, err)
		}
		if wrong := e.SetAttribute(name, value); wrong != "" {
			return e, fmt.Errorf("header %s %s", key, wrong)
		}
	}
	if len(data) > 0 {
		e.Data = data
	}
	return e, e.Validate()
}
