package lambda

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"sync"
)

// Response is an answer with a status and headers of its own.
type Response struct {
	// Status defaults to 200.
	Status  int
	Headers http.Header
	// Body is sent as JSON unless it is a string, []byte or io.Reader. Nil
	// sends none.
	Body any
}

// busyDetail is of a 503 of [places].
const busyDetail = "as many invocations wait here as may; try again"

const failedDetail = "the lambda failed; its log tells why under this invocation id"

// respond turns what a handler returned into the answer. An error means that
// nothing was written.
func (c *Context) respond(ctx context.Context, w http.ResponseWriter, result any) error {
	switch result := result.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
		return nil
	case Event:
		return c.respondEvent(ctx, w, &result)
	case *Event:
		if result == nil {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		return c.respondEvent(ctx, w, result)
	case Response:
		return writeResponse(w, result)
	case *Response:
		return writeResponse(w, *result)
	default:
		return writeResponse(w, Response{Body: result})
	}
}

func (c *Context) respondEvent(ctx context.Context, w http.ResponseWriter, event *Event) error {
	if _, err := c.publish(ctx, event); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func writeResponse(w http.ResponseWriter, response Response) error {
	status := response.Status
	if status == 0 {
		status = http.StatusOK
	}
	if status < 200 || status > 999 {
		return fmt.Errorf("response status %d: want 200 to 599", status)
	}
	body, contentType, err := encodeBody(response.Body)
	if err != nil {
		return fmt.Errorf("encode what the handler returned: %w", err)
	}
	maps.Copy(w.Header(), response.Headers.Clone())
	if contentType != "" && w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", contentType)
	}
	w.WriteHeader(status)
	if body != nil {
		_, _ = io.Copy(w, body) // the caller may be gone; nothing to tell
	}
	return nil
}

// writeProblem answers with application/problem+json (RFC 9457).
func writeProblem(w http.ResponseWriter, c *Context, status int, detail string) {
	body, _ := json.Marshal(map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail, "invocation": c.Invocation,
	})
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// guardedWriter lets the deadline answer in place of the handler: what the
// handler writes once it is late goes nowhere. So the caller gets one answer,
// whoever of the two is woken first.
type guardedWriter struct {
	late func() bool // stays true once it is

	mu     sync.Mutex
	inner  http.ResponseWriter
	header http.Header
	status int
	ended  bool
}

func newGuardedWriter(w http.ResponseWriter, late func() bool) *guardedWriter {
	return &guardedWriter{late: late, inner: w, header: http.Header{}}
}

func (g *guardedWriter) Header() http.Header {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.header
}

// reset forgets the headers that the handler has set so far. It is false when
// the answer has begun.
func (g *guardedWriter) reset() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.status != 0 || g.late() {
		return false
	}
	g.header = http.Header{}
	return true
}

func (g *guardedWriter) WriteHeader(status int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.late() {
		g.writeHeader(status)
	}
}

// writeHeader is for callers that found out that it is not late: that is asked
// once per write, as it may become late within one.
func (g *guardedWriter) writeHeader(status int) {
	if g.status != 0 {
		return
	}
	if status >= 200 {
		g.status = status
	}
	maps.Copy(g.inner.Header(), g.header)
	g.inner.WriteHeader(status)
}

func (g *guardedWriter) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.late() {
		return 0, http.ErrHandlerTimeout
	}
	g.writeHeader(http.StatusOK)
	return g.inner.Write(p)
}

// Flush implements [http.Flusher] for handlers that stream.
func (g *guardedWriter) Flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.late() {
		return
	}
	g.writeHeader(http.StatusOK)
	_ = http.NewResponseController(g.inner).Flush()
}

// end says that the handler returned: what it wrote in time is the whole answer.
func (g *guardedWriter) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = !g.late()
}

// shut tells how far the handler came with its answer. If it did not end, it is
// late, and the inner writer is the caller's from now on.
func (g *guardedWriter) shut() (begun, ended bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	begun = g.status != 0
	if !begun && !g.ended {
		g.status = http.StatusGatewayTimeout
	}
	return begun, g.ended
}

// claim takes the inner writer before there is a handler, to answer so.
func (g *guardedWriter) claim(status int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.status = status
}

func (g *guardedWriter) statusCode() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.status == 0 {
		return http.StatusOK
	}
	return g.status
}
