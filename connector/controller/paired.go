package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/pairing"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	status "github.com/lambdamesh/lambdamesh/pkg/reconcile"
)

// Reasons of the condition Paired.
const (
	ReasonPaired             = "Paired"
	ReasonNotPaired          = "NotPaired"
	ReasonCertificateExpires = "CertificateExpires"
	ReasonCertificateExpired = "CertificateExpired"
)

// warnBefore is how long before its end an application's last certificate is
// talked about: who renews has done so by then.
const warnBefore = 14 * 24 * time.Hour

// prune removes the certificates that have expired, in the version of the status
// that was read: another may be noted at the same time.
func (r *applications) prune(ctx context.Context, app *v1alpha1.Application) error {
	current := pairing.Current(app.Status.Certificates, r.now())
	// The last one that expired tells why the application is no longer paired.
	if len(current) == 0 || len(current) == len(app.Status.Certificates) {
		return nil
	}
	before := app.DeepCopy()
	app.Status.Certificates = current
	err := r.client.Status().Patch(ctx, app, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove expired certificates from the status of Application %s: %w", app.Name, err)
	}
	return nil
}

// paired sets the condition Paired and returns when it changes by itself, 0 for
// never. An application that is not paired may be ready all the same: not every
// one sends events.
func (r *applications) paired(app *v1alpha1.Application) (again time.Duration) {
	now := r.now()
	var last *v1alpha1.ClientCertificate
	for i := range app.Status.Certificates {
		c := &app.Status.Certificates[i]
		if c.RevokedAt == nil && !slices.Contains(app.Spec.RevokedCertificates, c.Serial) && (last == nil || last.ExpiresAt.Before(&c.ExpiresAt)) {
			last = c
		}
	}
	set := func(value metav1.ConditionStatus, reason, message string) {
		status.Set(app, v1alpha1.ConditionPaired, value, reason, message)
	}
	if last == nil {
		set(metav1.ConditionFalse, ReasonNotPaired, "no client certificate is good: pair it with `lambdamesh pair "+app.Name+" --out DIR`, or make a TokenRequest")
		return 0
	}
	end := last.ExpiresAt.Time
	told := end.UTC().Format(time.RFC3339)
	switch left := end.Sub(now); {
	case left <= 0:
		set(metav1.ConditionFalse, ReasonCertificateExpired, fmt.Sprintf("the last client certificate has expired at %s: pair it again", told))
		return 0
	case left <= warnBefore:
		set(metav1.ConditionTrue, ReasonCertificateExpires, fmt.Sprintf("the last client certificate expires at %s: the paired system should have renewed it", told))
		return left
	default:
		set(metav1.ConditionTrue, ReasonPaired, "the last client certificate expires at "+told)
		return left - warnBefore
	}
}
