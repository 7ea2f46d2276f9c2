package lambda

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// Event is what a handler is called with: one HTTP request, and when the event
// bus sent it, its CloudEvents attributes. A handler that returns an Event
// publishes it; then only the attributes, Extensions and Data count, and what
// is empty gets a default (see [Context.Publish]).
type Event struct {
	// ID, Source, Type, Subject, SpecVersion, DataContentType and DataSchema
	// are CloudEvents attributes (CloudEvents 1.0, section 3); empty when the
	// request is no event.
	ID, Source, Type, Subject, SpecVersion, DataContentType, DataSchema string
	// Time is when the occurrence happened; zero when the event names none.
	Time time.Time
	// Extensions are the CloudEvents extension attributes.
	Extensions map[string]string
	// Data is the payload: parsed when it is JSON, a string when it is text,
	// bytes otherwise, nil when there is none. Use [Event.Decode] to read JSON
	// into a type of yours.
	Data any
	// IsEvent tells whether the call is an event: whether the event bus made it.
	// Anybody else's is a plain request, whatever its headers or body say.
	IsEvent bool

	// Method, Path, Query, Header and Body are the HTTP request as it came.
	Method, Path string
	Query        url.Values
	Headers      http.Header
	Body         []byte

	payload []byte
}

// Decode reads the JSON payload into what into points to.
func (e *Event) Decode(into any) error {
	payload := e.payload
	if payload == nil && e.Data != nil {
		var err error
		if payload, err = json.Marshal(e.Data); err != nil {
			return fmt.Errorf("decode event data: %w", err)
		}
	}
	if len(payload) == 0 {
		return errors.New("decode event data: there is no data")
	}
	if err := json.Unmarshal(payload, into); err != nil {
		return fmt.Errorf("decode event data: %w", err)
	}
	return nil
}

const (
	structuredType = "application/cloudevents+json"
	batchType      = "application/cloudevents-batch+json"
)

// requestError is a request that never reaches the handler.
type requestError struct {
	status int
	detail string
}

func (e *requestError) Error() string { return e.detail }

// parseEvent reads a plain request or, when the event bus sent it, the CloudEvents
// HTTP binding (binary and structured mode) or the legacy KYMA-* headers.
func parseEvent(r *http.Request, body []byte, fromEventBus bool) (*Event, error) {
	e := &Event{
		Method: r.Method, Path: r.URL.Path, Query: r.URL.Query(), Headers: r.Header, Body: body,
		Extensions: map[string]string{},
	}
	contentType := r.Header.Get("Content-Type")
	if !fromEventBus {
		return e, e.setPayload(body, contentType)
	}
	switch mediaType := mediaTypeOf(contentType); {
	case mediaType == batchType:
		return nil, &requestError{http.StatusUnsupportedMediaType, "a lambda takes one event at a time; batches go to the event bus"}
	case mediaType == structuredType:
		if err := e.readStructured(body); err != nil {
			return nil, &requestError{http.StatusBadRequest, "not a CloudEvent: " + err.Error()}
		}
		return e, nil
	case r.Header.Get("Ce-Specversion") != "":
		e.readBinary(r.Header)
	case r.Header.Get("Kyma-Event-Type") != "":
		e.readLegacy(r.Header)
	}
	if e.IsEvent {
		e.DataContentType = firstOf(e.DataContentType, contentType)
	}
	return e, e.setPayload(body, contentType)
}

func (e *Event) readBinary(header http.Header) {
	e.IsEvent = true
	for name, values := range header {
		attribute, found := strings.CutPrefix(strings.ToLower(name), "ce-")
		if !found || len(values) == 0 {
			continue
		}
		// Header values are percent-encoded, CloudEvents HTTP binding 3.1.3.2.
		value := values[0]
		if decoded, err := url.PathUnescape(value); err == nil && utf8.ValidString(decoded) {
			value = decoded
		}
		e.setAttribute(attribute, value)
	}
}

func (e *Event) readLegacy(header http.Header) {
	e.IsEvent = true
	e.SpecVersion = "1.0"
	e.Type = header.Get("Kyma-Event-Type")
	if version := header.Get("Kyma-Event-Type-Version"); version != "" {
		e.Type += "." + version
	}
	e.Source, e.ID = header.Get("Kyma-Source-ID"), header.Get("Kyma-Event-ID")
	e.setAttribute("time", header.Get("Kyma-Event-Time"))
}

func (e *Event) setAttribute(name, value string) {
	switch name {
	case "id":
		e.ID = value
	case "source":
		e.Source = value
	case "type":
		e.Type = value
	case "subject":
		e.Subject = value
	case "specversion":
		e.SpecVersion = value
	case "datacontenttype":
		e.DataContentType = value
	case "dataschema":
		e.DataSchema = value
	case "time":
		e.Time, _ = time.Parse(time.RFC3339Nano, value)
	default:
		e.Extensions[name] = value
	}
}

func (e *Event) readStructured(body []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return err
	}
	e.IsEvent = true
	for name, raw := range fields {
		if name == "data" || name == "data_base64" {
			continue
		}
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = string(raw)
		}
		e.setAttribute(name, text)
	}
	if e.SpecVersion == "" || e.Type == "" {
		return errors.New("specversion and type are required")
	}
	if encoded, found := fields["data_base64"]; found {
		var text string
		if err := json.Unmarshal(encoded, &text); err != nil {
			return fmt.Errorf("data_base64: %w", err)
		}
		decoded, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return fmt.Errorf("data_base64: %w", err)
		}
		return e.setPayload(decoded, e.DataContentType)
	}
	data, found := fields["data"]
	if !found || bytes.Equal(data, []byte("null")) {
		return nil
	}
	e.payload = data
	return json.Unmarshal(data, &e.Data)
}

// setPayload makes Data from the payload's bytes and media type.
func (e *Event) setPayload(payload []byte, contentType string) error {
	if len(payload) == 0 {
		return nil
	}
	e.payload = payload
	mediaType := mediaTypeOf(contentType)
	switch {
	case isJSON(mediaType) || mediaType == "" && e.IsEvent && json.Valid(payload):
		if err := json.Unmarshal(payload, &e.Data); err != nil {
			return &requestError{http.StatusBadRequest, "the body says it is JSON and is not"}
		}
	case isText(mediaType) && utf8.Valid(payload):
		e.Data = string(payload)
	default:
		e.Data = payload
	}
	return nil
}

func mediaTypeOf(contentType string) string {
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		mediaType, _, _ = strings.Cut(contentType, ";")
	}
	return strings.ToLower(strings.TrimSpace(mediaType))
}

func isJSON(mediaType string) bool {
	return mediaType == "application/json" || strings.HasSuffix(mediaType, "+json")
}

func isText(mediaType string) bool {
	return strings.HasPrefix(mediaType, "text/") || mediaType == "application/x-www-form-urlencoded" ||
		mediaType == "application/xml" || strings.HasSuffix(mediaType, "+xml")
}
