package ir

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// PathKind is how a path is matched.
type PathKind string

// The kinds. Paths are compared without the query, after normalization, in
// whatever spelling [UnambiguousTarget] lets through.
const (
	// PathExact: the whole path.
	PathExact PathKind = "exact"
	// PathPrefix: all that begins with the value, which ends in a slash; "/" is
	// everything.
	PathPrefix PathKind = "prefix"
	// PathTemplate: {*} is one non-empty segment, {**} zero or more and last.
	PathTemplate PathKind = "template"
)

const (
	oneSegment   = "{*}"
	restSegments = "{**}"
)

// PathMatch is a condition on a request's path. Its value is canonical: every
// character of a literal stands for itself where RFC 3986 lets it (section 3.3),
// and is percent-encoded UTF-8 with upper-case hex where not. [PathMatch.Pattern]
// matches all that decodes to it.
type PathMatch struct {
	Kind  PathKind `json:"kind"`
	Value string   `json:"value"`
}

// AnyPath matches every path.
func AnyPath() PathMatch { return PathMatch{Kind: PathPrefix, Value: "/"} }

// ParsePath reads a path as an APIRule writes it: literal but for the segments
// {*} and, last, {**}; /* alone is everything. A character that cannot stand in
// a path is written as its percent-encoding, or as it is when it is not ASCII.
func ParsePath(path string) (PathMatch, error) {
	if path == "/*" {
		return AnyPath(), nil
	}
	if !strings.HasPrefix(path, "/") {
		return PathMatch{}, errors.New("a path begins with /")
	}
	segments := strings.Split(path[1:], "/")
	wildcards := 0
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == restSegments && last:
			continue
		case s == oneSegment:
			wildcards++
			continue
		case strings.ContainsAny(s, "{}*"):
			return PathMatch{}, fmt.Errorf("%q: {*} is a whole segment, {**} the last one, and /* stands alone; %%7B, %%7D and %%2A are the characters", s)
		case s == "." || s == ".." || (s == "" && !last):
			return PathMatch{}, errors.New("a path has no empty, . or .. segment")
		case strings.ContainsAny(s, `?#;\ `) || strings.ContainsFunc(s, isControl):
			return PathMatch{}, fmt.Errorf("%q: write it without ? # ; \\ spaces and control characters", s)
		}
		text, err := decode(s)
		if err != nil {
			return PathMatch{}, err
		}
		segments[i] = encode(text)
	}
	value := "/" + strings.Join(segments, "/")
	switch {
	case wildcards > 0:
		return PathMatch{Kind: PathTemplate, Value: value}, nil
	case segments[len(segments)-1] == restSegments:
		return PathMatch{Kind: PathPrefix, Value: strings.TrimSuffix(value, restSegments)}, nil
	default:
		return PathMatch{Kind: PathExact, Value: value}, nil
	}
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// Pattern is how a data plane matches: literals with a single spelling exactly
// or by prefix, all others by [PathMatch.Regex].
func (p PathMatch) Pattern() StringMatch {
	switch {
	case p.Kind == PathTemplate || spell(p.Value) != regexp.QuoteMeta(p.Value):
		return StringMatch{Kind: MatchRegex, Value: p.Regex()}
	case p.Kind == PathPrefix:
		return StringMatch{Kind: MatchPrefix, Value: p.Value}
	default:
		return StringMatch{Kind: MatchExact, Value: p.Value}
	}
}

// Regex is an RE2 that matches every spelling of the paths of the match, when
// it must match the whole path.
func (p PathMatch) Regex() string {
	segments := p.segments()
	for i, s := range segments {
		switch s {
		case oneSegment:
			segments[i] = "[^/]+"
		case restSegments:
			segments[i] = ".*"
		default:
			segments[i] = spell(s)
		}
	}
	return "/" + strings.Join(segments, "/")
}

// LiteralRegex is an RE2 for every spelling of [PathMatch.Literal] at the
// beginning of a path.
func (p PathMatch) LiteralRegex() string { return "^" + spell(p.Literal()) }

// Literal is the part of the match before the first wildcard: what a rewrite
// replaces.
func (p PathMatch) Literal() string {
	if p.Kind != PathTemplate {
		return p.Value
	}
	literal, _, _ := strings.Cut(p.Value, "{")
	return literal
}

// Covers says whether every path that other matches is one that p matches.
func (p PathMatch) Covers(other PathMatch) bool {
	ours, theirs := p.segments(), other.segments()
	for i, s := range ours {
		switch {
		case i >= len(theirs):
			return false
		case s == restSegments:
			return true
		case s == oneSegment:
			if theirs[i] == "" || theirs[i] == restSegments {
				return false
			}
		case s != theirs[i]:
			return false
		}
	}
	return len(ours) == len(theirs)
}

// segments of the match in template form, without the leading slash.
func (p PathMatch) segments() []string {
	value := p.Value
	if p.Kind == PathPrefix {
		value += restSegments
	}
	return strings.Split(strings.TrimPrefix(value, "/"), "/")
}
