package ir_test

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

func TestParsePath(t *testing.T) {
	for name, c := range map[string]struct {
		path string
		want ir.PathMatch
	}{
		"the root is itself":                 {"/", ir.PathMatch{Kind: ir.PathExact, Value: "/"}},
		"/* is everything":                   {"/*", ir.PathMatch{Kind: ir.PathPrefix, Value: "/"}},
		"/{**} is everything too":            {"/{**}", ir.PathMatch{Kind: ir.PathPrefix, Value: "/"}},
		"the rest is a prefix with a slash":  {"/a/{**}", ir.PathMatch{Kind: ir.PathPrefix, Value: "/a/"}},
		"a segment makes a template":         {"/a/{*}/b", ir.PathMatch{Kind: ir.PathTemplate, Value: "/a/{*}/b"}},
		"a trailing slash is kept":           {"/a/", ir.PathMatch{Kind: ir.PathExact, Value: "/a/"}},
		"characters of regexes are literals": {"/v1.0/a+(b)$", ir.PathMatch{Kind: ir.PathExact, Value: "/v1.0/a+(b)$"}},
		"others are percent-encoded":         {"/größe", ir.PathMatch{Kind: ir.PathExact, Value: "/gr%C3%B6%C3%9Fe"}},
		"escapes become canonical":           {"/gr%c3%b6%C3%9fe%3a%20", ir.PathMatch{Kind: ir.PathExact, Value: "/gr%C3%B6%C3%9Fe:%20"}},
		"escaped braces are no wildcard":     {"/%7B%2A%7D/{*}", ir.PathMatch{Kind: ir.PathTemplate, Value: "/%7B*%7D/{*}"}},
		"what cannot stand is escaped":       {`/a"b|c^[d]`, ir.PathMatch{Kind: ir.PathExact, Value: "/a%22b%7Cc%5E%5Bd%5D"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ir.ParsePath(c.path)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestParsePathRefuses(t *testing.T) {
	for _, path := range []string{
		"", "a", "*", "/a*", "/*/a", "/a/*", "/{**}/a", "/a{*}", "/{id}", "//", "/a//b", "/a/../b", "/.", "/a/..",
		"/a?b", "/a#b", "/a;b", `/a\b`, "/a b", "/a\x00b", "/{*", "/a\xffb",
		"/a%2fb", "/a%5Cb", "/a%3bb", "/a%3Fb", "/a%23b", "/a%00b", "/a%0ab", "/a%7fb", "/%61", "/%2e%2e", "/%", "/%2", "/%zz", "/%+1",
		"/%ff", "/%c0%af", "/%e0%80%af", "/%ed%a0%80", "/%f4%90%80%80", "/%C3",
	} {
		_, err := ir.ParsePath(path)
		require.Error(t, err, path)
	}
}

// matches is what the templates mean, segment by segment, written without a
// regular expression.
func matches(template, path string) bool {
	if template == "/*" {
		return strings.HasPrefix(path, "/")
	}
	want, got := strings.Split(template, "/"), strings.Split(path, "/")
	for i, w := range want {
		switch {
		case w == "{**}":
			return len(got) > i
		case i >= len(got):
			return false
		case w == "{*}":
			if got[i] == "" {
				return false
			}
		case w != got[i]:
			return false
		}
	}
	return len(want) == len(got)
}

// accepts is how a data plane applies a match.
func accepts(p ir.PathMatch, path string) bool {
	switch pattern := p.Pattern(); pattern.Kind {
	case ir.MatchExact:
		return path == pattern.Value
	case ir.MatchPrefix:
		return strings.HasPrefix(path, pattern.Value)
	default:
		return regexp.MustCompile(`\A(?:` + pattern.Value + `)\z`).MatchString(path)
	}
}

func requireSameMeaning(t *testing.T, template, path string) {
	t.Helper()
	p, err := ir.ParsePath(template)
	require.NoError(t, err, template)
	require.Equal(t, matches(template, path), accepts(p, path), "%s of kind %s and %s", template, p.Kind, path)
	require.Equal(t, matches(template, path), regexp.MustCompile(`\A(?:`+p.Regex()+`)\z`).MatchString(path), "the regex of %s and %s", template, path)
}

// parts of random templates and paths: few, so that they meet often.
func random(r *rand.Rand, parts []string, rest bool) string {
	if rest && r.IntN(12) == 0 {
		return "/*"
	}
	var segments []string
	for range r.IntN(4) {
		segments = append(segments, parts[r.IntN(len(parts))])
	}
	switch {
	case rest && r.IntN(3) == 0:
		segments = append(segments, "{**}")
	case r.IntN(3) == 0:
		segments = append(segments, "")
	}
	return "/" + strings.Join(segments, "/")
}

func TestMatchesMeanWhatTheTemplatesSay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	literals := []string{"a", "b", "a.b", "a+", "(a)", "$"}
	for range 20000 {
		template := random(r, append([]string{"{*}", "{*}"}, literals...), true)
		path := random(r, append([]string{"axb", "aa", ""}, literals...), false)
		requireSameMeaning(t, template, path)
	}
}

func FuzzMatchesMeanWhatTheTemplatesSay(f *testing.F) {
	f.Add("/a/{*}/{**}", "/a/b/")
	f.Add("/v1.0", "/v1x0")
	f.Fuzz(func(t *testing.T, template, path string) {
		if _, err := ir.ParsePath(template); err != nil || !strings.HasPrefix(path, "/") || strings.Contains(path, "\n") {
			t.Skip()
		}
		if strings.Contains(template, "%") || !canonical(template) || !canonical(path) {
			t.Skip("templates are made canonical, and paths have many spellings: other tests are about those")
		}
		requireSameMeaning(t, template, path)
	})
}

func canonical(s string) bool {
	return regexp.MustCompile(`^[-A-Za-z0-9._~:@!$&'()*+,={}/]*$`).MatchString(s)
}

// Covers is held against paths: when p covers q, no path is q's alone, and when
// every path of q that we try is p's, it should say so for these few segments.
func TestCoversAgreesWithMatching(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	parts := []string{"a", "b", "{*}"}
	var paths []string
	for _, s := range []string{"", "a", "b", "c"} {
		paths = append(paths, "/"+s)
		for _, s2 := range []string{"", "a", "b", "c"} {
			paths = append(paths, "/"+s+"/"+s2)
			for _, s3 := range []string{"", "a", "b", "c", "a/b", "a/b/", "c/c/c/c"} {
				paths = append(paths, "/"+s+"/"+s2+"/"+s3)
			}
		}
	}
	for range 5000 {
		one, two := random(r, parts, true), random(r, parts, true)
		p, err := ir.ParsePath(one)
		require.NoError(t, err)
		q, err := ir.ParsePath(two)
		require.NoError(t, err)
		all := true
		for _, path := range paths {
			all = all && (!accepts(q, path) || accepts(p, path))
		}
		if p.Covers(q) {
			require.True(t, all, "%s does not cover %s", one, two)
		}
		if all && strings.Count(two, "/") <= 3 && strings.Count(one, "/") <= 3 {
			require.True(t, p.Covers(q), "%s covers %s", one, two)
		}
	}
}

func TestRewriteReplacesWholeSegments(t *testing.T) {
	for name, c := range map[string]struct{ path, rewrite, literal, want string }{
		"an exact path is replaced":              {"/a", "/x", "/a", "/x"},
		"a prefix keeps its slash":               {"/a/{**}", "/x", "/a/", "/x/"},
		"a prefix keeps the slash that is given": {"/a/{**}", "/x/", "/a/", "/x/"},
		"everything moves below":                 {"/*", "/x", "/", "/x/"},
		"a template up to its first wildcard":    {"/a/{*}/b", "/", "/a/", "/"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := ir.ParsePath(c.path)
			require.NoError(t, err)
			r := ir.Rule{Path: p, Rewrite: &ir.Rewrite{Path: c.rewrite}}
			require.Equal(t, c.literal, p.Literal())
			require.Equal(t, c.want, r.ReplacedLiteral())
		})
	}
}
