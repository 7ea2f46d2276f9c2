package ir_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

func TestCoversHost(t *testing.T) {
	for _, c := range []struct {
		pattern, host string
		want          bool
	}{
		{"*", "a.example.com", true},
		{"*", "*.example.com", true},
		{"a.example.com", "a.example.com", true},
		{"*.example.com", "a.example.com", true},
		{"*.example.com", "a.b.example.com", true},
		{"*.example.com", "*.b.example.com", true},
		{"*.example.com", "*.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "badexample.com", false},
		{"*.b.example.com", "*.example.com", false},
		{"a.example.com", "*.example.com", false},
		{"a.example.com", "*", false},
		{"*.example.com", "*", false},
	} {
		require.Equal(t, c.want, ir.CoversHost(c.pattern, c.host), "%s covers %s", c.pattern, c.host)
	}
	require.True(t, ir.OverlappingHosts("a.example.com", "*.example.com"))
	require.True(t, ir.OverlappingHosts("*.example.com", "*.b.example.com"))
	require.False(t, ir.OverlappingHosts("*.a.example.com", "*.b.example.com"))
}

func TestServerAcceptsByNamespaceAndHost(t *testing.T) {
	s := ir.Server{Hosts: []string{"shop/*.example.com", "*/open.example.org"}}
	require.True(t, s.Accepts("shop", "a.example.com"))
	require.False(t, s.Accepts("bank", "a.example.com"))
	require.True(t, s.Accepts("bank", "open.example.org"))
	require.False(t, s.Accepts("shop", "*.example.org"), "only a part of the host is accepted")
}

func TestDurationIsText(t *testing.T) {
	text, err := json.Marshal(ir.Rule{Timeout: ir.Duration(90 * time.Second)}.Timeout)
	require.NoError(t, err)
	require.JSONEq(t, `"1m30s"`, string(text))
	var d ir.Duration
	require.NoError(t, json.Unmarshal(text, &d))
	require.Equal(t, ir.Duration(90*time.Second), d)
	require.Error(t, json.Unmarshal([]byte(`"soon"`), &d))
}

func validMesh() ir.Mesh {
	return ir.Mesh{
		TrustDomain: "cluster.local",
		KeySets:     []ir.KeySet{{Name: "uri:https://a", JWKS: ir.NoKeys}},
		Workloads: []*ir.Workload{{
			Owner: ir.Owner{Kind: "Lambda", Namespace: "shop", Name: "a"}, Selector: map[string]string{"l": "a"},
			Identity: "spiffe://cluster.local/ns/shop/sa/a",
			Allow:    []ir.Allow{{Principal: "spiffe://cluster.local/ns/s/sa/g", Reason: ir.AllowGateway, Rules: []string{"shop/r/1"}}},
		}},
		Destinations: []*ir.Destination{{Namespace: "shop", Name: "a", Port: 80, Workload: "shop/a", Endpoints: []ir.Endpoint{{Address: "10.0.0.1", Port: 80}}}},
		Gateways: []ir.Gateway{{
			Namespace: "s", Name: "g",
			Servers: []ir.Server{{Name: "http", Port: 80, Protocol: ir.HTTP, Hosts: []string{"*/*"}}},
			VirtualHosts: []*ir.VirtualHost{{
				Owner: ir.Owner{Kind: "APIRule", Namespace: "shop", Name: "r"}, Hosts: []string{"a.example.com"},
				Rules: []ir.Rule{{
					ID: "shop/r/1", Path: ir.AnyPath(), Backends: []ir.Backend{{Destination: "shop/a:80", Weight: 1}},
					JWT: &ir.JWT{Providers: []ir.JWTProvider{{Issuer: "https://a", KeySet: "uri:https://a"}}},
				}},
			}},
		}},
		Sidecars: []*ir.Sidecar{{
			Node: "a-0.shop", Workload: "shop/a",
			Inbound: []ir.Inbound{{Bind: "127.0.0.1", Port: 1, Endpoint: "unix:///s"}},
			Egress:  []ir.Egress{{Bind: "127.0.0.1", Port: 2, Destinations: []string{"shop/a:80"}}},
		}},
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	mesh := validMesh()
	require.NoError(t, mesh.Validate())
	rule := func(m *ir.Mesh) *ir.Rule { return &m.Gateways[0].VirtualHosts[0].Rules[0] }
	for want, breakIt := range map[string]func(m *ir.Mesh){
		"trust domain is empty":          func(m *ir.Mesh) { m.TrustDomain = "" },
		"unknown key set":                func(m *ir.Mesh) { m.KeySets = nil },
		"key set uri:https://a is empty": func(m *ir.Mesh) { m.KeySets[0].JWKS = "" },
		"unknown destination shop/b:80":  func(m *ir.Mesh) { rule(m).Backends[0].Destination = "shop/b:80" },
		"without weight":                 func(m *ir.Mesh) { rule(m).Backends[0].Weight = 0 },
		"has no backend":                 func(m *ir.Mesh) { rule(m).Backends = nil },
		"is closed with 200":             func(m *ir.Mesh) { rule(m).Closed = &ir.Closed{Status: 200} },
		"does not end in /":              func(m *ir.Mesh) { rule(m).Path.Value = "/a" },
		"is there twice": func(m *ir.Mesh) {
			vh := m.Gateways[0].VirtualHosts[0]
			vh.Rules = append(vh.Rules, vh.Rules[0])
		},
		"host *.example.com is taken": func(m *ir.Mesh) {
			m.Gateways[0].VirtualHosts = append(m.Gateways[0].VirtualHosts, &ir.VirtualHost{Hosts: []string{"*.example.com"}})
		},
		"a TLS secret goes with HTTPS": func(m *ir.Mesh) { m.Gateways[0].Servers[0].Protocol = ir.HTTPS },
		"is not between 1 and 65535":   func(m *ir.Mesh) { m.Sidecars[0].Inbound[0].Port = 70000 },
		"unknown workload shop/c":      func(m *ir.Mesh) { m.Sidecars[0].Workload = "shop/c" },
		"selects everything":           func(m *ir.Mesh) { m.Workloads[0].Selector = nil },
		"is no SPIFFE ID":              func(m *ir.Mesh) { m.Workloads[0].Allow[0].Principal = "*" },
		"without a rule":               func(m *ir.Mesh) { m.Workloads[0].Allow[0].Rules = nil },
		"regexp": func(m *ir.Mesh) {
			rule(m).Headers = []ir.HeaderMatch{{Name: "x", StringMatch: ir.StringMatch{Kind: ir.MatchRegex, Value: "("}}}
		},
	} {
		t.Run(want, func(t *testing.T) {
			m := validMesh()
			breakIt(&m)
			require.ErrorContains(t, m.Validate(), want)
		})
	}
}

func TestAlternativesSpellOutWhatATokenNeeds(t *testing.T) {
	jwt := ir.JWT{
		Providers: []ir.JWTProvider{{Issuer: "a", Audiences: []string{"x"}}, {Issuer: "b"}},
		Authorizations: []ir.JWTAuthorization{
			{Scopes: []string{"read", "write"}, Audiences: []string{"y"}},
			{Claims: []ir.Claim{{Name: "role", Values: []string{"admin"}}}},
		},
	}
	all := jwt.Alternatives()
	require.Len(t, all, 2*(3+1), "each issuer, each authorization, each claim that may hold scopes")
	require.Empty(t, cmp.Diff(ir.Alternative{
		Issuers: []string{"a"}, AnyAudience: []string{"x"}, AllAudiences: []string{"y"}, ScopeClaim: "scope", Scopes: []string{"read", "write"},
	}, all[1]))
	jwt.Authorizations = nil
	require.Len(t, jwt.Alternatives(), 2, "without authorizations every valid token is one")
	jwt.Providers = append(jwt.Providers, ir.JWTProvider{Issuer: "c", Audiences: jwt.Providers[0].Audiences})
	require.Len(t, jwt.Alternatives(), 2, "issuers with the same audiences do not multiply")
	require.Equal(t, []string{"a", "c"}, jwt.Alternatives()[0].Issuers)
}

// A set that is not read would refuse a listener, and a key that somebody chose
// could be somebody's.
func TestNoKeysIsASetWithAKeyThatNobodyHas(t *testing.T) {
	var set struct {
		Keys []struct{ KTY, KID, Crv, X, Y string }
	}
	require.NoError(t, json.Unmarshal([]byte(ir.NoKeys), &set))
	require.Len(t, set.Keys, 1)
	x, err := base64.RawURLEncoding.DecodeString(set.Keys[0].X)
	require.NoError(t, err)
	y, err := base64.RawURLEncoding.DecodeString(set.Keys[0].Y)
	require.NoError(t, err)
	hash := sha256.Sum256([]byte(ir.NoKeysSeed))
	require.Equal(t, hash[:], x)
	_, err = ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
	require.NoError(t, err, "it is a point of the curve")
}
