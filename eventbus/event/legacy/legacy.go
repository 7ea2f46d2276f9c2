package legacy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// ErrSyntax is returned by [Parse] for a body that is no JSON object.
var ErrSyntax = errors.New("the body is not a JSON object")

var (
	typeName    = regexp.MustCompile(`^[a-zA-Z]+([_\-.]?[a-zA-Z0-9]+)*$`)
	typeVersion = regexp.MustCompile(`^[a-zA-Z0-9]+$`)
	eventID     = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
)

const (
	maxText    = 253
	maxVersion = 4
)

// DetailType is the type of a detail in an error answer.
func DetailType(kind event.Kind) string {
	switch kind {
	case event.Missing:
		return "missing_field"
	case event.TooLong:
		return "invalid_field_length"
	}
	return "invalid_field"
}

// mistakes collects what is wrong with one event.
type mistakes []event.FieldError

func (m *mistakes) add(field string, kind event.Kind, format string, args ...any) {
	*m = append(*m, event.FieldError{Field: field, Detail: fmt.Sprintf(format, args...), Kind: kind})
}

func (m *mistakes) has(field string) bool {
	return slices.ContainsFunc(*m, func(f event.FieldError) bool { return f.Field == field })
}

// Parse reads an event:
//
//	{"source-id", "event-type", "event-type-version", "event-time", "data", "event-id"?}
//
// The CloudEvents type is <event-type>.<event-type-version>. source, if set,
// takes the place of source-id. newID makes the id of an event that has none.
// It returns [ErrSyntax] or an [*event.InvalidError] with every wrong field.
func Parse(body []byte, source string, newID func() string) (event.Event, error) {
	members, err := event.ReadObject(body)
	if err != nil {
		return event.Event{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	var wrong mistakes
	fields := map[string]json.RawMessage{}
	for _, m := range members {
		if m.Twice {
			wrong.add(m.Name, event.Invalid, "is given more than once")
		}
		fields[m.Name] = m.Value
	}
	text := func(field string, limit int, pattern *regexp.Regexp, rule string) string {
		if wrong.has(field) {
			return ""
		}
		var value string
		if raw, ok := fields[field]; ok && json.Unmarshal(raw, &value) != nil {
			wrong.add(field, event.Invalid, "must be a string")
			return ""
		}
		switch {
		case value == "":
			wrong.add(field, event.Missing, "is required")
		case len(value) > limit:
			wrong.add(field, event.TooLong, "is longer than %d characters", limit)
		case pattern != nil && !pattern.MatchString(value):
			wrong.add(field, event.Invalid, "%s", rule)
		default:
			return value
		}
		return ""
	}

	e := event.Event{Source: source, DataContentType: "application/json"}
	if source == "" {
		e.Source = text("source-id", maxText, nil, "")
	}
	name := text("event-type", maxText, typeName, "must consist of letters, digits, '.', '-' and '_' and begin with a letter")
	version := text("event-type-version", maxVersion, typeVersion, "must consist of letters and digits")
	e.Type = name + "." + version
	if at := text("event-time", maxText, nil, ""); at != "" {
		if problem := e.SetAttribute("time", at); problem != "" {
			wrong.add("event-time", event.Invalid, "%s", problem)
		}
	}
	if raw, ok := fields["event-id"]; ok && string(raw) != "null" {
		e.ID = text("event-id", maxText, eventID, "must be a UUID such as 31109198-4d69-4ae0-972d-76117f3748c8")
	} else {
		e.ID = newID()
	}
	switch data := fields["data"]; string(data) {
	case "", "null", `""`:
		if !wrong.has("data") {
			wrong.add("data", event.Missing, "is required and must not be null or empty")
		}
	default:
		e.Data = bytes.Clone(data)
	}
	if len(wrong) > 0 {
		return event.Event{}, &event.InvalidError{Fields: wrong}
	}

	// What the patterns above let through may still be no CloudEvent: a source
	// with control characters, a type too long with its version.
	err = e.Validate()
	if invalid, ok := errors.AsType[*event.InvalidError](err); ok {
		for i, f := range invalid.Fields {
			switch f.Field {
			case "source":
				invalid.Fields[i].Field = "source-id"
			case "type":
				invalid.Fields[i].Field = "event-type"
			}
		}
	}
	return e, err
}

// Type splits a CloudEvents type into the legacy type and version. A type
// whose last part cannot be a version has an empty one.
func Type(eventType string) (name, version string) {
	at := strings.LastIndexByte(eventType, '.')
	if at <= 0 {
		return eventType, ""
	}
	version = eventType[at+1:]
	if len(version) > maxVersion || !typeVersion.MatchString(version) {
		return eventType, ""
	}
	return eventType[:at], version
}

// Write sets the headers of a push; the body is e.Data.
// stored stands in for the time of an event that has none.
func Write(e *event.Event, header http.Header, stored time.Time, subscription string) {
	name, version := Type(e.Type)
	at := e.Time
	if at.IsZero() {
		at = stored
	}
	header.Set("KYMA-Source-ID", event.EncodeHeaderValue(e.Source))
	header.Set("KYMA-Event-Type", event.EncodeHeaderValue(name))
	if version != "" {
		header.Set("KYMA-Event-Type-Version", version)
	}
	header.Set("KYMA-Event-ID", event.EncodeHeaderValue(e.ID))
	header.Set("KYMA-Event-Time", at.Format(time.RFC3339Nano))
	header.Set("Kyma-Subscription", subscription)
	if e.DataContentType != "" {
		header.Set("Content-Type", e.DataContentType)
	}
}
