package request

import (
	"fmt"
	"net/url"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// StringMatch is a compiled StringMatcher.
type StringMatch func(string) bool

// CompileString reads a StringMatcher.
func CompileString(at string, m *matcherv3.StringMatcher) (StringMatch, error) {
	return Regexes(nil).compileString(at, m)
}

func (all Regexes) compileString(at string, m *matcherv3.StringMatcher) (StringMatch, error) {
	if err := strict.Allow(at, m, "exact", "prefix", "suffix", "contains", "safe_regex", "ignore_case"); err != nil {
		return nil, err
	}
	fold := func(s string) string { return s }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		if m.GetIgnoreCase() {
			return func(s string) bool { return strings.EqualFold(s, p.Exact) }, nil
		}
		return func(s string) bool { return s == p.Exact }, nil
	case *matcherv3.StringMatcher_Prefix:
		want := fold(p.Prefix)
		return func(s string) bool { return strings.HasPrefix(fold(s), want) }, nil
	case *matcherv3.StringMatcher_Suffix:
		want := fold(p.Suffix)
		return func(s string) bool { return strings.HasSuffix(fold(s), want) }, nil
	case *matcherv3.StringMatcher_Contains:
		want := fold(p.Contains)
		return func(s string) bool { return strings.Contains(fold(s), want) }, nil
	case *matcherv3.StringMatcher_SafeRegex:
		re, err := all.compile(at+".safe_regex", p.SafeRegex)
		if err != nil {
			return nil, err
		}
		return re.MatchString, nil
	default:
		return nil, fmt.Errorf("%s: has no pattern", at)
	}
}

// Match is a question about a request.
type Match func(*Request) bool

// CompileHeaderMatch reads a HeaderMatcher.
func CompileHeaderMatch(at string, m *routev3.HeaderMatcher) (Match, error) {
	return Regexes(nil).compileHeaderMatch(at, m)
}

func (all Regexes) compileHeaderMatch(at string, m *routev3.HeaderMatcher) (Match, error) {
	at = fmt.Sprintf("%s[%s]", at, m.GetName())
	if err := strict.Allow(at, m, "name", "exact_match", "safe_regex_match", "present_match", "prefix_match", "suffix_match",
		"contains_match", "string_match", "invert_match", "treat_missing_header_as_empty"); err != nil {
		return nil, err
	}
	get := HeaderGetter(m.GetName())
	invert, missingEmpty := m.GetInvertMatch(), m.GetTreatMissingHeaderAsEmpty()

	var pattern *matcherv3.StringMatcher
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case nil:
		return func(req *Request) bool { _, ok := get(req); return ok != invert }, nil
	case *routev3.HeaderMatcher_PresentMatch:
		want := s.PresentMatch != invert
		return func(req *Request) bool { _, ok := get(req); return (ok || missingEmpty) == want }, nil
	case *routev3.HeaderMatcher_StringMatch:
		pattern = s.StringMatch
	case *routev3.HeaderMatcher_ExactMatch:
		pattern = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s.ExactMatch}}
	case *routev3.HeaderMatcher_PrefixMatch:
		pattern = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s.PrefixMatch}}
	case *routev3.HeaderMatcher_SuffixMatch:
		pattern = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: s.SuffixMatch}}
	case *routev3.HeaderMatcher_ContainsMatch:
		pattern = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: s.ContainsMatch}}
	case *routev3.HeaderMatcher_SafeRegexMatch:
		pattern = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: s.SafeRegexMatch}}
	default:
		return nil, fmt.Errorf("%s: this kind of match is not supported", at)
	}
	match, err := all.compileString(at, pattern)
	if err != nil {
		return nil, err
	}
	return func(req *Request) bool {
		value, ok := get(req)
		if !ok && !missingEmpty {
			return false // also when inverted
		}
		return match(value) != invert
	}, nil
}

// HeaderGetter reads a request header, several values joined by commas, or one
// of the pseudo headers.
func HeaderGetter(name string) func(*Request) (string, bool) {
	switch strings.ToLower(name) {
	case ":method":
		return func(req *Request) (string, bool) { return req.HTTP.Method, true }
	case ":authority", "host":
		return func(req *Request) (string, bool) { return req.Host, true }
	case ":path":
		return func(req *Request) (string, bool) { return req.PathAndQuery(), true }
	case ":scheme":
		return func(req *Request) (string, bool) { return req.Scheme, true }
	}
	key := Canonical(name)
	return func(req *Request) (string, bool) {
		switch values := req.HTTP.Header[key]; len(values) {
		case 0:
			return "", false
		case 1:
			return values[0], true
		default:
			return strings.Join(values, ","), true
		}
	}
}

func compileQueryMatch(at string, m *routev3.QueryParameterMatcher) (Match, error) {
	at = fmt.Sprintf("%s[%s]", at, m.GetName())
	if err := strict.Allow(at, m, "name", "string_match", "present_match"); err != nil {
		return nil, err
	}
	name := m.GetName()
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case *routev3.QueryParameterMatcher_StringMatch:
		match, err := CompileString(at+".string_match", s.StringMatch)
		if err != nil {
			return nil, err
		}
		return func(req *Request) bool { v, ok := QueryValue(req.Query, name); return ok && match(v) }, nil
	case *routev3.QueryParameterMatcher_PresentMatch:
		return func(req *Request) bool { _, ok := QueryValue(req.Query, name); return ok == s.PresentMatch }, nil
	default:
		return func(req *Request) bool { _, ok := QueryValue(req.Query, name); return ok }, nil
	}
}

// QueryValue returns the first value of a query parameter. Names and values are
// compared decoded; one that cannot be decoded is compared as it stands.
func QueryValue(query, name string) (string, bool) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		key, value, _ := strings.Cut(pair, "=")
		if Unescape(key) == name {
			return Unescape(value), true
		}
	}
	return "", false
}

// Unescape decodes a part of a query; what cannot be decoded stays.
func Unescape(s string) string {
	if u, err := url.QueryUnescape(s); err == nil {
		return u
	}
	return s
}

// All tells whether all questions are answered by yes.
func All(matches []Match, req *Request) bool {
	for _, m := range matches {
		if !m(req) {
			return false
		}
	}
	return true
}
