package broker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// A subject is how an event is addressed in a broker, below the broker's own
// prefix:
//
//	<owner>.<source>.<first part of the type>.<second part>...
//
// owner is the namespace of the workload that a source of the form
// /<namespace>/<name> stands for, and "_" for every other source. Each token is
// escaped so that different sources and types never share a subject, and holds
// nothing that means something to a broker: letters, digits, '-', '_' and, as
// the escape, '%' with two hex digits.

// NoOwner is the owner of sources that stand for no workload. It is no namespace:
// those have no underscores.
const NoOwner = "_"

// maxToken is where an escaped token gives way to its hash.
const maxToken = 200

// maxTypeParts bounds the tokens of a subject.
const maxTypeParts = 64

// SubjectOf returns the subject of events with this source and type.
func SubjectOf(source, eventType string) string {
	return ownerToken(source) + "." + token(source) + "." + typeTokens(eventType)
}

func ownerToken(source string) string {
	if namespace, _, ok := event.WorkloadOf(source); ok {
		return namespace
	}
	return NoOwner
}

func typeTokens(eventType string) string {
	parts := strings.Split(eventType, ".")
	if len(parts) > maxTypeParts {
		// The rest in one token: patterns reach it with "**".
		parts = append(parts[:maxTypeParts-1:maxTypeParts-1], strings.Join(parts[maxTypeParts-1:], "."))
	}
	for i, part := range parts {
		parts[i] = token(part)
	}
	return strings.Join(parts, ".")
}

// token escapes one token of a subject. It is injective: '%' is followed by two
// hex digits in what is escaped, and by "-" or "~" in the two special forms.
func token(s string) string {
	if s == "" {
		return "%-"
	}
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
	}
	if b.Len() <= maxToken {
		return b.String()
	}
	sum := sha256.Sum256([]byte(s))
	return "%~" + hex.EncodeToString(sum[:])
}

// Selector selects events by where they come from and by type.
type Selector struct {
	// Source selects one source. Empty: all workloads of the namespace Owner, or
	// all that are no workloads ([NoOwner]).
	Source string
	Owner  string

	// Type is a pattern: literal parts between dots, "*" for exactly one part,
	// and "**" at the end for one or more.
	Type string
}

// CheckTypePattern returns what is wrong with a type pattern.
func CheckTypePattern(pattern string) error {
	if pattern == "" {
		return errors.New("a type pattern must not be empty; \"**\" selects every type")
	}
	if wrong := event.CheckType(pattern); wrong != "" {
		return fmt.Errorf("type pattern %q %s", pattern, wrong)
	}
	parts := strings.Split(pattern, ".")
	if len(parts) > maxTypeParts {
		return fmt.Errorf("type pattern %q has more than %d parts", pattern, maxTypeParts)
	}
	for i, part := range parts {
		switch {
		case part == "**" && i < len(parts)-1:
			return fmt.Errorf("type pattern %q: \"**\" may stand at the end only", pattern)
		case part != "*" && part != "**" && strings.Contains(part, "*"):
			return fmt.Errorf("type pattern %q: \"*\" stands for a whole part; write order.* and not order*", pattern)
		}
	}
	return nil
}

// filter is the subject filter of the selector, in NATS syntax.
func (s Selector) filter() string {
	parts := strings.Split(s.Type, ".")
	for i, part := range parts {
		switch part {
		case "*":
		case "**":
			parts[i] = ">"
		default:
			parts[i] = token(part)
		}
	}
	types := strings.Join(parts, ".")
	if s.Source == "" {
		return s.Owner + ".*." + types
	}
	return ownerToken(s.Source) + "." + token(s.Source) + "." + types
}

// Selects reports whether one of the selectors selects events with this source
// and type.
func Selects(selectors []Selector, source, eventType string) bool {
	subject := SubjectOf(source, eventType)
	return slices.ContainsFunc(selectors, func(s Selector) bool { return subjectMatches(s.filter(), subject) })
}

// Filters returns subject filters in NATS syntax that together cover the
// selectors and do not overlap, sorted. Where selectors overlap in part
// ("a.*" and "*.b"), one wider filter takes their place: the filters may let
// through more than the selectors do, so ask [Selects] again for each event.
func Filters(selectors []Selector) []string {
	var filters []string
	for _, s := range selectors {
		f := s.filter()
		for i := 0; i < len(filters); {
			if !overlap(filters[i], f) {
				i++
				continue
			}
			f = join(filters[i], f)
			filters = slices.Delete(filters, i, i+1)
			i = 0 // the wider one may overlap those already passed
		}
		filters = append(filters, f)
	}
	slices.Sort(filters)
	return filters
}

// subjectMatches reports whether a filter matches a subject without wildcards.
func subjectMatches(filter, subject string) bool {
	f, s := strings.Split(filter, "."), strings.Split(subject, ".")
	for i, part := range f {
		if i >= len(s) {
			return false
		}
		if part == ">" {
			return true
		}
		if part != "*" && part != s[i] {
			return false
		}
	}
	return len(f) == len(s)
}

// overlap reports whether some subject matches both filters.
func overlap(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := 0; i < len(x) && i < len(y); i++ {
		if x[i] == ">" || y[i] == ">" {
			return true
		}
		if x[i] != y[i] && x[i] != "*" && y[i] != "*" {
			return false
		}
	}
	return len(x) == len(y)
}

// join is the narrowest filter that covers two overlapping ones.
func join(a, b string) string {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	var out []string
	for i := 0; i < len(x) && i < len(y); i++ {
		if x[i] == ">" || y[i] == ">" {
			out = append(out, ">")
			break
		}
		if x[i] == y[i] {
			out = append(out, x[i])
		} else {
			out = append(out, "*")
		}
	}
	return strings.Join(out, ".")
}
