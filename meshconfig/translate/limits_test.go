package translate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// ruleOf is an APIRule with one open rule, made at the second age.
func ruleOf(namespace, name string, age int64, hosts ...string) *v1alpha1.APIRule {
	return &v1alpha1.APIRule{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 1, CreationTimestamp: metav1.NewTime(time.Unix(age, 0))},
		Spec:       v1alpha1.APIRuleSpec{Hosts: hosts, Rules: []v1alpha1.Rule{{Path: "/*", Lambda: "a", NoAuth: new(true)}}},
	}
}

// many values of a length.
func many(n, length int, prefix string) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s%04d%s", prefix, i, strings.Repeat("x", max(0, length-len(prefix)-4)))
	}
	return all
}

// multiplied is a rule of some 65 KB that the kind's own limits allow: providers
// times authorizations times claims times values.
func multiplied(n int) *v1alpha1.JWTAuth {
	jwt := &v1alpha1.JWTAuth{}
	for i := range 8 {
		jwt.Authentications = append(jwt.Authentications, v1alpha1.JWTAuthentication{
			Issuer: fmt.Sprintf("https://issuer-%d.test", i), JWKSURI: "https://keys.test/set", Audiences: []string{fmt.Sprint("audience-", i)},
		})
	}
	for i := range n {
		a := v1alpha1.JWTAuthorization{RequiredScopes: []string{fmt.Sprint("scope-", i)}}
		for c := range 16 {
			a.Claims = append(a.Claims, v1alpha1.ClaimMatch{Name: fmt.Sprint("claim-", c), Values: many(32, 4, "v")})
		}
		jwt.Authorizations = append(jwt.Authorizations, a)
	}
	return jwt
}

func statusOf(t *testing.T, s translate.Snapshot) map[string]metav1.Condition {
	t.Helper()
	mesh, problems := translate.Translate(s)
	require.NoError(t, mesh.Validate())
	accepted := map[string]metav1.Condition{}
	for _, status := range translate.Statuses(s, mesh, problems) {
		c := status.Conditions[0]
		accepted[status.Name] = c
		if c.Reason == translate.ReasonTooLarge {
			require.False(t, status.Served, "what is too large is not in the mesh")
		}
	}
	return accepted
}

func within(limits translate.Limits, rules ...*v1alpha1.APIRule) translate.Snapshot {
	return translate.Snapshot{
		Settings: translate.Settings{Limits: limits},
		Gateways: []*networkingv1.Gateway{gatewayOf(&istioapi.Gateway{Servers: []*istioapi.Server{plainServer("*")}})},
		Lambdas: []*v1alpha1.Lambda{
			{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}}, {ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "a"}},
		},
		APIRules: rules,
	}
}

func TestARuleThatMultipliesOutIsTooLarge(t *testing.T) {
	hostile := ruleOf("shop", "hostile", 1, "a.example.com")
	hostile.Spec.Rules[0].NoAuth, hostile.Spec.Rules[0].JWT = nil, multiplied(16)
	began := time.Now()
	accepted := statusOf(t, within(translate.Limits{}, hostile, ruleOf("bank", "healthy", 2, "b.example.com")))
	require.Less(t, time.Since(began), 5*time.Second, "it is refused before it is multiplied out")
	require.Equal(t, translate.ReasonTooLarge, accepted["hostile"].Reason)
	require.Equal(t, metav1.ConditionFalse, accepted["hostile"].Status)
	require.Regexp(t, `needs 39\d{4} matchers and an APIRule may have 4096`, accepted["hostile"].Message)
	require.Equal(t, translate.ReasonAccepted, accepted["healthy"].Reason)
}

