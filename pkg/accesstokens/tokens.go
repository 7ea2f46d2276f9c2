package accesstokens

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

// Client is who asks for a token, and where: two that are equal get the same one.
type Client struct {
	// TokenURL of the authorization server. Whether it may be asked is decided by
	// whoever fills this in, and by Via.
	TokenURL string
	ID       string
	Secret   string
	// Version of the secret: one that was replaced gets another token.
	Version  string
	Scopes   string // separated by spaces
	Audience string
	// InParams sends id and secret as parameters instead of by basic authentication.
	InParams bool
	// Via carries the request; its value must be comparable, as a pointer is.
	Via http.RoundTripper
}

// String is for logs and error texts: it leaves the secret out.
func (c Client) String() string { return c.TokenURL }

// GoString is for %#v.
func (c Client) GoString() string { return c.String() }

// Cache of access tokens.
type Cache struct {
	flight singleflight.Group

	mu       sync.Mutex
	cached   map[Client]token
	replaced map[Client]time.Time // when a refused token last was
}

type token struct {
	value   string
	renewAt time.Time
}

// New makes an empty cache.
func New() *Cache {
	return &Cache{cached: map[Client]token{}, replaced: map[Client]time.Time{}}
}

// client fetches. A redirect is not followed: the client's secret goes to the URL
// that is written, only.
func (c Client) client() *http.Client {
	return &http.Client{
		Transport:     c.Via,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Get returns a token, fresh when it was fetched for this call.
func (t *Cache) Get(ctx context.Context, c Client) (value string, fresh bool, err error) {
	if value, ok := t.lookup(c); ok {
		return value, false, nil
	}
	value, err = t.share(ctx, c, "")
	return value, true, err
}

// Replace returns a token in place of one that a target refused, and false when
// there is none: it was replaced a short while ago. Until the new one is there,
// and when it does not come, everybody else goes on with the old one.
func (t *Cache) Replace(ctx context.Context, c Client, refused string) (value string, ok bool) {
	if current, ok := t.lookup(c); ok && current != refused {
		return current, true
	}
	value, err := t.share(ctx, c, refused)
	return value, err == nil && value != refused
}

// mayReplace takes the right to replace a refused token, once per interval.
func (t *Cache) mayReplace(c Client) bool {
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
func (t *Cache) share(ctx context.Context, c Client, refused string) (string, error) {
	// The key is told apart by all its fields; it never leaves memory.
	key := strings.Join([]string{c.TokenURL, c.ID, c.Secret, c.Version, c.Scopes, c.Audience, fmt.Sprintf("%t %p", c.InParams, c.Via)}, "\x00")
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

func (t *Cache) lookup(c Client) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	cached, ok := t.cached[c]
	if !ok || !time.Now().Before(cached.renewAt) {
		return "", false
	}
	return cached.value, true
}

// Drop forgets a token that was refused, unless it was replaced meanwhile or one
// was a short while ago.
func (t *Cache) Drop(c Client, value string) {
	if current, ok := t.lookup(c); !ok || current != value || !t.mayReplace(c) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cached[c].value == value {
		delete(t.cached, c)
	}
}

func (t *Cache) fetch(ctx context.Context, c Client) (string, error) {
	config := clientcredentials.Config{
		ClientID: c.ID, ClientSecret: c.Secret, TokenURL: c.TokenURL,
		Scopes: strings.Fields(c.Scopes), AuthStyle: oauth2.AuthStyleInHeader, EndpointParams: url.Values{},
	}
	if c.InParams {
		config.AuthStyle = oauth2.AuthStyleInParams
	}
	if c.Audience != "" {
		config.EndpointParams.Set("audience", c.Audience)
	}
	begin := time.Now()
	got, err := config.Token(context.WithValue(ctx, oauth2.HTTPClient, c.client()))
	if err != nil {
		return "", &Error{tokenURL: c.TokenURL, cause: err}
	}
	if kind := got.Type(); kind != "Bearer" {
		return "", &Error{tokenURL: c.TokenURL, cause: errors.New("the token's type is not Bearer")}
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

// Error says that no token was to be had. Its text holds the status and the
// error code of the server, and nothing of its body: servers are known to repeat
// there what they were sent.
type Error struct {
	tokenURL string
	cause    error
}

// Error implements error.
func (e *Error) Error() string {
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
func (e *Error) Unwrap() error { return e.cause }

// errorCode reports whether text is one of RFC 6749, section 5.2.
func errorCode(text string) bool {
	switch text {
	case "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type", "invalid_scope":
		return true
	default:
		return false
	}
}
