package translate_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/lambdamesh/lambdamesh/meshconfig/filesource"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// snapshot of YAML documents; the default Gateway is assumed.
func snapshot(t *testing.T, documents ...string) translate.Snapshot {
	t.Helper()
	s, _, err := filesource.Read("test", strings.NewReader(strings.Join(documents, "\n---\n")))
	require.NoError(t, err)
	return s
}

const lambdaA = `
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: a, namespace: shop}
spec: {runtime: nodejs, source: {inline: {code: x}}}
`

func apiRule(name, created, hosts, rules string) string {
	return `
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: ` + name + `, namespace: shop, creationTimestamp: "` + created + `"}
spec:
  hosts: [` + hosts + `]
  rules: ` + rules
}

const (
	older   = "2026-01-01T00:00:00Z"
	younger = "2026-01-02T00:00:00Z"
	open    = `[{path: /*, lambda: a, noAuth: true}]`
)

func servedHosts(m ir.Mesh) map[string]string {
	owners := map[string]string{}
	for _, g := range m.Gateways {
		for _, vh := range g.VirtualHosts {
			for _, h := range vh.Hosts {
				owners[h] = vh.Owner.Name
			}
		}
	}
	return owners
}

func TestTheYoungerTakesOverWhenAHostIsFree(t *testing.T) {
	s := snapshot(t, lambdaA, apiRule("z-first", older, "h.example.com", open), apiRule("a-second", younger, "h.example.com", open))
	mesh, problems := translate.Translate(s)
	require.Equal(t, map[string]string{"h.example.com": "z-first"}, servedHosts(mesh))
	require.Len(t, problems, 1)
	require.Equal(t, translate.ReasonHostConflict, problems[0].Reason)
	require.Contains(t, problems[0].Message, "shop/z-first")

	for i, r := range s.APIRules {
		if r.Name == "z-first" {
			s.APIRules = append(s.APIRules[:i:i], s.APIRules[i+1:]...)
			break
		}
	}
	mesh, problems = translate.Translate(s)
	require.Equal(t, map[string]string{"h.example.com": "a-second"}, servedHosts(mesh))
	require.Empty(t, problems)
}

func TestOfOneAgeTheNameDecides(t *testing.T) {
	mesh, _ := translate.Translate(snapshot(t, lambdaA, apiRule("b", older, "h.example.com", open), apiRule("a", older, "h.example.com", open)))
	require.Equal(t, map[string]string{"h.example.com": "a"}, servedHosts(mesh))
}

func ruleIDs(m ir.Mesh) []string {
	var ids []string
	for _, r := range m.Gateways[0].VirtualHosts[0].Rules {
		ids = append(ids, r.ID)
	}
	return ids
}

func TestRuleIDsFollowTheRuleAndNotItsPlace(t *testing.T) {
	translated := func(rules string) []string {
		mesh, _ := translate.Translate(snapshot(t, lambdaA, apiRule("r", older, "h", rules)))
		return ruleIDs(mesh)
	}
	before := translated(`[{path: /a, lambda: a, noAuth: true}, {path: /b, lambda: a, noAuth: true}]`)
	inserted := translated(`[{path: /new, lambda: a, noAuth: true}, {path: /a, lambda: a, noAuth: true, timeout: 7s}, {path: /b, lambda: a, noAuth: true}]`)
	require.Equal(t, before, inserted[1:], "a rule before it and another timeout change nothing")
	changed := translated(`[{path: /a, methods: [GET], lambda: a, noAuth: true}, {path: /b, lambda: a, noAuth: true}]`)
	require.NotEqual(t, before[0], changed[0], "another match is another rule")
	twice := translated(`[{path: /a, lambda: a, noAuth: true}, {path: /a, lambda: a, noAuth: true}]`)
	require.NotEqual(t, twice[0], twice[1])
}

const jwtRule = `[{path: /*, lambda: a, jwt: {authentications: [{issuer: i, jwksSecret: keys}]}}]`

func secret(text string) *corev1.Secret {
	s := &corev1.Secret{Data: map[string][]byte{"jwks.json": []byte(text)}}
	s.Namespace, s.Name = "shop", "keys"
	return s
}

// testKey is the EC key pair of meshconfig/testdata/keys.
func testKey(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../testdata/keys/shop.json")
	require.NoError(t, err)
	var key map[string]string
	require.NoError(t, json.Unmarshal(text, &key))
	return key
}

