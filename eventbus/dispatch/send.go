package dispatch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/event/legacy"
)

const (
	// maxAnswer is how much of an answer is read so that its connection can be
	// used again; the content does not matter.
	maxAnswer = 64 << 10
	// maxRetryAfter bounds what a sink may ask for.
	maxRetryAfter = time.Hour
)

// outcome of one push.
type outcome struct {
	status     int // 0 when there was no answer
	err        error
	retryAfter time.Duration
	took       time.Duration
}

func (o outcome) ok() bool { return o.err == nil && o.status >= 200 && o.status < 300 }

// delivered tells a success from the zero value.
func (o outcome) delivered() bool { return o.status != 0 && o.ok() }

func (o outcome) text() string {
	switch {
	case o.err != nil:
		return o.err.Error()
	case o.status != 0 && !o.ok():
		return fmt.Sprintf("the sink answered %d %s", o.status, http.StatusText(o.status))
	}
	return ""
}

// post sends one event to a sink. letter is set when it is sent as a dead letter.
func (d *Dispatcher) post(sub *Subscription, sink Sink, delivery broker.Delivery, letter *broker.DeadLetter) outcome {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(d.push, sub.Timeout)
	defer cancel()
	request, err := newRequest(ctx, sub, sink, delivery)
	if err != nil {
		return outcome{err: err}
	}
	if letter != nil {
		request.Header.Set("Lambdamesh-Dead-Letter-Reason", letter.Reason)
		request.Header.Set("Lambdamesh-Dead-Letter-Attempts", strconv.Itoa(letter.Attempts))
		request.Header.Set("Lambdamesh-Dead-Letter-Subscription", letter.Subscription)
	}
	client := d.direct
	if sink.Mesh {
		client = d.mesh
	}
	response, err := client.Do(request)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("the sink did not answer within %s", sub.Timeout)
		} else if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // the URL is known, and may hold a secret
		}
		return outcome{err: err, took: time.Since(begin)}
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, maxAnswer)
	return outcome{
		status:     response.StatusCode,
		retryAfter: retryAfter(response.Header.Get("Retry-After")),
		took:       time.Since(begin),
	}
}

func newRequest(ctx context.Context, sub *Subscription, sink Sink, delivery broker.Delivery) (*http.Request, error) {
	e := delivery.Event()
	body := e.Data
	header := http.Header{"User-Agent": {"lambdamesh-eventbus"}}
	switch sub.Format {
	case Structured:
		var err error
		if body, err = json.Marshal(e); err != nil {
			return nil, fmt.Errorf("event %s: %w", e.ID, err)
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
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, sink.URL, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("sink %s: %w", sink.URL, err)
	}
	request.Header = header
	return request, nil
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
