package serve

import (
	"sync"
	"sync/atomic"
	"time"
)

// sharedFor is how long something is kept that nobody asks for.
const sharedFor = 10 * time.Minute

// shared is what filters keep from one request to the next, also while the
// configuration that they are from is replaced by another that says the same.
type shared struct{ all sync.Map } // of *kept, by key

type kept struct {
	value any
	used  atomic.Int64 // seconds
}

func (s *shared) get(key string, create func() any) any {
	now := time.Now().Unix()
	found, ok := s.all.Load(key)
	if !ok {
		found, _ = s.all.LoadOrStore(key, &kept{value: create()})
	}
	k, _ := found.(*kept) // the map holds nothing else
	if k.used.Load() != now {
		k.used.Store(now)
	}
	return k.value
}

// forget what was not asked for.
func (s *shared) forget(now time.Time) {
	limit := now.Add(-sharedFor).Unix()
	s.all.Range(func(key, value any) bool {
		if k, ok := value.(*kept); ok && k.used.Load() < limit {
			s.all.Delete(key)
		}
		return true
	})
}
