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
