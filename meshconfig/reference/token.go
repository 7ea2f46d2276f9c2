package reference

import (
	"regexp"
	"slices"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Token is a bearer token as far as answers depend on it.
type Token struct {
	// Genuine: well-formed, signed by a key of its issuer's set with an
	// algorithm of that key, and valid now.
	Genuine bool
	// Claims of the token: strings, lists of strings.
	Claims map[string]any
}

// Verdict on a token.
type Verdict int

// The verdicts.
const (
	// TokenNotAsked: the rule lets everybody in.
	TokenNotAsked Verdict = iota
	// TokenMissing and TokenInvalid are a 401.
	TokenMissing
	TokenInvalid
	// TokenForbidden is a 403: the token says who it is, and that is not enough.
	TokenForbidden
	TokenGood
)

// judge a token by a rule: an issuer of the authentications vouches for it, it
// has a sub, names an audience of that authentication, and holds all that one of
// the authorizations asks.
func judge(jwt *v1alpha1.JWTAuth, token *Token) Verdict {
	switch {
	case jwt == nil:
		return TokenNotAsked
	case token == nil:
		return TokenMissing
	case !token.Genuine:
		return TokenInvalid
	}
	issuer, known := text(token.Claims["iss"]), false
	for _, a := range jwt.Authentications {
		if a.Issuer != issuer {
			continue
		}
		known = true
		if text(token.Claims["sub"]) == "" || len(a.Audiences) > 0 && !anyOf(a.Audiences, texts(token.Claims["aud"])) {
			continue
		}
		if len(jwt.Authorizations) == 0 || slices.ContainsFunc(jwt.Authorizations, token.holds) {
			return TokenGood
		}
	}
	if known {
		return TokenForbidden
	}
	return TokenInvalid
}

func (t *Token) holds(a v1alpha1.JWTAuthorization) bool {
	audiences := texts(t.Claims["aud"])
	for _, want := range a.Audiences {
		if !slices.Contains(audiences, want) {
			return false
		}
	}
	for _, claim := range a.Claims {
		if !anyOf(claim.Values, texts(t.Claims[claim.Name])) {
			return false
		}
	}
	// All scopes are in one of the claims, a list or a string with spaces.
	for _, name := range []string{"scp", "scope", "scopes"} {
		have := texts(t.Claims[name])
		if s, isText := t.Claims[name].(string); isText {
			have = strings.Fields(s)
		}
		if !slices.ContainsFunc(a.RequiredScopes, func(want string) bool { return !slices.Contains(have, want) }) {
			return true
		}
	}
	return false
}

func text(claim any) string {
	s, _ := claim.(string)
	return s
}

func texts(claim any) []string {
	if list, ok := claim.([]string); ok {
		return list
	}
	if s, ok := claim.(string); ok {
		return []string{s}
	}
	return nil
}

func anyOf(wanted, have []string) bool {
	return slices.ContainsFunc(wanted, func(w string) bool { return slices.Contains(have, w) })
}

// matchesHeaders: all conditions hold. Several lines of one header are one
// value, joined by commas (RFC 9110, section 5.3).
func matchesHeaders(conditions []v1alpha1.HeaderMatch, r Request) bool {
	return !slices.ContainsFunc(conditions, func(c v1alpha1.HeaderMatch) bool {
		lines := r.Header.Values(c.Name)
		value, there := strings.Join(lines, ","), len(lines) > 0
		switch {
		case c.Present != nil:
			return there != *c.Present
		case !there:
			return true
		case c.Exact != nil:
			return value != *c.Exact
		case c.Prefix != nil:
			return !strings.HasPrefix(value, *c.Prefix)
		default:
			return !regexp.MustCompile(`^(?:` + *c.Regex + `)$`).MatchString(value)
		}
	})
}
