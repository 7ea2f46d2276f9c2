package request

import (
	"fmt"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// CompileMetadata matches dynamic metadata: what filters before this one know
// about the request, such as the claims of a token.
func CompileMetadata(at string, m *matcherv3.MetadataMatcher) (Match, error) {
	if err := strict.Allow(at, m, "filter", "path", "value", "invert"); err != nil {
		return nil, err
	}
	keys := make([]string, len(m.GetPath()))
	for i, segment := range m.GetPath() {
		keys[i] = segment.GetKey()
	}
	match, err := compileValue(at+".value", m.GetValue())
	if err != nil {
		return nil, err
	}
	namespace, invert := m.GetFilter(), m.GetInvert()
	return func(req *Request) bool {
		var value any = req.Metadata[namespace]
		for _, key := range keys {
			object, ok := value.(map[string]any)
			if !ok {
				value = nil
				break
			}
			value = object[key]
		}
		return match(value) != invert
	}, nil
}

type valueMatch func(any) bool

func compileValue(at string, m *matcherv3.ValueMatcher) (valueMatch, error) {
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_StringMatch:
		match, err := CompileString(at+".string_match", p.StringMatch)
		return func(v any) bool { s, ok := v.(string); return ok && match(s) }, err
	case *matcherv3.ValueMatcher_BoolMatch:
		return func(v any) bool { b, ok := v.(bool); return ok && b == p.BoolMatch }, nil
	case *matcherv3.ValueMatcher_NullMatch_:
		return func(v any) bool { return v == nil }, nil
	case *matcherv3.ValueMatcher_PresentMatch:
		return func(v any) bool { return (v != nil) == p.PresentMatch }, nil
	case *matcherv3.ValueMatcher_DoubleMatch:
		exact, ok := p.DoubleMatch.GetMatchPattern().(*matcherv3.DoubleMatcher_Exact)
		if !ok {
			return nil, fmt.Errorf("%s.double_match: only exact is supported", at)
		}
		return func(v any) bool { n, ok := v.(float64); return ok && n == exact.Exact }, nil
	case *matcherv3.ValueMatcher_ListMatch:
		match, err := compileValue(at+".list_match.one_of", p.ListMatch.GetOneOf())
		return func(v any) bool {
			list, ok := v.([]any)
			if !ok {
				return false
			}
			for _, one := range list {
				if match(one) {
					return true
				}
			}
			return false
		}, err
	case *matcherv3.ValueMatcher_OrMatch:
		var matches []valueMatch
		for i, one := range p.OrMatch.GetValueMatchers() {
			match, err := compileValue(fmt.Sprintf("%s.or_match[%d]", at, i), one)
			if err != nil {
				return nil, err
			}
			matches = append(matches, match)
		}
		return func(v any) bool {
			for _, match := range matches {
				if match(v) {
					return true
				}
			}
			return false
		}, nil
	default:
		return nil, fmt.Errorf("%s: %T is not supported", at, p)
	}
}
