package webhooks

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxBody of a call: what the event bus takes as an event's data.
	maxBody = 1 << 20
	// maxMemory that the bodies of all calls have together: who has not signed
	// anything yet can send one.
	maxMemory = 64 << 20
	// maxApplication and maxRemote are the parts of it of one application and of one
	// address. An address may be that of a load balancer, with everybody behind it.
	maxApplication = maxMemory / 8
	maxRemote      = maxMemory / 2
	// portion is where the room for a body begins whose length is not known.
	portion = 32 << 10
)

// memory is what bodies take.
type memory struct {
	mu                    sync.Mutex
	all                   int64
	applications, remotes map[string]int64
}

func newMemory() *memory {
	return &memory{applications: map[string]int64{}, remotes: map[string]int64{}}
}

// share is what one body takes of it.
type share struct {
	of                  *memory
	application, remote string
	held                int64
}

// add takes n bytes, or none: false.
func (s *share) add(n int64) bool {
	m := s.of
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all+n > maxMemory || m.applications[s.application]+n > maxApplication || m.remotes[s.remote]+n > maxRemote {
		return false
	}
	m.count(s, n)
	return true
}

// give gives n bytes back.
func (s *share) give(n int64) {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.of.count(s, -n)
}

// count is called with mu held.
func (m *memory) count(s *share, n int64) {
	s.held += n
	m.all += n
	if m.applications[s.application] += n; m.applications[s.application] == 0 {
		delete(m.applications, s.application)
	}
	if m.remotes[s.remote] += n; m.remotes[s.remote] == 0 {
		delete(m.remotes, s.remote)
	}
}

// body reads the body of a call. release ends its use.
func (g *Gateway) body(w http.ResponseWriter, r *http.Request, application string) (body []byte, release func(), _ *refusal) {
	tooLarge := refused(reasonTooLarge, http.StatusRequestEntityTooLarge, "the body is larger than 1 MiB", nil)
	if r.ContentLength > maxBody {
		return nil, nil, tooLarge
	}
	remote, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		remote = r.RemoteAddr
	}
	s := &share{of: g.memory, application: application, remote: remote}
	release = func() { s.give(s.held) }
	// Not every writer has deadlines: those of servers have.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(g.config.BodyTimeout))
	switch body, err = s.read(http.MaxBytesReader(w, r.Body, maxBody), r.ContentLength); {
	case err == nil:
		_ = control.SetReadDeadline(time.Time{}) // the next request has its own
		return body, release, nil
	case errors.Is(err, errNoRoom):
		release()
		return nil, nil, refused(reasonTooMany, http.StatusServiceUnavailable, "too many calls at once: try again", nil)
	}
	release()
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, nil, tooLarge
	}
	return nil, nil, refused(reasonMalformed, http.StatusRequestTimeout, "the body did not come", err)
}

// errNoRoom: others hold the memory.
var errNoRoom = errors.New("no room for the body")

// read reads a body of a length; negative: it is not known.
func (s *share) read(from io.Reader, length int64) ([]byte, error) {
	if length >= 0 {
		if !s.add(length) {
			return nil, errNoRoom
		}
		body := make([]byte, length)
		_, err := io.ReadFull(from, body)
		return body, err
	}
	var body []byte
	for {
		if len(body) == cap(body) {
			before := int64(cap(body))
			size := max(portion, min(2*before, maxBody+1)) // one more, to see the end
			if !s.add(size) {
				return nil, errNoRoom
			}
			grown := make([]byte, len(body), size)
			copy(grown, body)
			body = grown
			s.give(before)
		}
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if errors.Is(err, io.EOF) {
			return body, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
