package ir_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

func TestALiteralMatchesAllItsSpellings(t *testing.T) {
	for path, want := range map[string]map[string]bool{
		"/orders:cancel": {
			"/orders:cancel": true, "/orders%3acancel": true, "/orders%3Acancel": true,
			"/orders%3bcancel": false, "/orderscancel": false, "/orders:cancel/": false,
		},
		"/größe": {
			"/gr%C3%B6%C3%9Fe": true, "/gr%c3%b6%c3%9fe": true, "/gr%c3%B6%C3%9fe": true, "/gr%C3%B6%C3%9F": false, "/gr\\xc3": false,
		},
		"/a%20b":           {"/a%20b": true, "/a+b": false, "/ab": false},
		"/a%7Cb":           {"/a|b": true, "/a%7cb": true, "/a%7Cb": true, "/a": false, "b": false},
		"/a+b":             {"/a+b": true, "/a%2Bb": true, "/a%20b": false, "/aab": false},
		"/100%25":          {"/100%25": true, "/100%": false, "/100%2525": false},
		"/@me/{*}":         {"/@me/x": true, "/%40me/x": true, "/%40me/": false, "/%40me/x/y": false},
		"/a:b/{**}":        {"/a:b/": true, "/a%3ab/c/d": true, "/a:b": false},
		"/{*}/a,b/{**}":    {"/x/a%2cb/": true, "/x/a,b/c": true, "/x/a": false},
		"/v1.0/~x_y-z/abc": {"/v1.0/~x_y-z/abc": true, "/v1x0/~x_y-z/abc": false},
	} {
		p, err := ir.ParsePath(path)
		require.NoError(t, err, path)
		for request, matches := range want {
			require.Equal(t, matches, accepts(p, request), "%s under %s: %v", request, path, p.Pattern())
		}
	}
}

func TestPlainLiteralsNeedNoRegularExpression(t *testing.T) {
	for path, want := range map[string]ir.MatchKind{
		"/": ir.MatchExact, "/v1.0/~x_y-z": ir.MatchExact, "/*": ir.MatchPrefix, "/a/{**}": ir.MatchPrefix,
		"/a:b": ir.MatchRegex, "/a:b/{**}": ir.MatchRegex, "/{*}": ir.MatchRegex,
	} {
		p, err := ir.ParsePath(path)
		require.NoError(t, err)
		require.Equal(t, want, p.Pattern().Kind, path)
	}
}

func TestRewritesReplaceEverySpelling(t *testing.T) {
	p, err := ir.ParsePath("/a:b/{*}/c")
	require.NoError(t, err)
	re := regexp.MustCompile(p.LiteralRegex())
	require.Equal(t, "/x/1/c", re.ReplaceAllString("/a%3ab/1/c", "/x/"))
	require.Equal(t, "/x/1/a:b/c", re.ReplaceAllString("/a:b/1/a:b/c", "/x/"))
}

// Each pair of bytes and each escape of up to two bytes, held against what
// Unicode and RFC 3986 say.
func TestTheUnambiguousTargetsAreThese(t *testing.T) {
	re := regexp.MustCompile(`\A(?:` + ir.UnambiguousTarget() + `)\z`)
	bare := func(c byte) bool { return c > ' ' && c < 0x7f && !strings.ContainsRune(`%;\\#?`, rune(c)) }
	escaped := func(c byte) bool {
		return c >= ' ' && c < 0x7f && !regexp.MustCompile(`[-A-Za-z0-9._~/\\;?#]`).MatchString(string(rune(c)))
	}
	for i := range 256 {
		c := byte(i)
		want := bare(c) || c == '?' // which begins the query
		require.Equal(t, want, re.MatchString("/"+string([]byte{c})), "%q", c)
		require.Equal(t, want, re.MatchString("/a"+string([]byte{c})+"b"), "%q", c)
		require.Equal(t, escaped(c), re.MatchString(fmt.Sprintf("/%%%02x", c)), "%%%02x", c)
		require.Equal(t, escaped(c), re.MatchString(fmt.Sprintf("/a%%%02Xb", c)), "%%%02X", c)
		for j := range 256 {
			d := byte(j)
			want := escaped(c) && escaped(d) || c >= 0x80 && utf8.Valid([]byte{c, d})
			require.Equal(t, want, re.MatchString(fmt.Sprintf("/%%%02x%%%02X", c, d)), "%%%02x%%%02X", c, d)
		}
	}
	for r := rune(0x80); r <= utf8.MaxRune; r += 1 + r/64 {
		var b strings.Builder
		for _, c := range []byte(string(r)) {
			fmt.Fprintf(&b, "%%%02X", c)
		}
		require.True(t, re.MatchString("/"+b.String()), "%U", r)
	}
	for path, want := range map[string]bool{
		"": false, "*": false, "a": false, "/": true, "/%": false, "/%4": false, "/%4g": false,
		"/%c0%af": false, "/%e0%80%af": false, "/%e0%9f%bf": false, "/%ed%a0%80": false, "/%ed%9f%bf": true, "/%f0%8f%bf%bf": false,
		"/%f0%90%80%80": true, "/%f4%8f%bf%bf": true, "/%f4%90%80%80": false, "/%f5%80%80%80": false, "/%e2%82": false, "/%e2%82%41": false,
		"/?": true, "/?%zz;%00#": true, "/?a?b/../%2f": true, "/?\xff": false, "/?ö": true, "/a?\n": true,
	} {
		require.Equal(t, want, re.MatchString(path), "%q", path)
	}
}
