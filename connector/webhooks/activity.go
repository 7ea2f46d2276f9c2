package webhooks

import "time"

// Activity is what came to a webhook since it was last asked.
type Activity struct {
	Events, Refused        int64
	LastEvent, LastRefused time.Time // zero: none
	// Reason of the last refusal.
	Reason string
}

// Add adds what happened later.
func (a *Activity) Add(later Activity) {
	a.Events += later.Events
	a.Refused += later.Refused
	if later.LastEvent.After(a.LastEvent) {
		a.LastEvent = later.LastEvent
	}
	if later.LastRefused.After(a.LastRefused) {
		a.LastRefused, a.Reason = later.LastRefused, later.Reason
	}
}

func (g *Gateway) note(application, name, result string) {
	if result == resultIgnored {
		return
	}
	now := g.config.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.seen[application]
	if of == nil {
		of = map[string]*Activity{}
		g.seen[application] = of
	}
	a := of[name]
	if a == nil {
		a = &Activity{}
		of[name] = a
	}
	if result == resultStored {
		a.Events++
		a.LastEvent = now
		return
	}
	a.Refused++
	a.LastRefused, a.Reason = now, result
}

// TakeActivity returns what happened since it was last called, by application and
// webhook.
func (g *Gateway) TakeActivity() map[string]map[string]Activity {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make(map[string]map[string]Activity, len(g.seen))
	for application, of := range g.seen {
		all[application] = make(map[string]Activity, len(of))
		for name, a := range of {
			all[application][name] = *a
		}
	}
	clear(g.seen)
	return all
}
