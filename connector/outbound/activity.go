package outbound

import (
	"sync"
	"time"
)

// Activity is what happened to an application's calls since it was last asked.
type Activity struct {
	Calls, Errors       int64
	LastCall, LastError time.Time // zero: none
	// Message of the last error; it names no credentials.
	Message string
}

// Add adds what happened later.
func (a *Activity) Add(later Activity) {
	a.Calls += later.Calls
	a.Errors += later.Errors
	if later.LastCall.After(a.LastCall) {
		a.LastCall = later.LastCall
	}
	if later.LastError.After(a.LastError) {
		a.LastError, a.Message = later.LastError, later.Message
	}
}

// activity counts by application.
type activity struct {
	mu sync.Mutex
	of map[string]*Activity
}

func newActivity() *activity { return &activity{of: map[string]*Activity{}} }

// note notes a call; message is empty where it was none of the errors.
func (a *activity) note(application, message string) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	known := a.of[application]
	if known == nil {
		known = &Activity{}
		a.of[application] = known
	}
	known.Calls++
	known.LastCall = now
	if message != "" {
		known.Errors++
		known.LastError, known.Message = now, message
	}
}

// TakeActivity returns what happened since it was last called, by application.
func (g *Gateway) TakeActivity() map[string]Activity {
	g.activity.mu.Lock()
	defer g.activity.mu.Unlock()
	all := make(map[string]Activity, len(g.activity.of))
	for application, of := range g.activity.of {
		all[application] = *of
	}
	clear(g.activity.of)
	return all
}