func TestWhatABudgetCounts(t *testing.T) {
	small := func(change func(*translate.Limits)) translate.Limits {
		var l translate.Limits
		change(&l)
		return l
	}
	jwt := func(r *v1alpha1.APIRule, issuers int) *v1alpha1.APIRule {
		auth := &v1alpha1.JWTAuth{}
		for i := range issuers {
			auth.Authentications = append(auth.Authentications, v1alpha1.JWTAuthentication{Issuer: fmt.Sprintf("https://%s-%d.test", r.Name, i), JWKSURI: "https://keys.test/set"})
		}
		r.Spec.Rules[0].NoAuth, r.Spec.Rules[0].JWT = nil, auth
		return r
	}
	first, second := func() *v1alpha1.APIRule { return ruleOf("shop", "first", 1, "a.example.com") }, func() *v1alpha1.APIRule { return ruleOf("shop", "second", 2, "b.example.com", "c.example.com") }
	for name, test := range map[string]struct {
		limits        translate.Limits
		first, second *v1alpha1.APIRule
		message       string
	}{
		"hosts of an APIRule":     {small(func(l *translate.Limits) { l.APIRule.Hosts = 1 }), first(), second(), "needs 2 hosts and an APIRule may have 1"},
		"key sets of an APIRule":  {small(func(l *translate.Limits) { l.APIRule.KeySets = 2 }), jwt(first(), 2), jwt(second(), 3), "needs 3 key sets and an APIRule may have 2"},
		"hosts of a namespace":    {small(func(l *translate.Limits) { l.APIRule.Hosts, l.Namespace.Hosts = 2, 2 }), first(), second(), "needs 2 hosts, and other APIRules of namespace shop have 1 of the 2"},
		"matchers of a namespace": {small(func(l *translate.Limits) { l.APIRule.Matchers, l.Namespace.Matchers = 3, 3 }), first(), second(), "needs 2 matchers, and other APIRules of namespace shop have 2 of the 3"},
		"key sets of a gateway": {small(func(l *translate.Limits) { l.APIRule.KeySets, l.Namespace.KeySets, l.Gateway.KeySets = 3, 3, 3 }), jwt(first(), 2), func() *v1alpha1.APIRule {
			r := jwt(second(), 2)
			r.Namespace = "bank"
			return r
		}(), "needs 2 key sets, and other APIRules of Gateway lambdamesh-system/gateway have 2 of the 3"},
		"bytes of a gateway": {small(func(l *translate.Limits) { l.APIRule.Bytes, l.Namespace.Bytes, l.Gateway.Bytes = 8000, 8000, 8000 }), first(), func() *v1alpha1.APIRule {
			r := second()
			r.Namespace = "bank"
			return r
		}(), "bytes, and other APIRules of Gateway lambdamesh-system/gateway have"},
	} {
		t.Run(name, func(t *testing.T) {
			accepted := statusOf(t, within(test.limits, test.first, test.second))
			require.NotEqual(t, translate.ReasonTooLarge, accepted["first"].Reason, accepted["first"].Message)
			require.Equal(t, translate.ReasonTooLarge, accepted["second"].Reason)
			require.Contains(t, accepted["second"].Message, test.message)
		})
	}
}

// Who was let in stays in: neither a newcomer nor an older one that grows takes
// its place.
func TestWhoHoldsAPlaceKeepsIt(t *testing.T) {
	held := func(r *v1alpha1.APIRule) *v1alpha1.APIRule {
		r.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: translate.ReasonAccepted, ObservedGeneration: 1}}
		return r
	}
	limits := translate.Limits{}
	require.NoError(t, limits.Set(map[string]int{"apirule.hosts": 2, "namespace.hosts": 3, "gateway.hosts": 3}))

	old, young := held(ruleOf("shop", "old", 1, "a.example.com")), held(ruleOf("shop", "young", 2, "b.example.com"))
	newcomer := ruleOf("shop", "newcomer", 3, "c.example.com", "d.example.com")
	accepted := statusOf(t, within(limits, newcomer, young, old))
	require.Equal(t, translate.ReasonAccepted, accepted["old"].Reason)
	require.Equal(t, translate.ReasonAccepted, accepted["young"].Reason)
	require.Equal(t, translate.ReasonTooLarge, accepted["newcomer"].Reason)

	middle := held(ruleOf("shop", "middle", 2, "c.example.com"))
	grown := held(ruleOf("shop", "old", 1, "a.example.com", "d.example.com"))
	grown.Generation = 2
	accepted = statusOf(t, within(limits, grown, young, middle))
	require.Equal(t, translate.ReasonTooLarge, accepted["old"].Reason, "it grew")
	require.Equal(t, translate.ReasonAccepted, accepted["young"].Reason, "it did nothing")

	// Its hosts are its own for all that.
	taker := ruleOf("bank", "taker", 9, "a.example.com")
	roomy := translate.Limits{}
	require.NoError(t, roomy.Set(map[string]int{"apirule.matchers": 2}))
	grown.Spec.Rules[0].Headers = []v1alpha1.HeaderMatch{{Name: "x", Present: new(true)}}
	accepted = statusOf(t, within(roomy, grown, taker))
	require.Equal(t, translate.ReasonTooLarge, accepted["old"].Reason)
	require.Equal(t, translate.ReasonHostConflict, accepted["taker"].Reason)
}

