package stan

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

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
	for _, line := range lines[1:] {
		name, encoded, ok := strings.Cut(line, ": ")
		value, err := event.DecodeHeaderValue(encoded)
		if err != nil {
			return m, fmt.Errorf("header %s %w", name, err)
		}
		if _, twice := m.header[name]; !ok || twice {
			return m, fmt.Errorf("header %q is incomplete or given twice", name)
		}
		m.header[name] = value
	}
	if len(data) > 0 {
		m.data = data
	}
	return m, nil
}

func eventMessage(e *event.Event) *message {
	m := &message{kind: kindEvent, header: map[string]string{}, data: e.Data}
	for name, value := range e.Attributes() {
		m.header[attributePrefix+name] = value
	}
	return m
}

// event reads the event that the message is, or that is in the dead letter.
func (m *message) event() (event.Event, error) {
	var e event.Event
	for key, value := range m.header {
		if name, ok := strings.CutPrefix(key, attributePrefix); ok {
			if wrong := e.SetAttribute(name, value); wrong != "" {
				return e, fmt.Errorf("header %s %s", key, wrong)
			}
		}
	}
	e.Data = m.data
	return e, e.Validate()
}

// key tells messages of a channel apart: those with the same key are the same
// event, or the same dead letter.
type key [16]byte

func (m *message) key() key {
	e := event.Event{Source: m.header[attributePrefix+"source"], ID: m.header[attributePrefix+"id"]}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %s %s", m.kind, e.Key(), m.header[headerConsumer], m.header[headerSequence], m.header[headerMarker]))
	return key(sum[:16])
}
