package controller

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// The condition Paired tells of the certificate that lasts longest, and comes back
// when that is to change.
func TestPairedWarnsBeforeTheLastCertificateExpires(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	const day = 24 * time.Hour
	certificate := func(serial string, left time.Duration) v1alpha1.ClientCertificate {
		return v1alpha1.ClientCertificate{Serial: serial, IssuedAt: metav1.NewTime(now.Add(-90 * day)), ExpiresAt: metav1.NewTime(now.Add(left))}
	}
	revoked := certificate("ff", 80*day)
	revoked.RevokedAt = new(metav1.NewTime(now))
	for name, c := range map[string]struct {
		certificates []v1alpha1.ClientCertificate
		status       metav1.ConditionStatus
		reason, says string
		again        time.Duration
	}{
		"none":                        {nil, metav1.ConditionFalse, ReasonNotPaired, "lambdamesh pair shop", 0},
		"a fresh one":                 {[]v1alpha1.ClientCertificate{certificate("a", 90*day)}, metav1.ConditionTrue, ReasonPaired, "2026-06-02T05:06:07Z", 76 * day},
		"a day before the warning":    {[]v1alpha1.ClientCertificate{certificate("a", 15*day)}, metav1.ConditionTrue, ReasonPaired, "2026-03-19", day},
		"the warning":                 {[]v1alpha1.ClientCertificate{certificate("a", 14*day)}, metav1.ConditionTrue, ReasonCertificateExpires, "2026-03-18T05:06:07Z", 14 * day},
		"renewed":                     {[]v1alpha1.ClientCertificate{certificate("a", day), certificate("b", 60*day)}, metav1.ConditionTrue, ReasonPaired, "2026-05-03", 46 * day},
		"the renewed one was revoked": {[]v1alpha1.ClientCertificate{certificate("a", day), revoked}, metav1.ConditionTrue, ReasonCertificateExpires, "2026-03-05", day},
		"and by the spec":             {[]v1alpha1.ClientCertificate{certificate("a", day), certificate("ee", 80*day)}, metav1.ConditionTrue, ReasonCertificateExpires, "2026-03-05", day},
		"at its end":                  {[]v1alpha1.ClientCertificate{certificate("a", 0)}, metav1.ConditionFalse, ReasonCertificateExpired, "pair it again", 0},
		"expired":                     {[]v1alpha1.ClientCertificate{certificate("a", -day)}, metav1.ConditionFalse, ReasonCertificateExpired, "2026-03-03", 0},
	} {
		t.Run(name, func(t *testing.T) {
			app := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
			app.Spec.RevokedCertificates = []string{"ee"}
			app.Status.Certificates = c.certificates
			again := (&applications{now: func() time.Time { return now }}).paired(app)
			condition := meta.FindStatusCondition(app.Status.CommonStatus.Conditions, v1alpha1.ConditionPaired)
			require.NotNil(t, condition)
			require.Equal(t, c.status, condition.Status)
			require.Equal(t, c.reason, condition.Reason)
			require.Contains(t, condition.Message, c.says)
			require.Equal(t, c.again, again)
		})
	}
}

// A TokenRequest goes an hour after its token was used or has expired, and no
// sooner.
func TestTokenRequestsThatAreOverAreRemoved(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for name, c := range map[string]struct {
		used, expires time.Duration // since then; used 0: not
		reason        string
		again         time.Duration // 0: it is gone
	}{
		"used":             {30 * time.Minute, 25 * time.Minute, ReasonUsed, 30 * time.Minute},
		"used long ago":    {time.Hour, 55 * time.Minute, "", 0},
		"expired":          {0, 10 * time.Minute, ReasonExpired, 50 * time.Minute},
		"expired long ago": {0, 25 * time.Hour, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			scheme, err := kube.Scheme()
			require.NoError(t, err)
			request := &v1alpha1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pair", UID: "1"}}
			request.Status.SecretName, request.Status.TokenHash = "token", "hash"
			request.Status.ExpiresAt = new(metav1.NewTime(now.Add(-c.expires)))
			if c.used > 0 {
				request.Status.UsedAt = new(metav1.NewTime(now.Add(-c.used)))
			}
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "token"}}
			objects := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(request).WithObjects(request, secret).Build()
			r := &tokenRequests{client: objects, live: objects, now: func() time.Time { return now }, log: slog.New(slog.DiscardHandler)}
			result, err := r.Reconcile(t.Context(), request)
			require.NoError(t, err)
			require.True(t, apierrors.IsNotFound(objects.Get(t.Context(), client.ObjectKeyFromObject(secret), secret)), "the Secret goes at once")
			require.Equal(t, c.again, result.RequeueAfter)
			err = objects.Get(t.Context(), client.ObjectKeyFromObject(request), request)
			if c.again == 0 {
				require.True(t, apierrors.IsNotFound(err))
				return
			}
			require.NoError(t, err)
			require.Empty(t, request.Status.TokenHash)
			require.Equal(t, c.reason, meta.FindStatusCondition(request.Status.CommonStatus.Conditions, v1alpha1.ConditionReady).Reason)
		})
	}
}
