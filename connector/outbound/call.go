package outbound

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

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
	// maxDrained of an answer that is thrown away, to use its connection again.
	maxDrained = 64 << 10
)

// call is one request on its way to a target.
type call struct {
	gateway              *Gateway
	endpoint             *Endpoint
	application, service string
	target               *url.URL
}

// serve streams the request to the target and the answer back.
func (c *call) serve(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), c.endpoint.timeout)
	defer cancel()
	// The context does not reach a read of the request's body. One second later,
	// so that the answer is about the call's time and not about the connection.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(c.endpoint.timeout + time.Second))
	proxy := &httputil.ReverseProxy{
		Rewrite:        c.rewrite,
		Transport:      c,
		ModifyResponse: c.modify,
		ErrorHandler:   c.failed,
		FlushInterval:  -1,
		ErrorLog:       slog.NewLogLogger(c.gateway.log.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
}

// rewrite makes the outgoing request. ReverseProxy has removed the hop-by-hop
// and X-Forwarded-* headers.
func (c *call) rewrite(p *httputil.ProxyRequest) {
	out := p.Out
	out.URL, out.Host = c.target, ""
	own := ""
	if c.endpoint.callerToken {
		own = out.Header.Get(headerAccessToken)
	}
	for name := range out.Header {
		if ofTheMesh(name) {
			delete(out.Header, name)
		}
	}
	// ReverseProxy would pass a change of protocol on; a call is a request and
	// its answer.
	for _, name := range []string{"Connection", "Upgrade", "Authorization", headerAccessToken} {
		out.Header.Del(name)
	}
	for name, values := range c.endpoint.header {
		out.Header[name] = values
	}
	switch {
	case own != "":
		out.Header.Set("Authorization", "Bearer "+own)
		c.endpoint.oauth2 = nil // the caller's token is not to be replaced
	case c.endpoint.basic != nil:
		out.SetBasicAuth(c.endpoint.basic.username, c.endpoint.basic.password)
	}
}

// ofTheMesh reports whether a header speaks of the mesh and not of the call.
func ofTheMesh(name string) bool {
	lower := strings.ToLower(name)
	return headers.Identity(name) || lower == "forwarded" || strings.HasPrefix(lower, "x-envoy-") || strings.HasPrefix(lower, "x-forwarded-")
}

// RoundTrip sends the request with credentials. When the target says 401 to a
// token that was cached, it is sent once more with a fresh one, and that answer
// counts. A 403 is about what this call wants, and no fault of a token that all
// callers share.
func (c *call) RoundTrip(r *http.Request) (*http.Response, error) {
	begin := time.Now()
	response, err := c.roundTrip(r)
	status := 0
	if err == nil {
		status = response.StatusCode
	}
	elapsed := time.Since(begin)
	c.gateway.metrics.calls.WithLabelValues(c.application, c.service, strconv.Itoa(status)).Observe(elapsed.Seconds())
	c.gateway.log.Debug("called", "application", c.application, "service", c.service, "method", r.Method, "status", status, "elapsed", elapsed)
	return response, err
}

func (c *call) roundTrip(r *http.Request) (*http.Response, error) {
	transport := c.gateway.transports.get(c.endpoint.mtls)
	if c.endpoint.oauth2 == nil {
		return transport.RoundTrip(r)
	}
	replay, err := replayable(r)
	if err != nil {
		return nil, err
	}
	token, fresh, err := c.gateway.tokens.get(r.Context(), *c.endpoint.oauth2)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	response, err := transport.RoundTrip(r)
	if err != nil || response.StatusCode != http.StatusUnauthorized {
		return response, err
	}
	c.gateway.metrics.tokens.WithLabelValues(c.application, c.service).Inc()
	switch {
	case fresh:
		return response, nil
	case !replay:
		c.gateway.tokens.drop(*c.endpoint.oauth2, token)
		return response, nil
	}
	token, ok := c.gateway.tokens.replace(r.Context(), *c.endpoint.oauth2, token)
	if !ok {
		return response, nil // the target's refusal says more than that there is no new token
	}
	_, _ = io.CopyN(io.Discard, response.Body, maxDrained)
	response.Body.Close()
	if r.GetBody != nil {
		if r.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	r.Header.Set("Authorization", "Bearer "+token)
	return transport.RoundTrip(r)
}

// replayable reports whether the request can be sent twice, after reading a
// small body into memory.
func replayable(r *http.Request) (bool, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return true, nil
	}
	if r.ContentLength < 0 || r.ContentLength > maxReplay {
		return false, nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return false, err
	}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.Body, err = r.GetBody()
	return true, err
}

// modify makes the target's answer the caller's.
func (c *call) modify(response *http.Response) error {
	response.Header.Del(headerTargetStatus)
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
	var noToken *tokenError
	status, title, detail := http.StatusBadGateway, "Target not reached", where+" could not be reached"
	switch {
	case errors.Is(r.Context().Err(), context.Canceled):
		detail = "the caller went away" // for the log
	case errors.Is(r.Context().Err(), context.DeadlineExceeded):
		status, title, detail = http.StatusGatewayTimeout, "Target too slow", where+" did not answer within "+c.endpoint.timeout.String()
	case errors.As(err, &noToken):
		title, detail = "No credentials", noToken.Error()
	case targets.IsRefused(err):
		title, detail = "Target refused", where+": "+err.Error()
	}
	c.gateway.log.Warn("call failed", "application", c.application, "service", c.service, "method", r.Method, "status", status, "error", err)
	httpserver.Problem(w, status, title, detail)
}
