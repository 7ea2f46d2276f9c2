package meshtest_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// canonicalPath is what an Envoy under istiod makes of a path before it looks
// at routes, with normalization MERGE_SLASHES: normalize_path, then
// merge_slashes.
//
// normalize_path (source/common/http/path_utility.cc) is CanonicalizePath of the
// URL parser of Chromium (url/url_canon_path.cc): by the table of characters
// there, unreserved ones are unescaped, / \ . are special, some are escaped
// (with upper-case hex) and the rest passes; other escapes stay as they are
// written, even those that are no hex; an escaped NUL and bytes that are no
// UTF-8 make it fail, which is a 400.
func canonicalPath(raw string) (string, bool) {
	if !strings.HasPrefix(raw, "/") || !utf8.ValidString(raw) {
		return "", false
	}
	const (
		escaped = " \"#<>?^`{|}\x7f"
		hex     = "0123456789ABCDEF"
	)
	var out strings.Builder
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' && i+2 < len(raw) {
			high, low := strings.IndexByte(hex, upper(raw[i+1])), strings.IndexByte(hex, upper(raw[i+2]))
			if high >= 0 && low >= 0 {
				switch value := byte(high<<4 | low); {
				case value == 0:
					return "", false
				case value == '-' || value == '.' || value == '_' || value == '~' || alphanumeric(value):
					out.WriteByte(value)
				default:
					out.WriteString(raw[i : i+3])
				}
				i += 2
				continue
			}
		}
		switch {
		case c == '\\':
			out.WriteByte('/')
		case c < ' ' || c >= 0x80 || strings.IndexByte(escaped, c) >= 0:
			out.Write([]byte{'%', hex[c>>4], hex[c&15]})
		default:
			out.WriteByte(c)
		}
	}
	var segments []string
	parts := strings.Split(out.String(), "/")[1:]
	for i, s := range parts {
		switch s {
		case ".", "..":
			if s == ".." && len(segments) > 0 {
				segments = segments[:len(segments)-1]
			}
			if i == len(parts)-1 {
				segments = append(segments, "")
			}
		default:
			segments = append(segments, s)
		}
	}
	path := "/" + strings.Join(segments, "/")
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path, true
}

func upper(c byte) byte {
	if c >= 'a' && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

func TestTheModelOfEnvoysPaths(t *testing.T) {
	for raw, want := range map[string]string{
		"/a/../b": "/b", "//a//b": "/a/b", `/a\b`: "/a/b", "/%61%2E%2e/b": "/a../b", "/%2e%2E/b": "/b", "/a/.": "/a/",
		"/%3a%3A%2f": "/%3a%3A%2f", "/%zz": "/%zz", "/ö|": "/%C3%B6%7C", "/;x": "/;x",
	} {
		got, canonical := canonicalPath(raw)
		require.True(t, canonical, raw)
		require.Equal(t, want, got, raw)
	}
	for _, raw := range []string{"", "a", "/%00", "/\xff"} {
		_, canonical := canonicalPath(raw)
		require.False(t, canonical, raw)
	}
}