// A namespace that a Gateway does not serve takes nothing of its budget.
func TestAGatewaysBudgetIsForThoseItServes(t *testing.T) {
	limits := translate.Limits{}
	require.NoError(t, limits.Set(map[string]int{"apirule.hosts": 2, "namespace.hosts": 2, "gateway.hosts": 2}))
	s := within(limits, ruleOf("shop", "stranger", 1, "a.example.com", "b.example.com"), ruleOf("bank", "own", 2, "c.example.com"))
	s.Gateways = []*networkingv1.Gateway{gatewayOf(&istioapi.Gateway{Servers: []*istioapi.Server{plainServer("bank/*")}})}
	accepted := statusOf(t, s)
	require.Equal(t, translate.ReasonHostNotServed, accepted["stranger"].Reason)
	require.Equal(t, translate.ReasonAccepted, accepted["own"].Reason)
}

func TestNothingIsFetchedForWhatIsTooLarge(t *testing.T) {
	limits := translate.Limits{}
	require.NoError(t, limits.Set(map[string]int{"apirule.keysets": 1}))
	hostile := ruleOf("shop", "hostile", 1, "a.example.com")
	hostile.Spec.Rules[0].JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{
		{Issuer: "https://a.test", JWKSURI: "https://a.test/keys"}, {Issuer: "https://b.test", JWKSSecret: "keys"},
	}}
	require.Empty(t, translate.JWKSURIs(translate.Settings{Limits: limits}, []*v1alpha1.APIRule{hostile}))
	require.Empty(t, translate.SecretRefs(translate.Settings{Limits: limits}, []*v1alpha1.APIRule{hostile}, nil))
	require.Len(t, translate.JWKSURIs(translate.Settings{}, []*v1alpha1.APIRule{hostile}), 1)
}

func TestAKeySetThatIsTooLargeRefusesEveryToken(t *testing.T) {
	s := snapshot(t, lambdaA, apiRule("a", older, "a", `[{path: /*, lambda: a, jwt: {authentications: [{issuer: "https://a.test", jwksUri: "https://a.test/keys"}]}}]`))
	keys := make([]string, 400)
	for i := range keys {
		keys[i] = fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":"%d","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, i)
	}
	s.JWKS = map[string]translate.KeySetResult{"https://a.test/keys": {JSON: `{"keys":[` + strings.Join(keys, ",") + `]}`}}
	mesh, problems := translate.Translate(s)
	require.NoError(t, mesh.Validate())
	require.Less(t, len(mesh.KeySets[0].JWKS), 1000)
	c := translate.Statuses(s, mesh, problems)[0].Conditions[1]
	require.Equal(t, translate.ReasonTooLarge, c.Reason)
	require.Regexp(t, `take \d+ bytes, and a key set may have 32768`, c.Message)
}

func TestLimitsAreCheckedAndNamed(t *testing.T) {
	var l translate.Limits
	require.NoError(t, l.Validate())
	require.ErrorContains(t, l.Set(map[string]int{"apirule.colors": 1}), `there is no limit "apirule.colors"; use apirule.bytes`)
	require.ErrorContains(t, l.Set(map[string]int{"apirule.hosts": -1}), "must not be negative")
	l = translate.Limits{}
	require.ErrorContains(t, l.Set(map[string]int{"namespace.matchers": 10}), "apirule.matchers (4096) is above namespace.matchers (10)")
	require.Contains(t, translate.Limits{}.String(), "gateway.keysets=256")
}