func jwks(t *testing.T, keys ...map[string]string) string {
	t.Helper()
	text, err := json.Marshal(map[string]any{"keys": keys})
	require.NoError(t, err)
	return string(text)
}

func without(key map[string]string, members ...string) map[string]string {
	key = maps.Clone(key)
	for _, m := range members {
		delete(key, m)
	}
	return key
}

func with(key map[string]string, member, value string) map[string]string {
	key = maps.Clone(key)
	key[member] = value
	return key
}

func TestOnlyPublicKeysThatVerifySignaturesTravel(t *testing.T) {
	good := testKey(t)
	modulus := base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 256))
	rsa := map[string]string{"kty": "RSA", "kid": "r", "n": modulus, "e": "AQAB"}
	okp := map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(make([]byte, 32))}

	s := snapshot(t, lambdaA, apiRule("r", older, "h", jwtRule))
	s.Secrets = append(s.Secrets, secret(jwks(t,
		good, with(rsa, "p", "private"), okp,
		map[string]string{"kty": "oct", "k": "shared"},
		with(rsa, "use", "enc"),
		with(rsa, "alg", "RSA-OAEP"),
		with(rsa, "n", modulus[:100]),
		with(rsa, "e", "AA"),
		with(good, "x", good["y"]),
		with(good, "crv", "secp256k1"),
		with(good, "alg", "HS256"),
		with(okp, "crv", "Ed448"),
		with(okp, "x", "not base64!"),
	)))
	mesh, problems := translate.Translate(s)
	require.Empty(t, problems)
	require.JSONEq(t, jwks(t, without(good, "d"), rsa, okp), mesh.KeySets[0].JWKS)
}

func TestKeysThatCannotBeReadRefuseEveryToken(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":            "-----BEGIN PUBLIC KEY-----",
		"no keys":            `{"keys":[]}`,
		"a key and no set":   `{"kty":"RSA","n":"n","e":"AQAB"}`,
		"symmetric keys":     `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`,
		"something else":     `[1]`,
		"keys of wrong type": `{"keys":["a"]}`,
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(t, lambdaA, apiRule("r", older, "h", jwtRule))
			s.Secrets = append(s.Secrets, secret(text))
			mesh, problems := translate.Translate(s)
			require.Equal(t, ir.NoKeys, mesh.KeySets[0].JWKS)
			require.Len(t, problems, 1)
			require.Equal(t, translate.ReasonKeysUnusable, problems[0].Reason)
			require.Equal(t, v1alpha1.ConditionResolvedRefs, problems[0].Condition)
			require.NotNil(t, mesh.Gateways[0].VirtualHosts[0].Rules[0].JWT, "the rule still asks for a token")
		})
	}
}

func TestOldKeysAreUsedWhileTheirSourceIsAway(t *testing.T) {
	s := snapshot(t, lambdaA, apiRule("r", older, "h", `[{path: /*, lambda: a, jwt: {authentications: [{issuer: i, jwksUri: "https://i/keys"}]}}]`))
	keys := jwks(t, without(testKey(t), "d"))
	s.JWKS = map[string]translate.KeySetResult{"https://i/keys": {JSON: keys, Err: "timeout"}}
	mesh, problems := translate.Translate(s)
	require.JSONEq(t, keys, mesh.KeySets[0].JWKS)
	require.Len(t, problems, 1)
	require.Contains(t, problems[0].Message, "timeout")
}

func TestNeeds(t *testing.T) {
	s := snapshot(t, `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: lambdamesh-system}
spec:
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ["*"]
    tls: {mode: SIMPLE, credentialName: cert}
`, apiRule("r", older, "h", jwtRule), apiRule("u", older, "u", `[{path: /*, lambda: a, jwt: {authentications: [{issuer: i, jwksUri: "https://b"}, {issuer: j, jwksUri: "https://a"}, {issuer: k, jwksUri: "https://a"}]}}]`))
	require.Equal(t, []string{"https://a", "https://b"}, translate.JWKSURIs(translate.Settings{}, s.APIRules))
	require.Equal(t, []types.NamespacedName{{Namespace: "lambdamesh-system", Name: "cert"}, {Namespace: "shop", Name: "keys"}},
		translate.SecretRefs(translate.Settings{}, s.APIRules, s.Gateways))
}

