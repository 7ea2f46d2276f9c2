package ir

import (
	"strings"
	"time"
)

// Rule decides about the requests it matches: backend and access together.
type Rule struct {
	// ID names the rule in the whole mesh: <namespace>/<name>/<hash>. The hash
	// is of the rule's text, so that a gateway and a sidecar that are a moment
	// apart never take two different rules for one.
	ID string `json:"id"`
	// Index of the rule in its APIRule.
	Index   int           `json:"index"`
	Path    PathMatch     `json:"path"`
	Methods []string      `json:"methods,omitempty"`
	Headers []HeaderMatch `json:"headers,omitempty"`

	// Closed: the rule answers this, whatever else it says.
	Closed *Closed `json:"closed,omitempty"`
	// JWT that a request needs; nil lets everybody in.
	JWT *JWT `json:"jwt,omitempty"`

	// APIKey that a request needs; nil: none.
	APIKey *APIKey `json:"apiKey,omitempty"`
	// ClientIPs that a request may come from; nil: all.
	ClientIPs *ClientIPs `json:"clientIPs,omitempty"`

	Backends        []Backend   `json:"backends,omitempty"`
	Rewrite         *Rewrite    `json:"rewrite,omitempty"`
	RequestHeaders  HeaderEdits `json:"requestHeaders,omitzero"`
	ResponseHeaders HeaderEdits `json:"responseHeaders,omitzero"`
	Timeout         Duration    `json:"timeout,omitempty"`
	// Retries; nil: DefaultRetries.
	Retries   *Retries   `json:"retries,omitempty"`
	RateLimit *RateLimit `json:"rateLimit,omitempty"`
	// MaxBodyBytes of a request; 0: no limit here.
	MaxBodyBytes uint32    `json:"maxBodyBytes,omitempty"`
	Mirror       *Mirror   `json:"mirror,omitempty"`
	Redirect     *Redirect `json:"redirect,omitempty"`
}

// APIKey of clients, in Header (lower case) or in the parameter Query.
type APIKey struct {
	Header string `json:"header,omitempty"`
	Query  string `json:"query,omitempty"`
	// Clients by name, sorted. Their keys are secret.
	Clients []APIClient `json:"clients"`
}

// APIClient has a key, which no other client of the rule has.
type APIClient struct {
	Name string `json:"name"`
	Key  string `json:"key"`
}

// RateLimit is a token bucket of Burst requests that gets Requests more every Per.
type RateLimit struct {
	Requests uint32   `json:"requests"`
	Per      Duration `json:"per"`
	Burst    uint32   `json:"burst"`
	// Header (lower case), Claim or ClientIP: a bucket for each value; requests
	// without one share a bucket. None of them: one bucket for all.
	Header   string `json:"header,omitempty"`
	Claim    string `json:"claim,omitempty"`
	ClientIP bool   `json:"clientIP,omitempty"`
}

// Mirror is a destination (a key) that gets copies of requests.
type Mirror struct {
	Destination string `json:"destination"`
	Percent     uint32 `json:"percent"`
}

// Redirect is an answer instead of a backend's; what is empty stays.
type Redirect struct {
	Scheme string `json:"scheme,omitempty"`
	Host   string `json:"host,omitempty"`
	Port   uint32 `json:"port,omitempty"`
	Path   string `json:"path,omitempty"`
	Code   uint32 `json:"code"`
}

// Destinations of the rule, the mirror's included.
func (r *Rule) Destinations() []string {
	var all []string
	for _, b := range r.Backends {
		all = append(all, b.Destination)
	}
	if r.Mirror != nil {
		all = append(all, r.Mirror.Destination)
	}
	return all
}

// ClientIPs are ranges of addresses (CIDR), canonical and sorted: with Allow the
// client's is in one of them, and it is in none of Deny.
type ClientIPs struct {
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
}

// Closed is the answer of a rule that cannot be obeyed.
type Closed struct {
	Status uint32 `json:"status"`
	// Reason for people, without anything secret.
	Reason string `json:"reason"`
}

// HeaderMatch is a condition on a request header.
type HeaderMatch struct {
	// Name in lower case.
	Name string `json:"name"`
	StringMatch
}

// Backend is a destination (a key) and its share of the requests.
type Backend struct {
	Destination string `json:"destination"`
	// Weight relative to the sum; at least 1.
	Weight uint32 `json:"weight"`
}

// Rewrite changes what the backend sees.
type Rewrite struct {
	// Path replaces the literal part of the match before the first wildcard.
	Path string `json:"path,omitempty"`
	Host string `json:"host,omitempty"`
}

