package ads

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Identity is a Kubernetes service account.
type Identity struct {
	Namespace, ServiceAccount string
	// Pod and PodUID that a token is bound to; empty when it is bound to none.
	Pod, PodUID string
}

func (i Identity) String() string { return i.Namespace + "/" + i.ServiceAccount }

// covers says whether who has proved to be other may be who i asks for: the same
// account and, where i names a pod, that very pod.
func (i Identity) covers(other Identity) bool {
	if i.Pod == "" {
		other.Pod, other.PodUID = "", ""
	}
	return i == other
}

// ErrUnauthenticated is what an Authenticator's error is when the token is not
// good, as opposed to not checkable now.
var ErrUnauthenticated = errors.New("the token is not valid for " + v1alpha1.XDSTokenAudience)

// Authenticator tells who holds a token.
type Authenticator interface {
	// Authenticate returns the service account of the token, and the pod that it
	// is bound to. The error is
	// ErrUnauthenticated when the token is refused; any other error means that
	// it could not be checked.
	Authenticate(ctx context.Context, token string) (Identity, error)
}

// TokenReviewer creates TokenReviews; client-go's
// AuthenticationV1().TokenReviews() is one.
type TokenReviewer interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, options metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

// What a TokenReview says of a token that is bound to a pod.
const (
	extraPodName = "authentication.kubernetes.io/pod-name"
	extraPodUID  = "authentication.kubernetes.io/pod-uid"
)

// only is the one value, or nothing.
func only(values authenticationv1.ExtraValue) string {
	if len(values) != 1 {
		return ""
	}
	return values[0]
}

const (
	reviewTTL     = 30 * time.Second
	reviewEntries = 1024
)

// TokenReview authenticates by the API server's TokenReview with the audience
// lambdamesh-xds. Good answers are remembered for 30 seconds, so that a fleet
// that reconnects does not flood the API server; at most 1024 of them.
func TokenReview(client TokenReviewer) Authenticator {
	return &tokenReview{client: client, now: time.Now, known: map[[32]byte]reviewed{}}
}

type tokenReview struct {
	client TokenReviewer
	now    func() time.Time

	mu    sync.Mutex
	known map[[32]byte]reviewed // by the token's hash: tokens are not kept
}

type reviewed struct {
	identity Identity
	until    time.Time
}

func (t *tokenReview) Authenticate(ctx context.Context, token string) (Identity, error) {
	key := sha256.Sum256([]byte(token))
	now := t.now()
	t.mu.Lock()
	entry, ok := t.known[key]
	t.mu.Unlock()
	if ok && now.Before(entry.until) {
		return entry.identity, nil
	}

	review, err := t.client.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
		Token: token, Audiences: []string{v1alpha1.XDSTokenAudience},
	}}, metav1.CreateOptions{})
	if err != nil {
		return Identity{}, fmt.Errorf("review a token: %w", err)
	}
	if !review.Status.Authenticated {
		return Identity{}, ErrUnauthenticated
	}
	// An API server that knows no audiences answers without any; its answer
	// says nothing about ours.
	found := false
	for _, audience := range review.Status.Audiences {
		found = found || audience == v1alpha1.XDSTokenAudience
	}
	parts := strings.Split(review.Status.User.Username, ":")
	if !found || len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return Identity{}, ErrUnauthenticated
	}
	identity := Identity{
		Namespace: parts[2], ServiceAccount: parts[3],
		Pod: only(review.Status.User.Extra[extraPodName]), PodUID: only(review.Status.User.Extra[extraPodUID]),
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.known) >= reviewEntries {
		for k, v := range t.known {
			if !now.Before(v.until) {
				delete(t.known, k)
			}
		}
		if len(t.known) >= reviewEntries {
			clear(t.known)
		}
	}
	t.known[key] = reviewed{identity: identity, until: now.Add(reviewTTL)}
	return identity, nil
}

// authenticate returns the identity of a stream's caller, or a gRPC status.
func authenticate(ctx context.Context, authenticator Authenticator) (Identity, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return Identity{}, status.Error(codes.Unauthenticated, "send one authorization header with a service-account token (audience "+v1alpha1.XDSTokenAudience+")")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return Identity{}, status.Error(codes.Unauthenticated, "the authorization header is not a bearer token")
	}
	identity, err := authenticator.Authenticate(ctx, token)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		return Identity{}, status.Error(codes.Unauthenticated, ErrUnauthenticated.Error())
	case err != nil:
		// Unavailable, so that clients come again: nothing is known against them.
		return Identity{}, status.Error(codes.Unavailable, "the token could not be checked: "+err.Error())
	}
	return identity, nil
}
