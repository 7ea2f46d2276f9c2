package translate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// cost is what an APIRule takes of a [Budget]. It follows from its spec alone:
// what is refused is never expanded.
type cost struct {
	// bytes behind one server of a Gateway; of them, routes are repeated by each
	// server that serves the APIRule.
	bytes, routes int
	// servers that serve it; 0 while no Gateway is concerned.
	servers         int
	matchers, hosts int
	keySets         map[string]bool
	// keyCopies: under Istio each backend has the key sets of its rules.
	keyCopies map[string]bool
	// instructions of the regexes; they are among the matchers.
	instructions int
	// tooLarge says which part is beyond what any APIRule may have.
	tooLarge string
	// listener are the bytes that every server of a Gateway repeats, without keys.
	listener int
}

// Upper estimates, in bytes, of what something adds to the resources of a data
// plane, or to Istio's objects, besides its own text. A test holds them against
// what is written.
const (
	apiRuleBytes = 1024
	hostBytes    = 320 // with the gateway's domain
	ruleBytes    = 1024
	jwtBytes     = 1024 // of a rule with jwt
	corsBytes    = 512  // of every rule beside spec.cors
	matcherBytes = 128
	backendBytes = 2048 // with its cluster
	keySetBytes  = 512
	// rateLimitBytes of a rule with rateLimit.
	rateLimitBytes = 1024
	// apiKeyBytes of a rule with apiKey: the Secret, and what stands around each key.
	apiKeyBytes = maxAPIKeyBytes + 32*maxAPIClients
	// clientIPsBytes of a rule with clientIPs, besides its ranges.
	clientIPsBytes = 512
	entryBytes     = 64
)

func costOf(r *v1alpha1.APIRule) cost {
	c := cost{hosts: len(r.Spec.Hosts), routes: apiRuleBytes + hostBytes*len(r.Spec.Hosts), keySets: map[string]bool{}, keyCopies: map[string]bool{}}
	cors := 0
	if policy := r.Spec.CORS; policy != nil {
		for i, o := range policy.AllowOrigins {
			c.matchers++
			c.regex(o.Regex, "spec.cors.allowOrigins[%d]", i)
			cors += text(deref(o.Exact), deref(o.Prefix), deref(o.Regex))
		}
		cors += corsBytes + text(policy.AllowHeaders...) + text(policy.ExposeHeaders...) + text(policy.AllowMethods...)
		c.routes += cors + corsBytes*len(r.Spec.Rules)
		c.bytes += 3 * cors // Istio's objects repeat it in the routes that are not of rules
	}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		c.bytes += cors
		c.routes += ruleBytes + 3*len(r.Namespace+r.Name)
		c.matchers += 2 + len(rule.Headers) // the path and the methods
		match := pathBytes(rule.Path) + text(rule.Methods...)
		for j, h := range rule.Headers {
			c.regex(h.Regex, "spec.rules[%d].headers[%d]", i, j)
			match += text(h.Name, deref(h.Exact), deref(h.Prefix), deref(h.Regex))
		}
		c.routes += match
		c.bytes += backendBytes * max(1, len(rule.Backends))
		if ips := rule.ClientIPs; ips != nil {
			n := len(ips.Allow) + len(ips.Deny)
			c.matchers += n
			// Istio says them again for each combination of a token's conditions.
			c.routes += clientIPsBytes + 2*matcherBytes*n
			c.bytes += clientIPTimes(rule) * (clientIPsBytes + matcherBytes*n) * max(1, len(rule.Backends))
		}
		if r := rule.Redirect; r != nil {
			c.routes += 2 * text(r.Host, r.Path, r.Scheme)
		}
		if rule.Mirror != nil {
			c.bytes += backendBytes
		}
		if rule.RateLimit != nil {
			c.routes += rateLimitBytes
			if key := rule.RateLimit.Key; key != nil {
				c.routes += text(key.Header, key.Claim)
			}
		}
		if rule.APIKey != nil { // as large as its Secret may grow without an edit
			c.routes += apiKeyBytes
			c.matchers++
		}
		if rule.Rewrite != nil {
			c.routes += pathBytes(rule.Path) + 2*text(rule.Rewrite.Path, rule.Rewrite.Host)
		}
		for _, edits := range []*v1alpha1.HeaderEdits{rule.Request, rule.Response} {
			if edits == nil {
				continue
			}
			for name, value := range edits.SetHeaders {
				c.routes += text(name, string(value))
			}
			c.routes += text(edits.RemoveHeaders...)
		}
		if rule.JWT != nil {
			// Istio's objects have a route for each of two ways to lack a token.
			c.bytes += 2*match + cors
			c.jwt(r.Namespace, rule)
		}
	}
	c.bytes += c.routes
	return c
}

// text is the size of values that are quoted and may stand one by one.
func text[T ~string](values ...T) int {
	n := 0
	for _, v := range values {
		n += entryBytes + quoted(string(v))
	}
	return n
}

// quoted is the length of a text as JSON has it in Istio's objects, or as Envoy
// has it in a header, where % is doubled.
func quoted(s string) int {
	n := len(s)
	for _, c := range []byte(s) {
		switch {
		case c == '"', c == '\\', c == '%', c >= 0x80:
			n++
		case c < ' ', c == '<', c == '>', c == '&':
			n += len(`\u003c`) - 1
		}
	}
	return n
}

