package pairing

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// errToken is what who has no good token is told, whatever is wrong with it.
func errToken() error {
	return &refusal{http.StatusForbidden, "the token is unknown, was used or has expired: request another"}
}

// request returns the TokenRequest of a token that can be used.
func (p *Pairing) request(ctx context.Context, token string) (*v1alpha1.TokenRequest, error) {
	key, ok := requestOf(token)
	if !ok {
		return nil, errToken()
	}
	var request v1alpha1.TokenRequest
	err := p.config.Objects.Get(ctx, key, &request)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return nil, fmt.Errorf("read TokenRequest %s: %w", key, err)
	case err == nil && (request.Status.TokenHash != "" || request.Status.UsedAt != nil):
		return &request, p.usable(&request, token)
	}
	// Made a moment ago, or nonsense; of the latter there may be a lot.
	if !p.unheard.Allow() {
		return nil, &refusal{http.StatusTooManyRequests, "too many unknown tokens: try again"}
	}
	return p.live(ctx, key, token)
}

// live is request, past the cache.
func (p *Pairing) live(ctx context.Context, key types.NamespacedName, token string) (*v1alpha1.TokenRequest, error) {
	var request v1alpha1.TokenRequest
	err := p.config.Live.Get(ctx, key, &request)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsInvalid(err):
		return nil, errToken()
	case err != nil:
		return nil, unavailable(err)
	}
	return &request, p.usable(&request, token)
}

func (p *Pairing) usable(request *v1alpha1.TokenRequest, token string) error {
	s := request.Status
	if !sameHash(s.TokenHash, TokenHash(token)) || s.UsedAt != nil || s.ExpiresAt == nil || !p.now().Before(s.ExpiresAt.Time) ||
		!request.DeletionTimestamp.IsZero() {
		return errToken()
	}
	return nil
}

// use marks the token as used. Of several who try at once one succeeds: the mark
// is made in the version of the object that was read.
func (p *Pairing) use(ctx context.Context, key types.NamespacedName, token string) error {
	request, err := p.live(ctx, key, token)
	if err != nil {
		return err
	}
	before := request.DeepCopy()
	request.Status.UsedAt = new(metav1.NewTime(p.now()))
	request.Status.TokenHash = ""
	err = p.config.Objects.Status().Patch(ctx, request, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return errToken()
	case err != nil:
		return unavailable(err)
	}
	p.removeSecret(ctx, before)
	return nil
}

// removeSecret removes the Secret with the token. The controller does it, too,
// should this fail.
func (p *Pairing) removeSecret(ctx context.Context, request *v1alpha1.TokenRequest) {
	if request.Status.SecretName == "" {
		return
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: request.Namespace, Name: request.Status.SecretName}}
	if err := p.config.Objects.Delete(ctx, secret); client.IgnoreNotFound(err) != nil {
		p.config.Log.Warn("the Secret of a used token is still there", "namespace", secret.Namespace, "secret", secret.Name, "error", err)
	}
}
