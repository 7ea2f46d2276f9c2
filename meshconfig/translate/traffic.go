package translate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// needs refuses the rule at hand when no output carries the feature.
func (t *ruleTranslator) needs(field string, feature ir.Feature) {
	if t.settings.lacks(feature) {
		t.refuse(field, v1alpha1.ReasonNotSupported, "Istio's objects do not carry it (%s); remove it, or run the mesh with --mesh=envoy", feature)
	}
}

// redirect of the rule at hand, which then has no backend.
func (t *ruleTranslator) redirect(spec *v1alpha1.Rule) *ir.Redirect {
	r := spec.Redirect
	if r == nil {
		return nil
	}
	others := map[string]bool{
		"rewrite": spec.Rewrite != nil, "retries": spec.Retries != nil, "request": spec.Request != nil,
		"mirror": spec.Mirror != nil, "maxBodyBytes": spec.MaxBodyBytes != nil,
	}
	for _, field := range sortedKeys(others) {
		if others[field] {
			t.refuse("."+field, v1alpha1.ReasonInvalid, "a redirect asks no backend; remove %s", field)
		}
	}
	if spec.JWT != nil || spec.ClientIPs != nil {
		t.needs(".redirect", ir.RedirectWithAccess)
	}
	out := &ir.Redirect{Scheme: r.Scheme, Host: r.Host, Path: r.Path, Code: uint32(r.Code)}
	if r.Port != nil {
		out.Port = uint32(*r.Port)
	}
	if out.Code == 0 {
		out.Code = 302
	}
	switch {
	case !slices.Contains([]uint32{301, 302, 303, 307, 308}, out.Code):
		t.refuse(".redirect.code", v1alpha1.ReasonInvalid, "%d is no redirection; write 301, 302, 303, 307 or 308", out.Code)
	case !slices.Contains([]string{"", "http", "https"}, out.Scheme):
		t.refuse(".redirect.scheme", v1alpha1.ReasonInvalid, "%q: write http or https", out.Scheme)
	case out.Host != "" && !validHost(out.Host):
		t.refuse(".redirect.host", v1alpha1.ReasonInvalid, "%q is no host name", out.Host)
	case r.Port != nil && !validPort(out.Port):
		t.refuse(".redirect.port", v1alpha1.ReasonInvalid, "%d is no port", *r.Port)
	case out.Path != "" && (!strings.HasPrefix(out.Path, "/") || strings.HasPrefix(out.Path, "//") || strings.ContainsAny(out.Path, "#\\ \t\r\n\x00")):
		// A location that begins with // names a host (RFC 3986, section 4.2).
		t.refuse(".redirect.path", v1alpha1.ReasonInvalid, "%q is no path: it begins with one / and has no #, backslash or space", out.Path)
	case out.Scheme == "" && out.Host == "" && out.Port == 0 && out.Path == "":
		t.refuse(".redirect", v1alpha1.ReasonInvalid, "it changes nothing and leads to itself; write scheme, host, port or path")
	}
	return out
}

// mirror of the rule at hand.
func (t *ruleTranslator) mirror(spec *v1alpha1.Mirror) *ir.Mirror {
	if spec == nil {
		return nil
	}
	if (spec.Lambda == "") == (spec.Service == nil) {
		t.refuse(".mirror", v1alpha1.ReasonInvalid, "a mirror names either a lambda or a service")
		return nil
	}
	out := &ir.Mirror{Percent: 100}
	if spec.Percent != nil {
		out.Percent = uint32(*spec.Percent)
	}
	if out.Percent < 1 || out.Percent > 100 {
		t.refuse(".mirror.percent", v1alpha1.ReasonInvalid, "%d is no percentage from 1 to 100", out.Percent)
	}
	var destination *ir.Destination
	if spec.Service != nil {
		destination = t.serviceBackend(".mirror.service", *spec.Service)
	} else {
		destination = t.lambdaBackend(".mirror.lambda", spec.Lambda)
	}
	if destination == nil {
		return nil
	}
	out.Destination = destination.Key()
	return out
}

// rateLimit of the rule at hand.
func (t *ruleTranslator) rateLimit(spec *v1alpha1.Rule) *ir.RateLimit {
	l := spec.RateLimit
	if l == nil {
		return nil
	}
	t.needs(".rateLimit", ir.UseRateLimit)
	out := &ir.RateLimit{Requests: uint32(max(l.Requests, 0)), Per: ir.Duration(l.Per.Duration), Burst: uint32(max(l.Requests, 0))}
	if l.Burst != nil {
		out.Burst = uint32(max(*l.Burst, 0))
	}
	if out.Requests == 0 || out.Burst == 0 || l.Per.Duration < time.Second {
		t.refuse(".rateLimit", v1alpha1.ReasonInvalid, "write requests and burst of at least 1, and per of at least 1s")
	}
	if l.Key == nil {
		return out
	}
	n := 0
	if l.Key.Header != "" {
		n++
		out.Header = strings.ToLower(l.Key.Header)
		if !headerName(out.Header) || headers.Identity(out.Header) {
			t.refuse(".rateLimit.key.header", v1alpha1.ReasonInvalid, "%q is no header that clients send", l.Key.Header)
		}
	}
	if l.Key.Claim != "" {
		n++
		out.Claim = l.Key.Claim
		if spec.JWT == nil {
			t.refuse(".rateLimit.key.claim", v1alpha1.ReasonInvalid, "there is no token without jwt; count by header or clientIP")
		}
	}
	if l.Key.ClientIP != nil {
		n++
		out.ClientIP = true
		if !*l.Key.ClientIP {
			t.refuse(".rateLimit.key.clientIP", v1alpha1.ReasonInvalid, "write true or remove key")
		}
	}
	if n != 1 {
		t.refuse(".rateLimit.key", v1alpha1.ReasonInvalid, "write exactly one of header, claim, clientIP")
	}
	return out
}

