package webhooks

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
)

const (
	// maxBody of a call: what the event bus takes as an event's data.
	maxBody = 1 << 20
	// maxMemory that the bodies of all calls have together: who has not signed
	// anything yet can send one.
	maxMemory = 64 << 20
	// portion by which a body is read: who sends slowly holds what was sent.
	portion = 32 << 10
)

// memory is what bodies may still take.
type memory struct{ left int64 }

func (m *memory) take(n int64) bool {
	if atomic.AddInt64(&m.left, -n) >= 0 {
		return true
	}
	atomic.AddInt64(&m.left, n)
	return false
}

func (m *memory) give(n int64) { atomic.AddInt64(&m.left, n) }

// body reads the body of a call. release ends its use.
func (g *Gateway) body(w http.ResponseWriter, r *http.Request) (body []byte, release func(), _ *refusal) {
	tooLarge := refused(reasonTooLarge, http.StatusRequestEntityTooLarge, "the body is larger than 1 MiB", nil)
	if r.ContentLength > maxBody {
		return nil, nil, tooLarge
	}
	var held int64
	release = func() { g.memory.give(held) }
	limited := http.MaxBytesReader(w, r.Body, maxBody)
	for {
		if cap(body)-len(body) == 0 {
			// Doubled, as append does: the old one is still there while it is copied.
			more := max(portion, int64(cap(body)))
			if !g.memory.take(more) {
				release()
				return nil, nil, refused(reasonTooMany, http.StatusServiceUnavailable, "too many calls at once: try again", nil)
			}
			held += more
			grown := make([]byte, len(body), int64(cap(body))+more)
			copy(grown, body)
			body = grown
		}
		n, err := limited.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case errors.Is(err, io.EOF):
			return body, release, nil
		case err != nil:
			release()
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				return nil, nil, tooLarge
			}
			return nil, nil, refused(reasonMalformed, http.StatusRequestTimeout, "the body did not come", err)
		}
	}
}
