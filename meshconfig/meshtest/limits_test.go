package meshtest_test

import (
	"encoding/json"
	"fmt"
	"math/rand" //nolint:gosec // no secret
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// What a rule may take of what the rules of a Gateway share is an estimate. It
// must not be lower than what is written, whatever servers the Gateway has and as
// large as key sets may grow, else the sum of what fits would not fit.
func TestNoAPIRuleWritesMoreThanItIsChargedFor(t *testing.T) {
	keys := fullKeySet(t)
	for name, servers := range map[string][]*istioapi.Server{
		"HTTP":              {plainServer(80, "*/*")},
		"HTTP and HTTPS":    {plainServer(80, "*/*"), tlsServer(443, "*/*")},
		"several TLS hosts": {plainServer(80, "*/*"), tlsServer(443, "*/*"), tlsServer(443, "shop/*.localhost"), tlsServer(443, "*/*.lambdas.localhost"), tlsServer(8443, "*/*.lambdas.localhost")},
		"plain ports":       {plainServer(80, "*/*"), plainServer(80, "shop/*.localhost"), plainServer(8080, "*/*"), plainServer(8081, "*/*"), plainServer(8082, "*/*")},
		"hosts of others":   {plainServer(80, "*/*.lambdas.localhost"), tlsServer(443, "*/*.elsewhere.example"), tlsServer(8443, "bank/*")},
	} {
		for dataPlane, written := range map[string]func(*testing.T, *ir.Mesh) int{"Envoy": resourceBytes, "Istio": objectBytes} {
			t.Run(name+" under "+dataPlane, func(t *testing.T) {
				s := manyLambdas(t, servers)
				s.Settings.TokensAtSidecars = dataPlane == "Istio"
				room := translate.Budget{Bytes: 1 << 40, Matchers: 1 << 30, KeySets: 1 << 10}
				s.Settings.Limits = translate.Limits{APIRule: room, Namespace: room, Gateway: room}
				empty, _ := translate.Translate(s)
				for seed := range int64(12) {
					s.APIRules = []*v1alpha1.APIRule{large(rand.New(rand.NewSource(seed)))} //nolint:gosec // no secret
					s.JWKS = map[string]translate.KeySetResult{}
					for _, uri := range translate.JWKSURIs(s.Settings, s.APIRules) {
						s.JWKS[uri] = translate.KeySetResult{JSON: keys}
					}
					mesh, problems := translate.Translate(s)
					for _, status := range translate.Statuses(s, mesh, problems) {
						require.True(t, status.Served, "seed %d", seed)
						for _, c := range status.Conditions {
							require.Equal(t, metav1.ConditionTrue, c.Status, "seed %d: a closed rule writes less: %s", seed, c.Message)
						}
					}
					size := written(t, &mesh) - written(t, &empty)

					// The least budgets that it fits into are what it is charged.
					fits := func(bytes int) bool {
						s := s
						s.Settings.Limits.Namespace.Bytes, s.Settings.Limits.Gateway.Bytes = bytes, bytes
						mesh, problems := translate.Translate(s)
						return translate.Statuses(s, mesh, problems)[0].Conditions[0].Status == metav1.ConditionTrue
					}
					require.False(t, fits(size-1), "seed %d: %d bytes are written, and less is charged", seed, size)
					require.True(t, fits(8*len(servers)*(size+64<<10)), "seed %d: %d bytes are written, and much more is charged", seed, size)
				}
			})
		}
	}
}

// resourceBytes are those of what the proxies of the Gateway receive.
func resourceBytes(t *testing.T, mesh *ir.Mesh) int {
	t.Helper()
	resources, err := xds.GatewayResources(mesh, "lambdamesh-system", "gateway")
	require.NoError(t, err)
	size := 0
	for _, list := range resources.ByType() {
		for _, one := range list {
			size += proto.Size(one)
		}
	}
	return size
}

// objectBytes are those of Istio's objects as the API server gets them.
func objectBytes(t *testing.T, mesh *ir.Mesh) int {
	t.Helper()
	size := 0
	for _, o := range istio.Objects(mesh) {
		raw, err := json.Marshal(o)
		require.NoError(t, err)
		size += len(raw)
	}
	return size
}

func plainServer(port uint32, hosts ...string) *istioapi.Server {
	return &istioapi.Server{Port: &istioapi.Port{Number: port, Protocol: "HTTP"}, Hosts: hosts}
}

func tlsServer(port uint32, hosts ...string) *istioapi.Server {
	return &istioapi.Server{
		Port: &istioapi.Port{Number: port, Protocol: "HTTPS"}, Hosts: hosts,
		Tls: &istioapi.ServerTLSSettings{Mode: istioapi.ServerTLSSettings_SIMPLE, CredentialName: "certificate"},
	}
}

// manyLambdas is a mesh of the lambdas that [large] names, each with its sidecar,
// behind these servers.
func manyLambdas(t *testing.T, servers []*istioapi.Server) translate.Snapshot {
	t.Helper()
	tls := caseNamed(t, "tls-gateway").Snapshot(t)
	s := caseNamed(t, "open-lambda").Snapshot(t)
	gateway := s.Gateways[0].DeepCopy()
	gateway.Spec.Servers = servers
	for i, server := range servers {
		server.Port.Name = fmt.Sprint("server-", i)
	}
	secret := tls.Secrets[0].DeepCopy()
	secret.Namespace, secret.Name = gateway.Namespace, "certificate"
	s.Gateways, s.Secrets, s.APIRules = []*networkingv1.Gateway{gateway}, []*corev1.Secret{secret}, nil
	for i := range lambdas - 1 {
		lambda := s.Lambdas[0].DeepCopy()
		lambda.Name = lambdaNamed(i + 1)
		s.Lambdas = append(s.Lambdas, lambda)
	}
	for _, lambda := range s.Lambdas {
		s.Pods = append(s.Pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: lambda.Namespace, Name: lambda.Name + "-0",
			Labels: map[string]string{v1alpha1.LabelLambda: lambda.Name}, Annotations: map[string]string{"sidecar.istio.io/status": "{}"},
		}})
	}
	return s
}

