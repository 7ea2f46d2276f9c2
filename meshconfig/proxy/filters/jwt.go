package filters

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// jwtFilterName is the namespace of the dynamic metadata that holds payloads.
const jwtFilterName = "envoy.filters.http.jwt_authn"

// jwtFilter is a compiled JwtAuthentication.
type jwtFilter struct {
	requirements map[string]jwtRequirement
	rules        []jwtRule
	bypassCORS   bool
}

type jwtRule struct {
	match request.Match
	rest  []request.Match
	check jwtRequirement // nil: no requirement
}

// jwtOverride names the requirement of a route.
type jwtOverride string

func jwtKind() kind {
	return kind{
		config: "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
		compile: func(at string, config *anypb.Any) (Filter, error) {
			var c jwtv3.JwtAuthentication
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return nil, err
			}
			return compileJWT(at, &c)
		},

		override: "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig",
		compileOverride: func(at string, config *anypb.Any) (Override, error) {
			var c jwtv3.PerRouteConfig
			if err := strict.Unmarshal(at, config, &c); err != nil {
				return Override{}, err
			}
			return Override{Disabled: c.GetDisabled(), Config: jwtOverride(c.GetRequirementName())}, nil
		},
	}
}

func compileJWT(at string, c *jwtv3.JwtAuthentication) (*jwtFilter, error) {
	if err := strict.Allow(at, c, "providers", "rules", "requirement_map", "bypass_cors_preflight", "stat_prefix"); err != nil {
		return nil, err
	}
	f := &jwtFilter{requirements: map[string]jwtRequirement{}, bypassCORS: c.GetBypassCorsPreflight()}
	providers := map[string]*jwtProvider{}
	var errs []error
	for name, provider := range c.GetProviders() {
		p, err := compileProvider(fmt.Sprintf("%s.providers[%s]", at, name), name, provider)
		errs = append(errs, err)
		providers[name] = p
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for name, requirement := range c.GetRequirementMap() {
		check, err := compileRequirement(fmt.Sprintf("%s.requirement_map[%s]", at, name), requirement, providers)
		if err != nil {
			return nil, err
		}
		f.requirements[name] = check
	}
	for i, rule := range c.GetRules() {
		where := fmt.Sprintf("%s.rules[%d]", at, i)
		match, rest, err := request.Regexes(nil).CompileRouteMatch(where+".match", rule.GetMatch())
		if err != nil {
			return nil, err
		}
		one := jwtRule{match: match, rest: rest}
		switch r := rule.GetRequirementType().(type) {
		case nil:
		case *jwtv3.RequirementRule_Requires:
			if one.check, err = compileRequirement(where+".requires", r.Requires, providers); err != nil {
				return nil, err
			}
		case *jwtv3.RequirementRule_RequirementName:
			var ok bool
			if one.check, ok = f.requirements[r.RequirementName]; !ok {
				return nil, fmt.Errorf("%s: the requirement %q is not in requirement_map", where, r.RequirementName)
			}
		}
		f.rules = append(f.rules, one)
	}
	return f, nil
}

// jwtRequirement is a compiled JwtRequirement.
type jwtRequirement interface {
	check(req *request.Request) jwtResult
}

type requireProvider struct {
	provider  *jwtProvider
	audiences []string
}

type requireAny []jwtRequirement

type requireAll []jwtRequirement

type allowMissing struct {
	failed    bool
	providers map[string]*jwtProvider
}

func (r requireAny) check(req *request.Request) jwtResult {
	result := jwtResult{status: jwtMissed}
	for _, one := range r {
		got := one.check(req)
		if got.status == jwtOK {
			return got
		}
		// The failure that says most: anything before "unknown issuer" before
		// "missing".
		if result.status == jwtMissed || result.status == jwtUnknownIssuer && got.status != jwtMissed {
			result.status = got.status
		}
	}
	return result
}

func (r requireAll) check(req *request.Request) jwtResult {
	var result jwtResult
	for _, one := range r {
		got := one.check(req)
		if got.status != jwtOK {
			return got
		}
		result.tokens = append(result.tokens, got.tokens...)
	}
	return result
}

func (r allowMissing) check(req *request.Request) jwtResult {
	var result jwtResult
	for _, p := range r.providers {
		p.sanitize(req)
	}
	for _, name := range slices.Sorted(maps.Keys(r.providers)) {
		p := r.providers[name]
		got := requireProvider{p, p.audiences}.check(req)
		switch {
		case got.status == jwtOK:
			return got
		case got.status != jwtMissed && result.status != jwtMissed:
			result.status = got.status
		}
	}
	if r.failed {
		return jwtResult{}
	}
	return result
}

func (r requireProvider) check(req *request.Request) jwtResult {
	r.provider.sanitize(req)
	token, status := r.provider.extract(req)
	if status != jwtOK {
		return jwtResult{status: status}
	}
	status = r.provider.verify(token, r.audiences)
	if status != jwtOK {
		return jwtResult{status: status}
	}
	return jwtResult{tokens: []*verified{token}}
}

func compileRequirement(at string, c *jwtv3.JwtRequirement, providers map[string]*jwtProvider) (jwtRequirement, error) {
	one := func(name string, audiences []string) (jwtRequirement, error) {
		p, ok := providers[name]
		if !ok {
			return nil, fmt.Errorf("%s: the provider %q is not among providers", at, name)
		}
		if audiences == nil {
			audiences = p.audiences
		}
		return requireProvider{p, audiences}, nil
	}
	list := func(from *jwtv3.JwtRequirementAndList, or *jwtv3.JwtRequirementOrList) ([]jwtRequirement, error) {
		var out []jwtRequirement
		for i, r := range append(from.GetRequirements(), or.GetRequirements()...) {
			check, err := compileRequirement(fmt.Sprintf("%s[%d]", at, i), r, providers)
			if err != nil {
				return nil, err
			}
			out = append(out, check)
		}
		return out, nil
	}
	switch r := c.GetRequiresType().(type) {
	case *jwtv3.JwtRequirement_ProviderName:
		return one(r.ProviderName, nil)
	case *jwtv3.JwtRequirement_ProviderAndAudiences:
		return one(r.ProviderAndAudiences.GetProviderName(), r.ProviderAndAudiences.GetAudiences())
	case *jwtv3.JwtRequirement_RequiresAny:
		checks, err := list(nil, r.RequiresAny)
		return requireAny(checks), err
	case *jwtv3.JwtRequirement_RequiresAll:
		checks, err := list(r.RequiresAll, nil)
		return requireAll(checks), err
	case *jwtv3.JwtRequirement_AllowMissing:
		return allowMissing{failed: false, providers: providers}, nil
	case *jwtv3.JwtRequirement_AllowMissingOrFailed:
		return allowMissing{failed: true, providers: providers}, nil
	default:
		return nil, fmt.Errorf("%s: is empty or not supported", at)
	}
}

// Decode implements Filter.
func (f *jwtFilter) Decode(req *request.Request, answer Answerer, override any) bool {
	if f.bypassCORS && req.HTTP.Method == http.MethodOptions && req.HTTP.Header.Get("Origin") != "" && req.HTTP.Header.Get("Access-Control-Request-Method") != "" {
		return true
	}
	requirement := f.rule(req)
	if name, ok := override.(jwtOverride); ok {
		if requirement, ok = f.requirements[string(name)]; !ok {
			answer.Reply(http.StatusForbidden, "jwt_authn_access_denied{Wrong_requirement_name}", string(jwtWrongRequirment), nil)
			return false
		}
	}
	if requirement == nil {
		return true
	}
	result := requirement.check(req)
	if result.status == jwtOK {
		for _, token := range result.tokens {
			token.apply(req)
		}
		return true
	}
	code := http.StatusUnauthorized
	if result.status == jwtAudience {
		code = http.StatusForbidden
	}
	details := "jwt_authn_access_denied{" + strings.ReplaceAll(string(result.status), " ", "_") + "}"
	challenge := `Bearer realm="` + quotable(req.Scheme+"://"+req.Host+req.Path) + `"`
	if result.status != jwtMissed {
		challenge += `, error="invalid_token"`
	}
	answer.Reply(code, details, string(result.status), func(h http.Header) { h.Set("Www-Authenticate", challenge) })
	return false
}

func (f *jwtFilter) rule(req *request.Request) jwtRequirement {
	for i := range f.rules {
		if r := &f.rules[i]; r.match(req) && request.All(r.rest, req) {
			return r.check
		}
	}
	return nil
}

// quotable bounds a realm and takes the characters out that end a quoted
// string.
func quotable(s string) string {
	if len(s) > 256 {
		s = s[:256]
	}
	return strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}