// An expression of 250 characters may compile to 25,000 instructions, which a
// gateway would hold and try for every character of a header.
func TestARegexIsChargedByWhatItCompilesTo(t *testing.T) {
	large := "(?:i)?" + strings.Repeat(".{0,1000}", 27) + "Z"
	header := ruleOf("shop", "header", 1, "a.example.com")
	header.Spec.Rules[0].Headers = []v1alpha1.HeaderMatch{{Name: "x", Present: new(true)}, {Name: "y", Regex: &large}}
	origin := ruleOf("shop", "origin", 2, "b.example.com")
	origin.Spec.CORS = &v1alpha1.CORSPolicy{AllowOrigins: []v1alpha1.OriginMatch{{Regex: &large}}}
	many := ruleOf("shop", "many", 3, "c.example.com")
	many.Spec.Rules[0].Headers = nil
	for i := range 16 {
		many.Spec.Rules[0].Headers = append(many.Spec.Rules[0].Headers, v1alpha1.HeaderMatch{Name: fmt.Sprint("x-", i), Regex: new("[a-z]{0,400}")})
	}
	tooMany := ruleOf("shop", "too-many", 5, "e.example.com")
	tooMany.Spec.Rules = slices.Repeat(many.Spec.Rules, 64)
	ordinary := ruleOf("bank", "ordinary", 4, "d.example.com")
	ordinary.Spec.Rules[0].Headers = []v1alpha1.HeaderMatch{{Name: "x", Regex: new("[A-Za-z0-9._~-]{1,256}")}}
	ordinary.Spec.CORS = &v1alpha1.CORSPolicy{AllowOrigins: []v1alpha1.OriginMatch{{Regex: new(`https://[a-z0-9-]+\.example\.com`)}}}

	began := time.Now()
	accepted := statusOf(t, within(translate.Limits{}, header, origin, many, tooMany, ordinary))
	require.Less(t, time.Since(began), 5*time.Second, "nothing is compiled to know its price")
	for name, message := range map[string]string{
		"header":   `the regex of spec.rules\[0\].headers\[1\] compiles to some 5\d{4} instructions and one may have 1000`,
		"origin":   `the regex of spec.cors.allowOrigins\[0\] compiles to some 5\d{4} instructions and one may have 1000`,
		"many":     `needs 12\d{3} matchers and an APIRule may have 4096`,
		"too-many": `its regexes compile to more than 16000 instructions`,
	} {
		require.Equal(t, translate.ReasonTooLarge, accepted[name].Reason, name)
		require.Equal(t, metav1.ConditionFalse, accepted[name].Status)
		require.Regexp(t, message, accepted[name].Message)
	}
	require.Equal(t, translate.ReasonAccepted, accepted["ordinary"].Reason, accepted["ordinary"].Message)
}

// remember writes what the translation says into the statuses, as the controller
// does.
func remember(t *testing.T, s translate.Snapshot) (map[string]metav1.Condition, ir.Mesh) {
	t.Helper()
	mesh, problems := translate.Translate(s)
	require.NoError(t, mesh.Validate())
	accepted := map[string]metav1.Condition{}
	for _, status := range translate.Statuses(s, mesh, problems) {
		accepted[status.Name] = status.Conditions[0]
		for _, r := range s.APIRules {
			if r.Namespace == status.Namespace && r.Name == status.Name {
				r.Status.Conditions, r.Status.Charged = status.Conditions, status.Charged
			}
		}
	}
	return accepted, mesh
}

// An edit that takes no more than before loses nothing, even to an older rule
// that waits for room; and who grows too large keeps what it had, closed.
func TestAHarmlessEditKeepsItsPlace(t *testing.T) {
	limits := translate.Limits{}
	require.NoError(t, limits.Set(map[string]int{"apirule.hosts": 4, "namespace.hosts": 6, "gateway.hosts": 6}))
	early, vault := ruleOf("shop", "early", 1, "a.example.com"), ruleOf("bank", "vault", 2, "b.example.com", "c.example.com")
	fill := ruleOf("shop", "fill", 3, "d.example.com", "e.example.com", "f.example.com")
	s := within(limits, early, vault, fill)
	remember(t, s)

	early.Generation, early.Spec.Hosts = 2, []string{"a.example.com", "0.example.com"}
	accepted, mesh := remember(t, s)
	require.Equal(t, translate.ReasonTooLarge, accepted["early"].Reason, "it grew")
	closed := 0
	for _, vh := range mesh.Gateways[0].VirtualHosts {
		if vh.Owner.Name == "early" {
			closed++
			require.Equal(t, []string{"a.example.com"}, vh.Hosts, "only what it has a place for")
			require.Len(t, vh.Rules, 1)
			require.EqualValues(t, 503, vh.Rules[0].Closed.Status)
		}
	}
	require.Equal(t, 1, closed)

	vault.Generation, vault.Spec.Timeout = 2, &metav1.Duration{Duration: 31 * time.Second}
	accepted, _ = remember(t, s)
	require.Equal(t, translate.ReasonAccepted, accepted["vault"].Reason, accepted["vault"].Message)
	require.Equal(t, translate.ReasonTooLarge, accepted["early"].Reason)

	early.Generation, early.Spec.Hosts = 3, []string{"a.example.com"}
	accepted, _ = remember(t, s)
	require.Equal(t, translate.ReasonAccepted, accepted["early"].Reason, "its place was kept")
}

