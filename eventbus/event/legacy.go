package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// Kinds of details in a legacy error answer.
const (
	LegacyMissingField  = "missing_field"
	LegacyInvalidField  = "invalid_field"
	LegacyInvalidLength = "invalid_field_length"
)

// ErrSyntax is returned by [ParseLegacy] for a body that is no JSON object.
var ErrSyntax = errors.New("the body is not a JSON object")

var (
	legacyType    = regexp.MustCompile(`^[a-zA-Z]+([_\-.]?[a-zA-Z0-9]+)*$`)
	legacyVersion = regexp.MustCompile(`^[a-zA-Z0-9]+$`)
	legacyID      = regexp.MustCompile(`^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$`)
)

const (
	maxLegacyText    = 253
	maxLegacyVersion = 4
)

// LegacyKind is the legacy detail type of a field error.
func (f FieldError) LegacyKind() string {
	if f.kind == "" {
		return LegacyInvalidField
	}
	return f.kind
}

// ParseLegacy reads an event in the format that came before CloudEvents:
//
//	{"source-id", "event-type", "event-type-version", "event-time", "data", "event-id"?}
//
// The CloudEvents type is <event-type>.<event-type-version>. source, if set,
// takes the place of source-id. newID makes the id of an event that has none.
// It returns [ErrSyntax] or an [*InvalidError] with every wrong field.
func ParseLegacy(body []byte, source string, newID func() string) (Event, error) {
	members, err := readObject(body)
	if err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	var p problems
	fields := map[string]json.RawMessage{}
	for _, m := range members {
		if m.twice {
			p.add(m.name, "is given more than once")
		}
		fields[m.name] = m.value
	}
	text := func(field string, limit int, pattern *regexp.Regexp, rule string) string {
		if p.has(field) {
			return ""
		}
		var value string
		if raw, ok := fields[field]; ok && json.Unmarshal(raw, &value) != nil {
			p.add(field, "must be a string")
			return ""
		}
		switch {
		case value == "":
			p = append(p, FieldError{Field: field, Detail: "is required", kind: LegacyMissingField})
		case len(value) > limit:
			p = append(p, FieldError{Field: field, Detail: fmt.Sprintf("is longer than %d characters", limit), kind: LegacyInvalidLength})
		case pattern != nil && !pattern.MatchString(value):
			p.add(field, "%s", rule)
		default:
			return value
		}
		return ""
	}

	e := Event{Source: source, DataContentType: "application/json"}
	if source == "" {
		e.Source = text("source-id", maxLegacyText, nil, "")
	}
	name := text("event-type", maxLegacyText, legacyType, "must consist of letters, digits, '.', '-' and '_' and begin with a letter")
	version := text("event-type-version", maxLegacyVersion, legacyVersion, "must consist of letters and digits")
	e.Type = name + "." + version
	if at := text("event-time", maxLegacyText, nil, ""); at != "" {
		if wrong := e.SetAttribute("time", at); wrong != "" {
			p.add("event-time", "%s", wrong)
		}
	}
	if raw, ok := fields["event-id"]; ok && string(raw) != "null" {
		e.ID = text("event-id", maxLegacyText, legacyID, "must be a UUID such as 31109198-4d69-4ae0-972d-76117f3748c8")
	} else {
		e.ID = newID()
	}
	switch data := fields["data"]; string(data) {
	case "", "null", `""`:
		if !p.has("data") {
			p = append(p, FieldError{Field: "data", Detail: "is required and must not be null or empty", kind: LegacyMissingField})
		}
	default:
		e.Data = bytes.Clone(data)
	}
	if len(p) > 0 {
		return Event{}, p.err()
	}

	// What the patterns above let through may still be no CloudEvent: a source
	// with control characters, a type too long with its version.
	e.validate(&p)
	for i, f := range p {
		switch f.Field {
		case "source":
			p[i].Field = "source-id"
		case "type":
			p[i].Field = "event-type"
		}
	}
	return e, p.err()
}

// LegacyType splits a CloudEvents type into the legacy type and version. A type
// whose last part cannot be a version has an empty one.
func LegacyType(eventType string) (name, version string) {
	at := strings.LastIndexByte(eventType, '.')
	if at <= 0 {
		return eventType, ""
	}
	version = eventType[at+1:]
	if len(version) > maxLegacyVersion || !legacyVersion.MatchString(version) {
		return eventType, ""
	}
	return eventType[:at], version
}

// WriteLegacy sets the headers of the legacy push format; the body is e.Data.
// stored stands in for the time of an event that has none.
func (e *Event) WriteLegacy(header http.Header, stored time.Time, subscription string) {
	name, version := LegacyType(e.Type)
	at := e.Time
	if at.IsZero() {
		at = stored
	}
	header.Set("KYMA-Source-ID", EncodeHeaderValue(e.Source))
	header.Set("KYMA-Event-Type", EncodeHeaderValue(name))
	if version != "" {
		header.Set("KYMA-Event-Type-Version", version)
	}
	header.Set("KYMA-Event-ID", EncodeHeaderValue(e.ID))
	header.Set("KYMA-Event-Time", at.Format(time.RFC3339Nano))
	header.Set("Kyma-Subscription", subscription)
	if e.DataContentType != "" {
		header.Set("Content-Type", e.DataContentType)
	}
}
