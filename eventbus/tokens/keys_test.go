package tokens_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// issuer signs tokens as an API server does.
type issuer struct {
	t     *testing.T
	kid   string
	key   *ecdsa.PrivateKey
	asked atomic.Int64
}

func newIssuer(t *testing.T, kid string) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return &issuer{t: t, kid: kid, key: key}
}

func (i *issuer) jwks(context.Context) ([]byte, error) {
	i.asked.Add(1)
	jwk, err := jwkset.NewJWKFromKey(i.key.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: i.kid, ALG: jwkset.AlgES256}})
	if err != nil {
		return nil, err
	}
	store := jwkset.NewMemoryStorage()
	if err := store.KeyWrite(context.Background(), jwk); err != nil {
		return nil, err
	}
	return store.JSONPublic(context.Background())
}

func (i *issuer) token(subject string, change ...func(*jwt.RegisteredClaims)) string {
	i.t.Helper()
	claims := jwt.RegisteredClaims{
		ID: rand.Text(), Subject: subject, Audience: jwt.ClaimStrings{v1alpha1.EventBusTokenAudience},
		NotBefore: jwt.NewNumericDate(time.Now()), ExpiresAt: jwt.NewNumericDate(time.Now().Add(time.Hour)),
	}
	for _, c := range change {
		c(&claims)
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"] = i.kid
	signed, err := token.SignedString(i.key)
	require.NoError(i.t, err)
	return signed
}

func TestUnknownTokensAreHeldToARateAndHurtNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, genuine, forger, stranger := &server{}, newIssuer(t, "1"), newIssuer(t, "1"), newIssuer(t, "2")
		reviews := tokens.New(api, genuine.jwks)
		user := func(remote, token string) error {
			_, err := reviews.User(request(t.Context(), remote, "Bearer "+token))
			return err
		}
		fresh := func(i int) string { return genuine.token(fmt.Sprintf("system:serviceaccount:shop:%d", i)) }
		require.NoError(t, user("10.0.0.1", fresh(0)))
		good := 1
		for i := range 3000 { // 300 in a second, from everywhere
			address := fmt.Sprintf("10.%d.%d.1", 2+i/250, i%250)
			require.ErrorIs(t, user(address, rand.Text()), tokens.ErrUnauthenticated)
			require.ErrorIs(t, user(address, forger.token("system:serviceaccount:shop:orders")), tokens.ErrUnauthenticated)
			require.Error(t, user(address, stranger.token("system:serviceaccount:shop:orders")))
			if i%100 == 0 {
				require.NoError(t, user(address, fresh(i)), "a new good token during the flood, and from the same address")
				good++
				time.Sleep(time.Second)
			}
		}
		require.NoError(t, user("10.0.0.2", fresh(1)), "and after it")
		require.Equal(t, good+1, api.total(), "the API server is asked about what it has signed")
		require.LessOrEqual(t, genuine.asked.Load(), int64(4), "and for its keys once in a while")

		refused := 0
		for i := range 1000 { // one who has many real ones
			if err := user(fmt.Sprintf("10.1.%d.%d", i/100, i%100), genuine.token("system:serviceaccount:shop:mallory")); err != nil {
				require.ErrorIs(t, err, tokens.ErrTooMany)
				refused++
			}
		}
		require.GreaterOrEqual(t, refused, 950)
		require.NoError(t, user("10.1.0.0", fresh(2)))
	})
}

func TestATokenThatIsNotForTheBusCostsNoReview(t *testing.T) {
	api, genuine := &server{}, newIssuer(t, "1")
	reviews := tokens.New(api, genuine.jwks)
	for name, change := range map[string]func(*jwt.RegisteredClaims){
		"another audience": func(c *jwt.RegisteredClaims) { c.Audience = jwt.ClaimStrings{"https://kubernetes.default.svc"} },
		"no audience":      func(c *jwt.RegisteredClaims) { c.Audience = nil },
		"over":             func(c *jwt.RegisteredClaims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Hour)) },
	} {
		_, err := reviews.User(request(t.Context(), "10.0.0.1", "Bearer "+genuine.token("s", change)))
		require.ErrorIs(t, err, tokens.ErrUnauthenticated, name)
	}
	require.Zero(t, api.total())
}

func TestANewKeyOfTheAPIServerIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		current := newIssuer(t, "1")
		var away error
		reviews := tokens.New(&server{}, func(ctx context.Context) ([]byte, error) {
			if away != nil {
				return nil, away
			}
			return current.jwks(ctx)
		})
		ask := func() error {
			_, err := reviews.User(request(t.Context(), "10.0.0.1", "Bearer "+current.token("s")))
			return err
		}
		require.NoError(t, ask())
		require.NoError(t, ask())
		current = newIssuer(t, "2")
		err := ask()
		require.Error(t, err, "it was asked a moment ago")
		require.NotErrorIs(t, err, tokens.ErrUnauthenticated, "which is no verdict on the token")
		time.Sleep(11 * time.Second)
		require.NoError(t, ask())
		stranger := newIssuer(t, "3")
		time.Sleep(11 * time.Second)
		_, err = reviews.User(request(t.Context(), "10.0.0.1", "Bearer "+stranger.token("s")))
		require.ErrorIs(t, err, tokens.ErrUnauthenticated, "an answer of now has no such key")
		away = errors.New("connection refused")
		time.Sleep(11 * time.Second)
		require.NoError(t, ask(), "what is known goes on to count")
	})
}

func TestIPv6IsHeldToARateByNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &server{}
		reviews := tokens.New(api, nil)
		for i := range 1000 {
			_, err := reviews.User(request(t.Context(), fmt.Sprintf("[2001:db8::%x]", i), "Bearer "+rand.Text()))
			require.Error(t, err)
		}
		require.LessOrEqual(t, api.total(), 50)
		_, err := reviews.User(request(t.Context(), "[2001:db8:1::1]", "Bearer good"))
		require.NoError(t, err)
	})
}
