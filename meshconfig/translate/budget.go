package translate

import (
	"fmt"
	"slices"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// cost is what an APIRule takes of a [Budget]. It follows from its spec alone:
// what is refused is never expanded.
type cost struct {
	bytes, matchers, hosts int
	keySets                map[string]bool
	// instructions of the regexes; they are among the matchers.
	instructions int
	// tooLarge says which part is beyond what any APIRule may have.
	tooLarge string
	// listener are the bytes that every server of a Gateway repeats, without keys.
	listener int
}

// Upper estimates, in bytes, of what something adds to the resources of a data
// plane besides its own text. A test holds them against what is written.
const (
	ruleBytes    = 1536
	hostBytes    = 320 // with the gateway's domain
	matcherBytes = 128
	backendBytes = 2048 // with its cluster
	keySetBytes  = 512
	entryBytes   = 64
)

func costOf(r *v1alpha1.APIRule) cost {
	c := cost{hosts: len(r.Spec.Hosts), bytes: 1024 + hostBytes*len(r.Spec.Hosts), keySets: map[string]bool{}}
	text := func(parts ...string) {
		for _, part := range parts {
			c.bytes += entryBytes + 2*len(part)
		}
	}
	if cors := r.Spec.CORS; cors != nil {
		c.bytes += ruleBytes
		for i, o := range cors.AllowOrigins {
			c.matchers++
			c.regex(o.Regex, "spec.cors.allowOrigins[%d]", i)
			text(deref(o.Exact), deref(o.Prefix), deref(o.Regex))
		}
		text(cors.AllowHeaders...)
		text(cors.ExposeHeaders...)
		for _, m := range cors.AllowMethods {
			text(string(m))
		}
	}
	for i := range r.Spec.Rules {
		rule := &r.Spec.Rules[i]
		c.bytes += ruleBytes + 3*len(r.Namespace+r.Name) + 2*pathBytes(rule.Path)
		c.matchers += 2 + len(rule.Headers) // the path and the methods
		for _, m := range rule.Methods {
			text(string(m))
		}
		for j, h := range rule.Headers {
			c.regex(h.Regex, "spec.rules[%d].headers[%d]", i, j)
			text(h.Name, deref(h.Exact), deref(h.Prefix), deref(h.Regex))
		}
		c.bytes += backendBytes * (1 + len(rule.Backends))
		if rule.Rewrite != nil {
			text(rule.Rewrite.Path, rule.Rewrite.Host)
		}
		for _, edits := range []*v1alpha1.HeaderEdits{rule.Request, rule.Response} {
			if edits == nil {
				continue
			}
			for name, value := range edits.SetHeaders {
				text(name, string(value))
			}
			text(edits.RemoveHeaders...)
		}
		if rule.JWT != nil {
			c.jwt(r.Namespace, rule.JWT)
		}
	}
	return c
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

// jwt counts what [ir.JWT.Alternatives] multiplies out, without doing it.
func (c *cost) jwt(namespace string, jwt *v1alpha1.JWTAuth) {
	name := 0
	for _, a := range jwt.Authentications {
		set := keySetName(namespace, a)
		c.keySets[a.Issuer+"|"+set] = true
		name += 16 + len(a.Issuer) + len(set)
		c.listener += keySetBytes + 2*(len(a.Issuer)+len(set))
		c.bytes += keySetBytes + 2*(len(a.Issuer)+len(set))
	}
	c.listener += 4 * name
	c.bytes += 4 * name // of the requirement: its name, what it is made of, and the route's
	type sum struct{ matchers, bytes int }
	matcher := func(s *sum, times int, texts ...string) {
		for _, t := range texts {
			s.matchers += times
			s.bytes += times * (matcherBytes + len(t))
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
			c.bytes += times * one.bytes
		}
	}
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
