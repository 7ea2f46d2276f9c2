package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"github.com/golang-jwt/jwt/v5"
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
	match requestMatch
	rest  []requestMatch
	check jwtRequirement // nil: no requirement
}

// jwtOverride names the requirement of a route.
type jwtOverride string

// jwtProvider is a compiled JwtProvider.
type jwtProvider struct {
	name      string
	issuer    string
	audiences []string
	expires   bool // exp is required
	keys      keyfunc.Keyfunc
	parser    *jwt.Parser
	skew      time.Duration

	headers []jwtHeader
	params  []string
	forward bool

	payloadKey    string
	payloadHeader string
	pad           bool
	headerKey     string
	spaceClaims   []string
	claimHeaders  []claimHeader
}

type jwtHeader struct{ key, prefix string }

type claimHeader struct {
	key   string
	claim []string
}

// jwtAlgorithms are asymmetric only: a public key must never verify an HMAC
// (RFC 8725, section 3.1).
var jwtAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} //nolint:gochecknoglobals // read only

const defaultClockSkew = 60 * time.Second

func compileJWT(at string, c *jwtv3.JwtAuthentication) (*jwtFilter, error) {
	if err := allow(at, c, "providers", "rules", "requirement_map", "bypass_cors_preflight", "stat_prefix"); err != nil {
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
		match, rest, err := regexes(nil).compileRouteMatch(where+".match", rule.GetMatch())
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

func compileProvider(at, name string, c *jwtv3.JwtProvider) (*jwtProvider, error) {
	if err := allow(at, c, "issuer", "audiences", "require_expiration", "local_jwks", "forward", "from_headers", "from_params",
		"forward_payload_header", "pad_forward_payload_header", "payload_in_metadata", "normalize_payload_in_metadata",
		"header_in_metadata", "clock_skew_seconds", "claim_to_headers", "jwt_cache_config"); err != nil {
		return nil, err
	}
	p := &jwtProvider{
		name: name, issuer: c.GetIssuer(), audiences: c.GetAudiences(), expires: c.GetRequireExpiration(),
		params: c.GetFromParams(), forward: c.GetForward(), payloadKey: c.GetPayloadInMetadata(), headerKey: c.GetHeaderInMetadata(),
		pad: c.GetPadForwardPayloadHeader(), spaceClaims: c.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(),
		skew: time.Duration(c.GetClockSkewSeconds()) * time.Second,
	}
	if c.GetForwardPayloadHeader() != "" {
		p.payloadHeader = canonical(c.GetForwardPayloadHeader())
	}
	if p.skew == 0 {
		p.skew = defaultClockSkew
	}
	jwks, err := inline(at+".local_jwks", c.GetLocalJwks())
	if err != nil {
		return nil, err
	}
	// Envoy takes a key set it cannot read, or an empty one, for a configuration
	// error. The control plane writes an empty one for a set it cannot fetch, so
	// that the route is closed: no key, 401 for everybody.
	if p.keys, err = keyfunc.NewJWKSetJSON(json.RawMessage(jwks)); err != nil {
		return nil, fmt.Errorf("%s.local_jwks: %w", at, err)
	}
	p.parser = jwt.NewParser(jwt.WithValidMethods(jwtAlgorithms), jwt.WithLeeway(p.skew), jwt.WithJSONNumber())
	for _, h := range c.GetFromHeaders() {
		p.headers = append(p.headers, jwtHeader{canonical(h.GetName()), h.GetValuePrefix()})
	}
	if len(p.headers) == 0 && len(p.params) == 0 {
		p.headers = []jwtHeader{{"Authorization", "Bearer "}}
		p.params = []string{"access_token"}
	}
	for _, h := range c.GetClaimToHeaders() {
		p.claimHeaders = append(p.claimHeaders, claimHeader{canonical(h.GetHeaderName()), splitClaim(h.GetClaimName())})
	}
	return p, nil
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
