package meshtest_test

import (
	"fmt"
	"math/rand" //nolint:gosec // no secret
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// What a rule may take of the gateway's message is an estimate. It must not be
// lower than what is written, else the sum of what fits would not fit.
func TestNoAPIRuleWritesMoreThanItIsChargedFor(t *testing.T) {
	for seed := range int64(60) {
		r := rand.New(rand.NewSource(seed)) //nolint:gosec // no secret
		rule := large(r)
		base := caseNamed(t, "open-lambda").Snapshot(t)
		base.APIRules = nil
		base.Settings.Limits.APIRule = translate.Budget{Bytes: 16 << 20, Matchers: 100_000, KeySets: 64}
		written := func(rules ...*v1alpha1.APIRule) int {
			s := base
			s.APIRules = rules
			s.JWKS = map[string]translate.KeySetResult{}
			mesh, problems := translate.Translate(s)
			for _, status := range translate.Statuses(s, mesh, problems) {
				require.True(t, status.Served, "seed %d", seed)
				require.Equal(t, metav1.ConditionTrue, status.Conditions[0].Status, "seed %d: a closed rule writes less: %s", seed, status.Conditions[0].Message)
			}
			resources, err := xds.GatewayResources(&mesh, "lambdamesh-system", "gateway")
			require.NoError(t, err)
			size := 0
			for _, list := range resources.ByType() {
				for _, one := range list {
					size += proto.Size(one)
				}
			}
			return size
		}
		size := written(rule) - written()

		// The least budget that it fits into is what it is charged.
		fits := func(bytes int) bool {
			s := base
			s.APIRules = []*v1alpha1.APIRule{rule}
			s.Settings.Limits.APIRule.Bytes = bytes
			mesh, problems := translate.Translate(s)
			return translate.Statuses(s, mesh, problems)[0].Served
		}
		require.False(t, fits(size-1), "seed %d: %d bytes are written, and less is charged", seed, size)
		require.True(t, fits(8*size+32<<10), "seed %d: %d bytes are written, and much more is charged", seed, size)
	}
}

// A namespace that writes as many full key sets as it may, at a gateway of many
// servers, leaves listeners that a message carries.
func TestKeySetsOfManyServersFitIntoAMessage(t *testing.T) {
	var keys []string
	for i := range 260 {
		keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":"%03d","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, i))
	}
	s := caseNamed(t, "open-lambda").Snapshot(t)
	gateway := s.Gateways[0].DeepCopy()
	first := gateway.Spec.Servers[0]
	gateway.Spec.Servers = nil
	for i := range 20 {
		server := first.DeepCopy()
		server.Port.Number, server.Port.Name = uint32(8000+i), fmt.Sprint("http-", i)
		gateway.Spec.Servers = append(gateway.Spec.Servers, server)
	}
	s.Gateways[0] = gateway
	s.APIRules, s.JWKS = nil, map[string]translate.KeySetResult{"https://keys.test/set": {JSON: `{"keys":[` + strings.Join(keys, ",") + `]}`}}
	for n := range 4 {
		rule := &v1alpha1.APIRule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("keys-", n), Generation: 1}}
		rule.Spec.Hosts = []string{rule.Name}
		for r := range 2 {
			jwt := &v1alpha1.JWTAuth{}
			for i := range 8 {
				jwt.Authentications = append(jwt.Authentications, v1alpha1.JWTAuthentication{Issuer: fmt.Sprintf("https://%d-%d-%d.test", n, r, i), JWKSURI: "https://keys.test/set"})
			}
			rule.Spec.Rules = append(rule.Spec.Rules, v1alpha1.Rule{Path: fmt.Sprintf("/%d", r), Lambda: "last-order", JWT: jwt})
		}
		s.APIRules = append(s.APIRules, rule)
	}
	healthy := &v1alpha1.APIRule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "open", Generation: 1}}
	healthy.Spec.Hosts, healthy.Spec.Rules = []string{"open"}, []v1alpha1.Rule{{Path: "/*", Lambda: "last-order", NoAuth: new(true)}}
	s.APIRules = append(s.APIRules, healthy)

	mesh, problems := translate.Translate(s)
	for _, status := range translate.Statuses(s, mesh, problems) {
		if status.Name == "open" {
			require.Equal(t, metav1.ConditionTrue, status.Conditions[0].Status)
			continue
		}
		require.Equal(t, translate.ReasonTooLarge, status.Conditions[0].Reason)
		require.Regexp(t, `needs \d+ bytes, and other APIRules of namespace shop`, status.Conditions[0].Message)
	}
	// One full set for each of 8 issuers fits.
	s.APIRules[0].Spec.Rules = s.APIRules[0].Spec.Rules[:1]
	mesh, problems = translate.Translate(s)
	for _, status := range translate.Statuses(s, mesh, problems)[:1] {
		require.Equal(t, metav1.ConditionTrue, status.Conditions[0].Status, status.Conditions[0].Message)
		require.Equal(t, metav1.ConditionTrue, status.Conditions[1].Status, status.Conditions[1].Message)
	}
	resources, err := xds.GatewayResources(&mesh, gateway.Namespace, gateway.Name)
	require.NoError(t, err)
	size := 0
	for _, l := range resources.Listeners {
		size += proto.Size(l)
	}
	require.Greater(t, size, 8*20*16_000, "the key sets are there")
	require.Less(t, size, 30<<20, "what ads has room for")
}

