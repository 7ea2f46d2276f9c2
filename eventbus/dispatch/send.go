package dispatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/event/legacy"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

const (
	// maxAnswer is how much of an answer is read so that its connection can be
	// used again; the content does not matter.
	maxAnswer = 64 << 10
	// replayExtension names the replay that an event is delivered by.
	replayExtension = "replay"
	// maxRetryAfter bounds what a sink may ask for.
	maxRetryAfter = time.Hour
)

// Outcome of one request.
type Outcome struct {
	Status     int   // 0 when there was no answer
	Err        error // why there was none
	RetryAfter time.Duration
	Took       time.Duration
	// Probe: the request asked whether the sink is back, and is no attempt unless it
	// is.
	Probe bool
	// Unsent: there was no request, and so no attempt.
	Unsent bool
	// Interrupted: the request was cut off because the dispatcher stops, which says
	// nothing about the sink.
	Interrupted bool

	stale  bool // a probe with an event that was answered before
	closed int  // how often the breaker had closed before
}

func (o Outcome) ok() bool { return o.Err == nil && o.Status >= 200 && o.Status < 300 }

func (o Outcome) text() string {
	switch {
	case o.Err != nil:
		return o.Err.Error()
	case o.Status != 0 && !o.ok():
		return fmt.Sprintf("the sink answered %d %s", o.Status, http.StatusText(o.Status))
	}
	return ""
}

// send sends one event to a sink. letter is set when it is sent as a dead letter.
func (d *Dispatcher) send(sub *Subscription, sink Sink, delivery broker.Delivery, letter *broker.DeadLetter) Outcome {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(d.push, sub.Timeout)
	defer cancel()
	request, body, err := newRequest(ctx, sub, sink, delivery)
	if err != nil {
		return Outcome{Err: err, Unsent: true}
	}
	if letter != nil {
		request.Header.Set("Lambdamesh-Dead-Letter-Reason", letter.Reason)
		request.Header.Set("Lambdamesh-Dead-Letter-Attempts", strconv.Itoa(letter.Attempts))
		request.Header.Set("Lambdamesh-Dead-Letter-Subscription", letter.Subscription)
	}
	if sink.Auth != nil {
		if err := sink.Auth.Authorize(request, messageOf(delivery, letter), body); err != nil {
			return Outcome{Err: err, Took: time.Since(begin), Unsent: true}
		}
	}
	response, err := d.clientOf(sink).Do(request)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the sink did not answer within %s", sub.Timeout)
		} else if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // the URL is known, and may hold a secret
		}
		return Outcome{Err: err, Took: time.Since(begin), Interrupted: d.push.Err() != nil, Unsent: targets.IsRefused(err)}
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, maxAnswer)
	if sink.Auth != nil {
		sink.Auth.Answered(request, response.StatusCode)
	}
	return Outcome{
		Status:     response.StatusCode,
		RetryAfter: retryAfter(response.Header.Get("Retry-After")),
		Took:       time.Since(begin),
	}
}

func (d *Dispatcher) clientOf(sink Sink) *http.Client {
	switch {
	case sink.Mesh:
		return d.mesh
	case sink.Auth != nil && sink.Auth.Transport() != nil:
		return client(sink.Auth.Transport())
	}
	return d.direct
}

// messageOf names an event to its sink: the same event in the same way, however
// often it is sent, and its dead letter in another. It holds no dot, so that where
// it ends can be told in what is signed.
func messageOf(d broker.Delivery, letter *broker.DeadLetter) string {
	if letter != nil {
		return "dead_" + d.Event().Key()
	}
	return "msg_" + d.Event().Key()
}

func newRequest(ctx context.Context, sub *Subscription, sink Sink, delivery broker.Delivery) (request *http.Request, body []byte, err error) {
	e := delivery.Event()
	if replay := delivery.Replay(); replay != "" {
		marked := *e
		marked.Extensions = maps.Clone(e.Extensions)
		if wrong := marked.SetAttribute(replayExtension, replay); wrong != "" {
			return nil, nil, fmt.Errorf("event %s: %s", e.ID, wrong)
		}
		e = &marked
	}
	body = e.Data
	header := http.Header{"User-Agent": {"lambdamesh-eventbus"}}
	switch sub.Format {
	case Structured:
		if body, err = json.Marshal(e); err != nil {
			return nil, nil, fmt.Errorf("event %s: %w", e.ID, err)
		}
		header.Set("Content-Type", event.ContentTypeStructured+"; charset=UTF-8")
	case Legacy:
		legacy.Write(e, header, delivery.Stored(), sub.Name)
	default:
		e.WriteBinary(header)
	}
	for _, name := range []string{"traceparent", "tracestate"} {
		if value, ok := e.Extensions[name]; ok {
			header.Set(name, event.EncodeHeaderValue(value))
		}
	}
	request, err = http.NewRequestWithContext(ctx, http.MethodPost, sink.URL, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("sink %s: %w", sink.URL, err)
	}
	request.Header = header
	return request, body, nil
}

// retryAfter reads a Retry-After header (RFC 9110, section 10.2.3).
func retryAfter(value string) time.Duration {
	var pause time.Duration
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		pause = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		pause = time.Until(at)
	}
	return max(0, min(pause, maxRetryAfter))
}
