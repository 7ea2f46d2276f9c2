package meshtest_test

import (
	"math/rand" //nolint:gosec // testing/quick takes this one
	"reflect"
	"testing"
	"testing/quick"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"

	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
)

// Whatever somebody manages to write into an APIRule: the mesh stays valid, its
// resources are what Envoy can read, and the rules of others are served.
func TestHostileRulesHarmNobodyElse(t *testing.T) {
	var c meshtest.Case
	for _, one := range meshtest.Cases(t) {
		if one.Name == "open-lambda" {
			c = one
		}
	}
	for seed := range int64(300) {
		r := rand.New(rand.NewSource(seed)) //nolint:gosec // no secret
		s := c.Snapshot(t)
		own := s.APIRules[0]
		for _, name := range []string{"a", "z"} {
			s.APIRules = append(s.APIRules, hostile(t, r, name))
		}
		s.Secrets = append(s.Secrets, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "keys"},
			Data:       map[string][]byte{"jwks.json": []byte(`{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":1},7,null]}`)},
		})
		mesh, problems := translate.Translate(s)
		require.NoError(t, mesh.Validate(), "seed %d", seed)
		resources, err := xds.GatewayResources(&mesh, "lambdamesh-system", "gateway")
		require.NoError(t, err, "seed %d", seed)
		require.NoError(t, resources.Validate(), "seed %d", seed)
		for _, node := range mesh.Sidecars {
			sidecar, err := xds.SidecarResources(&mesh, node.Node)
			require.NoError(t, err, "seed %d", seed)
			require.NoError(t, sidecar.Validate(), "seed %d", seed)
		}
		require.NotEmpty(t, istio.Objects(&mesh))
		for _, status := range translate.Statuses(s, mesh, problems) {
			if status.Name == own.Name {
				require.True(t, status.Served)
				require.Equal(t, []string{"http://last-order.lambdas.localhost/"}, status.URLs)
				require.Equal(t, metav1.ConditionTrue, status.Conditions[0].Status)
			}
		}
		if seed < 20 { // a proxy takes it, too
			p := newPlane(t)
			p.run(t, "gateway~lambdamesh-system~gateway~test", "lambdamesh-system/gateway", gatewayAccount(), resources)
		}
	}
}

func hostile(t *testing.T, r *rand.Rand, name string) *v1alpha1.APIRule {
	t.Helper()
	value, ok := quick.Value(reflect.TypeFor[v1alpha1.APIRuleSpec](), r)
	require.True(t, ok)
	spec, ok := value.Interface().(v1alpha1.APIRuleSpec)
	require.True(t, ok)
	likely := func() bool { return r.Intn(10) < 7 }
	if likely() {
		spec.Gateway = ""
	}
	// Text that somebody could take for syntax.
	text := func() string {
		parts := []string{"a", "é", "%", "%REQ(x)%", `\1`, "*", "/", "..", "\x7f", "\x01", `"`, "{", "$", "|", " ", "\n"}
		var all string
		for range 1 + r.Intn(3) {
			all += parts[r.Intn(len(parts))]
		}
		return all
	}
	spec.Hosts = append(spec.Hosts, name, name+".example.com", "last-order", "*.lambdas.localhost")
	for i := range spec.Rules {
		rule := &spec.Rules[i]
		if likely() {
			rule.Path = []string{"/*", "/", "/{*}/x", "/a/{**}"}[r.Intn(4)]
		}
		if likely() {
			rule.Lambda, rule.Service, rule.Backends = "last-order", nil, nil
		}
		if likely() {
			rule.RateLimit, rule.ExtAuth = nil, nil
			yes := true
			rule.NoAuth, rule.JWT = &yes, nil
			if likely() {
				rule.NoAuth, rule.JWT = nil, &v1alpha1.JWTAuth{
					Authentications: []v1alpha1.JWTAuthentication{{Issuer: text(), JWKSSecret: "keys", Audiences: []string{text()}}},
					Authorizations: []v1alpha1.JWTAuthorization{{
						RequiredScopes: []string{text(), text()},
						Claims:         []v1alpha1.ClaimMatch{{Name: text(), Values: []string{text()}}},
					}},
				}
			}
		}
		if likely() {
			rule.Methods = nil
		}
		if likely() {
			rule.Headers = []v1alpha1.HeaderMatch{{Name: "x-a", Exact: new(text())}, {Name: "X-B", Prefix: new(text())}}
		}
		if likely() {
			rule.Request = &v1alpha1.HeaderEdits{SetHeaders: map[string]v1alpha1.HeaderValue{"x-set": v1alpha1.HeaderValue(text())}, RemoveHeaders: []string{"x-gone"}}
			rule.Response = nil
		}
		if likely() {
			rule.Rewrite = &v1alpha1.Rewrite{Path: "/" + text()}
		}
	}
	return &v1alpha1.APIRule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: metav1.Unix(1<<31, 0)}, Spec: spec}
}