// ReplacedLiteral is what takes the place of the path's [PathMatch.Literal] under
// a rewrite. It ends in a slash when the literal does, so that what follows
// stays a segment of its own.
func (r *Rule) ReplacedLiteral() string {
	if strings.HasSuffix(r.Path.Literal(), "/") && !strings.HasSuffix(r.Rewrite.Path, "/") {
		return r.Rewrite.Path + "/"
	}
	return r.Rewrite.Path
}

// MethodMatch is the condition on the method; false when there is none.
func (r *Rule) MethodMatch() (StringMatch, bool) {
	switch len(r.Methods) {
	case 0:
		return StringMatch{}, false
	case 1:
		return StringMatch{Kind: MatchExact, Value: r.Methods[0]}, true
	default:
		return StringMatch{Kind: MatchRegex, Value: strings.Join(r.Methods, "|")}, true
	}
}

// PathRewrite is how a path is replaced: what Regex (RE2) matches of it, by the
// Substitution of it in RE2's syntax; or without a Regex the prefix or path that
// the rule's match names, by Literal.
type PathRewrite struct{ Regex, Substitution, Literal string }

// PathRewrite is that of the rule; false when the path stays.
func (r *Rule) PathRewrite() (PathRewrite, bool) {
	switch {
	case r.Rewrite == nil || r.Rewrite.Path == "":
		return PathRewrite{}, false
	case r.Path.Pattern().Kind == MatchRegex:
		return PathRewrite{Regex: r.Path.LiteralRegex(), Substitution: strings.ReplaceAll(r.ReplacedLiteral(), `\`, `\\`)}, true
	default:
		return PathRewrite{Literal: r.ReplacedLiteral()}, true
	}
}

// HeaderEdits sets and removes headers. Values are literal: outputs escape what
// their target would interpret.
type HeaderEdits struct {
	// Set replaces; sorted by name.
	Set []Header `json:"set,omitempty"`
	// Remove, sorted.
	Remove []string `json:"remove,omitempty"`
}

// Header is a name in lower case and a value.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Format is the value where Envoy would substitute %COMMANDS%.
func (h Header) Format() string { return strings.ReplaceAll(h.Value, "%", "%%") }

// Retries of a failed request, each at an endpoint that was not tried, as far as
// there is one.
type Retries struct {
	// Attempts after the first one.
	Attempts uint32 `json:"attempts"`
	// PerTryTimeout; zero: none but the rule's.
	PerTryTimeout Duration `json:"perTryTimeout,omitempty"`
	// RetryOn: conditions in Envoy's words, sorted.
	RetryOn []string `json:"retryOn"`
}

// DefaultRetries are those of whoever asks for none: of requests that no endpoint
// has seen, whatever they are, because another one may be there.
func DefaultRetries() *Retries {
	return &Retries{Attempts: 2, RetryOn: []string{"connect-failure", "refused-stream"}}
}

// An endpoint that did not take so many connections in a row is left alone for a
// while, longer each time.
const (
	EjectAfter     = 2
	EjectInterval  = time.Second
	EjectFor       = 5 * time.Second
	EjectForAtMost = 30 * time.Second
	EjectPercent   = 50
)

// JWT is what a request's bearer token must be: issued by one of the
// providers, with a sub, and fit for one of the authorizations.
type JWT struct {
	Providers []JWTProvider `json:"providers"`
	// Authorizations: one is enough; none: every valid token.
	Authorizations []JWTAuthorization `json:"authorizations,omitempty"`
}

// JWTProvider is an issuer and its keys.
type JWTProvider struct {
	Issuer string `json:"issuer"`
	// KeySet is a name of [Mesh.KeySets].
	KeySet string `json:"keySet"`
	// Audiences of which the token must name one; empty: any.
	Audiences []string `json:"audiences,omitempty"`
	// Headers and Params (of the query) that the token may be in; without Headers
	// it is in Authorization: Bearer.
	Headers []TokenHeader `json:"headers,omitempty"`
	Params  []string      `json:"params,omitempty"`
	// ClaimHeaders tell the backend claims, sorted by header.
	ClaimHeaders []ClaimHeader `json:"claimHeaders,omitempty"`
}

// TokenHeader is a header (lower case) with a token behind a prefix.
type TokenHeader struct {
	Name   string `json:"name"`
	Prefix string `json:"prefix,omitempty"`
}

// ClaimHeader is a header (lower case) that tells a claim.
type ClaimHeader struct {
	Header string `json:"header"`
	Claim  string `json:"claim"`
}

// JWTAuthorization is what a token must claim; all of it.
type JWTAuthorization struct {
	// Scopes must all be in one of the claims scp, scope, scopes.
	Scopes []string `json:"scopes,omitempty"`
	// Audiences must all be in aud.
	Audiences []string `json:"audiences,omitempty"`
	Claims    []Claim  `json:"claims,omitempty"`
}

// Claim must have one of the values; an array claim must contain one.
type Claim struct {
	Name   string   `json:"name"`
	Values []string `json:"values"`
}
