package lambda

import (
	"context"
	"sync/atomic"
)

// waitingPerPlace is how many invocations may wait for each that runs; the same
// in every language.
const waitingPerPlace = 10

// places bounds how many invocations run at once.
type places struct {
	taken   chan struct{} // nil: no bound
	waiting atomic.Int64
}

func newPlaces(concurrency int) *places {
	if concurrency == 0 {
		return &places{}
	}
	return &places{taken: make(chan struct{}, concurrency)}
}

// take waits for a place; ok is false when as many wait as may, or ctx ends.
func (p *places) take(ctx context.Context) (leave func(), ok bool) {
	if p.taken == nil {
		return func() {}, true
	}
	leave = func() { <-p.taken }
	select {
	case p.taken <- struct{}{}:
		return leave, true
	default:
	}
	if p.waiting.Add(1) > int64(waitingPerPlace*cap(p.taken)) {
		p.waiting.Add(-1)
		return nil, false
	}
	defer p.waiting.Add(-1)
	select {
	case p.taken <- struct{}{}:
		return leave, true
	case <-ctx.Done():
		return nil, false
	}
}
