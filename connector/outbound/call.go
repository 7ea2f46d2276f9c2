package outbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/lambdamesh/lambdamesh/pkg/accesstokens"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

const (
	// headerAccessToken carries a token that the caller brings instead of the
	// application's credentials, where the service allows it.
	headerAccessToken = "Access-Token"
	// headerTargetStatus tells a 5xx of the target, which the caller sees as 502,
	// from one of the gateway.
	headerTargetStatus = "Target-System-Status"
	// maxReplay bounds the body that is kept for a second try with fresh
	// credentials. Larger bodies, and those of unknown length, are streamed once.
	maxReplay = 256 << 10
	// maxReplays bounds those bodies together. Where they are too many, more are
	// streamed once.
	maxReplays = 32 << 20
	// maxDrained of an answer that is thrown away, to use its connection again.
	maxDrained = 64 << 10
)

// call is one request on its way to a target.
type call struct {
	gateway              *Gateway
	endpoint             *Endpoint
	application, service string
	target               *url.URL
	// own is the token that the caller brings, where it may.
	own string
	// sent says that the whole request was; who takes long over his own must not
	// have the target held back.
	sent atomic.Bool
	// session that the call was made in, nil for none.
	session *session
}

// serve streams the request to the target and the answer back.
func (c *call) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), c.endpoint.timeout)
	defer cancel()
	if r.Body != nil && r.Body != http.NoBody {
		// The context does not reach a read of the request's body. One second later,
		// so that the answer is about the call's time and not about the connection.
		// Without a body net/http waits for the client to go away, and would take
		// the deadline for that, for all requests that follow on the connection.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(c.endpoint.timeout + time.Second))
	}
	proxy := c.gateway.proxy
	proxy.Rewrite, proxy.Transport, proxy.ModifyResponse, proxy.ErrorHandler = c.rewrite, c, c.modify, c.failed
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

// rewrite makes the outgoing request. ReverseProxy has removed the hop-by-hop
// and X-Forwarded-* headers.
func (c *call) rewrite(p *httputil.ProxyRequest) {
	out := p.Out
	out.URL, out.Host = c.target, ""
	if c.endpoint.callerToken {
		c.own = out.Header.Get(headerAccessToken)
	}
	for name := range out.Header {
		if ofTheMesh(name) || c.endpoint.shadows(name) {
			delete(out.Header, name)
		}
	}
	// ReverseProxy would pass a change of protocol on; a call is a request and
	// its answer.
	for _, name := range []string{"Connection", "Upgrade", "Authorization", headerAccessToken} {
		delete(out.Header, name)
	}
	for name, values := range c.endpoint.header {
		out.Header[name] = values
	}
	switch {
	case c.own != "":
		out.Header.Set("Authorization", "Bearer "+c.own)
	case c.endpoint.basic != nil:
		out.SetBasicAuth(c.endpoint.basic.username, c.endpoint.basic.password)
	}
	if out.Body == nil || out.Body == http.NoBody {
		c.sent.Store(true)
	} else {
		out.Body = &watchedBody{ReadCloser: out.Body, ended: &c.sent}
	}
}

// watchedBody notes its end.
type watchedBody struct {
	io.ReadCloser
	ended *atomic.Bool
}

// Read implements io.Reader.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended.Store(true)
	}
	return n, err
}

// shadows reports whether a target could take a header of the caller's for one
// that the connector adds: many read '_' and '-' as one.
func (e *Endpoint) shadows(name string) bool {
	if !strings.Contains(name, "_") {
		return false
	}
	name = textproto.CanonicalMIMEHeaderKey(strings.ReplaceAll(name, "_", "-"))
	_, added := e.header[name]
	return added || ofTheMesh(name) || name == headerAccessToken || name == textproto.CanonicalMIMEHeaderKey(headerCSRF)
}

// ofTheMesh reports whether a header speaks of the mesh and not of the call.
func ofTheMesh(name string) bool {
	return headers.Identity(name) || strings.EqualFold(name, "forwarded") || headers.HasPrefix(name, "x-envoy-") || headers.HasPrefix(name, "x-forwarded-")
}

