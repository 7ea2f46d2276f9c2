package outbound

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/lru"
)

// maxLimiters are kept; who has not called for the longest begins anew.
const maxLimiters = 1 << 14

// shares are how many calls of each lambda are under way. All come over
// connections of one sidecar, so the listener cannot tell them apart: without
// shares one lambda's slow bodies would take all places.
type shares struct {
	each int

	mu  sync.Mutex
	has map[caller]int
}

func newShares(each int) *shares { return &shares{each: each, has: map[caller]int{}} }

func (s *shares) enter(who caller) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[who] >= s.each {
		return false
	}
	s.has[who]++
	return true
}

func (s *shares) leave(who caller) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.has[who]--; s.has[who] == 0 {
		delete(s.has, who)
	}
}

// rateLimit of the calls of one lambda to a service; the zero value is none.
type rateLimit struct {
	every time.Duration // of a call
	burst int
}

// limits are the rates of lambdas to services.
type limits struct {
	mu    sync.Mutex
	cache *lru.Cache // of *rate.Limiter, by limitKey
}

// limitKey holds the limit, too: a changed one begins anew.
type limitKey struct {
	who                  caller
	application, service string
	limit                rateLimit
}

func newLimits() *limits { return &limits{cache: lru.New(maxLimiters)} }

// take takes one call, or returns when there will be one.
func (l *limits) take(who caller, application, service string, limit rateLimit) (wait time.Duration) {
	if limit.burst == 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := limitKey{who, application, service, limit}
	value, _ := l.cache.Get(key)
	limiter, ok := value.(*rate.Limiter)
	if !ok {
		limiter = rate.NewLimiter(rate.Every(limit.every), limit.burst)
		l.cache.Add(key, limiter)
	}
	now := time.Now()
	reservation := limiter.ReserveN(now, 1)
	if wait = reservation.DelayFrom(now); wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}
