package request

import (
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// CompileRouteMatch returns the match of the path and those of everything else.
func (all Regexes) CompileRouteMatch(at string, m *routev3.RouteMatch) (Match, []Match, error) {
	if err := strict.Allow(at, m, "prefix", "path", "safe_regex", "path_separated_prefix", "case_sensitive", "headers", "query_parameters"); err != nil {
		return nil, nil, err
	}
	fold := m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	var path Match
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		want := p.Prefix
		path = func(req *Request) bool { return hasPrefix(req.Path, want, fold) }
	case *routev3.RouteMatch_Path:
		want := p.Path
		path = func(req *Request) bool { return req.Path == want || fold && strings.EqualFold(req.Path, want) }
	case *routev3.RouteMatch_PathSeparatedPrefix:
		want := p.PathSeparatedPrefix
		path = func(req *Request) bool {
			return hasPrefix(req.Path, want, fold) && (len(req.Path) == len(want) || req.Path[len(want)] == '/')
		}
	case *routev3.RouteMatch_SafeRegex:
		re, err := all.compile(at+".safe_regex", p.SafeRegex)
		if err != nil {
			return nil, nil, err
		}
		path = func(req *Request) bool { return re.MatchString(req.Path) }
	default:
		return nil, nil, fmt.Errorf("%s: has no path", at)
	}
	var rest []Match
	for _, h := range m.GetHeaders() {
		match, err := all.compileHeaderMatch(at+".headers", h)
		if err != nil {
			return nil, nil, err
		}
		rest = append(rest, match)
	}
	for _, q := range m.GetQueryParameters() {
		match, err := compileQueryMatch(at+".query_parameters", q)
		if err != nil {
			return nil, nil, err
		}
		rest = append(rest, match)
	}
	return path, rest, nil
}

func hasPrefix(s, prefix string, fold bool) bool {
	if len(s) < len(prefix) {
		return false
	}
	return s[:len(prefix)] == prefix || fold && strings.EqualFold(s[:len(prefix)], prefix)
}
