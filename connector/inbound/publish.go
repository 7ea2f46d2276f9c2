package inbound

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// DedupWindow is how long the event bus is asked to know the ids of events that
// were published with [Gateway.Publish]: as long as a third-party system may send
// one again.
const DedupWindow = 7 * 24 * time.Hour

// Event is a CloudEvent of an application.
type Event struct {
	ID, Type string
	Subject  string    // optional
	Time     time.Time // zero: none
	// ContentType of Data.
	ContentType string
	Data        []byte
}

// AnswerError is an answer of the event bus that is no success.
type AnswerError struct {
	Status int
	// Detail that the bus gave, shortened.
	Detail string
}

// Error implements error.
func (e *AnswerError) Error() string {
	return fmt.Sprintf("the event bus answers %d: %s", e.Status, e.Detail)
}

// Permanent reports whether the event would be refused again.
func (e *AnswerError) Permanent() bool {
	switch e.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return true
	}
	return false
}

// Publish stores an event of an application in the event bus, and returns when it
// is there. One with an id of the last [DedupWindow] is there already, which is a
// success. The error is an [*AnswerError] when the bus refused it.
func (g *Gateway) Publish(ctx context.Context, application string, event *Event) error {
	to := *g.bus
	to.Path = "/" + application + "/events"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), bytes.NewReader(event.Data))
	if err != nil {
		return fmt.Errorf("publish for %s: %w", application, err)
	}
	for name, value := range map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": event.ID, "Ce-Source": application, "Ce-Type": event.Type, "Ce-Subject": event.Subject,
	} {
		if value != "" {
			request.Header.Set(name, encode(value))
		}
	}
	if !event.Time.IsZero() {
		request.Header.Set("Ce-Time", event.Time.UTC().Format(time.RFC3339Nano))
	}
	request.Header.Set("Content-Type", event.ContentType)
	request.Header.Set(headers.DedupWindow, DedupWindow.String())
	answer, err := g.transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("publish for %s: %w", application, err)
	}
	defer answer.Body.Close()
	detail, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))    // for people
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 4<<10)) // so that the connection is used again
	if answer.StatusCode != http.StatusAccepted {
		return &AnswerError{Status: answer.StatusCode, Detail: string(detail)}
	}
	g.activity.note(application)
	return nil
}

// encode writes an attribute as a header (CloudEvents HTTP binding, section
// 3.1.3.2).
func encode(value string) string {
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c == '"' || c == '%' || c > '~' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
