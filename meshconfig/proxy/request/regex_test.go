package request

import (
	"math/rand/v2"
	"regexp"
	"testing"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/stretchr/testify/require"
)

// The short cut must never find a match that the expression does not have.
func TestRegexesMatchAsWithoutTheShortCut(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, text := range []string{
		"", "a", "(?i)a", "/(?:[a-c/]|%4[0-9])*(?:\\?[^x]*)?", "/a/[^/]+/b", "/a/[^/]+", ".*", "(?s).*", "a*a", "(?:ab)*", "[a-b]*b", "a?ab?", "(a|b)*", "^/a", "a|ab", "[^a]*", "\\bab",
	} {
		compiled, err := Regexes{}.compile("", &matcherv3.RegexMatcher{Regex: text})
		require.NoError(t, err)
		want := regexp.MustCompile(`\A(?:` + text + `)\z`)
		found := 0
		for range 20000 {
			s := make([]byte, r.IntN(8))
			for i := range s {
				s[i] = "/abcxA%4?\n\xff"[r.IntN(11)]
			}
			require.Equal(t, want.Match(s), compiled.MatchString(string(s)), "%q and %q", text, s)
			if rest, ok := compiled.scan(string(s)); ok && rest == "" {
				found++
			}
		}
		t.Logf("%q: %d by the short cut", text, found)
	}
}

func TestARouteTableCompilesAnExpressionOnce(t *testing.T) {
	all := Regexes{}
	one, err := all.compile("", &matcherv3.RegexMatcher{Regex: "/a/[^/]+"})
	require.NoError(t, err)
	two, err := all.compile("", &matcherv3.RegexMatcher{Regex: "/a/[^/]+"})
	require.NoError(t, err)
	require.Same(t, one, two)
	_, err = all.compile("here", &matcherv3.RegexMatcher{Regex: "("})
	require.ErrorContains(t, err, "here")
}
