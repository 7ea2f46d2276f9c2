package ads_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/peer"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
)

type reviewer struct {
	calls  int
	status authenticationv1.TokenReviewStatus
	err    error
}

func (r *reviewer) Create(_ context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	r.calls++
	if fmt.Sprint(review.Spec.Audiences) != "[lambdamesh-xds]" {
		return nil, errors.New("wrong audience asked for")
	}
	return &authenticationv1.TokenReview{Status: r.status}, r.err
}

func good(username string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"lambdamesh-xds"}, User: authenticationv1.UserInfo{Username: username}}
}

func TestTokenReview(t *testing.T) {
	noAudience := good("system:serviceaccount:shop:orders")
	noAudience.Audiences = nil
	for name, test := range map[string]struct {
		status authenticationv1.TokenReviewStatus
		ok     bool
	}{
		"service account":        {good("system:serviceaccount:shop:orders"), true},
		"not authenticated":      {authenticationv1.TokenReviewStatus{}, false},
		"audience not confirmed": {noAudience, false},
		"a user":                 {good("alice"), false},
		"a user named like one":  {good("system:serviceaccount:shop"), false},
		"a node":                 {good("system:node:a:b"), false},
	} {
		t.Run(name, func(t *testing.T) {
			identity, err := ads.TokenReview(&reviewer{status: test.status}).Authenticate(t.Context(), "t")
			if !test.ok {
				require.ErrorIs(t, err, ads.ErrUnauthenticated)
				return
			}
			require.NoError(t, err)
			require.Equal(t, ads.Identity{Namespace: "shop", ServiceAccount: "orders"}, identity)
		})
	}
}

func TestATokensPodIsKnown(t *testing.T) {
	const name, uid = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"
	for title, test := range map[string]struct {
		extra map[string]authenticationv1.ExtraValue
		want  ads.Identity
	}{
		"bound":       {map[string]authenticationv1.ExtraValue{name: {"orders-1"}, uid: {"u-1"}}, ads.Identity{Pod: "orders-1", PodUID: "u-1"}},
		"not bound":   {nil, ads.Identity{}},
		"said twice":  {map[string]authenticationv1.ExtraValue{name: {"orders-1", "orders-2"}, uid: {"u-1"}}, ads.Identity{PodUID: "u-1"}},
		"another key": {map[string]authenticationv1.ExtraValue{"pod-name": {"orders-1"}}, ads.Identity{}},
	} {
		t.Run(title, func(t *testing.T) {
			status := good("system:serviceaccount:shop:orders")
			status.User.Extra = test.extra
			test.want.Namespace, test.want.ServiceAccount = "shop", "orders"
			identity, err := ads.TokenReview(&reviewer{status: status}).Authenticate(t.Context(), "t")
			require.NoError(t, err)
			require.Equal(t, test.want, identity)
		})
	}
}

func TestTokenReviewsAreRemembered(t *testing.T) {
	r := &reviewer{status: good("system:serviceaccount:shop:orders")}
	a := ads.TokenReview(r)
	for range 10 {
		_, err := a.Authenticate(t.Context(), "t")
		require.NoError(t, err)
	}
	require.Equal(t, 1, r.calls)
}

// asked counts, and answers when it is told to.
type asked struct {
	calls  atomic.Int32
	answer chan struct{}
}

func (a *asked) Create(ctx context.Context, _ *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	a.calls.Add(1)
	select {
	case <-a.answer:
		return &authenticationv1.TokenReview{Status: good("system:serviceaccount:shop:orders")}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func from(ctx context.Context, address string) context.Context {
	return peer.NewContext(ctx, &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))})
}

func TestATokenIsAskedAboutOnceByAllWhoShowIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &asked{answer: make(chan struct{})}
		a := ads.TokenReview(r)
		results := make(chan error, 20)
		for range cap(results) {
			go func() {
				_, err := a.Authenticate(t.Context(), "t")
				results <- err
			}()
		}
		impatient, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := a.Authenticate(impatient, "t")
			assert.ErrorIs(t, err, context.Canceled)
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(r.answer)
		for range cap(results) {
			require.NoError(t, <-results)
		}
		require.Equal(t, int32(1), r.calls.Load())
	})
}

