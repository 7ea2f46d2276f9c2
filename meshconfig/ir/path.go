package ir

import (
	"regexp"
	"strings"
)

// PathKind is how a path is matched.
type PathKind string

// The kinds. Paths are compared without the query, after normalization, in
// their percent-encoded form.
const (
	// PathExact: the whole path.
	PathExact PathKind = "exact"
	// PathPrefix: all that begins with the value, which ends in a slash; "/" is
	// everything.
	PathPrefix PathKind = "prefix"
	// PathTemplate: {*} is one non-empty segment, {**} zero or more and last.
	PathTemplate PathKind = "template"
)

// PathMatch is a condition on a request's path.
type PathMatch struct {
	Kind  PathKind `json:"kind"`
	Value string   `json:"value"`
}

// Regex is an RE2 that matches exactly the paths of a template, when it must
// match the whole path.
func (p PathMatch) Regex() string {
	segments := strings.Split(p.Value, "/")
	for i, s := range segments {
		switch s {
		case "{*}":
			segments[i] = "[^/]+"
		case "{**}":
			segments[i] = ".*"
		default:
			segments[i] = regexp.QuoteMeta(s)
		}
	}
	return strings.Join(segments, "/")
}

// Literal is the part of the match before the first wildcard: what a rewrite
// replaces.
func (p PathMatch) Literal() string {
	if p.Kind != PathTemplate {
		return p.Value
	}
	literal, _, _ := strings.Cut(p.Value, "{")
	return literal
}
