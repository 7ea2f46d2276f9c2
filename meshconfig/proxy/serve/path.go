package serve

import (
	"strings"
	"unicode/utf8"
)

// unreserved characters stand for themselves in a path (RFC 3986, section 2.3);
// their escapes are decoded.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// hasEscapedSlash tells whether a path holds %2f or %5c.
func hasEscapedSlash(path string) bool {
	for i := 0; i+2 < len(path); i++ {
		if path[i] == '%' {
			switch path[i+1 : i+3] {
			case "2f", "2F", "5c", "5C":
				return true
			}
		}
	}
	return false
}

// normalize returns the canonical form of a path as Envoy's URL parser does:
// escapes of unreserved characters decoded, what cannot stand in a path escaped,
// backslashes turned into slashes, dot segments removed (RFC 3986, section
// 5.2.4). It is false for a path that has none: an escape that is none, an
// escaped NUL, or bytes that are no UTF-8.
func normalize(path string) (string, bool) {
	if clean(path) {
		return path, true
	}
	if !utf8.ValidString(path) {
		return "", false
	}
	decoded := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\':
			decoded = append(decoded, '/')
		case c == '%':
			if i+2 >= len(path) {
				return "", false
			}
			high, ok1 := unhex(path[i+1])
			low, ok2 := unhex(path[i+2])
			value := high<<4 | low
			if !ok1 || !ok2 || value == 0 {
				return "", false
			}
			if unreserved(value) {
				decoded = append(decoded, value)
			} else {
				decoded = append(decoded, path[i:i+3]...)
			}
			i += 2
		case mayStand(c):
			decoded = append(decoded, c)
		default:
			const hex = "0123456789ABCDEF"
			decoded = append(decoded, '%', hex[c>>4], hex[c&15])
		}
	}
	segments := strings.Split(string(decoded), "/")[1:]
	out := segments[:0]
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/"), true
}

// mayStand tells the characters that stand in a path as they are (RFC 3986,
// section 3.3; brackets as in the URL Standard, section 1.3).
func mayStand(c byte) bool {
	return c == '/' || unreserved(c) || strings.IndexByte("!$&'()*+,;=:@[]", c) >= 0
}

// clean tells that there is nothing to normalize.
func clean(path string) bool {
	for i := range len(path) {
		switch c := path[i]; {
		case c == '.':
			if path[i-1] == '/' { // a path begins with a slash
				return false
			}
		case !mayStand(c):
			return false
		}
	}
	return true
}

func mergeSlashes(path string) string {
	if !strings.Contains(path, "//") {
		return path
	}
	var b strings.Builder
	b.Grow(len(path))
	for i := range len(path) {
		if path[i] != '/' || i == 0 || path[i-1] != '/' {
			b.WriteByte(path[i])
		}
	}
	return b.String()
}