// A place is one at a Gateway: who moves to another is new there, however old.
func TestAMoveToAnotherGatewayKeepsNoPlace(t *testing.T) {
	limits := translate.Limits{}
	require.NoError(t, limits.Set(map[string]int{"apirule.hosts": 1, "namespace.hosts": 1, "gateway.hosts": 1}))
	edited := func(r *v1alpha1.APIRule, charged string) *v1alpha1.APIRule {
		r.Generation, r.Spec.Gateway = 2, "edge/other"
		r.Status.Charged = &v1alpha1.Charge{Bytes: 1 << 20, RouteBytes: 1 << 20, ListenerBytes: 1 << 20, Matchers: 100, Hosts: 1, Gateway: charged}
		return r
	}
	s := within(limits, edited(ruleOf("shop", "moved", 1, "a.example.com"), v1alpha1.DefaultGateway), edited(ruleOf("bank", "settled", 2, "b.example.com"), "edge/other"))
	other := s.Gateways[0].DeepCopy()
	other.Namespace, other.Name = "edge", "other"
	s.Gateways = append(s.Gateways, other)
	accepted := statusOf(t, s)
	require.Equal(t, translate.ReasonTooLarge, accepted["moved"].Reason)
	require.Equal(t, translate.ReasonAccepted, accepted["settled"].Reason, accepted["settled"].Message)
}

// Who asks for more key sets than there are keeps those that it had: nobody else
// takes them meanwhile.
func TestWhoIsRefusedKeepsItsKeySets(t *testing.T) {
	limits := translate.Limits{}
	require.NoError(t, limits.Set(map[string]int{"apirule.keysets": 3, "namespace.keysets": 4, "gateway.keysets": 4}))
	protect := func(r *v1alpha1.APIRule, sets int) *v1alpha1.APIRule {
		jwt := &v1alpha1.JWTAuth{}
		for i := range sets {
			issuer := fmt.Sprintf("https://%s-%d.test", r.Name, i)
			jwt.Authentications = append(jwt.Authentications, v1alpha1.JWTAuthentication{Issuer: issuer, JWKSURI: issuer + "/keys"})
		}
		r.Generation++
		r.Spec.Rules[0].NoAuth, r.Spec.Rules[0].JWT = nil, jwt
		return r
	}
	early, vault := protect(ruleOf("shop", "early", 1, "a.example.com"), 1), protect(ruleOf("bank", "vault", 2, "b.example.com"), 3)
	s := within(limits, early, vault)
	accepted, _ := remember(t, s)
	require.Equal(t, translate.ReasonAccepted, accepted["early"].Reason, accepted["early"].Message)
	require.Equal(t, translate.ReasonAccepted, accepted["vault"].Reason, accepted["vault"].Message)

	protect(early, 3)
	s.APIRules = append(s.APIRules, protect(ruleOf("shop", "taker", 3, "c.example.com"), 1))
	for range 2 { // with what the first time has written
		accepted, _ = remember(t, s)
		require.Equal(t, translate.ReasonTooLarge, accepted["early"].Reason, "it grew")
		require.Equal(t, translate.ReasonTooLarge, accepted["taker"].Reason, "there is no room but what others have")
	}

	protect(early, 1)
	accepted, _ = remember(t, s)
	require.Equal(t, translate.ReasonAccepted, accepted["early"].Reason, accepted["early"].Message)
}
