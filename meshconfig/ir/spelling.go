package ir

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// AmbiguousTarget tells a client why its target was refused.
const AmbiguousTarget = "backends may read this path in several ways: write / \\ ; ? # - . _ ~, letters and digits as they are and the rest as UTF-8, without control characters"

// AmbiguousMethod tells a client why its method was refused.
const AmbiguousMethod = "backends may read this method in several ways: methods are case-sensitive, write it in upper case"

// LowerCaseMethod is an RE2 that matches the methods that data planes answer
// with 400. Methods are case-sensitive (RFC 9110, section 9.1) and the registered
// ones upper-case, but many backends take get for GET: rules for GET would not
// hold for it.
func LowerCaseMethod() string { return `.*[a-z].*` }

// UnambiguousTarget is an RE2 that matches the whole target (path and query) of
// the requests that rules may decide about. Data planes answer 400 to all
// others, after they have normalized the path (dot segments removed, slashes
// merged, backslashes made slashes) and before they look at the rules.
//
// What it refuses is what backends read differently: escapes of the delimiters
// / \ ; ? # (some decode before they split), a bare ; (some strip what follows
// it), escaped control characters, escapes of letters, digits and -._~ (normal
// paths have none), and escapes that are no UTF-8, overlong forms included
// (Unicode, table 3-7). In the query, text must be UTF-8.
//
// Every alternative is told by its next character, so that an engine can match
// without going back.
func UnambiguousTarget() string {
	const (
		bare         = `[!"$&-:<->@-\[\]-~]`
		ascii        = `2[0-24-9A-Ca-c]|3[AC-Eac-e]|40|5[BDEbde]|60|7[B-Db-d]`
		hex          = `[0-9A-Fa-f]`
		continuation = `%[89ABab]` + hex
		lead         = `[Cc][2-9A-Fa-f]|[Dd]` + hex +
			`|[Ee](?:0%[ABab]` + hex + `|[1-9A-CEFa-cef]` + continuation + `|[Dd]%[89]` + hex + `)` +
			`|[Ff](?:0%[9ABab]` + hex + `|[1-3]` + continuation + `|4%8` + hex + `)` + continuation
		// U+FFFD is what engines take a byte for that is no UTF-8.
		query = `(?:\?[^\x{FFFD}]*)?`
	)
	return `/(?:` + bare + `|%(?:` + ascii + `|(?:` + lead + `)` + continuation + `))*` + query
}

// unreserved characters (RFC 3986, section 2.3) have one spelling in a path that
// was normalized.
func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// bare says whether c may stand for itself in a segment: pchar of RFC 3986
// without the semicolon, at which some backends cut a segment off.
func bare(c byte) bool { return unreserved(c) || strings.IndexByte(":@!$&'()*+,=", c) >= 0 }

// decode resolves the escapes of a segment.
func decode(segment string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(segment); i++ {
		if segment[i] != '%' {
			b.WriteByte(segment[i])
			continue
		}
		var c byte
		if i+3 > len(segment) {
			return "", fmt.Errorf("%q: %% is followed by two hex digits; the character itself is %%25", segment)
		}
		for _, digit := range []byte(segment[i+1 : i+3]) {
			at := strings.IndexByte("0123456789abcdef", digit|0x20)
			if digit < '0' || at < 0 {
				return "", fmt.Errorf("%q: %% is followed by two hex digits; the character itself is %%25", segment)
			}
			c = c<<4 | byte(at)
		}
		switch {
		case unreserved(c):
			return "", fmt.Errorf("%q: write %c for %s", segment, c, segment[i:i+3])
		case isControl(rune(c)) || strings.IndexByte(`/\;?#`, c) >= 0:
			return "", fmt.Errorf("%q: requests with %s are refused, so no rule can be for them", segment, segment[i:i+3])
		}
		b.WriteByte(c)
		i += 2
	}
	if !utf8.ValidString(b.String()) {
		return "", fmt.Errorf("%q is not UTF-8", segment)
	}
	return b.String(), nil
}

// encode writes a segment canonically.
func encode(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if bare(text[i]) {
			b.WriteByte(text[i])
		} else {
			fmt.Fprintf(&b, "%%%02X", text[i])
		}
	}
	return b.String()
}

// spell is an RE2 for every spelling of a canonical literal: reserved characters
// bare or escaped, hex digits in either case.
func spell(canonical string) string {
	var b strings.Builder
	for i := 0; i < len(canonical); i++ {
		c, escaped := canonical[i], false
		if c == '%' {
			_, _ = fmt.Sscanf(canonical[i+1:i+3], "%02X", &c)
			i += 2
			escaped = true
		}
		switch own := regexp.QuoteMeta(string(rune(c))); {
		case c == '/' || unreserved(c):
			b.WriteString(own)
		case c <= ' ' || c >= 0x7f || strings.IndexByte("%?#", c) >= 0:
			b.WriteString(spellEscape(c))
		case escaped || bare(c):
			b.WriteString("(?:" + own + "|" + spellEscape(c) + ")")
		default:
			b.WriteString(own)
		}
	}
	return b.String()
}

// spellEscape is an RE2 for the escapes of c.
func spellEscape(c byte) string {
	var b strings.Builder
	b.WriteByte('%')
	for _, digit := range fmt.Sprintf("%02X", c) {
		if digit >= 'A' {
			fmt.Fprintf(&b, "[%c%c]", digit, digit|0x20)
		} else {
			b.WriteRune(digit)
		}
	}
	return b.String()
}