func TestURLsNameTheAdvertisedPort(t *testing.T) {
	s := snapshot(t, lambdaA, apiRule("r", older, `h, "*.wild.example.com"`, open))
	s.Settings.AdvertisedPorts = map[uint32]uint32{80: 8080}
	mesh, problems := translate.Translate(s)
	statuses := translate.Statuses(s, mesh, problems)
	require.Equal(t, []string{"http://h.lambdas.localhost:8080/"}, statuses[0].URLs, "a wildcard has no URL")
}

func TestNoRuleIsOpenWhileTheMeshLeavesPathsAmbiguous(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		s := c.Snapshot(t)
		s.MeshProblem = "set it right"
		mesh, problems := translate.Translate(s)
		require.NoError(t, mesh.Validate())
		for i := range mesh.Gateways {
			for _, vh := range mesh.Gateways[i].VirtualHosts {
				for _, rule := range vh.Rules {
					require.NotNil(t, rule.Closed, rule.ID)
				}
			}
		}
		for _, status := range translate.Statuses(s, mesh, problems) {
			require.Equal(t, metav1.ConditionFalse, status.Conditions[0].Status, status.Name)
			require.Contains(t, status.Conditions[0].Message, "set it right")
		}
	}
}

func TestSettingsNameTheIdentities(t *testing.T) {
	s := snapshot(t, lambdaA, apiRule("r", older, "h", open))
	s.Settings = translate.Settings{TrustDomain: "mesh.example", GatewayServiceAccount: types.NamespacedName{Namespace: "istio-system", Name: "ingress"}}
	mesh, _ := translate.Translate(s)
	var a *ir.Workload
	for _, w := range mesh.Workloads {
		if w.Key() == "shop/a" {
			a = w
		}
	}
	require.Equal(t, "spiffe://mesh.example/ns/shop/sa/a", a.Identity)
	require.Equal(t, "spiffe://mesh.example/ns/istio-system/sa/ingress", a.Allow[0].Principal)
}

func TestAReplicaHasItsPoliciesBeforeItIsAnEndpoint(t *testing.T) {
	mesh, _ := translate.Translate(snapshot(t, lambdaA, `
apiVersion: v1
kind: Service
metadata: {name: a, namespace: shop}
spec:
  selector: {lambdamesh.dev/lambda: a}
  ports: [{name: http, port: 80}]
`, `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a-0, namespace: shop}
spec:
  address: 127.0.0.1
  ports: {http: 31000}
  serviceAccount: a
  labels: {lambdamesh.dev/replica: a-0, lambdamesh.dev/owner-namespace: shop, lambdamesh.dev/owner-name: a}
`, `
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: a-0, namespace: shop}
spec:
  workloadSelector: {labels: {lambdamesh.dev/replica: a-0}}
  ingress: [{port: {number: 31000, name: http, protocol: HTTP}, bind: 127.0.0.1, defaultEndpoint: "unix:///a.sock"}]
`))
	require.Equal(t, "shop/a", mesh.Sidecars[0].Workload)
	require.Empty(t, mesh.Destinations[0].Endpoints)
}

func TestAnEmptySnapshotIsAValidMesh(t *testing.T) {
	mesh, problems := translate.Translate(translate.Snapshot{})
	require.NoError(t, mesh.Validate())
	require.Empty(t, problems)
	require.Empty(t, mesh.Gateways)
}

// The list holds with snapshots that no kube-apiserver has checked.
func TestWhatIsNoIssuerClosesTheRule(t *testing.T) {
	for issuer, good := range map[string]bool{
		"https://a.test": true, "me": true, "urn:äb/c?d=e&f#~*g@h": true,
		"https://a.test|uri:https://a.test/keys or https://b.test": false,
		"a|b": false, "a b": false, "a\tb": false, "a\u2003b": false, "a\u200bb": false, "a\x00": false, "*": false, "*.test": false, "https://a.*": false,
	} {
		quoted, err := json.Marshal(issuer)
		require.NoError(t, err)
		s := snapshot(t, lambdaA, apiRule("a", older, "a", `[{path: /*, lambda: a, jwt: {authentications: [{issuer: `+string(quoted)+`, jwksUri: "https://b.test/keys"}]}}]`))
		mesh, problems := translate.Translate(s)
		require.NoError(t, mesh.Validate())
		closed := mesh.Gateways[0].VirtualHosts[0].Rules[0].Closed
		if good {
			require.Nil(t, closed, issuer)
			continue
		}
		require.NotNil(t, closed, issuer)
		require.Equal(t, v1alpha1.ReasonInvalid, problems[0].Reason)
		require.Contains(t, problems[0].Message, "is no issuer")
	}
}
