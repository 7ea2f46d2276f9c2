package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// payloadKey is where jwt_authn leaves the claims of a valid token.
const payloadKey = "jwt"

// jwtFilter knows the providers and requirements of all routes of a gateway.
// Routes name theirs; a route that names none needs no token. A requirement is
// a set of providers: what else a rule demands is in the route's RBAC, so that
// a changed rule changes no listener.
func (b *builder) jwtFilter(keySets []ir.KeySet, demands iter.Seq[*Demands]) *jwtv3.JwtAuthentication {
	keys := make(map[string]string, len(keySets))
	for _, k := range keySets {
		keys[k.Name] = k.JWKS
	}
	filter := &jwtv3.JwtAuthentication{Providers: map[string]*jwtv3.JwtProvider{}, RequirementMap: map[string]*jwtv3.JwtRequirement{}}
	providers, requirements := map[string]trusted{}, map[string][]string{}
	for d := range demands {
		for name, p := range d.providers {
			added, err := once(providers, name, trustOf(p), func(a, b trusted) bool { return a == b })
			b.note(err)
			if added {
				filter.Providers[name] = provider(p, keys[p.KeySet])
			}
		}
		for name, names := range d.requirements {
			added, err := once(requirements, name, names, slices.Equal)
			b.note(err)
			if added {
				filter.RequirementMap[name] = requirement(names)
			}
		}
	}
	return filter
}

// trusted is what makes a provider: whose tokens, by which keys.
type trusted struct{ issuer, keySet, places string }

func trustOf(p ir.JWTProvider) trusted { return trusted{p.Issuer, p.KeySet, places(p)} }

// once sets a name that is not there yet and says whether it did. A name stands
// for one thing only: with two, a rule of one team would decide about another's
// tokens.
func once[T any](all map[string]T, name string, value T, same func(a, b T) bool) (added bool, err error) {
	known, taken := all[name]
	if !taken {
		all[name] = value
		return true, nil
	}
	if !same(known, value) {
		return false, fmt.Errorf("%s stands for %v and for %v", name, known, value)
	}
	return false, nil
}

func provider(p ir.JWTProvider, jwks string) *jwtv3.JwtProvider {
	out := &jwtv3.JwtProvider{
		Issuer: p.Issuer,
		JwksSourceSpecifier: &jwtv3.JwtProvider_LocalJwks{LocalJwks: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: jwks},
		}},
		// Said explicitly, since Envoy would else look at a query parameter too.
		FromHeaders:       []*jwtv3.JwtHeader{{Name: "authorization", ValuePrefix: "Bearer "}},
		Forward:           true,
		PayloadInMetadata: payloadKey,
		// What the client wrote there is removed by the listener.
		ForwardPayloadHeader: headers.Claims,
		NormalizePayloadInMetadata: &jwtv3.JwtProvider_NormalizePayload{
			SpaceDelimitedClaims: ir.ScopeClaims(),
		},
		FromParams: p.Params,
	}
	if len(p.Headers) > 0 {
		out.FromHeaders = nil
	}
	for _, h := range p.Headers {
		out.FromHeaders = append(out.FromHeaders, &jwtv3.JwtHeader{Name: h.Name, ValuePrefix: h.Prefix})
	}
	for _, c := range p.ClaimHeaders { // Envoy removes the client's copies of them
		out.ClaimToHeaders = append(out.ClaimToHeaders, &jwtv3.JwtClaimToHeader{HeaderName: c.Header, ClaimName: c.Claim})
	}
	return out
}

func providerName(p ir.JWTProvider) string {
	if text := places(p); text != "" {
		return nameOf("provider", p.Issuer, p.KeySet, text)
	}
	return nameOf("provider", p.Issuer, p.KeySet)
}

// places are where the provider's tokens are and what is told of them; empty: as
// with most.
func places(p ir.JWTProvider) string {
	if len(p.Headers)+len(p.Params)+len(p.ClaimHeaders) == 0 {
		return ""
	}
	return fmt.Sprintf("%q %q %q", p.Headers, p.Params, p.ClaimHeaders)
}

