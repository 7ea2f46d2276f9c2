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

	"github.com/lambdamesh/lambdamesh/connector/outbound"
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

// NewActivity makes the component that writes what happened to applications' calls
// into their statuses. Every replica has one, and adds what it saw. take returns
// what happened since it was last asked, by application.
func NewActivity(c client.Client, take func() map[string]outbound.Activity, log *slog.Logger) component.Component {
	a := &activity{client: c, take: take, log: log}
	return component.New("connector activity", a.run)
}

type activity struct {
	client  client.Client
	take    func() map[string]outbound.Activity
	log     *slog.Logger
	pending map[string]outbound.Activity
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

func (a *activity) write(ctx context.Context) {
	if a.pending == nil {
		a.pending = map[string]outbound.Activity{}
	}
	for name, seen := range a.take() {
		all := a.pending[name]
		all.Add(seen)
		a.pending[name] = all
	}
	names := slices.Sorted(maps.Keys(a.pending))
	for _, name := range names[:min(len(names), activityWrites)] {
		err := a.add(ctx, name, a.pending[name])
		if err != nil && !apierrors.IsNotFound(err) {
			a.log.Debug("the calls of an application are not in its status yet", "application", name, "error", err)
			continue // with the next
		}
		delete(a.pending, name)
	}
}

// add adds to the counters, unless somebody else did at the same time.
func (a *activity) add(ctx context.Context, name string, seen outbound.Activity) error {
	var app v1alpha1.Application
	if err := a.client.Get(ctx, client.ObjectKey{Name: name}, &app); err != nil {
		return err
	}
	before := app.DeepCopy()
	calls := app.Status.Calls
	if calls == nil {
		calls = &v1alpha1.CallStatus{}
		app.Status.Calls = calls
	}
	calls.Total += seen.Calls
	calls.Errors += seen.Errors
	later(&calls.LastCall, seen.LastCall)
	if later(&calls.LastError, seen.LastError) {
		calls.LastErrorMessage = seen.Message
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := a.client.Status().Patch(ctx, &app, patch); err != nil {
		return fmt.Errorf("writing the calls of Application %s: %w", name, err)
	}
	return nil
}

func later(at **metav1.Time, than time.Time) bool {
	if than.IsZero() || *at != nil && !than.After((*at).Time) {
		return false
	}
	*at = &metav1.Time{Time: than}
	return true
}