func caseNamed(t *testing.T, name string) meshtest.Case {
	t.Helper()
	for _, c := range meshtest.Cases(t) {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no case %s", name)
	return meshtest.Case{}
}

// large is a valid APIRule with much of everything.
func large(r *rand.Rand) *v1alpha1.APIRule {
	text := func(n int) string { return strings.Repeat(string(rune('a'+r.Intn(26))), 1+r.Intn(n)) }
	texts := func(n, length int) []string {
		var all []string
		for i := range r.Intn(n + 1) {
			all = append(all, fmt.Sprint(i, "-", text(length)))
		}
		return all
	}
	rule := &v1alpha1.APIRule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: text(60), Generation: 1}}
	for i := range 1 + r.Intn(16) {
		rule.Spec.Hosts = append(rule.Spec.Hosts, fmt.Sprint(text(20), "-", i))
	}
	if r.Intn(2) == 0 {
		rule.Spec.CORS = &v1alpha1.CORSPolicy{AllowOrigins: []v1alpha1.OriginMatch{{Exact: new("https://" + text(200))}}, AllowHeaders: texts(64, 60), ExposeHeaders: texts(64, 60)}
	}
	paths := []string{"/" + text(900), "/v1.0/(" + strings.Repeat("+$", r.Intn(40)) + ")/" + strings.Repeat("ü", r.Intn(40)), "/{*}/" + text(100) + "/{**}", "/" + strings.Repeat("a:b@!$&'()/", 1+r.Intn(40)) + "{**}"}
	for range 1 + r.Intn(8) {
		one := v1alpha1.Rule{Path: paths[r.Intn(len(paths))], Lambda: "last-order", NoAuth: new(true)}
		for _, name := range texts(16, 60) {
			one.Headers = append(one.Headers, v1alpha1.HeaderMatch{Name: "x-" + name, Exact: new(text(300))})
		}
		if r.Intn(2) == 0 {
			one.Request = &v1alpha1.HeaderEdits{SetHeaders: map[string]v1alpha1.HeaderValue{"x-a": v1alpha1.HeaderValue(strings.Repeat("%", r.Intn(500)))}, RemoveHeaders: texts(16, 60)}
			one.Rewrite = &v1alpha1.Rewrite{Path: "/" + text(300)}
		}
		if r.Intn(3) > 0 {
			one.NoAuth = nil
			jwt := &v1alpha1.JWTAuth{}
			for i := range 1 + r.Intn(8) {
				jwt.Authentications = append(jwt.Authentications, v1alpha1.JWTAuthentication{
					Issuer: fmt.Sprint("https://", i, text(100)), JWKSURI: "https://keys.test/" + text(100), Audiences: texts(3, 60),
				})
			}
			for range r.Intn(4) {
				jwt.Authorizations = append(jwt.Authorizations, v1alpha1.JWTAuthorization{
					RequiredScopes: texts(4, 20), Audiences: texts(3, 60), Claims: []v1alpha1.ClaimMatch{{Name: "claim", Values: append(texts(6, 60), "v")}},
				})
			}
			one.JWT = jwt
		}
		rule.Spec.Rules = append(rule.Spec.Rules, one)
	}
	return rule
}