// nameOf some parts, which users write: other parts have another name, whatever
// is in them.
func nameOf(kind string, parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return kind + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// providerNames of a JWT, each once, sorted.
func providerNames(jwt *ir.JWT) []string {
	names := map[string]bool{}
	for _, p := range jwt.Providers {
		names[providerName(p)] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func requirementName(providers []string) string { return nameOf("any-of", providers...) }

func requirement(providers []string) *jwtv3.JwtRequirement {
	var all []*jwtv3.JwtRequirement
	for _, name := range providers {
		all = append(all, &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_ProviderName{ProviderName: name}})
	}
	if len(all) == 1 {
		return all[0]
	}
	return &jwtv3.JwtRequirement{RequiresType: &jwtv3.JwtRequirement_RequiresAny{
		RequiresAny: &jwtv3.JwtRequirementOrList{Requirements: all},
	}}
}

// authorization is the policy of a route that needs a token or asks for the
// client's address. A token that is valid but fits none of the alternatives is a
// 403, and so is another address.
func authorization(r *ir.Rule) *rbacv3.RBACPerRoute {
	policy, name := &rbacconfigv3.Policy{Permissions: []*rbacconfigv3.Permission{anyPermission()}}, "clientIPs"
	if r.JWT != nil {
		name = "jwt"
		for _, a := range r.JWT.Alternatives() {
			policy.Principals = append(policy.Principals, alternative(a))
		}
	}
	if r.ClientIPs != nil {
		all := clientIPs(r.ClientIPs)
		if len(policy.Principals) > 0 {
			all = append(all, anyOf(policy.Principals))
		}
		policy.Principals = []*rbacconfigv3.Principal{allOf(all)}
	}
	return &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{
		Action:   rbacconfigv3.RBAC_ALLOW,
		Policies: map[string]*rbacconfigv3.Policy{name: policy},
	}}}
}

// clientIPs all hold.
func clientIPs(ips *ir.ClientIPs) []*rbacconfigv3.Principal {
	var all []*rbacconfigv3.Principal
	within := func(ranges []string) *rbacconfigv3.Principal {
		var either []*rbacconfigv3.Principal
		for _, text := range ranges {
			address, bits, _ := strings.Cut(text, "/")
			n, _ := strconv.ParseUint(bits, 10, 8) // valid, as all of the mesh is
			either = append(either, &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_RemoteIp{
				RemoteIp: &corev3.CidrRange{AddressPrefix: address, PrefixLen: wrapperspb.UInt32(uint32(n))},
			}})
		}
		return anyOf(either)
	}
	if len(ips.Allow) > 0 {
		all = append(all, within(ips.Allow))
	}
	if len(ips.Deny) > 0 {
		all = append(all, &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_NotId{NotId: within(ips.Deny)}})
	}
	return all
}

func anyOf(all []*rbacconfigv3.Principal) *rbacconfigv3.Principal {
	if len(all) == 1 {
		return all[0]
	}
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_OrIds{OrIds: &rbacconfigv3.Principal_Set{Ids: all}}}
}

func allOf(all []*rbacconfigv3.Principal) *rbacconfigv3.Principal {
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_AndIds{AndIds: &rbacconfigv3.Principal_Set{Ids: all}}}
}

func alternative(a ir.Alternative) *rbacconfigv3.Principal {
	all := []*rbacconfigv3.Principal{
		oneIssuer(a.Issuers),
		claim("sub", isString(regex(".+"))),
	}
	if len(a.AnyAudience) > 0 {
		all = append(all, oneOf("aud", a.AnyAudience))
	}
	for _, audience := range a.AllAudiences {
		all = append(all, oneOf("aud", []string{audience}))
	}
	for _, scope := range a.Scopes {
		all = append(all, claim(a.ScopeClaim, contains(exact(scope))))
	}
	for _, c := range a.Claims {
		all = append(all, oneOf(c.Name, c.Values))
	}
	return allOf(all)
}

func oneIssuer(issuers []string) *rbacconfigv3.Principal {
	var either []*rbacconfigv3.Principal
	for _, issuer := range issuers {
		either = append(either, claim("iss", isString(exact(issuer))))
	}
	return anyOf(either)
}

// oneOf: the claim is one of the values, or an array with one of them.
func oneOf(name string, values []string) *rbacconfigv3.Principal {
	var either []*rbacconfigv3.Principal
	for _, v := range values {
		either = append(either, claim(name, isString(exact(v))), claim(name, contains(exact(v))))
	}
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_OrIds{OrIds: &rbacconfigv3.Principal_Set{Ids: either}}}
}

func claim(name string, value *matcherv3.ValueMatcher) *rbacconfigv3.Principal {
	return &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_Metadata{
		Metadata: &matcherv3.MetadataMatcher{ //nolint:staticcheck // its successor needs Envoy 1.34
			Filter: filterJWT,
			Path: []*matcherv3.MetadataMatcher_PathSegment{
				{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: payloadKey}},
				{Segment: &matcherv3.MetadataMatcher_PathSegment_Key{Key: name}},
			},
			Value: value,
		},
	}}
}

func isString(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
}

func contains(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
	return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_ListMatch{ListMatch: &matcherv3.ListMatcher{
		MatchPattern: &matcherv3.ListMatcher_OneOf{OneOf: isString(m)},
	}}}
}

func exact(value string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value}}
}

func regex(pattern string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: re2(pattern)}}
}

func re2(pattern string) *matcherv3.RegexMatcher { return &matcherv3.RegexMatcher{Regex: pattern} }

func anyPermission() *rbacconfigv3.Permission {
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Any{Any: true}}
}
