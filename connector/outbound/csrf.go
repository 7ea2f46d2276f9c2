package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/sync/singleflight"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	headerCSRF = "X-CSRF-Token"
	// csrfLifetime bounds how long a token is used; targets do not say when theirs
	// end, they refuse them.
	csrfLifetime = 10 * time.Minute
	// csrfTimeout of fetching one, whoever waits for it.
	csrfTimeout = 10 * time.Second
	// replaceEvery is how often a token may be replaced because a target refused
	// it: one that refuses every token must not cost a token with every call.
	replaceEvery = 30 * time.Second
	// Bounds of what a target may have every call carry.
	maxCSRFToken, maxCSRFCookies = 4 << 10, 16 << 10
)

// csrf fetches the tokens of one service, and keeps the one that is in use with
// the cookies that it belongs to.
type csrf struct {
	url    *url.URL
	flight singleflight.Group

	mu       sync.Mutex
	session  *session
	replaced time.Time // when a refused one last was
}

// session is a token and its cookies. It does not change.
type session struct {
	token   string
	cookies []*http.Cookie
	endsAt  time.Time
}

func (r resolver) csrf(auth *v1alpha1.CSRFAuth, target *url.URL) (*csrf, error) {
	if err := r.policy.CheckURL(auth.TokenURL); err != nil {
		return nil, unusable(v1alpha1.ReasonTargetRefused, "auth.csrf.tokenUrl %v", err)
	}
	u, err := url.Parse(auth.TokenURL)
	if err != nil {
		return nil, unusable(v1alpha1.ReasonInvalid, "auth.csrf.tokenUrl cannot be read")
	}
	// It is asked with the credentials of the target.
	if u.Scheme != target.Scheme || !strings.EqualFold(u.Host, target.Host) {
		return nil, unusable(v1alpha1.ReasonInvalid, "auth.csrf.tokenUrl must have the scheme, host and port of targetUrl, %s://%s", target.Scheme, target.Host)
	}
	return &csrf{url: u}, nil
}

func (c *csrf) current(not *session) *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == not || c.session != nil && time.Now().After(c.session.endsAt) {
		return nil
	}
	return c.session
}

// get returns a session that is not the refused one, fresh when it was fetched for
// this call. It is nil where a refused one may not be replaced yet. authorize adds
// the credentials. Callers who need one at the same time share one request.
func (c *csrf) get(ctx context.Context, transport http.RoundTripper, authorize func(*http.Request), refused *session) (s *session, fresh bool, err error) {
	if s := c.current(refused); s != nil {
		return s, false, nil
	}
	result := c.flight.DoChan("", func() (any, error) {
		if s := c.current(refused); s != nil {
			return s, nil
		}
		if refused != nil && !c.mayReplace() {
			return (*session)(nil), nil
		}
		fetch, cancel := context.WithTimeout(context.WithoutCancel(ctx), csrfTimeout)
		defer cancel()
		return c.fetch(fetch, transport, authorize)
	})
	select {
	case <-ctx.Done():
		return nil, false, ctx.Err()
	case r := <-result:
		s, _ := r.Val.(*session)
		return s, true, r.Err
	}
}

// drop forgets a session that was refused, unless one was a short while ago.
func (c *csrf) drop(refused *session) {
	if c.current(nil) != refused || !c.mayReplace() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == refused {
		c.session = nil
	}
}

func (c *csrf) mayReplace() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.replaced) < replaceEvery {
		return false
	}
	c.replaced = time.Now()
	return true
}

// csrfError says that no token was to be had. It tells nothing of the answer's
// body.
type csrfError struct {
	url   string
	cause error
}

// Error implements error.
func (e *csrfError) Error() string {
	var request *url.Error
	if errors.As(e.cause, &request) {
		return fmt.Sprintf("no CSRF token from %s: %v", e.url, request.Err)
	}
	return fmt.Sprintf("no CSRF token from %s: %v", e.url, e.cause)
}

// Unwrap is for errors.As.
func (e *csrfError) Unwrap() error { return e.cause }

func (c *csrf) fetch(ctx context.Context, transport http.RoundTripper, authorize func(*http.Request)) (*session, error) {
	failed := func(err error) (*session, error) {
		return nil, &csrfError{url: (&url.URL{Scheme: c.url.Scheme, Host: c.url.Host, Path: c.url.Path}).String(), cause: err}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url.String(), nil)
	if err != nil {
		return failed(err)
	}
	authorize(request)
	request.Header.Set(headerCSRF, "fetch")
	// Redirects are not followed: the credentials go to this URL only.
	response, err := transport.RoundTrip(request)
	if err != nil {
		return failed(err)
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, maxDrained)
	s := &session{token: response.Header.Get(headerCSRF), endsAt: time.Now().Add(csrfLifetime)}
	if response.StatusCode/100 != 2 {
		return failed(fmt.Errorf("it answered %d", response.StatusCode))
	}
	if s.token == "" || len(s.token) > maxCSRFToken || !httpguts.ValidHeaderFieldValue(s.token) {
		return failed(fmt.Errorf("it answered %d without the header %s", response.StatusCode, headerCSRF))
	}
	size := 0
	for _, cookie := range response.Cookies() {
		if size += len(cookie.Name) + len(cookie.Value) + 2; size > maxCSRFCookies {
			return failed(errors.New("its cookies are too large"))
		}
		if cookie.MaxAge >= 0 {
			s.cookies = append(s.cookies, &http.Cookie{Name: cookie.Name, Value: cookie.Value}) //nolint:gosec // one that is sent, not set: it has no attributes
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
	return s, nil
}

// apply makes a request carry the session. Cookies of the caller's stay, but for
// those of the session's names.
func (s *session) apply(r *http.Request) {
	own := r.Cookies()
	r.Header.Set(headerCSRF, s.token)
	r.Header.Del("Cookie")
	for _, cookie := range own {
		if !s.has(cookie.Name) {
			r.AddCookie(cookie)
		}
	}
	for _, cookie := range s.cookies {
		r.AddCookie(cookie)
	}
}

func (s *session) has(name string) bool {
	return slices.ContainsFunc(s.cookies, func(c *http.Cookie) bool { return c.Name == name })
}

// hide removes the session from an answer: it is the application's, and no
// caller's.
func (s *session) hide(header http.Header) {
	header.Del(headerCSRF)
	kept := slices.DeleteFunc(slices.Clone(header.Values("Set-Cookie")), func(line string) bool {
		name, _, _ := strings.Cut(line, "=")
		return s.has(strings.TrimSpace(name))
	})
	if header.Del("Set-Cookie"); len(kept) > 0 {
		header["Set-Cookie"] = kept
	}
}