// RoundTrip sends the request with credentials. When the target refuses ones that
// were cached, it is sent once more with fresh ones, and that answer counts.
func (c *call) RoundTrip(r *http.Request) (*http.Response, error) {
	begin := time.Now()
	response, err := c.roundTrip(r)
	status := 0
	if err == nil {
		status = response.StatusCode
	}
	elapsed := time.Since(begin)
	g := c.gateway
	g.metrics.calls.WithLabelValues(c.application, c.service, statusLabel(status)).Observe(elapsed.Seconds())
	if g.log.Enabled(r.Context(), slog.LevelDebug) {
		g.log.Debug("called", "application", c.application, "service", c.service, "method", r.Method, "status", status, "elapsed", elapsed)
	}
	switch {
	case status >= http.StatusInternalServerError:
		g.activity.note(c.application, fmt.Sprintf("%s: the target answered %d", c.service, status))
	case err == nil:
		g.activity.note(c.application, "")
	}
	if answered, known := c.answered(r, err); known {
		c.endpoint.breaker.note(answered, time.Now())
	}
	return response, err
}

// answered reports whether the target answered, where that is known: a caller that
// goes away or takes long says nothing about the target.
func (c *call) answered(r *http.Request, err error) (answered, known bool) {
	var noToken *accesstokens.Error
	var noSession *csrfError
	switch {
	case err == nil:
		return true, true
	case errors.As(err, &noToken), errors.As(err, &noSession), targets.IsRefused(err), errors.Is(r.Context().Err(), context.Canceled):
		return false, false
	case errors.Is(r.Context().Err(), context.DeadlineExceeded):
		return false, c.sent.Load()
	default:
		var dial *net.OpError
		return false, c.sent.Load() || errors.As(err, &dial) && dial.Op == "dial"
	}
}

// credentials that are fetched for calls and kept for later ones.
type credentials struct {
	token      string
	tokenFresh bool // fetched for this call

	session      *session
	sessionFresh bool
}

