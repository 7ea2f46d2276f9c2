package ingress

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// How long the answer of a TokenReview counts, and how many are remembered.
const (
	tokenTTL  = 30 * time.Second
	maxTokens = 4096
)

// TokenReviewer asks the API server whose token it is; it is
// kubernetes.Interface's AuthenticationV1().TokenReviews().
type TokenReviewer interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// Tokens knows callers by a service-account token in the Authorization header.
type Tokens struct {
	reviewer   TokenReviewer
	publishers Publishers

	mu    sync.Mutex
	known map[[sha256.Size]byte]verdict
}

type verdict struct {
	caller Caller
	err    error
	until  time.Time
}

// NewTokens returns an authorizer that asks reviewer. publishers may be nil.
func NewTokens(reviewer TokenReviewer, publishers Publishers) *Tokens {
	return &Tokens{reviewer: reviewer, publishers: publishers, known: map[[sha256.Size]byte]verdict{}}
}

// Authorize implements [Authorizer].
func (t *Tokens) Authorize(r *http.Request) (Caller, error) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return Caller{}, ErrUnauthenticated
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return Caller{}, ErrUnauthenticated
	}
	key := sha256.Sum256([]byte(token))
	now := time.Now()
	t.mu.Lock()
	v, ok := t.known[key]
	t.mu.Unlock()
	if ok && now.Before(v.until) {
		return v.caller, v.err
	}

	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	review, err := t.reviewer.Create(r.Context(), review, metav1.CreateOptions{})
	if err != nil {
		return Caller{}, fmt.Errorf("%w: ask the API server about a token: %w", errNoVerdict, err)
	}
	v = verdict{err: ErrUnauthenticated, until: now.Add(tokenTTL)}
	if review.Status.Authenticated {
		v.caller, v.err = serviceAccount(review.Status.User.Username, t.publishers)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= maxTokens {
		clear(t.known)
	}
	t.known[key] = v
	return v.caller, v.err
}

func serviceAccount(user string, publishers Publishers) (Caller, error) {
	rest, ok := strings.CutPrefix(user, "system:serviceaccount:")
	namespace, name, cut := strings.Cut(rest, ":")
	if !ok || !cut {
		return Caller{}, ErrUnauthenticated
	}
	return workload(user, namespace, name, publishers), nil
}
