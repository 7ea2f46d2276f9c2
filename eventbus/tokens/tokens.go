package tokens

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/lru"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Hint says how to get a token that is taken.
const Hint = "send a bearer token made for the event bus, such as `kubectl create token NAME --audience " + v1alpha1.EventBusTokenAudience + "` prints"

// What [Reviews.User] fails with. Another error means that the API server could
// not be asked: nothing is known against the caller.
var (
	// ErrUnauthenticated: there is no token, or none that is good for the bus.
	ErrUnauthenticated = errors.New("who calls is not known")
	// ErrTooMany: too many unknown tokens came at once; come again in a second.
	ErrTooMany = errors.New("too many unknown tokens")
)

// Reviewer asks the API server; it is kubernetes.Interface's
// AuthenticationV1().TokenReviews().
type Reviewer interface {
	Create(ctx context.Context, review *authenticationv1.TokenReview, opts metav1.CreateOptions) (*authenticationv1.TokenReview, error)
}

const (
	// goodFor is how long an answer counts, unless the token ends earlier; it
	// bounds how long a token that was taken back goes on to work.
	goodFor = 30 * time.Second
	// badFor is short: a token may be good in a moment that is not yet.
	badFor = 10 * time.Second
	// Tokens and senders that are remembered.
	maxGood, maxBad, maxSenders = 4096, 4096, 4096
	// Reviews of tokens that were not good before, per second: of one sender, and,
	// while nobody knows whether the API server has signed them, of all.
	senderRate, senderBurst = 10, 50
	allRate, allBurst       = 100, 200
	// reviewTimeout of one question, whoever waits for it.
	reviewTimeout = 5 * time.Second
)

// key of a token: tokens themselves are not kept.
type key = [sha256.Size]byte

type verdict struct {
	user  authenticationv1.UserInfo
	until time.Time
}

// Reviews knows callers by their bearer token.
type Reviews struct {
	reviewer Reviewer
	keys     keys
	flight   singleflight.Group
	all      *rate.Limiter

	mu sync.Mutex // for what is made when it is not found; the caches have locks of their own
	// Two caches, so that bad tokens push no good ones out.
	good    *lru.Cache // key to verdict; those that are over are asked about again without a limit
	bad     *lru.Cache // key to time.Time
	senders *lru.Cache // sender to *rate.Limiter
}

// New returns one that asks reviewer about the tokens that source's keys have
// signed. While they cannot be had (nil: never), it asks about all, at a rate that
// everybody shares.
func New(reviewer Reviewer, source KeySource) *Reviews {
	return &Reviews{
		reviewer: reviewer, keys: keys{source: source},
		all:  rate.NewLimiter(allRate, allBurst),
		good: lru.New(maxGood), bad: lru.New(maxBad), senders: lru.New(maxSenders),
	}
}

// User returns whose token the request carries. See [ErrUnauthenticated] and
// [ErrTooMany].
func (r *Reviews) User(request *http.Request) (authenticationv1.UserInfo, error) {
	token, ok := bearer(request)
	if !ok {
		return authenticationv1.UserInfo{}, ErrUnauthenticated
	}
	k := sha256.Sum256([]byte(token))
	now := time.Now()
	v, known := r.lookup(k)
	if known && now.Before(v.until) {
		return v.user, nil
	}
	value, _ := r.bad.Get(k)
	if until, ok := value.(time.Time); ok && now.Before(until) {
		return authenticationv1.UserInfo{}, ErrUnauthenticated
	}
	ctx := request.Context()
	answer := r.flight.DoChan(string(k[:]), func() (any, error) {
		if v, ok := r.lookup(k); ok && time.Now().Before(v.until) { // another question has just been answered
			return v.user, nil
		}
		if !known {
			if err := r.admit(token, request); err != nil {
				return authenticationv1.UserInfo{}, err
			}
		}
		// The question goes on for the others when this caller leaves.
		ask, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		return r.review(ask, k, token)
	})
	select {
	case <-ctx.Done():
		return authenticationv1.UserInfo{}, ctx.Err()
	case a := <-answer:
		user, _ := a.Val.(authenticationv1.UserInfo)
		return user, a.Err
	}
}

func (r *Reviews) lookup(k key) (verdict, bool) {
	value, ok := r.good.Get(k)
	v, _ := value.(verdict)
	return v, ok
}

// bearer returns the token of the one Authorization header.
func bearer(request *http.Request) (token string, ok bool) {
	values := request.Header.Values("Authorization")
	if len(values) != 1 {
		return "", false
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

// remote is the network that a request came from: the address, or of IPv6 the
// /64, all of which one machine may have.
func remote(request *http.Request) string {
	address, err := netip.ParseAddrPort(request.RemoteAddr)
	if err != nil {
		return request.RemoteAddr
	}
	ip := address.Addr().Unmap().WithZone("")
	if ip.Is6() {
		return netip.PrefixFrom(ip, 64).Masked().String()
	}
	return ip.String()
}

// admit fails unless the API server may be asked about one more unknown token.
// Who makes tokens up costs it nothing; who has many that are real is held to a
// rate of their own, wherever they send from.
func (r *Reviews) admit(token string, request *http.Request) error {
	subject, err := r.keys.verify(token)
	now := time.Now()
	switch {
	case errors.Is(err, errNoKeys):
		if !r.limiter(remote(request)).AllowN(now, 1) || !r.all.AllowN(now, 1) {
			return ErrTooMany
		}
		return nil
	case errors.Is(err, errNewKey):
		return err // no verdict
	case err != nil:
		return ErrUnauthenticated
	case !r.limiter("sub "+subject).AllowN(now, 1):
		return ErrTooMany
	}
	return nil
}

func (r *Reviews) limiter(sender string) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	value, _ := r.senders.Get(sender)
	limiter, ok := value.(*rate.Limiter)
	if !ok {
		limiter = rate.NewLimiter(senderRate, senderBurst)
		r.senders.Add(sender, limiter)
	}
	return limiter
}

func (r *Reviews) review(ctx context.Context, k key, token string) (authenticationv1.UserInfo, error) {
	now := time.Now()
	review, err := r.reviewer.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
		Token: token, Audiences: []string{v1alpha1.EventBusTokenAudience},
	}}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, fmt.Errorf("ask the API server about a token: %w", err)
	}
	until := expiry(token, now.Add(goodFor))
	// An API server that knows no audiences answers without any: its answer says
	// nothing about ours.
	if !review.Status.Authenticated || !slices.Contains(review.Status.Audiences, v1alpha1.EventBusTokenAudience) || !now.Before(until) {
		r.good.Remove(k)
		r.bad.Add(k, now.Add(badFor))
		return authenticationv1.UserInfo{}, ErrUnauthenticated
	}
	r.good.Add(k, verdict{user: review.Status.User, until: until})
	return review.Status.User, nil
}

// expiry is when a token that the API server has checked ends, at most latest. A
// token that is no JWT does not say it.
func expiry(token string, latest time.Time) time.Time {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err == nil && claims.ExpiresAt != nil && claims.ExpiresAt.Before(latest) {
		return claims.ExpiresAt.Time
	}
	return latest
}
