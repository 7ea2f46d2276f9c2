package pairing

import (
	"context"
	"net/http"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	// maxGood certificates of an application at a time: the oldest goes when there
	// is another, so that who renews too often locks nobody out for good.
	maxGood = 32
	// maxListed bounds them with those that were revoked and have not expired.
	maxListed = 64
	// maxTries of a change that others change something before.
	maxTries = 10
)

// list notes a certificate in its application's status.
func (p *Pairing) list(ctx context.Context, application string, issued authority.Issued) error {
	return p.change(ctx, application, func(status *v1alpha1.ApplicationStatus) {
		status.Certificates = Add(status.Certificates, v1alpha1.ClientCertificate{
			Serial: issued.Serial, IssuedAt: metav1.NewTime(p.now()), ExpiresAt: metav1.NewTime(issued.ExpiresAt),
		}, p.now())
	})
}

// revoke notes in the application's status that a certificate is no longer good.
func (p *Pairing) revoke(ctx context.Context, application, serial string) error {
	return p.change(ctx, application, func(status *v1alpha1.ApplicationStatus) {
		for i := range status.Certificates {
			if c := &status.Certificates[i]; c.Serial == serial && c.RevokedAt == nil {
				c.RevokedAt = new(metav1.NewTime(p.now()))
			}
		}
	})
}

// change writes a status in the version that was read, so that no certificate
// that another replica notes at the same time is lost.
func (p *Pairing) change(ctx context.Context, application string, edit func(*v1alpha1.ApplicationStatus)) error {
	var err error
	for range maxTries {
		var app v1alpha1.Application
		err = p.config.Live.Get(ctx, client.ObjectKey{Name: application}, &app)
		if apierrors.IsNotFound(err) {
			return &refusal{http.StatusNotFound, "there is no application " + application + " any more"}
		}
		if err != nil {
			return unavailable(err)
		}
		before := app.DeepCopy()
		edit(&app.Status)
		err = p.config.Objects.Status().Patch(ctx, &app, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
		if !apierrors.IsConflict(err) {
			break
		}
	}
	if err != nil {
		return unavailable(err)
	}
	return nil
}

// Add appends a certificate to a list, and removes what has expired and what is
// too many.
func Add(list []v1alpha1.ClientCertificate, certificate v1alpha1.ClientCertificate, now time.Time) []v1alpha1.ClientCertificate {
	list = append(Current(list, now), certificate)
	remove := func(which func(v1alpha1.ClientCertificate) bool) {
		if i := slices.IndexFunc(list, which); i >= 0 {
			list = slices.Delete(list, i, i+1)
		}
	}
	good := func(c v1alpha1.ClientCertificate) bool { return c.RevokedAt == nil }
	count := 0
	for _, c := range list {
		if good(c) {
			count++
		}
	}
	for ; count > maxGood; count-- {
		remove(good)
	}
	for len(list) > maxListed {
		remove(func(c v1alpha1.ClientCertificate) bool { return !good(c) })
	}
	return list
}

// Current is a list without the certificates that have expired.
func Current(list []v1alpha1.ClientCertificate, now time.Time) []v1alpha1.ClientCertificate {
	return slices.DeleteFunc(slices.Clone(list), func(c v1alpha1.ClientCertificate) bool { return !now.Before(c.ExpiresAt.Time) })
}
