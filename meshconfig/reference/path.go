package reference

import (
	"strings"
	"unicode/utf8"
)

// requestPath is what a target says.
type requestPath struct {
	// segments between slashes, decoded; "/" is one empty segment, "/a/" is "a"
	// and an empty one.
	segments []string
	// malformed: it is no target at all.
	malformed bool
	// ambiguous: backends read it in several ways.
	ambiguous bool
	// doubtful: what is ambiguous or malformed was taken away by dot segments.
	doubtful bool
}

// segment of a path before dot segments are gone.
type segment struct {
	text string
	// ambiguous: some backends read another text than others.
	ambiguous bool
}

// parseTarget reads a target in origin form: the path, and after the first ? a
// query that rules do not look at.
//
// A backslash is a slash. An escape is the byte it stands for, and text is
// UTF-8, so that the bytes of ö, %C3%B6 and %c3%b6 are one. Then dot segments
// go (RFC 3986, section 5.2.4), escaped dots included, and after them empty
// segments but the last.
func parseTarget(target string) requestPath {
	path, query, _ := strings.Cut(target, "?")
	if strings.Contains(target, "#") || strings.ContainsFunc(target, isControl) || !utf8.ValidString(path) {
		return requestPath{malformed: true}
	}
	var kept, removed []segment
	parts := strings.Split(strings.ReplaceAll(path, `\`, "/"), "/")[1:]
	for i, part := range parts {
		s, last := read(part), i == len(parts)-1
		switch {
		case s.text == "." && !s.ambiguous:
		case s.text == ".." && !s.ambiguous:
			if len(kept) > 0 {
				removed = append(removed, kept[len(kept)-1])
				kept = kept[:len(kept)-1]
			}
		default:
			kept = append(kept, s)
			continue
		}
		if last {
			kept = append(kept, segment{})
		}
	}
	// A query's bytes are nobody's business, but they are text.
	out := requestPath{ambiguous: !utf8.ValidString(query) || strings.ContainsRune(query, utf8.RuneError)}
	for i, s := range kept {
		out.ambiguous = out.ambiguous || s.ambiguous
		if s.text != "" || s.ambiguous || i == len(kept)-1 {
			out.segments = append(out.segments, s.text)
		}
	}
	for _, s := range removed {
		out.doubtful = out.doubtful || s.ambiguous
	}
	return out
}

// read decodes a segment. Ambiguous are:
//
//   - a bare ; since some backends cut off what follows it;
//   - escapes of / \ ; ? # since some decode before they split;
//   - escaped control characters, NUL first of all;
//   - bytes that are no UTF-8 (Unicode, table 3-7), overlong forms included;
//   - a % that begins no escape.
func read(part string) segment {
	var text []byte
	ambiguous := false
	for i := 0; i < len(part); i++ {
		c := part[i]
		if c == '%' {
			value, ok := escape(part[i:])
			if !ok {
				return segment{text: part, ambiguous: true}
			}
			c = value
			i += 2
			ambiguous = ambiguous || isControl(rune(c)) || strings.IndexByte(`/\;?#`, c) >= 0
		} else if c == ';' {
			ambiguous = true
		}
		text = append(text, c)
	}
	return segment{text: string(text), ambiguous: ambiguous || !utf8.Valid(text)}
}

// escape reads the escape that text begins with (RFC 3986, section 2.1).
func escape(text string) (value byte, ok bool) {
	if len(text) < 3 {
		return 0, false
	}
	for _, digit := range []byte(text[1:3]) {
		switch {
		case '0' <= digit && digit <= '9':
			value = value*16 + digit - '0'
		case 'a' <= digit && digit <= 'f':
			value = value*16 + digit - 'a' + 10
		case 'A' <= digit && digit <= 'F':
			value = value*16 + digit - 'A' + 10
		default:
			return 0, false
		}
	}
	return value, true
}

func isControl(c rune) bool { return c < ' ' || c == 0x7f }

// matchesPath compares a rule's path with a request's, segment by segment: {*}
// is one that is not empty, {**} the last ones, at least one that may be empty;
// everything else is itself, written as it is or escaped. /* alone is
// everything.
func matchesPath(rule string, segments []string) bool {
	if rule == "/*" {
		return true
	}
	wanted := strings.Split(rule, "/")[1:]
	for i, want := range wanted {
		if i >= len(segments) {
			return false
		}
		switch want {
		case "{**}":
			return true
		case "{*}":
			if segments[i] == "" {
				return false
			}
		default:
			if read(want).text != segments[i] {
				return false
			}
		}
	}
	return len(wanted) == len(segments)
}