func (c *call) roundTrip(r *http.Request) (*http.Response, error) {
	transport := c.gateway.transports.get(c.endpoint.tls)
	if (c.endpoint.oauth2 == nil || c.own != "") && c.endpoint.csrf == nil {
		return transport.RoundTrip(r)
	}
	replay, done, err := c.gateway.replayable(r)
	if err != nil {
		return nil, err
	}
	defer done()
	with, err := c.credentials(r.Context(), transport)
	if err != nil {
		return nil, err
	}
	c.apply(r, with)
	response, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	again, ok := c.renew(r.Context(), transport, with, response, replay)
	if !ok {
		return response, nil
	}
	_, _ = io.CopyN(io.Discard, response.Body, maxDrained)
	response.Body.Close()
	if r.GetBody != nil {
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	c.apply(r, again)
	return transport.RoundTrip(r)
}

func (c *call) credentials(ctx context.Context, transport http.RoundTripper) (with credentials, err error) {
	if c.endpoint.oauth2 != nil {
		if with.token, with.tokenFresh, err = c.gateway.tokens.Get(ctx, c.client(transport)); err != nil {
			return with, err
		}
	}
	if c.endpoint.csrf != nil {
		with.session, with.sessionFresh, err = c.endpoint.csrf.get(ctx, transport, c.authorize(with.token), nil)
	}
	return with, err
}

// client is who asks for the service's access token, on the way of its calls.
func (c *call) client(transport http.RoundTripper) accesstokens.Client {
	client := *c.endpoint.oauth2
	client.Via = transport
	return client
}

// apply puts credentials into a request, in place of earlier ones.
func (c *call) apply(r *http.Request, with credentials) {
	if with.token != "" {
		r.Header.Set("Authorization", "Bearer "+with.token)
	}
	if with.session != nil {
		c.session = with.session
		with.session.apply(r)
	}
}

// authorize returns what adds the service's credentials to a request for a CSRF
// token.
func (c *call) authorize(token string) func(*http.Request) {
	e := c.endpoint
	return func(r *http.Request) {
		for name, values := range e.header {
			r.Header[name] = values
		}
		r.URL.RawQuery = e.addQuery(r.URL.RawQuery)
		switch {
		case token != "":
			r.Header.Set("Authorization", "Bearer "+token)
		case e.basic != nil:
			r.SetBasicAuth(e.basic.username, e.basic.password)
		}
	}
}

// renew returns fresh credentials when the target refused cached ones and the call
// can be made once more.
func (c *call) renew(ctx context.Context, transport http.RoundTripper, with credentials, response *http.Response, replay bool) (credentials, bool) {
	e, g := c.endpoint, c.gateway
	switch {
	case with.token != "" && tokenRefused(response):
		g.metrics.tokens.WithLabelValues(c.application, c.service).Inc()
		if with.tokenFresh {
			return with, false
		}
		if !replay {
			g.tokens.Drop(c.client(transport), with.token)
			return with, false
		}
		// The target's refusal says more than that there is no new token.
		token, ok := g.tokens.Replace(ctx, c.client(transport), with.token)
		with.token = token
		return with, ok
	case with.session != nil && response.StatusCode == http.StatusForbidden && !with.sessionFresh:
		if !replay {
			e.csrf.drop(with.session)
			return with, false
		}
		fresh, _, err := e.csrf.get(ctx, transport, c.authorize(with.token), with.session)
		with.session = fresh
		return with, err == nil && fresh != nil
	default:
		return with, false
	}
}

// tokenRefused reports whether an answer is about the token (RFC 6750, section 3).
// A 403 is about what the call wants, and no fault of a token that all callers
// share, unless it says so.
func tokenRefused(response *http.Response) bool {
	switch response.StatusCode {
	case http.StatusUnauthorized:
		return true
	case http.StatusForbidden:
		for _, challenge := range response.Header.Values("WWW-Authenticate") {
			challenge = strings.ToLower(strings.ReplaceAll(challenge, " ", ""))
			if strings.Contains(challenge, "bearer") && (strings.Contains(challenge, `error="invalid_token"`) || strings.Contains(challenge, "error=invalid_token")) {
				return true
			}
		}
	}
	return false
}

// replayable reports whether the request can be sent twice, after reading a
// small body into memory. Call done when it is not needed any more.
func (g *Gateway) replayable(r *http.Request) (replay bool, done func(), err error) {
	done = func() {}
	if r.Body == nil || r.Body == http.NoBody {
		return true, done, nil
	}
	size := r.ContentLength
	if size < 0 || size > maxReplay || !g.replays.TryAcquire(size) {
		return false, done, nil
	}
	done = func() { g.replays.Release(size) }
	body, err := io.ReadAll(r.Body)
	if err != nil {
		done()
		return false, nil, err
	}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.Body, err = r.GetBody()
	return true, done, err
}

// modify makes the target's answer the caller's.
func (c *call) modify(response *http.Response) error {
	response.Header.Del(headerTargetStatus)
	if c.session != nil {
		c.session.hide(response.Header)
	}
	if response.StatusCode >= http.StatusInternalServerError {
		response.Header.Set(headerTargetStatus, strconv.Itoa(response.StatusCode))
		response.StatusCode = http.StatusBadGateway
	}
	if location := response.Header.Get("Location"); location != "" {
		response.Header.Set("Location", c.location(location))
	}
	return nil
}

// location turns a redirect inside the target's URL into one through the
// gateway, so that who follows it has the credentials again. Any other becomes
// absolute: relative ones would lead to another application.
func (c *call) location(raw string) string {
	from := *c.target
	from.RawQuery = "" // it may hold credentials, which relative references repeat
	to, err := from.Parse(raw)
	if err != nil {
		return raw
	}
	to.RawQuery = c.endpoint.withoutAdded(to.RawQuery)
	base := c.endpoint.target
	under := strings.TrimSuffix(base.EscapedPath(), "/")
	path, inside := strings.CutPrefix(to.EscapedPath(), under)
	if to.Scheme != base.Scheme || !strings.EqualFold(to.Host, base.Host) || !inside || path != "" && path[0] != '/' {
		return to.String()
	}
	through := "/" + c.application + "/" + c.service + path
	if to.RawQuery != "" {
		through += "?" + to.RawQuery
	}
	if to.Fragment != "" {
		through += "#" + to.EscapedFragment()
	}
	return through
}

// failed answers when there is no answer of the target.
func (c *call) failed(w http.ResponseWriter, r *http.Request, err error) {
	where := c.application + "/" + c.service
	var noToken *accesstokens.Error
	var noSession *csrfError
	status, title, detail := http.StatusBadGateway, "Target not reached", where+" could not be reached"
	switch {
	case errors.Is(r.Context().Err(), context.Canceled):
		detail = "the caller went away" // for the log
	case errors.Is(r.Context().Err(), context.DeadlineExceeded):
		status, title, detail = http.StatusGatewayTimeout, "Target too slow", where+" did not answer within "+c.endpoint.timeout.String()
	case errors.As(err, &noToken):
		title, detail = "No credentials", noToken.Error()
	case errors.As(err, &noSession):
		title, detail = "No credentials", noSession.Error()
	case targets.IsRefused(err):
		title, detail = "Target refused", where+": "+err.Error()
	}
	if !errors.Is(r.Context().Err(), context.Canceled) {
		c.gateway.activity.note(c.application, detail)
	}
	c.gateway.log.Warn("call failed", "application", c.application, "service", c.service, "method", r.Method, "status", status, "error", err)
	httpserver.Problem(w, status, title, detail)
}
