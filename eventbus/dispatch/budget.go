package dispatch

import (
	"math"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

const (
	// defaultBudget is taken where the process has no memory limit.
	defaultBudget = 256 << 20
	// memoryShare is the part of the process's memory limit (GOMEMLIMIT) that
	// pushes may take; bodies being received, caches and garbage take the rest.
	memoryShare = 4
	// maxMessage is the largest event as a broker keeps it, attributes included.
	maxMessage = event.MaxEventBytes + 128<<10
	// pushBytes is what a push costs beside its event: a connection with its
	// buffers and goroutines.
	pushBytes = 16 << 10
)

// budgetOf is how many bytes may be in flight to sinks.
func budgetOf(configured int64) int64 {
	if configured <= 0 {
		configured = defaultBudget
		if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
			configured = limit / memoryShare
		}
	}
	return max(configured, 4*maxMessage)
}

// budget is the memory that events in flight to sinks may take, and how it is
// shared.
//
// One half is shared by those who want more than one event at a time, and nobody
// may hold more than twice what is left of it: neither a namespace, nor a
// subscription of what its namespace may. So few get much and many get less,
// without anybody counting them, and there is always something left for the next.
// The other half is for first events: a subscription that has nothing in flight
// gets one in the order of asking. A sink that hangs thus holds up only itself.
type budget struct {
	total int64

	mu      sync.Mutex
	used    int64
	byNS    map[string]int64
	first   []*account         // those that wait for their first event, in order
	waiting map[*account]int64 // those that got nothing, and how much they need
}

func newBudget(total int64) *budget {
	return &budget{total: total, byNS: map[string]int64{}, waiting: map[*account]int64{}}
}

// account is the part of a budget that one subscription has.
type account struct {
	b         *budget
	namespace string
	wake      func() // something was given back; must not block
	used      int64  // guarded by b.mu
}

func (b *budget) account(namespace string, wake func()) *account {
	return &account{b: b, namespace: namespace, wake: wake}
}

// idle reports whether nothing is held.
func (a *account) idle() bool {
	a.b.mu.Lock()
	defer a.b.mu.Unlock()
	return a.used == 0
}

// reserve takes at most want bytes and returns how many; 0 when there are not
// even least: then the account is woken when there are.
func (a *account) reserve(want, least int64) int64 {
	b := a.b
	b.mu.Lock()
	defer b.mu.Unlock()
	least = min(least, b.total)
	if a.used == 0 && !slices.Contains(b.first, a) {
		b.first = append(b.first, a) // nobody behind it gets a first event before
	}
	room := b.room(a)
	if room < least {
		b.waiting[a] = least
		return 0
	}
	if a.used == 0 {
		room = max(least, min(room, a.shared()))
	}
	got := min(max(want, least), room)
	a.add(got)
	return got
}

// room is what an account may take now. Call it with mu held.
func (b *budget) room(a *account) int64 {
	room := b.total - b.used
	switch {
	case a.used > 0:
		return min(room, a.shared())
	case b.first[0] == a:
		return room
	}
	return 0
}

// shared is what the account may take of the shared half. Call it with mu held.
func (a *account) shared() int64 {
	most := 2 * max(0, a.b.total/2-a.b.used)
	ofNamespace := most - a.b.byNS[a.namespace]
	return ofNamespace - a.used
}

// charge takes bytes that are in memory already.
func (a *account) charge(n int64) {
	a.b.mu.Lock()
	defer a.b.mu.Unlock()
	a.add(n)
}

// add changes what is held. Call it with mu held.
func (a *account) add(n int64) {
	a.used += n
	a.b.used += n
	if a.b.byNS[a.namespace] += n; a.b.byNS[a.namespace] == 0 {
		delete(a.b.byNS, a.namespace)
	}
	if n > 0 {
		a.leave() // no longer its first
	}
}

// release gives bytes back.
func (a *account) release(n int64) {
	if n == 0 {
		return
	}
	a.b.mu.Lock()
	defer a.b.mu.Unlock()
	a.add(-n)
	a.b.wakeReady()
}

// withdraw ends the account's waiting.
func (a *account) withdraw() {
	a.b.mu.Lock()
	defer a.b.mu.Unlock()
	delete(a.b.waiting, a)
	a.leave()
}

// leave gives the account's turn to the next. Call it with mu held.
func (a *account) leave() {
	if at := slices.Index(a.b.first, a); at >= 0 {
		a.b.first = slices.Delete(a.b.first, at, at+1)
		a.b.wakeReady()
	}
}

// wakeReady lets those ask again that would get something now. Call it with mu
// held.
func (b *budget) wakeReady() {
	for a, least := range b.waiting {
		if a.used == 0 && !slices.Contains(b.first, a) || b.room(a) >= least {
			delete(b.waiting, a)
			a.wake()
		}
	}
}

// size is about what an event, or what is stored instead, takes in memory until it
// is done with.
func size(format Format, e *event.Event, bad *broker.Unreadable) int64 {
	n := len(e.Data)
	if format == Structured {
		n += len(e.Data) * 4 / 3 // the body is another copy
	}
	n += len(e.ID) + len(e.Source) + len(e.Type) + len(e.Subject) + len(e.DataContentType) + len(e.DataSchema)
	for name, value := range e.Extensions {
		n += len(name) + len(value)
	}
	if bad != nil {
		n += len(bad.Data)
	}
	return int64(n) + pushBytes
}