func TestAnAPIServerThatDoesNotAnswerIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		_, err := ads.TokenReview(&asked{}).Authenticate(t.Context(), "t")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 5*time.Second, time.Since(begun))
	})
}

func TestARefusedTokenIsRememberedForAShortTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reviewer{}
		a := ads.TokenReview(r)
		for range 10 {
			_, err := a.Authenticate(t.Context(), "t")
			require.ErrorIs(t, err, ads.ErrUnauthenticated)
		}
		require.Equal(t, 1, r.calls)
		time.Sleep(time.Minute)
		r.status = good("system:serviceaccount:shop:orders")
		_, err := a.Authenticate(t.Context(), "t")
		require.NoError(t, err)
	})
}

// A flood of tokens that nobody knows does not reach the API server, and keeps
// neither those that are known away nor those of other addresses.
func TestUnknownTokensHaveARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reviewer{status: good("system:serviceaccount:shop:orders")}
		a := ads.TokenReview(r)
		_, err := a.Authenticate(from(t.Context(), "10.0.0.9:1"), "known")
		require.NoError(t, err)
		r.status, r.calls = authenticationv1.TokenReviewStatus{}, 0
		flood := func(address string, n int) (limited int) {
			for i := range n {
				if _, err := a.Authenticate(from(t.Context(), address), fmt.Sprint(address, time.Now(), i)); !errors.Is(err, ads.ErrUnauthenticated) {
					limited++
				}
			}
			return limited
		}
		require.Equal(t, 900, flood("10.0.0.1:1", 1000))
		require.Zero(t, flood("10.0.0.2:1", 100), "another address")
		require.Equal(t, 900, flood("[2001:db8::1]:1", 1000))
		require.Equal(t, 100, flood("[2001:db8::2]:1", 100), "the same network of 64 bits")
		_, err = a.Authenticate(from(t.Context(), "10.0.0.1:2"), "known")
		require.NoError(t, err)

		// In all: each of many addresses is below its own rate.
		for i := range 100 {
			flood(fmt.Sprintf("10.0.1.%d:1", i), 20)
		}
		require.Equal(t, 499, r.calls)
		time.Sleep(time.Second)
		require.Zero(t, flood("10.0.0.1:1", 10), "it may again")
	})
}

func TestAnUnreachableAPIServerIsNoRefusal(t *testing.T) {
	_, err := ads.TokenReview(&reviewer{err: errors.New("away")}).Authenticate(t.Context(), "t")
	require.Error(t, err)
	require.NotErrorIs(t, err, ads.ErrUnauthenticated)
}

func TestNodeIDs(t *testing.T) {
	for id, want := range map[string]struct {
		target string
		ok     bool
	}{
		"gateway~edge~main~1":   {"edge/main", true},
		"pod~shop~orders-1":     {"pod~shop~orders-1", true},
		"pod~shop~orders.1":     {"pod~shop~orders.1", true},
		"pod~shop":              {"", false},
		"pod~shop~":             {"", false},
		"pod~~orders-1":         {"", false},
		"pod~shop~orders~1":     {"", false},
		"pod~shop~a/b":          {"", false},
		"orders-1.shop":         {"orders-1.shop", true},
		"a.b.shop":              {"a.b.shop", true},
		"gateway~edge~main":     {"", false},
		"gateway~edge~main~":    {"", false},
		"gateway~a/b~main~1":    {"", false},
		"gateway~edge~main~1~2": {"", false},
		"edge/main":             {"", false},
		"a/b.c":                 {"", false},
		"":                      {"", false},
		".shop":                 {"", false},
		"orders.":               {"", false},
		"orders":                {"", false},
	} {
		target, ok := ads.TargetOf(id)
		require.Equal(t, want.ok, ok, id)
		require.Equal(t, want.target, target, id)
	}
	require.Equal(t, "gateway~edge~main~1", ads.GatewayNodeID("edge", "main", "1"))
	require.Equal(t, "orders-1.shop", ads.SidecarTarget("shop", "orders-1"))
	require.Equal(t, "pod~shop~orders-1", ads.PodTarget("shop", "orders-1"))
}
