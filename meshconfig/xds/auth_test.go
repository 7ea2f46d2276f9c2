package xds_test

import (
	"testing"

	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
)

// Whatever users write into an issuer, each rule's route demands tokens of its
// own issuers with their own keys.
func TestEachRuleDemandsItsOwnIssuersWhateverTheirNames(t *testing.T) {
	provider := func(issuer, keySet string) ir.JWTProvider { return ir.JWTProvider{Issuer: issuer, KeySet: keySet} }
	rules := map[string][]ir.JWTProvider{
		"victim":    {provider("https://a.test", "uri:https://a.test/keys"), provider("https://b.test", "uri:https://b.test/keys")},
		"attacker":  {provider("https://a.test|uri:https://a.test/keys or https://b.test", "uri:https://b.test/keys")},
		"bar":       {provider("https://a.test|uri:https://a.test/keys", "uri:https://b.test/keys")},
		"other-bar": {provider("https://a.test", "uri:https://a.test/keys|uri:https://b.test/keys")},
		"same":      {provider("https://b.test", "uri:https://b.test/keys"), provider("https://a.test", "uri:https://a.test/keys")},
	}
	destination := ir.Destination{Namespace: "n", Name: "s", Port: 80}
	mesh := &ir.Mesh{
		Destinations: []*ir.Destination{&destination},
		KeySets:      []ir.KeySet{{Name: "uri:https://a.test/keys", JWKS: "a"}, {Name: "uri:https://a.test/keys|uri:https://b.test/keys", JWKS: "ab"}, {Name: "uri:https://b.test/keys", JWKS: "b"}},
	}
	gateway := ir.Gateway{Namespace: "n", Name: "g", Servers: []ir.Server{{Name: "http", Port: 80, Protocol: ir.HTTP, Hosts: []string{"*/*"}}}}
	for name, providers := range rules {
		gateway.VirtualHosts = append(gateway.VirtualHosts, &ir.VirtualHost{Owner: ir.Owner{Namespace: "n", Name: name}, Hosts: []string{name}, Rules: []ir.Rule{{
			ID: name, Path: ir.AnyPath(), JWT: &ir.JWT{Providers: providers}, Backends: []ir.Backend{{Destination: destination.Key(), Weight: 1}},
		}}})
	}
	mesh.Gateways = []ir.Gateway{gateway}
	resources, err := xds.GatewayResources(mesh, "n", "g")
	require.NoError(t, err)
	require.NoError(t, resources.Validate())

	var hcm hcmv3.HttpConnectionManager
	require.NoError(t, resources.Listeners[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(&hcm))
	var filter jwtv3.JwtAuthentication
	for _, f := range hcm.GetHttpFilters() {
		if f.GetName() == "envoy.filters.http.jwt_authn" {
			require.NoError(t, f.GetTypedConfig().UnmarshalTo(&filter))
		}
	}
	require.Len(t, filter.GetRequirementMap(), len(rules)-1, "two rules ask the same")
	keys := map[string]string{}
	for _, k := range mesh.KeySets {
		keys[k.Name] = k.JWKS
	}
	seen := 0
	for _, vh := range resources.Routes[0].GetVirtualHosts() {
		for _, route := range vh.GetRoutes() {
			config, found := route.GetTypedPerFilterConfig()["envoy.filters.http.jwt_authn"]
			if !found {
				continue
			}
			seen++
			var named jwtv3.PerRouteConfig
			require.NoError(t, config.UnmarshalTo(&named))
			requirement := filter.GetRequirementMap()[named.GetRequirementName()]
			alternatives := requirement.GetRequiresAny().GetRequirements()
			if alternatives == nil {
				alternatives = []*jwtv3.JwtRequirement{requirement}
			}
			var got, want [][2]string
			for _, a := range alternatives {
				p := filter.GetProviders()[a.GetProviderName()]
				got = append(got, [2]string{p.GetIssuer(), p.GetLocalJwks().GetInlineString()})
			}
			for _, p := range rules[route.GetName()] {
				want = append(want, [2]string{p.Issuer, keys[p.KeySet]})
			}
			require.ElementsMatch(t, want, got, route.GetName())
		}
	}
	require.Equal(t, len(rules), seen)
}
