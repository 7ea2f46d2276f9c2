package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/sync/singleflight"
)

const (
	// fetchTimeout of a token, whoever waits for it.
	fetchTimeout = 10 * time.Second
	// maxLifetime bounds how long a token is used, whatever its server says, so
	// that a change of rights there arrives some time.
	maxLifetime = time.Hour
	// unknownLifetime is for servers that do not say it (RFC 6749, section 5.1
	// leaves it open).
	unknownLifetime = 5 * time.Minute
	// renewBefore a token's end, or a fifth of its life when that is shorter: a
	// call takes time, and clocks differ.
	renewBefore = 30 * time.Second
	// replaceEvery is how often a token may be replaced because a target refused
	// it: one that refuses every token must not cost a token with every call.
	replaceEvery = 30 * time.Second
)

// clientCredentials identify a token: two that are equal get the same one. A
// rotated Secret has another version and so another token.
type clientCredentials struct {
	tokenURL      string
	clientID      string
	clientSecret  string
	secretVersion string
	scopes        string
	audience      string
	inParams      bool
	// tls of the token URL; equal only when it is the same version.
	tls *clientTLS
}

// String is for logs and error texts: it leaves the secret out.
func (c clientCredentials) String() string { return c.tokenURL }

// GoString is for %#v.
func (c clientCredentials) GoString() string { return c.String() }

// tokens caches access tokens.
type tokens struct {
	transports *transports
	flight     singleflight.Group

	mu       sync.Mutex
	cached   map[clientCredentials]token
	replaced map[clientCredentials]time.Time // when a refused token last was
}

type token struct {
	value   string
	renewAt time.Time
}

func newTokens(transports *transports) *tokens {
	return &tokens{transports: transports, cached: map[clientCredentials]token{}, replaced: map[clientCredentials]time.Time{}}
}

// client fetches. A redirect is not followed: the client's secret goes to the URL
// that is written, only.
func (t *tokens) client(c clientCredentials) *http.Client {
	return &http.Client{
		Transport:     t.transports.get(c.tls),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// get returns a token, fresh when it was fetched for this call.
func (t *tokens) get(ctx context.Context, c clientCredentials) (value string, fresh bool, err error) {
	if value, ok := t.lookup(c); ok {
		return value, false, nil
	}
	value, err = t.share(ctx, c, "")
	return value, true, err
}

// replace returns a token in place of one that a target refused, and false when
// there is none: it was replaced a short while ago. Until the new one is there,
// and when it does not come, everybody else goes on with the old one.
func (t *tokens) replace(ctx context.Context, c clientCredentials, refused string) (value string, ok bool) {
	if current, ok := t.lookup(c); ok && current != refused {
		return current, true
	}
	value, err := t.share(ctx, c, refused)
	return value, err == nil && value != refused
}

// mayReplace takes the right to replace a refused token, once per interval.
func (t *tokens) mayReplace(c clientCredentials) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if last, ok := t.replaced[c]; ok && now.Sub(last) < replaceEvery {
		return t.cached[c].value == "" // nobody has one: this is no replacement
	}
	for key, last := range t.replaced {
		if now.Sub(last) >= replaceEvery {
			delete(t.replaced, key)
		}
	}
	t.replaced[c] = now
	return true
}

// share fetches a token that is not the refused one. Callers who need the same
// one at the same time share one request, which goes on when one of them leaves.
func (t *tokens) share(ctx context.Context, c clientCredentials, refused string) (string, error) {
	// The key is told apart by all its fields; it never leaves memory.
	key := strings.Join([]string{c.tokenURL, c.clientID, c.secretVersion, c.scopes, c.audience, fmt.Sprintf("%t %p", c.inParams, c.tls)}, "\x00")
	result := t.flight.DoChan(key, func() (any, error) {
		if value, ok := t.lookup(c); ok && value != refused { // another request has just ended
			return value, nil
		}
		if refused != "" && !t.mayReplace(c) {
			return refused, nil
		}
		fetch, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		return t.fetch(fetch, c)
	})
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-result:
		value, _ := r.Val.(string)
		return value, r.Err
	}
}

func (t *tokens) lookup(c clientCredentials) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	cached, ok := t.cached[c]
	if !ok || !time.Now().Before(cached.renewAt) {
		return "", false
	}
	return cached.value, true
}

// drop forgets a token that was refused, unless it was replaced meanwhile or one
// was a short while ago.
func (t *tokens) drop(c clientCredentials, value string) {
	if current, ok := t.lookup(c); !ok || current != value || !t.mayReplace(c) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cached[c].value == value {
		delete(t.cached, c)
	}
}

func (t *tokens) fetch(ctx context.Context, c clientCredentials) (string, error) {
	config := clientcredentials.Config{
		ClientID: c.clientID, ClientSecret: c.clientSecret, TokenURL: c.tokenURL,
		Scopes: strings.Fields(c.scopes), AuthStyle: oauth2.AuthStyleInHeader, EndpointParams: url.Values{},
	}
	if c.inParams {
		config.AuthStyle = oauth2.AuthStyleInParams
	}
	if c.audience != "" {
		config.EndpointParams.Set("audience", c.audience)
	}
	begin := time.Now()
	got, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, t.client(c)))
	if err != nil {
		return "", &tokenError{tokenURL: c.tokenURL, cause: err}
	}
	if kind := got.Type(); kind != "Bearer" {
		return "", &tokenError{tokenURL: c.tokenURL, cause: errors.New("the token's type is not Bearer")}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, old := range t.cached {
		if !begin.Before(old.renewAt) {
			delete(t.cached, key)
		}
	}
	if life := lifetime(got, begin); life > 0 {
		t.cached[c] = token{value: got.AccessToken, renewAt: begin.Add(life - min(renewBefore, life/5))}
	}
	return got.AccessToken, nil
}

func lifetime(got *oauth2.Token, begin time.Time) time.Duration {
	if got.Expiry.IsZero() {
		return unknownLifetime
	}
	return min(got.Expiry.Sub(begin), maxLifetime)
}

// tokenError says that no token was to be had. Its text holds the status and the
// error code of the server, and nothing of its body: servers are known to repeat
// there what they were sent.
type tokenError struct {
	tokenURL string
	cause    error
}

// Error implements error.
func (e *tokenError) Error() string {
	where, _, _ := strings.Cut(e.tokenURL, "?")
	var answer *oauth2.RetrieveError
	var request *url.Error
	switch {
	case errors.As(e.cause, &answer) && answer.Response != nil && errorCode(answer.ErrorCode):
		return fmt.Sprintf("no token from %s: it answered %d %s", where, answer.Response.StatusCode, answer.ErrorCode)
	case errors.As(e.cause, &answer) && answer.Response != nil:
		return fmt.Sprintf("no token from %s: it answered %d", where, answer.Response.StatusCode)
	case errors.As(e.cause, &request):
		return fmt.Sprintf("no token from %s: %v", where, request.Err)
	default:
		return fmt.Sprintf("no token from %s: %v", where, e.cause)
	}
}

// Unwrap is for errors.As.
func (e *tokenError) Unwrap() error { return e.cause }

// errorCode reports whether text is one of RFC 6749, section 5.2.
func errorCode(text string) bool {
	switch text {
	case "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope":
		return true
	default:
		return false
	}
}
