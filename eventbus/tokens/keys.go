package tokens

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// KeySource returns the API server's keys for service-account tokens: the JSON
// Web Key Set of /openid/v1/jwks.
type KeySource func(ctx context.Context) ([]byte, error)

const (
	// keysEvery is how often the keys are asked for, at most: who sends unknown
	// key IDs shall not decide it.
	keysEvery = 10 * time.Second
	// clockSkew is how far the API server's clock may be off. When a token ends is
	// decided without it, after the review.
	clockSkew = time.Minute
)

// errNoKeys: the keys could not be had, so that nothing is known of a token.
var errNoKeys = errors.New("the API server's keys are not known")

// errNewKey: a token names a key that is not among those known, and the API server
// was asked for them too recently, or did not answer, to say that there is none.
var errNewKey = errors.New("the key of the token is not known yet; try again in some seconds")

// keys are those of the API server, as far as they are known.
type keys struct {
	source KeySource // nil: they are never known

	mu       sync.Mutex
	set      keyfunc.Keyfunc // nil until it was had
	asked    time.Time
	answered bool          // the last question
	pending  chan struct{} // closed when the question under way is answered
}

// verify returns the subject of a token that the API server has signed for the
// event bus. It fails with errNoKeys or errNewKey, or because the token is none.
func (k *keys) verify(token string) (subject string, err error) {
	set := k.known()
	if set == nil {
		if set, _ = k.refresh(); set == nil {
			return "", errNoKeys
		}
	}
	subject, err = subjectOf(token, set)
	if errors.Is(err, jwt.ErrTokenUnverifiable) { // no such key: it may be a new one
		set, fresh := k.refresh()
		if subject, err = subjectOf(token, set); errors.Is(err, jwt.ErrTokenUnverifiable) && !fresh {
			return "", errNewKey
		}
	}
	return subject, err
}

func subjectOf(token string, set keyfunc.Keyfunc) (string, error) {
	var claims jwt.RegisteredClaims
	_, err := jwt.ParseWithClaims(token, &claims, set.Keyfunc,
		jwt.WithValidMethods([]string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}),
		jwt.WithAudience(v1alpha1.EventBusTokenAudience), jwt.WithLeeway(clockSkew))
	if err != nil {
		return "", fmt.Errorf("verify a token: %w", err)
	}
	return claims.Subject, nil
}

func (k *keys) known() keyfunc.Keyfunc {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.set
}

// refresh asks for the keys unless that was done a moment ago, and returns what
// is known then, and whether that is an answer of now. Those who come meanwhile
// wait for the same answer.
func (k *keys) refresh() (set keyfunc.Keyfunc, fresh bool) {
	k.mu.Lock()
	pending := k.pending
	switch {
	case pending != nil:
		k.mu.Unlock()
		<-pending
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.set, k.answered
	case k.source == nil, !k.asked.IsZero() && time.Since(k.asked) < keysEvery:
		defer k.mu.Unlock()
		return k.set, false
	}
	pending = make(chan struct{})
	k.pending, k.asked = pending, time.Now()
	k.mu.Unlock()

	// For everybody who waits, so it does not end with one of them.
	ctx, cancel := context.WithTimeout(context.Background(), reviewTimeout)
	defer cancel()
	asked, err := k.ask(ctx)

	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		k.set = asked
	}
	k.answered = err == nil
	k.pending = nil
	close(pending)
	return k.set, k.answered
}

func (k *keys) ask(ctx context.Context) (keyfunc.Keyfunc, error) {
	raw, err := k.source(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the API server for its keys: %w", err)
	}
	set, err := keyfunc.NewJWKSetJSON(raw)
	if err != nil {
		return nil, fmt.Errorf("read the API server's keys: %w", err)
	}
	return set, nil
}
