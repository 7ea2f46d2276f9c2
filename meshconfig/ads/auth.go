package ads

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
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
	// reviewTTL is how long a good token's answer is remembered, refusedTTL how long
	// another's: no longer than the API server itself does.
	reviewTTL     = 30 * time.Second
	refusedTTL    = 10 * time.Second
	reviewEntries = 1024 // of each
	// reviewTimeout of the API server's answer.
	reviewTimeout = 5 * time.Second
)

// How many tokens that nobody knows are asked about a second, and at once: of one
// remote, which may be all pods of a node, and in all.
const (
	remoteRate, remoteBurst = 10, 100
	allRate, allBurst       = 100, 500
	limitedRemotes          = 4096
)

// errTooManyTokens is no refusal: clients come again.
var errTooManyTokens = errors.New("too many unknown tokens; come again")

// TokenReview authenticates by the API server's TokenReview with the audience
// lambdamesh-xds. Answers are remembered for a short time, so that a fleet that
// reconnects does not flood the API server, and at most 1024 of each kind; one
// review is made for all who show the same token, and there is a rate of tokens
// that nobody knows, beyond which they could not be checked.
func TokenReview(client TokenReviewer) Authenticator {
	return &tokenReview{
		client: client, now: time.Now, known: map[[32]byte]reviewed{}, bad: map[[32]byte]reviewed{},
		all: rate.NewLimiter(allRate, allBurst), remotes: map[netip.Addr]*rate.Limiter{},
	}
}

type tokenReview struct {
	client TokenReviewer
	now    func() time.Time
	flight singleflight.Group

	mu sync.Mutex
	// By the token's hash: tokens are not kept. What is refused has no room where
	// good ones are.
	known, bad map[[32]byte]reviewed
	all        *rate.Limiter
	remotes    map[netip.Addr]*rate.Limiter
}

type reviewed struct {
	identity Identity
	until    time.Time
}

func (t *tokenReview) Authenticate(ctx context.Context, token string) (Identity, error) {
	key := sha256.Sum256([]byte(token))
	if identity, found, err := t.remembered(key); found {
		return identity, err
	}
	if !t.allow(ctx) {
		return Identity{}, errTooManyTokens
	}
	// Who goes away takes the answer from nobody else.
	result := t.flight.DoChan(string(key[:]), func() (any, error) {
		return t.review(context.WithoutCancel(ctx), key, token)
	})
	select {
	case <-ctx.Done():
		return Identity{}, fmt.Errorf("review a token: %w", ctx.Err())
	case answer := <-result:
		identity, _ := answer.Val.(Identity)
		return identity, answer.Err
	}
}

func (t *tokenReview) remembered(key [32]byte) (_ Identity, found bool, _ error) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if entry, ok := t.known[key]; ok && now.Before(entry.until) {
		return entry.identity, true, nil
	}
	if entry, ok := t.bad[key]; ok && now.Before(entry.until) {
		return Identity{}, true, ErrUnauthenticated
	}
	return Identity{}, false, nil
}

// allow says whether the API server may be asked once more.
func (t *tokenReview) allow(ctx context.Context) bool {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	// The remote's own first: what it may not do takes nothing from the others.
	var remote netip.Addr
	if client, ok := peer.FromContext(ctx); ok {
		remote = remoteOf(client.Addr)
	}
	if remote.IsValid() {
		limiter := t.remotes[remote]
		if limiter == nil {
			if len(t.remotes) >= limitedRemotes {
				clear(t.remotes)
			}
			limiter = rate.NewLimiter(remoteRate, remoteBurst)
			t.remotes[remote] = limiter
		}
		if !limiter.AllowN(now, 1) {
			return false
		}
	}
	return t.all.AllowN(now, 1)
}

func (t *tokenReview) review(ctx context.Context, key [32]byte, token string) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	review, err := t.client.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
		Token: token, Audiences: []string{v1alpha1.XDSTokenAudience},
	}}, metav1.CreateOptions{})
	if err != nil {
		return Identity{}, fmt.Errorf("review a token: %w", err)
	}
	identity, ok := identityIn(review)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !ok {
		remember(t.bad, key, reviewed{until: t.now().Add(refusedTTL)}, t.now())
		return Identity{}, ErrUnauthenticated
	}
	remember(t.known, key, reviewed{identity: identity, until: t.now().Add(reviewTTL)}, t.now())
	return identity, nil
}

// identityIn a review, if it says that the token is good.
func identityIn(review *authenticationv1.TokenReview) (Identity, bool) {
	if !review.Status.Authenticated {
		return Identity{}, false
	}
	parts := strings.Split(review.Status.User.Username, ":")
	// An API server that knows no audiences answers without any; its answer
	// says nothing about ours.
	if !slices.Contains(review.Status.Audiences, v1alpha1.XDSTokenAudience) || len(parts) != 4 || parts[0] != "system" || parts[1] != "serviceaccount" {
		return Identity{}, false
	}
	return Identity{
		Namespace: parts[2], ServiceAccount: parts[3],
		Pod: only(review.Status.User.Extra[extraPodName]), PodUID: only(review.Status.User.Extra[extraPodUID]),
	}, true
}

// remember keeps an answer, and forgets what is too old, or all when that is not
// enough.
func remember(answers map[[32]byte]reviewed, key [32]byte, answer reviewed, now time.Time) {
	if len(answers) >= reviewEntries {
		maps.DeleteFunc(answers, func(_ [32]byte, r reviewed) bool { return !now.Before(r.until) })
		if len(answers) >= reviewEntries {
			clear(answers)
		}
	}
	answers[key] = answer
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
