package stan

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// A message of NATS Streaming has no headers, so they are part of its payload:
//
//	lambdamesh/1 <kind>\n
//	<name>: <value, percent-encoded>\n
//	...
//	\n
//	<data>
//
// Attributes of an event are prefixed as they are in headers of HTTP and NATS.
const (
	magic           = "lambdamesh/1 "
	attributePrefix = "ce-"

	kindEvent      = "event"
	kindDeadLetter = "deadletter"
	kindMarker     = "marker"
)

// message is what one message of a channel holds.
type message struct {
	kind   string
	header map[string]string
	data   []byte
}

func (m *message) encode() []byte {
	var b bytes.Buffer
	b.WriteString(magic + m.kind + "\n")
	for _, name := range slices.Sorted(maps.Keys(m.header)) {
		b.WriteString(name + ": " + event.EncodeHeaderValue(m.header[name]) + "\n")
	}
	b.WriteByte('\n')
	b.Write(m.data)
	return b.Bytes()
}

func decode(payload []byte) (message, error) {
	var m message
	head, data, ok := bytes.Cut(payload, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if m.kind, _ = strings.CutPrefix(lines[0], magic); !ok || m.kind == lines[0] {
		return m, fmt.Errorf("it does not begin with %q and headers", magic)
	}
	m.header = make(map[string]string, len(lines)-1)
	var errs []error
	for _, line := range lines[1:] {
		name, encoded, ok := strings.Cut(line, ": ")
		value, err := event.DecodeHeaderValue(encoded)
		_, twice := m.header[name]
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("header %s %w", name, err))
		case !ok || twice:
			errs = append(errs, fmt.Errorf("header %q is incomplete or given twice", name))
		default:
			m.header[name] = value
		}
	}
	if len(data) > 0 {
		m.data = data
	}
	return m, errors.Join(errs...)
}

func eventMessage(e *event.Event) *message {
	m := &message{kind: kindEvent, header: map[string]string{}, data: e.Data}
	for name, value := range e.Attributes() {
		m.header[attributePrefix+name] = value
	}
	return m
}

// event reads the event that the message is, or that is in the dead letter. It
// does not validate: what was accepted once is delivered, whatever the rules are
// by then. With an error it returns what could be read.
func (m *message) event() (event.Event, error) {
	var e event.Event
	var errs []error
	for key, value := range m.header {
		if name, ok := strings.CutPrefix(key, attributePrefix); ok {
			if wrong := e.SetAttribute(name, value); wrong != "" {
				errs = append(errs, fmt.Errorf("header %s %s", key, wrong))
			}
		}
	}
	e.Data = m.data
	if len(errs) == 0 {
		errs = append(errs, e.CheckStored())
	}
	return e, errors.Join(errs...)
}

// readEvent reads the event in a payload. With an error it returns what could be
// read; marker says that it is none and was not meant to be one.
func readEvent(payload []byte) (e event.Event, marker bool, err error) {
	m, err := decode(payload)
	if err == nil && m.kind == kindMarker {
		return e, true, nil
	}
	e, eventErr := m.event()
	if err == nil {
		err = eventErr
	}
	return e, false, err
}

// key tells messages of a channel apart: those with the same key are the same
// event, or the same dead letter.
type key [16]byte

func (m *message) key() key {
	e := event.Event{Source: m.header[attributePrefix+"source"], ID: m.header[attributePrefix+"id"]}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s %s", m.kind, e.Key(), m.header[broker.HeaderConsumer], m.header[broker.HeaderSequence], m.header[headerMarker]))
	return key(sum[:16])
}