// maxBodyBytes of the rule at hand; 0: no limit.
func (t *ruleTranslator) maxBodyBytes(limit *int64) uint32 {
	if limit == nil {
		return 0
	}
	t.needs(".maxBodyBytes", ir.UseMaxBodyBytes)
	if *limit < 1 || *limit > 1<<30 {
		t.refuse(".maxBodyBytes", v1alpha1.ReasonInvalid, "%d is not between 1 and %d", *limit, 1<<30)
		return 0
	}
	return uint32(*limit)
}

// What the Secret of an API key may hold: it goes to the gateway with each rule
// that names it.
const (
	maxAPIClients  = 256
	maxAPIKeyBytes = 16 << 10
	minAPIKey      = 8
)

// apiKey of the rule at hand.
func (t *ruleTranslator) apiKey(spec *v1alpha1.APIKeyAuth) *ir.APIKey {
	if spec == nil {
		return nil
	}
	t.needs(".apiKey", ir.UseAPIKey)
	out := &ir.APIKey{Header: strings.ToLower(spec.Header), Query: spec.Query}
	switch {
	case (out.Header == "") == (out.Query == ""):
		t.refuse(".apiKey", v1alpha1.ReasonInvalid, "write exactly one of header and query")
	case out.Header != "" && (!headerName(out.Header) || reservedHeader(out.Header)):
		t.refuse(".apiKey.header", v1alpha1.ReasonInvalid, "%q is no header that clients send", spec.Header)
	}
	at := secretOf(t.object, spec.SecretName)
	secret, found := t.secrets[at]
	if !found {
		t.unresolved(".apiKey.secretName", v1alpha1.ReasonNotFound, "Secret %s does not exist", at)
		return nil
	}
	keys := map[string]string{}
	for client, key := range secret.Data {
		keys[client] = string(key)
	}
	for client, key := range secret.StringData {
		keys[client] = key
	}
	owners, size := map[string]string{}, 0
	for _, client := range sortedKeys(keys) {
		key := strings.TrimRight(keys[client], "\r\n") // as echo and editors leave them
		size += len(client) + len(key)
		switch other, taken := owners[key]; {
		case len(key) < minAPIKey:
			t.unresolved(".apiKey.secretName", v1alpha1.ReasonInvalid, "Secret %s: the key of %s has less than %d characters and could be guessed", at, client, minAPIKey)
			continue
		case strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c > '~' }):
			t.unresolved(".apiKey.secretName", v1alpha1.ReasonInvalid, "Secret %s: the key of %s has blanks or characters that no header carries", at, client)
			continue
		case taken:
			t.unresolved(".apiKey.secretName", v1alpha1.ReasonInvalid, "Secret %s: %s and %s have the same key", at, other, client)
			continue
		}
		owners[key] = client
		out.Clients = append(out.Clients, ir.APIClient{Name: client, Key: key})
	}
	switch {
	case len(keys) == 0:
		t.unresolved(".apiKey.secretName", v1alpha1.ReasonInvalid, "Secret %s has no keys; add some, each by the name of its client", at)
	case len(out.Clients) > maxAPIClients || size > maxAPIKeyBytes:
		t.unresolved(".apiKey.secretName", ReasonTooLarge, "Secret %s has %d keys of %d bytes, and may have %d of %d", at, len(keys), size, maxAPIClients, maxAPIKeyBytes)
	}
	return out
}

// tokenPlaces of an authentication.
func (t *ruleTranslator) tokenPlaces(field string, a v1alpha1.JWTAuthentication, out *ir.JWTProvider) {
	for i, h := range a.FromHeaders {
		name := strings.ToLower(h.Name)
		if !headerName(name) || headers.Identity(name) || headers.OfConnection(name) {
			t.refuse(fmt.Sprintf("%s.fromHeaders[%d]", field, i), v1alpha1.ReasonInvalid, "%q is no header that clients send", h.Name)
		}
		out.Headers = append(out.Headers, ir.TokenHeader{Name: name, Prefix: h.Prefix})
	}
	out.Params = sortedSet(a.FromParams)
	if len(a.FromHeaders) > 0 {
		t.needs(field+".fromHeaders", ir.TokenPlaces)
	}
	if len(a.FromParams) > 0 {
		t.needs(field+".fromParams", ir.TokenPlaces)
	}
}

// claimHeaders that tell the backend of a token.
func (t *ruleTranslator) claimHeaders(all []v1alpha1.ClaimHeader) []ir.ClaimHeader {
	var out []ir.ClaimHeader
	seen := map[string]bool{}
	for i, c := range all {
		field, name := fmt.Sprintf(".jwt.claimToHeaders[%d]", i), strings.ToLower(c.Header)
		switch {
		case !headerName(name) || reservedHeader(name) || name == "authorization":
			t.refuse(field+".header", v1alpha1.ReasonInvalid, "%q belongs to the mesh or to HTTP itself", c.Header)
		case seen[name]:
			t.refuse(field+".header", v1alpha1.ReasonInvalid, "%q tells two claims", c.Header)
		case c.Claim == "":
			t.refuse(field+".claim", v1alpha1.ReasonInvalid, "name a claim")
		}
		seen[name] = true
		out = append(out, ir.ClaimHeader{Header: name, Claim: c.Claim})
	}
	if len(all) > 0 {
		t.needs(".jwt.claimToHeaders", ir.ClaimToHeaders)
	}
	slices.SortFunc(out, func(a, b ir.ClaimHeader) int { return strings.Compare(a.Header, b.Header) })
	return out
}
