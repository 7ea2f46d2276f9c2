package outbound

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lambdamesh/lambdamesh/pkg/accesstokens"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// defaultTimeout of a call; it is the kind's default, too.
const defaultTimeout = 30 * time.Second

// Reasons why a service cannot be called, besides those of pkg/apis.
const (
	// ReasonSecretNotFound: a Secret that holds credentials does not exist.
	ReasonSecretNotFound = "SecretNotFound"
	// ReasonSecretInvalid: it lacks a key, or a value cannot be sent.
	ReasonSecretInvalid = "SecretInvalid"
)

// UnusableError says why a service cannot be called and what to do about it. Its
// message names Secrets and keys, never values.
type UnusableError struct{ Reason, Message string }

// Error implements error.
func (e *UnusableError) Error() string { return e.Message }

func unusable(reason, format string, args ...any) error {
	return &UnusableError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// styleMTLS is the client's certificate as its authentication to a token URL.
const styleMTLS = "mtls"

// SecretFunc returns a Secret of the system namespace.
type SecretFunc func(name string) (*corev1.Secret, error)

// Endpoint is an API with everything it takes to call it.
type Endpoint struct {
	target  *url.URL
	timeout time.Duration
	tls     *clientTLS           // nil: no certificate, the system's authorities
	oauth2  *accesstokens.Client // nil without; how it is reached is for the gateway to say
	basic   *basicCredentials    // nil without
	csrf    *csrf                // nil without
	header  http.Header
	query   []added
	rate    rateLimit
	breaker *breaker
	// callerToken: the caller's Access-Token goes before all credentials.
	callerToken bool
}

type basicCredentials struct{ username, password string }

type added struct{ name, value string }

// Resolve makes the endpoint of an API. The error is an [UnusableError] when the
// object or what it refers to has to change; any other is that of secrets.
func Resolve(api *v1alpha1.ServiceAPI, secrets SecretFunc, policy *targets.Policy) (*Endpoint, error) {
	if err := policy.CheckURL(api.TargetURL); err != nil {
		return nil, unusable(v1alpha1.ReasonTargetRefused, "targetUrl %v", err)
	}
	target, err := url.Parse(api.TargetURL)
	if err != nil {
		return nil, unusable(v1alpha1.ReasonInvalid, "targetUrl cannot be read")
	}
	e := &Endpoint{target: target, timeout: defaultTimeout, breaker: &breaker{}}
	if api.Timeout != nil {
		e.timeout = api.Timeout.Duration
	}
	if limit := api.RateLimit; limit != nil && limit.Requests > 0 {
		per := time.Second
		if limit.Per != nil {
			per = limit.Per.Duration
		}
		e.rate = rateLimit{every: per / time.Duration(limit.Requests), burst: int(cmp.Or(limit.Burst, limit.Requests))}
	}
	auth := api.Auth
	if auth == nil {
		auth = &v1alpha1.APIAuth{}
	}
	return e, e.addAuth(auth, api.CA, resolver{secrets: secrets, policy: policy})
}

func (e *Endpoint) addAuth(auth *v1alpha1.APIAuth, ca *v1alpha1.SecretKeyRef, r resolver) (err error) {
	e.callerToken = auth.AllowCallerToken
	certificate := auth.MTLS
	if auth.OAuth2 != nil && auth.OAuth2.MTLS != nil {
		certificate = auth.OAuth2.MTLS
		if !strings.HasPrefix(auth.OAuth2.TokenURL, "https://") {
			return unusable(v1alpha1.ReasonInvalid, "auth.oauth2.mtls needs a tokenUrl with https")
		}
	}
	if certificate != nil && e.target.Scheme != "https" {
		return unusable(v1alpha1.ReasonInvalid, "mtls needs a targetUrl with https")
	}
	if e.tls, err = r.tls(certificate, ca); err != nil {
		return err
	}
	switch {
	case auth.OAuth2 != nil:
		if e.oauth2, err = r.clientCredentials(auth.OAuth2); err != nil {
			return err
		}
	case auth.Basic != nil:
		if e.basic, err = r.basic(auth.Basic); err != nil {
			return err
		}
	}
	if auth.CSRF != nil && auth.AllowCallerToken {
		return unusable(v1alpha1.ReasonInvalid, "auth.allowCallerToken and auth.csrf do not go together: CSRF tokens belong to the application's own credentials")
	}
	if auth.CSRF != nil {
		if e.csrf, err = r.csrf(auth.CSRF, e.target); err != nil {
			return err
		}
	}
	e.header = http.Header{}
	for i := range auth.Headers {
		h := &auth.Headers[i]
		if reservedHeader(h.Name) {
			return unusable(v1alpha1.ReasonInvalid, "auth.headers: %s is set by the connector itself: remove it", h.Name)
		}
		if strings.HasPrefix(textproto.CanonicalMIMEHeaderKey(h.Name), "Ce-") {
			return unusable(v1alpha1.ReasonInvalid, "auth.headers: %s would make the call an event, which an application publishes itself: remove it", h.Name)
		}
		value, err := r.value(h)
		if err != nil {
			return err
		}
		if !httpguts.ValidHeaderFieldName(h.Name) || !httpguts.ValidHeaderFieldValue(value) {
			return unusable(v1alpha1.ReasonInvalid, "auth.headers: the value of %s cannot be sent in a header", h.Name)
		}
		e.header.Set(h.Name, value)
	}
	for i := range auth.QueryParameters {
		q := &auth.QueryParameters[i]
		value, err := r.value(q)
		if err != nil {
			return err
		}
		e.query = append(e.query, added{name: q.Name, value: value})
	}
	return nil
}

// reservedHeader reports whether a header frames the message or speaks of the
// connection, so that adding it would break the call.
func reservedHeader(name string) bool {
	return slices.Contains([]string{
		"Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
	}, textproto.CanonicalMIMEHeaderKey(name))
}

// resolver reads what an APIAuth refers to.
type resolver struct {
	secrets SecretFunc
	policy  *targets.Policy
}

func (r resolver) clientCredentials(auth *v1alpha1.OAuth2Auth) (*accesstokens.Client, error) {
	if err := r.policy.CheckURL(auth.TokenURL); err != nil {
		return nil, unusable(v1alpha1.ReasonTargetRefused, "auth.oauth2.tokenUrl %v", err)
	}
	keys := []string{"clientId", "clientSecret"}
	if auth.AuthStyle == styleMTLS {
		keys = keys[:1]
	}
	secret, values, err := r.keys(auth.Secret.Name, keys...)
	if err != nil {
		return nil, err
	}
	return &accesstokens.Client{
		TokenURL: auth.TokenURL,
		ID:       values[0],
		Secret:   strings.Join(values[1:], ""),
		Version:  secretVersion(secret),
		Scopes:   strings.Join(auth.Scopes, " "),
		Audience: auth.Audience,
		InParams: auth.AuthStyle == "params" || auth.AuthStyle == styleMTLS,
	}, nil
}

func (r resolver) basic(auth *v1alpha1.BasicAuth) (*basicCredentials, error) {
	_, values, err := r.keys(auth.Secret.Name, "username", "password")
	if err != nil {
		return nil, err
	}
	if strings.Contains(values[0], ":") {
		return nil, unusable(ReasonSecretInvalid, "Secret %s/%s: a username with a colon cannot be sent (RFC 7617)",
			v1alpha1.SystemNamespace, auth.Secret.Name)
	}
	return &basicCredentials{username: values[0], password: values[1]}, nil
}

func (r resolver) value(v *v1alpha1.AddedValue) (string, error) {
	if v.Secret == nil {
		return v.Value, nil
	}
	_, values, err := r.keys(v.Secret.Name, v.Secret.Key)
	if err != nil {
		return "", err
	}
	return values[0], nil
}

// keys returns values of a Secret, without the line end that editors and echo
// leave there.
func (r resolver) keys(name string, keys ...string) (*corev1.Secret, []string, error) {
	secret, err := r.secrets(name)
	if apierrors.IsNotFound(err) {
		return nil, nil, unusable(ReasonSecretNotFound, "Secret %s/%s does not exist: create it with %s",
			v1alpha1.SystemNamespace, name, strings.Join(keys, " and "))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("reading Secret %s/%s: %w", v1alpha1.SystemNamespace, name, err)
	}
	values := make([]string, len(keys))
	for i, key := range keys {
		values[i] = strings.TrimRight(string(secret.Data[key]), "\r\n")
		if values[i] == "" {
			return nil, nil, unusable(ReasonSecretInvalid, "Secret %s/%s has no key %s, or it is empty", v1alpha1.SystemNamespace, name, key)
		}
	}
	return secret, values, nil
}

var errPath = errors.New("the path may not contain . or .. segments, in any encoding, or control characters")

// url joins the escaped path and the query of a call to the target's URL. The
// path cannot leave the target's: what a server could take for a dot segment is
// refused, not resolved, as nobody knows how often the target decodes.
func (e *Endpoint) url(escapedPath, rawQuery string) (*url.URL, error) {
	for segment := range strings.SplitSeq(escapedPath, "/") {
		if err := checkSegment(segment); err != nil {
			return nil, err
		}
	}
	u := *e.target
	if escapedPath != "" {
		joined := strings.TrimSuffix(e.target.EscapedPath(), "/") + escapedPath
		path, err := url.PathUnescape(joined)
		if err != nil {
			return nil, fmt.Errorf("the path cannot be read: %w", err)
		}
		u.Path, u.RawPath = path, joined
	}
	u.RawQuery = e.addQuery(rawQuery)
	return &u, nil
}

// checkSegment decodes a segment as long as there is something to decode, and
// looks at what servers are known to see as separators in it.
func checkSegment(segment string) error {
	for range 4 {
		for part := range strings.FieldsFuncSeq(segment, func(r rune) bool { return r == '/' || r == '\\' }) {
			if name, _, _ := strings.Cut(part, ";"); name == "." || name == ".." {
				return errPath
			}
		}
		if strings.ContainsFunc(segment, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return errPath
		}
		decoded, err := url.PathUnescape(segment)
		if err != nil || decoded == segment {
			return nil
		}
		segment = decoded
	}
	return errPath // nobody means an escape of an escape of an escape of an escape
}

// addQuery appends the endpoint's parameters.
func (e *Endpoint) addQuery(raw string) string {
	query := e.withoutAdded(raw)
	for _, a := range e.query {
		if query != "" {
			query += "&"
		}
		query += url.QueryEscape(a.name) + "=" + url.QueryEscape(a.value)
	}
	return query
}

// withoutAdded removes the parameters that the endpoint adds. The others stay as
// they were written.
func (e *Endpoint) withoutAdded(raw string) string {
	if len(e.query) == 0 {
		return raw
	}
	var pairs []string
	for pair := range strings.SplitSeq(raw, "&") {
		key, _, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(key)
		if pair != "" && err == nil && !slices.ContainsFunc(e.query, func(a added) bool { return a.name == name }) {
			pairs = append(pairs, pair)
		}
	}
	return strings.Join(pairs, "&")
}
