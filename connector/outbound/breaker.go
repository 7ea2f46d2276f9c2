package outbound

import (
	"sync"
	"time"
)

const (
	// breakAfter that many calls in a row without an answer a target is left alone
	// for a while.
	breakAfter = 10
	// firstBreak is how long at first; each call that is tried then and fails
	// doubles it, up to longestBreak.
	firstBreak   = time.Second
	longestBreak = 30 * time.Second
)

// breaker keeps calls away from a target that does not answer, so that they do
// not wait for it. When its time is over, one call is let through to see.
type breaker struct {
	mu       sync.Mutex
	failures int
	pause    time.Duration
	until    time.Time // the target is left alone
}

// held returns how long the target is to be left alone, 0 when it may be called.
func (b *breaker) held(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < breakAfter {
		return 0
	}
	if wait := b.until.Sub(now); wait > 0 {
		return wait
	}
	b.until = now.Add(b.pause) // for the others; this call shall see
	return 0
}

// note notes whether a call was answered.
func (b *breaker) note(answered bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if answered {
		b.failures, b.pause = 0, 0
		return
	}
	if b.failures++; b.failures < breakAfter {
		return
	}
	b.pause = min(max(2*b.pause, firstBreak), longestBreak)
	b.until = now.Add(b.pause)
}
