package tokens_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
)

// server knows tokens that begin with "good", and answers when it may.
type server struct {
	mu        sync.Mutex
	asked     map[string]int
	err       error
	audiences []string
	takes     time.Duration
}

func (s *server) Create(ctx context.Context, review *authenticationv1.TokenReview, _ metav1.CreateOptions) (*authenticationv1.TokenReview, error) {
	s.mu.Lock()
	if s.asked == nil {
		s.asked = map[string]int{}
	}
	s.asked[review.Spec.Token]++
	err, takes := s.err, s.takes
	s.mu.Unlock()
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if strings.HasPrefix(review.Spec.Token, "good") || strings.Count(review.Spec.Token, ".") == 2 {
		review.Status = authenticationv1.TokenReviewStatus{
			Authenticated: true, User: authenticationv1.UserInfo{Username: review.Spec.Token}, Audiences: review.Spec.Audiences,
		}
		if s.audiences != nil {
			review.Status.Audiences = s.audiences
		}
	}
	return review, err
}

func (s *server) total() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, count := range s.asked {
		n += count
	}
	return n
}

func request(ctx context.Context, remote string, values ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", nil).WithContext(ctx)
	r.RemoteAddr = remote + ":1234"
	for _, v := range values {
		r.Header.Add("Authorization", v)
	}
	return r
}

func TestATokenIsAskedAboutOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{takes: time.Second}
		reviews := tokens.New(api, nil)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				user, err := reviews.User(request(t.Context(), "10.0.0.1", "Bearer good"))
				require.NoError(t, err)
				require.Equal(t, "good", user.Username)
			})
		}
		wg.Wait()
		require.Equal(t, 1, api.total())
		time.Sleep(28 * time.Second)
		_, err := reviews.User(request(t.Context(), "10.0.0.1", "bearer good"))
		require.NoError(t, err)
		require.Equal(t, 1, api.total())
		time.Sleep(2 * time.Second)
		_, err = reviews.User(request(t.Context(), "10.0.0.1", "Bearer good"))
		require.NoError(t, err)
		require.Equal(t, 2, api.total())
	})
}

func TestACallerThatLeavesTakesNobodysAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{takes: time.Second}
		reviews := tokens.New(api, nil)
		leaving, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := reviews.User(request(leaving, "10.0.0.1", "Bearer good"))
			left <- err
		}()
		synctest.Wait()
		leave()
		require.ErrorIs(t, <-left, context.Canceled)
		_, err := reviews.User(request(t.Context(), "10.0.0.1", "Bearer good"))
		require.NoError(t, err)
		require.Equal(t, 1, api.total())
	})
}

func TestTheEndOfATokenIsHonored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{}
		reviews := tokens.New(api, nil)
		token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{
			ExpiresAt: jwt.NewNumericDate(time.Now().Add(5 * time.Second)),
		}).SignedString([]byte("k"))
		require.NoError(t, err)
		_, err = reviews.User(request(t.Context(), "10.0.0.1", "Bearer "+token))
		require.NoError(t, err)
		time.Sleep(6 * time.Second)
		_, err = reviews.User(request(t.Context(), "10.0.0.1", "Bearer "+token))
		require.ErrorIs(t, err, tokens.ErrUnauthenticated, "whatever an API server with another clock says")
	})
}

func TestWithoutKeysUnknownTokensAreHeldToARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{}
		reviews := tokens.New(api, nil)
		user := func(remote, token string) error {
			_, err := reviews.User(request(t.Context(), remote, "Bearer "+token))
			return err
		}
		for i := range 1000 {
			require.NoError(t, user(fmt.Sprintf("10.1.%d.%d", i/100, i%100), fmt.Sprintf("good-%d", i)), i)
			time.Sleep(20 * time.Millisecond)
		}
		asked := api.total()
		refused, limited := 0, 0
		for i := range 20_000 {
			switch err := user("10.0.0.1", rand.Text()); {
			case errors.Is(err, tokens.ErrTooMany):
				limited++
			case errors.Is(err, tokens.ErrUnauthenticated):
				refused++
			default:
				require.NoError(t, err)
			}
			if i%2000 == 0 {
				time.Sleep(time.Second)
			}
		}
		require.Equal(t, refused, api.total()-asked)
		require.LessOrEqual(t, refused, 50+10*10, "one address")
		require.Equal(t, 20_000, refused+limited)
		require.NoError(t, user("10.0.0.2", "good-new"), "another address is not held back")

		for i := range 5000 { // from everywhere
			_ = user(fmt.Sprintf("10.%d.%d.1", 2+i/250, i%250), rand.Text())
		}
		require.LessOrEqual(t, api.total()-asked, 150+1+200+100, "all addresses together")

		before := api.total()
		time.Sleep(31 * time.Second)
		for range 5000 { // again and again while the known ones come back
			_ = user("10.0.0.1", rand.Text())
		}
		unknown := api.total()
		for i := range 1000 {
			require.NoError(t, user("10.0.0.1", fmt.Sprintf("good-%d", i)), "known before: not limited, whoever else sends from there")
		}
		require.Equal(t, 1000, api.total()-unknown)
		require.LessOrEqual(t, unknown-before, 50)
	})
}

func TestABadTokenIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{}
		reviews := tokens.New(api, nil)
		for range 100 {
			_, err := reviews.User(request(t.Context(), "10.0.0.1", "Bearer bad"))
			require.ErrorIs(t, err, tokens.ErrUnauthenticated)
		}
		require.Equal(t, 1, api.total())
		time.Sleep(11 * time.Second)
		_, err := reviews.User(request(t.Context(), "10.0.0.1", "Bearer bad"))
		require.ErrorIs(t, err, tokens.ErrUnauthenticated)
		require.Equal(t, 2, api.total())
	})
}

func TestWhatIsNoToken(t *testing.T) {
	api := &server{}
	reviews := tokens.New(api, nil)
	for _, values := range [][]string{nil, {"Bearer "}, {"Bearer"}, {"Basic good"}, {"Bearer good", "Bearer good"}} {
		_, err := reviews.User(request(t.Context(), "10.0.0.1", values...))
		require.ErrorIs(t, err, tokens.ErrUnauthenticated, "%v", values)
	}
	require.Zero(t, api.total())

	api.audiences = []string{}
	_, err := reviews.User(request(t.Context(), "10.0.0.1", "Bearer good"))
	require.ErrorIs(t, err, tokens.ErrUnauthenticated, "an API server that knows no audiences")

	api.err = errors.New("connection refused")
	_, err = reviews.User(request(t.Context(), "10.0.0.1", "Bearer other"))
	require.ErrorIs(t, err, api.err)
	require.NotErrorIs(t, err, tokens.ErrUnauthenticated, "an API server that is away is no verdict")
}