// lambdas is how many there are, as many as a rule may have backends.
const lambdas = 8

func lambdaNamed(i int) string {
	if i == 0 {
		return "last-order"
	}
	return fmt.Sprintf("%s-%d", strings.Repeat("long", 12), i)
}

// fullKeySet is one as large as a key set may be, of the text that grows most
// when it is quoted.
func fullKeySet(t *testing.T) string {
	t.Helper()
	const limit = 32 << 10
	key := func(id int) string {
		return `{"kty":"OKP","kid":"` + strings.Repeat(`\\`, id) + `","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	}
	first := key(0)
	id := (limit - len(`{"keys":[]}`) - len(first)) / 2
	set := `{"keys":[` + key(id) + `]}`
	require.InDelta(t, limit, len(set), 2)
	require.LessOrEqual(t, len(set), limit)
	return set
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
	quoted := func(n int) string { return strings.Repeat(string([]rune(`<>&"\%xyzü`)[r.Intn(10)]), 1+r.Intn(n)) }
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
		rule.Spec.CORS = &v1alpha1.CORSPolicy{AllowOrigins: []v1alpha1.OriginMatch{{Exact: new("https://" + text(200))}, {Prefix: new(quoted(200))}}, AllowHeaders: texts(64, 60), ExposeHeaders: texts(64, 60)}
	}
	paths := []string{"/" + text(900), "/v1.0/(" + strings.Repeat("+$", r.Intn(40)) + ")/" + strings.Repeat("ü", r.Intn(40)), "/{*}/" + text(100) + "/{**}", "/" + strings.Repeat("a:b@!$&'()/", 1+r.Intn(40)) + "{**}"}
	rules, issuers := 1+r.Intn(4), 8
	if r.Intn(4) == 0 {
		rules, issuers = 64, 1
	}
	for range rules {
		one := v1alpha1.Rule{Path: paths[r.Intn(len(paths))], Lambda: "last-order", NoAuth: new(true)}
		for _, name := range texts(16, 60) {
			one.Headers = append(one.Headers, v1alpha1.HeaderMatch{Name: "x-" + name, Exact: new(quoted(300))})
		}
		if n := r.Intn(lambdas + 1); n > 1 {
			one.Lambda = ""
			for i := range n {
				one.Backends = append(one.Backends, v1alpha1.WeightedBackend{Lambda: lambdaNamed(i), Weight: new(int32(1))})
			}
		}
		if r.Intn(2) == 0 {
			one.Request = &v1alpha1.HeaderEdits{SetHeaders: map[string]v1alpha1.HeaderValue{"x-a": v1alpha1.HeaderValue(quoted(500))}, RemoveHeaders: texts(16, 60)}
			one.Rewrite = &v1alpha1.Rewrite{Path: "/" + text(300)}
		}
		if r.Intn(3) > 0 {
			one.NoAuth = nil
			jwt := &v1alpha1.JWTAuth{}
			for i := range 1 + r.Intn(issuers) {
				jwt.Authentications = append(jwt.Authentications, v1alpha1.JWTAuthentication{
					Issuer: fmt.Sprint("https://", len(rule.Spec.Rules), ".", i, text(100)), JWKSURI: "https://keys.test/" + text(100), Audiences: texts(3, 60),
				})
			}
			for range r.Intn(4) {
				jwt.Authorizations = append(jwt.Authorizations, v1alpha1.JWTAuthorization{
					RequiredScopes: texts(4, 20), Audiences: texts(3, 60), Claims: []v1alpha1.ClaimMatch{{Name: "claim", Values: append(texts(6, 60), "v"+quoted(60))}},
				})
			}
			one.JWT = jwt
		}
		rule.Spec.Rules = append(rule.Spec.Rules, one)
	}
	return rule
}