// regex counts an expression as the matchers that its instructions are. Once
// there are too many it looks at no more of them.
func (c *cost) regex(text *string, field string, indexes ...any) {
	if text == nil || c.tooLarge != "" {
		return
	}
	size := regexSize(*text)
	c.matchers, c.instructions = c.matchers+size, c.instructions+size
	switch {
	case size > maxRegexSize:
		c.tooLarge = fmt.Sprintf("the regex of "+field+" compiles to some %d instructions and one may have %d; repeat less",
			append(indexes, size, maxRegexSize)...)
	case c.instructions > maxRegexSizes:
		c.tooLarge = fmt.Sprintf("its regexes compile to more than %d instructions, which is what those of an APIRule may have; repeat less or split it", maxRegexSizes)
	}
}

// backendsOf a rule, as far as they matter to tokens.
func backendsOf(namespace string, rule *v1alpha1.Rule) []string {
	one := func(lambda string, service *v1alpha1.ServiceRef) string {
		if service == nil {
			return namespace + "/" + lambda
		}
		return cmp.Or(service.Namespace, namespace) + "/" + service.Name
	}
	if len(rule.Backends) == 0 {
		return []string{one(rule.Lambda, rule.Service)}
	}
	var all []string
	for _, b := range rule.Backends {
		all = append(all, one(b.Lambda, b.Service))
	}
	return all
}

// jwt counts what [ir.JWT.Alternatives] multiplies out, without doing it. Under
// Istio it is said at each backend.
func (c *cost) jwt(namespace string, rule *v1alpha1.Rule) {
	jwt, backends := rule.JWT, backendsOf(namespace, rule)
	c.routes += jwtBytes
	c.bytes += jwtBytes * len(backends)
	name := 0
	for _, a := range jwt.Authentications {
		set := keySetName(namespace, a)
		c.keySets[a.Issuer+"|"+set+tokenPlacesKey(rule.JWT, a)] = true
		for _, backend := range backends {
			c.keyCopies[a.Issuer+"|"+set+"|"+backend] = true
		}
		name += 16 + len(a.Issuer) + len(set)
		for _, h := range a.FromHeaders {
			c.listener += 2 * text(h.Name, h.Prefix)
		}
		c.listener += 2 * text(a.FromParams...)
		for _, h := range jwt.ClaimToHeaders {
			c.listener += 2 * text(h.Claim, h.Header)
		}
		provider := keySetBytes + 2*(quoted(a.Issuer)+len(set))
		c.listener += provider
		c.bytes += provider * len(backends)
	}
	c.listener += 4 * name
	c.bytes += 4 * name // of the requirement: its name, what it is made of, and the route's
	type sum struct{ matchers, bytes int }
	matcher := func(s *sum, times int, texts ...string) {
		for _, t := range texts {
			s.matchers += times
			s.bytes += times * (matcherBytes + quoted(t))
		}
	}
	authorizations := jwt.Authorizations
	if len(authorizations) == 0 {
		authorizations = []v1alpha1.JWTAuthorization{{}}
	}
	for _, group := range byAudiences(jwt.Authentications) {
		var token sum
		matcher(&token, 1, "sub")
		for _, a := range group {
			matcher(&token, 1, a.Issuer)
		}
		matcher(&token, 2, group[0].Audiences...)
		for _, a := range authorizations {
			one := token
			matcher(&one, 2, a.Audiences...)
			matcher(&one, 1, a.RequiredScopes...)
			for _, claim := range a.Claims {
				matcher(&one, 2, claim.Values...)
				one.bytes += 2 * len(claim.Name) * len(claim.Values)
			}
			times := 1
			if len(a.RequiredScopes) > 0 {
				times = len(ir.ScopeClaims())
			}
			c.matchers += times * one.matchers
			c.routes += times * one.bytes
			c.bytes += times * one.bytes * (len(backends) - 1)
		}
	}
}

// clientIPTimes is how often Istio's policies repeat the ranges of a rule for one
// backend: for each alternative of its jwt.
func clientIPTimes(rule *v1alpha1.Rule) int {
	if rule.JWT == nil {
		return 1
	}
	times := 0
	for _, a := range rule.JWT.Authorizations {
		if len(a.RequiredScopes) > 0 {
			times += len(ir.ScopeClaims())
		} else {
			times++
		}
	}
	return max(1, times) * len(byAudiences(rule.JWT.Authentications))
}

// tokenPlacesKey tells providers apart that differ in where tokens are and in what
// is told of them: each has the keys. Most do not; then it is empty.
func tokenPlacesKey(jwt *v1alpha1.JWTAuth, a v1alpha1.JWTAuthentication) string {
	if len(a.FromHeaders)+len(a.FromParams)+len(jwt.ClaimToHeaders) == 0 {
		return ""
	}
	return fmt.Sprintf("|%v|%v|%v", a.FromHeaders, a.FromParams, jwt.ClaimToHeaders)
}

// byAudiences groups what [ir.JWT.Alternatives] takes together.
func byAudiences(all []v1alpha1.JWTAuthentication) [][]v1alpha1.JWTAuthentication {
	var groups [][]v1alpha1.JWTAuthentication
	for _, a := range all {
		i := slices.IndexFunc(groups, func(g []v1alpha1.JWTAuthentication) bool {
			return slices.Equal(sortedSet(g[0].Audiences), sortedSet(a.Audiences))
		})
		if i < 0 {
			groups = append(groups, nil)
			i = len(groups) - 1
		}
		groups[i] = append(groups[i], a)
	}
	return groups
}

// pathBytes of a pattern that may have to match several spellings of each
// character.
func pathBytes(path string) int {
	n := 0
	for _, c := range []byte(path) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '/' || c == '-' || c == '_' {
			n++
		} else {
			n += 24
		}
	}
	return n
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
