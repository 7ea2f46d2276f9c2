package request

import (
	"fmt"
	"regexp"
	"regexp/syntax"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// Regexes are the expressions of a route table, each compiled once however many
// routes have it. Nil keeps none.
type Regexes map[string]*regex

// compile makes an expression that matches whole strings, as Envoy's do.
// Envoy's RE2 and Go's regexp have the same syntax.
func (all Regexes) compile(at string, m *matcherv3.RegexMatcher) (*regex, error) {
	if err := strict.Allow(at, m, "google_re2", "regex"); err != nil {
		return nil, err
	}
	text := m.GetRegex()
	if known := all[text]; known != nil {
		return known, nil
	}
	re, err := regexp.Compile(`\A(?:` + text + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	compiled := &regex{Regexp: re, scan: compileScan(tree)}
	if all != nil {
		all[text] = compiled
	}
	return compiled, nil
}

// regex matches whole strings.
type regex struct {
	*regexp.Regexp
	scan scan
}

// MatchString tries the greedy way first, which is many times faster and finds
// most matches of patterns like "a slash and then any of these characters".
func (r *regex) MatchString(s string) bool {
	if rest, found := r.scan(s); found && rest == "" {
		return true
	}
	return r.Regexp.MatchString(s)
}

// scan consumes a part of s that its expression matches, without ever going
// back: what it finds is a match, what it does not find may be one all the same.
type scan func(s string) (rest string, found bool)

func compileScan(re *syntax.Regexp) scan {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return func(s string) (string, bool) { return s, true }
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			break
		}
		want := string(re.Rune)
		return func(s string) (string, bool) {
			if len(s) < len(want) || s[:len(want)] != want {
				return s, false
			}
			return s[len(want):], true
		}
	case syntax.OpStar, syntax.OpPlus:
		var set [256]bool
		addASCII(&set, re.Sub[0])
		least := 0
		if re.Op == syntax.OpPlus {
			least = 1
		}
		return func(s string) (string, bool) {
			n := 0
			for n < len(s) && set[s[n]] {
				n++
			}
			return s[n:], n >= least
		}
	case syntax.OpQuest:
		inner := compileScan(re.Sub[0])
		return func(s string) (string, bool) {
			if rest, found := inner(s); found {
				return rest, true
			}
			return s, true
		}
	case syntax.OpConcat:
		parts := make([]scan, len(re.Sub))
		for i, sub := range re.Sub {
			parts[i] = compileScan(sub)
		}
		return func(s string) (string, bool) {
			for _, part := range parts {
				rest, found := part(s)
				if !found {
					return s, false
				}
				s = rest
			}
			return s, true
		}
	}
	return func(s string) (string, bool) { return s, false }
}

// addASCII adds the characters below 0x80 that are a match on their own.
func addASCII(set *[256]bool, re *syntax.Regexp) {
	switch re.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		for c := range 0x80 {
			set[c] = c != '\n' || re.Op == syntax.OpAnyChar
		}
	case syntax.OpCharClass:
		for i := 0; i+1 < len(re.Rune); i += 2 {
			for c := re.Rune[i]; c <= min(re.Rune[i+1], 0x7f); c++ {
				set[c] = true
			}
		}
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			addASCII(set, sub)
		}
	}
}
