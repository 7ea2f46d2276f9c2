package ingress

import (
	"container/list"
	"sync"
	"time"
)

// DefaultMaxBufferedBytes is how much of requests is in memory at once.
const DefaultMaxBufferedBytes = 128 << 20

// patience is how long a body may take to arrive before it makes room for another
// of the same caller when the budget is used up.
const patience = 2 * time.Second

// Budget bounds the memory that requests take, of all handlers that share it.
// Bytes are taken as they arrive, so that who announces much and sends little
// takes little. When nothing is left, the caller that holds the most makes room: a
// body of it that is still arriving, the one that began first. When that is who
// wants more, only a body of its own that has been arriving for long makes room;
// when there is none, it is refused.
type Budget struct {
	mu      sync.Mutex
	free    int64
	reading list.List        // of *share, those that began first in front
	holds   map[string]int64 // of callers that hold anything
}

// NewBudget makes one of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{free: bytes, holds: map[string]int64{}} }

// share is what one request has of the budget.
type share struct {
	budget *Budget
	caller string
	begun  time.Time
	// interrupt ends a read that waits for bytes.
	interrupt func()

	held    int64
	place   *list.Element // in reading; nil when the body is complete
	evicted bool
}

// open makes a share of the caller for a body that is about to be read.
func (b *Budget) open(caller string, interrupt func()) *share {
	s := &share{budget: b, caller: caller, begun: time.Now(), interrupt: interrupt}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.place = b.reading.PushBack(s)
	return s
}

// take takes n more bytes. False: there is no room, or others were given what
// this share had.
func (s *share) take(n int64) bool {
	b := s.budget
	b.mu.Lock()
	var interrupted []func()
	for !s.evicted && n > b.free {
		victim, ok := b.victim(s, n)
		if !ok {
			break
		}
		b.evict(victim)
		interrupted = append(interrupted, victim.interrupt)
	}
	ok := !s.evicted && n <= b.free
	if ok {
		s.hold(n)
	}
	b.mu.Unlock()
	for _, interrupt := range interrupted {
		interrupt()
	}
	return ok
}

// victim is the body that makes room for n more bytes of the share.
func (b *Budget) victim(wants *share, n int64) (*share, bool) {
	var victim *share
	most := b.holds[wants.caller] + n
	for e := b.reading.Front(); e != nil; e = e.Next() {
		s, _ := e.Value.(*share)
		switch holds := b.holds[s.caller]; {
		case s == wants || s.held == 0:
		case s.caller != wants.caller && holds > most:
			victim, most = s, holds
		case s.caller == wants.caller && victim == nil && time.Since(s.begun) >= patience:
			victim = s
		}
	}
	return victim, victim != nil
}

// hold takes n bytes, or gives -n back.
func (s *share) hold(n int64) {
	b := s.budget
	s.held += n
	b.free -= n
	if b.holds[s.caller] += n; b.holds[s.caller] == 0 {
		delete(b.holds, s.caller)
	}
}

func (b *Budget) evict(s *share) {
	s.evicted = true
	s.hold(-s.held)
	b.leave(s)
}

func (b *Budget) leave(s *share) {
	if s.place != nil {
		b.reading.Remove(s.place)
		s.place = nil
	}
}

// giveBack returns n bytes.
func (s *share) giveBack(n int64) {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	s.hold(-min(n, s.held))
}

// settle makes the share n bytes, more or fewer than it has.
func (s *share) settle(n int64) bool {
	s.budget.mu.Lock()
	more := n - s.held
	s.budget.mu.Unlock()
	if more > 0 {
		return s.take(more)
	}
	s.giveBack(-more)
	return true
}

// complete says that the body is here: the share makes no more room for others.
// False: it has already.
func (s *share) complete() bool {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	s.budget.leave(s)
	return !s.evicted
}

// lost reports whether the share has made room for others.
func (s *share) lost() bool {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	return s.evicted
}

// close returns everything.
func (s *share) close() {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	s.budget.leave(s)
	s.hold(-s.held)
}
