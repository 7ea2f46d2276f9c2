package dispatch

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

const (
	// flushEvery is how long an attempt that nobody waits for may stay unwritten.
	flushEvery = time.Second
	// maxUnwritten attempts are written at once; what nobody waits for is dropped
	// beyond it: the journal explains, and must not hold up deliveries.
	maxUnwritten = 1000
	// journalTimeout is how long writing or reading the journal may take.
	journalTimeout = 5 * time.Second
	// Those that came to their end are remembered for so long after a restart: what
	// was delivered and not acknowledged comes again soon.
	recentEnd = 2 * time.Minute
	// maxErrorText of an attempt is kept.
	maxErrorText = 256
)

// Attempts keeps attempts over restarts, as many as fit.
type Attempts interface {
	StoreAttempts(ctx context.Context, attempts []broker.Attempt) error
	// Attempts calls handle for those that are stored behind a position, in order,
	// and returns the position behind them; 0 is before all.
	Attempts(ctx context.Context, after uint64, handle func(*broker.Attempt)) (position uint64, err error)
}

// journal writes the attempts of all subscriptions, many at a time.
type journal struct {
	store Attempts // nil: there is none
	log   *slog.Logger

	mu      sync.Mutex
	batch   *batch
	failing bool
	urgent  chan struct{}

	reading  sync.Mutex
	position uint64
	read     map[string]ledger // by consumer, of those whose runner has not begun
}

// batch of attempts that are written together.
type batch struct {
	attempts []broker.Attempt
	written  chan struct{} // closed when they are, or could not be
}

func newBatch() *batch { return &batch{written: make(chan struct{})} }

func newJournal(store Attempts, log *slog.Logger) *journal {
	return &journal{store: store, log: log, batch: newBatch(), urgent: make(chan struct{}, 1), read: map[string]ledger{}}
}

// add takes an attempt that will be written soon.
func (j *journal) add(a *broker.Attempt) {
	if j.store == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch n := len(j.batch.attempts); {
	case n >= 2*maxUnwritten:
		return
	case n >= maxUnwritten/2:
		j.hurry()
	}
	j.batch.attempts = append(j.batch.attempts, *a)
}

// write takes an attempt and returns when it is written, or could not be.
func (j *journal) write(ctx context.Context, a *broker.Attempt) {
	if j.store == nil {
		return
	}
	j.mu.Lock()
	b := j.batch
	b.attempts = append(b.attempts, *a)
	j.hurry()
	j.mu.Unlock()
	select {
	case <-b.written:
	case <-ctx.Done():
	}
}

// hurry lets the batch be written now.
func (j *journal) hurry() {
	select {
	case j.urgent <- struct{}{}:
	default:
	}
}

// run writes until ctx ends, and then what is left.
func (j *journal) run(ctx context.Context) {
	if j.store == nil {
		return
	}
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-j.urgent:
		case <-ctx.Done():
		}
		j.flush(context.WithoutCancel(ctx))
	}
}

func (j *journal) flush(ctx context.Context) {
	j.mu.Lock()
	b := j.batch
	if len(b.attempts) == 0 {
		j.mu.Unlock()
		return
	}
	j.batch = newBatch()
	j.mu.Unlock()
	defer close(b.written)
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	for attempts := b.attempts; len(attempts) > 0; {
		n := min(len(attempts), maxUnwritten)
		err := j.store.StoreAttempts(ctx, attempts[:n])
		if attempts = attempts[n:]; err == nil {
			j.failing = false
			continue
		}
		if !j.failing { // one line per fact
			j.failing = true
			j.log.Warn("attempts could not be written: they are counted anew after a restart, and cannot be explained", "error", err)
		}
		return
	}
}

// history returns what is known of the events of a consumer.
func (j *journal) history(ctx context.Context, consumer string) ledger {
	if j.store == nil {
		return ledger{}
	}
	j.reading.Lock()
	defer j.reading.Unlock()
	ctx, cancel := context.WithTimeout(ctx, journalTimeout)
	defer cancel()
	position, err := j.store.Attempts(ctx, j.position, func(a *broker.Attempt) {
		l, ok := j.read[a.Consumer]
		if !ok {
			l = ledger{}
			j.read[a.Consumer] = l
		}
		if a.Done() && time.Since(a.At) > recentEnd {
			delete(l, identity{sequence: a.Sequence, stored: a.Stored.UnixNano(), key: a.Key})
			return
		}
		l.restore(a)
	})
	j.position = position
	if err != nil {
		j.log.Warn("attempts of before could not be read: they are counted anew", "error", err)
	}
	known, ok := j.read[consumer]
	if !ok {
		return ledger{}
	}
	delete(j.read, consumer)
	return known
}

// forget drops what was read of a consumer that is deleted.
func (j *journal) forget(consumer string) {
	j.reading.Lock()
	defer j.reading.Unlock()
	delete(j.read, consumer)
}
