package inbound

import (
	"net/http"
	"sync"
	"time"
)

// Activity is what an application has sent since it was last asked.
type Activity struct {
	// Events: requests with events that the bus has stored.
	Events    int64
	LastEvent time.Time // zero: none
}

// Add adds what happened later.
func (a *Activity) Add(later Activity) {
	a.Events += later.Events
	if later.LastEvent.After(a.LastEvent) {
		a.LastEvent = later.LastEvent
	}
}

// activity counts by application.
type activity struct {
	mu sync.Mutex
	of map[string]Activity
}

func (a *activity) note(application string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.of[application]
	known.Add(Activity{Events: 1, LastEvent: time.Now()})
	a.of[application] = known
}

// noteAnswer notes a request that the bus has answered.
func (a *activity) noteAnswer(application, method string, status int) {
	if method == http.MethodPost && status >= 200 && status < 300 {
		a.note(application)
	}
}

// TakeActivity returns what happened since it was last called, by application.
func (g *Gateway) TakeActivity() map[string]Activity {
	g.activity.mu.Lock()
	defer g.activity.mu.Unlock()
	all := g.activity.of
	g.activity.of = map[string]Activity{}
	return all
}
