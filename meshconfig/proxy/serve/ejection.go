package serve

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
)

// health is what an endpoint's connections tell of it.
type health struct {
	failed    atomic.Int64 // connections in a row that were not made
	ejections atomic.Int64 // since one was
	ejected   atomic.Int64 // until when, in Unix nanoseconds
}

func (h *health) away(now int64) bool { return now < h.ejected.Load() }

// note counts what became of an attempt, and ejects an endpoint that takes no
// connections.
func (c *cluster) note(h *host, failure *upstreamError) {
	rule := &c.config.Ejection
	if rule.After == 0 {
		return
	}
	switch {
	case failure == nil:
		if h.health.failed.Load() != 0 {
			h.health.failed.Store(0)
			h.health.ejections.Store(0)
		}
	case (failure.reason == compile.ReasonConnect || failure.waited) && h.health.failed.Add(1) >= int64(rule.After):
		c.eject(h.health)
	}
}

func (c *cluster) eject(h *health) {
	c.ejecting.Lock() // so that two do not take the last part that may be
	defer c.ejecting.Unlock()
	now, rule := time.Now(), &c.config.Ejection
	list, away := c.endpoints.Load().list, 0
	for _, other := range list {
		if other.health.away(now.UnixNano()) {
			away++
		}
	}
	if h.away(now.UnixNano()) || 100*away >= rule.Percent*len(list) {
		return
	}
	until := now.Add(min(rule.For*time.Duration(h.ejections.Add(1)), rule.AtMost)).UnixNano()
	h.ejected.Store(until)
	c.ejected.Store(max(c.ejected.Load(), until))
}

// available are the endpoints to choose from: those that are not ejected, and of
// these the ones that were not tried. Where there are none, all.
func (c *cluster) available(tried []*host) []*host {
	list := c.endpoints.Load().list
	if until := c.ejected.Load(); until != 0 {
		if now := time.Now().UnixNano(); now < until {
			list = without(list, func(h *host) bool { return h.health.away(now) })
		}
	}
	if len(tried) == 0 {
		return list
	}
	return without(list, func(h *host) bool {
		return slices.ContainsFunc(tried, func(t *host) bool { return t.Key == h.Key })
	})
}

// without those of which some holds, unless it holds of all.
func without(list []*host, some func(*host) bool) []*host {
	if left := slices.DeleteFunc(slices.Clone(list), some); len(left) > 0 {
		return left
	}
	return list
}
