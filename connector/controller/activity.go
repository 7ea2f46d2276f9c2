package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/inbound"
	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/connector/webhooks"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
)

const (
	// activityEvery is how often the statuses are written of applications that were
	// called, and activityWrites how many at most.
	activityEvery  = 10 * time.Second
	activityWrites = 50
	// lastActivity is written within that when the connector stops.
	lastActivity = 3 * time.Second
)

// Activity says what happened to applications since it was last asked, by
// application; what is nil does not happen here.
type Activity struct {
	// Calls of lambdas.
	Calls func() map[string]outbound.Activity
	// Events that they sent.
	Events func() map[string]inbound.Activity
	// Webhooks of theirs that were called, by name.
	Webhooks func() map[string]map[string]webhooks.Activity
}

// happened is what happened to one application and is not in its status yet.
type happened struct {
	calls    outbound.Activity
	events   inbound.Activity
	webhooks map[string]webhooks.Activity
}

// NewActivity makes the component that writes what happened to applications into
// their statuses. Every replica has one, and adds what it saw.
func NewActivity(c client.Client, take Activity, log *slog.Logger) component.Component {
	a := &activity{client: c, takes: take, log: log, pending: map[string]*happened{}}
	return component.New("connector activity", a.run)
}

type activity struct {
	client  client.Client
	takes   Activity
	log     *slog.Logger
	pending map[string]*happened
}

func (a *activity) run(ctx context.Context, ready func()) error {
	ready()
	ticker := time.NewTicker(activityEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastActivity)
			defer cancel()
			a.write(last)
			return nil
		case <-ticker.C:
			a.write(ctx)
		}
	}
}

// of is what is pending for an application.
func (a *activity) of(application string) *happened {
	h := a.pending[application]
	if h == nil {
		h = &happened{webhooks: map[string]webhooks.Activity{}}
		a.pending[application] = h
	}
	return h
}

// take adds what happened meanwhile to what is pending.
func (a *activity) take() {
	if a.takes.Calls != nil {
		for name, seen := range a.takes.Calls() {
			a.of(name).calls.Add(seen)
		}
	}
	if a.takes.Events != nil {
		for name, seen := range a.takes.Events() {
			a.of(name).events.Add(seen)
		}
	}
	if a.takes.Webhooks == nil {
		return
	}
	for name, hooks := range a.takes.Webhooks() {
		of := a.of(name).webhooks
		for hook, seen := range hooks {
			all := of[hook]
			all.Add(seen)
			of[hook] = all
		}
	}
}

func (a *activity) write(ctx context.Context) {
	a.take()
	names := slices.Sorted(maps.Keys(a.pending))
	for _, name := range names[:min(len(names), activityWrites)] {
		err := a.add(ctx, name, a.pending[name])
		if err != nil && !apierrors.IsNotFound(err) {
			a.log.Debug("what happened to an application is not in its status yet", "application", name, "error", err)
			continue // with the next
		}
		delete(a.pending, name)
	}
}

// add adds to the counters, unless somebody else did at the same time.
func (a *activity) add(ctx context.Context, name string, seen *happened) error {
	var app v1alpha1.Application
	if err := a.client.Get(ctx, client.ObjectKey{Name: name}, &app); err != nil {
		return err
	}
	before := app.DeepCopy()
	seen.addTo(&app)
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := a.client.Status().Patch(ctx, &app, patch); err != nil {
		return fmt.Errorf("writing what happened to Application %s: %w", name, err)
	}
	return nil
}

func (h *happened) addTo(app *v1alpha1.Application) {
	if h.calls.Calls > 0 {
		if app.Status.Calls == nil {
			app.Status.Calls = &v1alpha1.CallStatus{}
		}
		calls := app.Status.Calls
		calls.Total += h.calls.Calls
		calls.Errors += h.calls.Errors
		later(&calls.LastCall, h.calls.LastCall)
		if later(&calls.LastError, h.calls.LastError) {
			calls.LastErrorMessage = h.calls.Message
		}
	}
	if h.events.Events > 0 {
		if app.Status.Events == nil {
			app.Status.Events = &v1alpha1.EventStatus{}
		}
		app.Status.Events.Total += h.events.Events
		later(&app.Status.Events.LastEvent, h.events.LastEvent)
	}
	if len(h.webhooks) > 0 {
		app.Status.Webhooks = h.webhooksOf(app)
	}
}

// webhooksOf is the status of the webhooks that there are, with what happened.
func (h *happened) webhooksOf(app *v1alpha1.Application) (all []v1alpha1.WebhookStatus) {
	for i := range app.Spec.Webhooks {
		status := v1alpha1.WebhookStatus{Name: app.Spec.Webhooks[i].Name}
		known := slices.IndexFunc(app.Status.Webhooks, func(s v1alpha1.WebhookStatus) bool { return s.Name == status.Name })
		if known >= 0 {
			status = app.Status.Webhooks[known]
		}
		seen, called := h.webhooks[status.Name]
		status.Events += seen.Events
		status.Refused += seen.Refused
		later(&status.LastEvent, seen.LastEvent)
		if later(&status.LastRefused, seen.LastRefused) {
			status.LastRefusedReason = seen.Reason
		}
		if known >= 0 || called {
			all = append(all, status)
		}
	}
	return all
}

func later(at **metav1.Time, than time.Time) bool {
	if than.IsZero() || *at != nil && !than.After((*at).Time) {
		return false
	}
	*at = &metav1.Time{Time: than}
	return true
}
