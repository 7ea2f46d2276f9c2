package jetstream

import (
	"fmt"
	"slices"
	"sync"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// maxWaiting is how many events of one source may wait. The memory they take is
// bounded by those who accept requests.
const maxWaiting = 10 * maxBatch

// queue holds what waits for the committer, each source's requests apart, so that
// the backlog of one is not what another waits for.
type queue struct {
	wake chan struct{} // holds one: something was added

	mu      sync.Mutex
	sources map[string]*backlog // those with requests
	round   int                 // groups taken
	closed  bool
}

// backlog is what waits of one source, in the order it came.
type backlog struct {
	requests []*request
	events   int
	// turn orders the sources: twice the round that took something last, and one
	// less than that of the last round for one that was not there. So it comes
	// before those whose requests are being written now, and after those that were
	// passed over.
	turn int
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), sources: map[string]*backlog{}}
}

// add appends a request to those of its source, or refuses it.
func (q *queue) add(source string, r *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return fmt.Errorf("%w: shutting down", broker.ErrUnavailable)
	}
	b := q.sources[source]
	switch {
	case b == nil:
		b = &backlog{turn: 2*q.round - 1}
		q.sources[source] = b
	case b.events+len(r.msgs) > maxWaiting:
		return fmt.Errorf("%w: %d of source %q do", broker.ErrBacklog, b.events, source)
	}
	b.requests = append(b.requests, r)
	b.events += len(r.msgs)
	signal(q.wake)
	return nil
}

// take removes the next group: one request of each source in turn, as long as
// they fit. What is larger than any group is one by itself.
func (q *queue) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.sources) == 0 {
		return nil
	}
	q.round++
	names := make([]string, 0, len(q.sources))
	for name := range q.sources {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return q.sources[a].turn - q.sources[b].turn })
	var group []*request
	for count, bytes := 0, 0; len(names) > 0; {
		names = slices.DeleteFunc(names, func(name string) bool {
			b := q.sources[name]
			next := b.requests[0]
			if len(group) > 0 && (count+len(next.msgs) > maxBatch || bytes+next.size > maxBatchBytes) {
				return true
			}
			group = append(group, next)
			count, bytes = count+len(next.msgs), bytes+next.size
			b.requests[0] = nil
			b.requests, b.events, b.turn = b.requests[1:], b.events-len(next.msgs), 2*q.round
			if len(b.requests) == 0 {
				delete(q.sources, name)
			}
			return len(b.requests) == 0
		})
	}
	return group
}

// close refuses what comes later and returns what waits.
func (q *queue) close() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	var rest []*request
	for _, b := range q.sources {
		rest = append(rest, b.requests...)
	}
	clear(q.sources)
	return rest
}
