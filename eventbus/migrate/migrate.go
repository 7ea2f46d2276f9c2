package migrate

import (
	"context"
	"fmt"
	"time"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// Source is the store that is left.
type Source interface {
	// Events calls handle for every event that is stored now, in order.
	Events(ctx context.Context, handle func(*event.Event) error) error
	DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]broker.DeadLetter, error)
}

// Target is the store that is moved to.
type Target interface {
	// Keys calls handle with the key of every event that is stored now.
	Keys(ctx context.Context, handle func(key string) error) error
	DeadLetters(ctx context.Context, consumer string, after uint64, limit int) ([]broker.DeadLetter, error)
	Publish(ctx context.Context, events []event.Event) ([]broker.Receipt, error)
	StoreDeadLetter(ctx context.Context, letter *broker.DeadLetter) error
}

// Count says how far a pass is.
type Count struct {
	Copied  int // stored in the target by this pass
	Present int // were there already
}

// Progress of a pass.
type Progress struct {
	Events      Count
	DeadLetters Count
}

func (p Progress) String() string {
	return fmt.Sprintf("events: %d copied, %d were there; dead letters: %d copied, %d were there",
		p.Events.Copied, p.Events.Present, p.DeadLetters.Copied, p.DeadLetters.Present)
}

const (
	// A batch shares one write to disk.
	batchEvents = 500
	batchBytes  = 4 << 20
	// pageLetters is how many dead letters are in memory at once.
	pageLetters = 50
	reportEvery = 2 * time.Second
)

// Run copies what source has and target has not, and calls report now and then.
// When it fails, what it copied stays; run it again for the rest. It keeps 100
// bytes of memory for each event.
func Run(ctx context.Context, source Source, target Target, report func(Progress)) (Progress, error) {
	p := pass{source: source, target: target, report: report, reported: time.Now(), present: map[string]struct{}{}}
	if err := p.events(ctx); err != nil {
		return p.progress, fmt.Errorf("migrate events: %w", err)
	}
	if err := p.deadLetters(ctx); err != nil {
		return p.progress, fmt.Errorf("migrate dead letters: %w", err)
	}
	return p.progress, nil
}

type pass struct {
	source   Source
	target   Target
	report   func(Progress)
	reported time.Time
	progress Progress
	present  map[string]struct{} // keys of the target
	batch    []event.Event
	bytes    int
}

func (p *pass) events(ctx context.Context) error {
	err := p.target.Keys(ctx, func(key string) error {
		p.present[key] = struct{}{}
		return nil
	})
	if err != nil {
		return err
	}
	err = p.source.Events(ctx, func(e *event.Event) error {
		key := e.Key()
		if _, ok := p.present[key]; ok {
			p.progress.Events.Present++
			p.tell()
			return nil
		}
		p.present[key] = struct{}{}
		p.batch = append(p.batch, *e)
		p.bytes += len(e.Data)
		if len(p.batch) < batchEvents && p.bytes < batchBytes {
			return nil
		}
		return p.flush(ctx)
	})
	if err != nil {
		return err
	}
	return p.flush(ctx)
}

func (p *pass) flush(ctx context.Context) error {
	if len(p.batch) == 0 {
		return nil
	}
	if _, err := p.target.Publish(ctx, p.batch); err != nil {
		return err
	}
	p.progress.Events.Copied += len(p.batch)
	p.batch, p.bytes = nil, 0
	p.tell()
	return nil
}

func (p *pass) tell() {
	if time.Since(p.reported) >= reportEvery {
		p.reported = time.Now()
		p.report(p.progress)
	}
}

// letterKey is the same for a dead letter and its copy.
func letterKey(l *broker.DeadLetter) string {
	return fmt.Sprintf("%s %d %s", l.Consumer, l.Sequence, l.Event.Key())
}

func (p *pass) deadLetters(ctx context.Context) error {
	present := map[string]struct{}{}
	err := pages(ctx, p.target.DeadLetters, func(l *broker.DeadLetter) error {
		present[letterKey(l)] = struct{}{}
		return nil
	})
	if err != nil {
		return err
	}
	return pages(ctx, p.source.DeadLetters, func(l *broker.DeadLetter) error {
		key := letterKey(l)
		if _, ok := present[key]; ok {
			p.progress.DeadLetters.Present++
			return nil
		}
		if err := p.target.StoreDeadLetter(ctx, l); err != nil {
			return err
		}
		present[key] = struct{}{}
		p.progress.DeadLetters.Copied++
		p.tell()
		return nil
	})
}

type lister func(ctx context.Context, consumer string, after uint64, limit int) ([]broker.DeadLetter, error)

func pages(ctx context.Context, list lister, handle func(*broker.DeadLetter) error) error {
	for after := uint64(0); ; {
		letters, err := list(ctx, "", after, pageLetters)
		if err != nil || len(letters) == 0 {
			return err
		}
		for i := range letters {
			if err := handle(&letters[i]); err != nil {
				return err
			}
		}
		after = letters[len(letters)-1].ID
	}
}
