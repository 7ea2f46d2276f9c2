package proxy_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

type signer struct {
	method jwt.SigningMethod
	kid    string
	key    any
}

func (s signer) sign(t testing.TB, claims map[string]any, header ...string) string {
	t.Helper()
	token := jwt.NewWithClaims(s.method, jwt.MapClaims(claims))
	if s.kid != "" {
		token.Header["kid"] = s.kid
	}
	for i := 0; i < len(header); i += 2 {
		token.Header[header[i]] = json.RawMessage(header[i+1])
	}
	text, err := token.SignedString(s.key)
	require.NoError(t, err)
	return text
}

func rsaJWK(kid string, key *rsa.PublicKey) string {
	return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":%q}`, kid, b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes()))
}

func claims(change map[string]any) map[string]any {
	out := map[string]any{"iss": "https://issuer.example", "sub": "alice", "aud": []string{"shop"}, "exp": time.Now().Add(time.Hour).Unix(), "scope": "read write"}
	for k, v := range change {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}

func jwtConfig(jwks, backendAddr string) config {
	return config{
		hcm: edgeHCM,
		filters: fmt.Sprintf(`
- name: envoy.filters.http.jwt_authn
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication
    providers:
      main:
        issuer: https://issuer.example
        local_jwks: {inline_string: %q}
        forward: true
        payload_in_metadata: payload
        normalize_payload_in_metadata: {space_delimited_claims: [scope]}
        forward_payload_header: x-payload
        claim_to_headers: [{header_name: x-sub, claim_name: sub}]
      strict: {issuer: https://issuer.example, audiences: [shop], require_expiration: true, clock_skew_seconds: 1, local_jwks: {inline_string: %q}}
      custom: {issuer: https://issuer.example, local_jwks: {inline_string: %q}, from_headers: [{name: x-token}], from_params: [token]}
      other: {issuer: https://other.example, local_jwks: {inline_string: %q}}
      closed: {local_jwks: {inline_string: '{"keys":[]}'}}
    requirement_map:
      main: {provider_name: main}
      strict: {provider_name: strict}
      custom: {provider_name: custom}
      audience: {provider_and_audiences: {provider_name: main, audiences: [admin]}}
      any: {requires_any: {requirements: [{provider_name: other}, {provider_name: main}]}}
      all: {requires_all: {requirements: [{provider_name: main}, {provider_name: custom}]}}
      optional: {requires_any: {requirements: [{provider_name: main}, {allow_missing: {}}]}}
      lenient: {requires_any: {requirements: [{provider_name: main}, {allow_missing_or_failed: {}}]}}
      closed: {provider_name: closed}
- name: envoy.filters.http.rbac
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC}
`, jwks, jwks, jwks, jwks),
		hosts: `
- name: all
  domains: ["*"]
  routes:` + jwtRoutes(map[string]string{"main": "", "strict": "", "custom": "", "audience": "", "any": "", "all": "", "optional": "", "lenient": "", "closed": "", "unknown": ""}) + `
  - match: {prefix: /off}
    route: {cluster: backend}
    typed_per_filter_config: {envoy.filters.http.jwt_authn: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig, disabled: true}}
  - match: {prefix: /scoped}
    route: {cluster: backend}
    typed_per_filter_config:
      envoy.filters.http.jwt_authn: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig, requirement_name: main}
      envoy.filters.http.rbac:
        "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute
        rbac: {rules: {action: ALLOW, policies: {p: {permissions: [{any: true}], principals: [{and_ids: {ids: [
          {metadata: {filter: envoy.filters.http.jwt_authn, path: [{key: payload}, {key: scope}], value: {list_match: {one_of: {string_match: {exact: write}}}}}},
          {metadata: {filter: envoy.filters.http.jwt_authn, path: [{key: payload}, {key: sub}], value: {present_match: true}}}]}}]}}}}
  - {match: {prefix: /}, route: {cluster: backend}}
`,
		clusters: map[string]string{"backend": backendAddr},
	}
}

func jwtRoutes(names map[string]string) string {
	var b strings.Builder
	for name := range names {
		fmt.Fprintf(&b, `
  - match: {prefix: /%s}
    route: {cluster: backend}
    typed_per_filter_config: {envoy.filters.http.jwt_authn: {"@type": type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig, requirement_name: %s}}`, name, name)
	}
	return b.String()
}

func TestJWT(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	point, err := ec.PublicKey.ECDH()
	require.NoError(t, err)
	xy := point.Bytes()[1:]
	jwks := `{"keys":[` + strings.Join([]string{
		rsaJWK("rsa", &key.PublicKey),
		fmt.Sprintf(`{"kty":"EC","crv":"P-256","kid":"ec","x":%q,"y":%q}`, b64(xy[:32]), b64(xy[32:])),
		fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":"ed","x":%q}`, b64(edPublic)),
		strings.TrimSuffix(rsaJWK("rs512", &key.PublicKey), "}") + `,"alg":"RS512"}`,
	}, ",") + `]}`
	_, _, addr := serve(t, jwtConfig(jwks, backend(t, echo)))

	good := signer{jwt.SigningMethodRS256, "rsa", key}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	require.NoError(t, err)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	hs := func(secret []byte) string {
		head := b64([]byte(`{"alg":"HS256","typ":"JWT","kid":"rsa"}`))
		body, _ := json.Marshal(claims(nil))
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(head + "." + b64(body)))
		return head + "." + b64(body) + "." + b64(mac.Sum(nil))
	}
	none := func(alg string) string {
		body, _ := json.Marshal(claims(nil))
		return b64([]byte(`{"alg":"`+alg+`","kid":"rsa"}`)) + "." + b64(body) + "."
	}
	tampered := func() string {
		parts := strings.Split(good.sign(t, claims(nil)), ".")
		body, _ := json.Marshal(claims(map[string]any{"sub": "root"}))
		return parts[0] + "." + b64(body) + "." + parts[2]
	}
	past := func(d time.Duration) int64 { return time.Now().Add(-d).Unix() }

	for name, test := range map[string]struct {
		path  string
		token string
		code  int
		body  string
	}{
		"valid RS256":                    {"/main", good.sign(t, claims(nil)), 200, ""},
		"valid PS256":                    {"/main", signer{jwt.SigningMethodPS256, "rsa", key}.sign(t, claims(nil)), 200, ""},
		"valid ES256":                    {"/main", signer{jwt.SigningMethodES256, "ec", ec}.sign(t, claims(nil)), 200, ""},
		"valid EdDSA":                    {"/main", signer{jwt.SigningMethodEdDSA, "ed", ed}.sign(t, claims(nil)), 200, ""},
		"none":                           {"/main", "", 401, "Jwt is missing"},
		"no JWT":                         {"/main", "abc", 401, "Jwt is not in the form"},
		"three empty parts":              {"/main", "..", 401, "Jwt is not in the form"},
		"alg none":                       {"/main", none("none"), 401, "Jwt verification fails"},
		"alg None":                       {"/main", none("None"), 401, ""},
		"alg missing":                    {"/main", none(""), 401, ""},
		"HS256 with the public key":      {"/main", hs(publicPEM), 401, "Jwt verification fails"},
		"HS256 with the key's DER":       {"/main", hs(der), 401, "Jwt verification fails"},
		"HS256 with the modulus":         {"/main", hs(key.N.Bytes()), 401, "Jwt verification fails"},
		"HS256 with nothing":             {"/main", hs(nil), 401, "Jwt verification fails"},
		"no kid":                         {"/main", signer{jwt.SigningMethodRS256, "", key}.sign(t, claims(nil)), 401, "Jwt verification fails"},
		"unknown kid":                    {"/main", signer{jwt.SigningMethodRS256, "nope", key}.sign(t, claims(nil)), 401, "Jwt verification fails"},
		"kid of another type":            {"/main", signer{jwt.SigningMethodRS256, "ec", key}.sign(t, claims(nil)), 401, "Jwt verification fails"},
		"algorithm other than the key's": {"/main", signer{jwt.SigningMethodRS256, "rs512", key}.sign(t, claims(nil)), 401, "Jwt verification fails"},
		"signed by another key":          {"/main", signer{jwt.SigningMethodRS256, "rsa", other}.sign(t, claims(nil)), 401, "Jwt verification fails"},
		"embedded jwk":                   {"/main", signer{jwt.SigningMethodRS256, "rsa", other}.sign(t, claims(nil), "jwk", rsaJWK("rsa", &other.PublicKey)), 401, "Jwt verification fails"},
		"embedded jku":                   {"/main", signer{jwt.SigningMethodRS256, "rsa", other}.sign(t, claims(nil), "jku", `"https://evil.example"`), 401, "Jwt verification fails"},
		"crit":                           {"/main", good.sign(t, claims(nil), "crit", `["b64"]`, "b64", "false"), 401, "Jwt verification fails"},
		"changed payload":                {"/main", tampered(), 401, "Jwt verification fails"},
		"other issuer":                   {"/main", good.sign(t, claims(map[string]any{"iss": "https://issuer.example/"})), 401, "Jwt issuer is not configured"},
		"no issuer":                      {"/main", good.sign(t, claims(map[string]any{"iss": nil})), 401, "Jwt issuer is not configured"},
		"issuer of another type":         {"/main", good.sign(t, claims(map[string]any{"iss": 1})), 401, ""},
		"expired, within the skew":       {"/main", good.sign(t, claims(map[string]any{"exp": past(30 * time.Second)})), 200, ""},
		"expired":                        {"/main", good.sign(t, claims(map[string]any{"exp": past(90 * time.Second)})), 401, "Jwt is expired"},
		"expired, small skew":            {"/strict", good.sign(t, claims(map[string]any{"exp": past(5 * time.Second)})), 401, "Jwt is expired"},
		"exp of another type":            {"/main", good.sign(t, claims(map[string]any{"exp": "tomorrow"})), 401, ""},
		"not yet, within the skew":       {"/main", good.sign(t, claims(map[string]any{"nbf": past(-30 * time.Second)})), 200, ""},
		"not yet":                        {"/main", good.sign(t, claims(map[string]any{"nbf": past(-90 * time.Second)})), 401, "Jwt not yet valid"},
		"no exp":                         {"/main", good.sign(t, claims(map[string]any{"exp": nil})), 200, ""},
		"no exp where required":          {"/strict", good.sign(t, claims(map[string]any{"exp": nil})), 401, "Jwt has no expiration"},
		"audience":                       {"/strict", good.sign(t, claims(nil)), 200, ""},
		"audience as a string":           {"/strict", good.sign(t, claims(map[string]any{"aud": "shop"})), 200, ""},
		"wrong audience":                 {"/strict", good.sign(t, claims(map[string]any{"aud": "bank"})), 403, "Audiences in Jwt are not allowed"},
		"no audience":                    {"/strict", good.sign(t, claims(map[string]any{"aud": nil})), 403, "Audiences in Jwt are not allowed"},
		"audiences of the requirement":   {"/audience", good.sign(t, claims(map[string]any{"aud": "admin"})), 200, ""},
		"not those":                      {"/audience", good.sign(t, claims(nil)), 403, "Audiences in Jwt are not allowed"},
		"any: second":                    {"/any", good.sign(t, claims(nil)), 200, ""},
		"any: none":                      {"/any", "", 401, "Jwt is missing"},
		"any: expired":                   {"/any", good.sign(t, claims(map[string]any{"exp": past(time.Hour)})), 401, "Jwt is expired"},
		"all: one of two":                {"/all", good.sign(t, claims(nil)), 401, "Jwt is missing"},
		"optional: missing":              {"/optional", "", 200, ""},
		"optional: bad":                  {"/optional", hs(der), 401, ""},
		"lenient: bad":                   {"/lenient", hs(der), 200, ""},
		"no keys: closed":                {"/closed", good.sign(t, claims(nil)), 401, "Jwt verification fails"},
		"unknown requirement: closed":    {"/unknown", good.sign(t, claims(nil)), 403, "Wrong requirement_name"},
		"disabled":                       {"/off", "", 200, ""},
		"scope":                          {"/scoped", good.sign(t, claims(nil)), 200, ""},
		"scope missing":                  {"/scoped", good.sign(t, claims(map[string]any{"scope": "read writers"})), 403, "RBAC: access denied"},
		"sub missing":                    {"/scoped", good.sign(t, claims(map[string]any{"sub": nil})), 403, "RBAC: access denied"},
		"scope, no token":                {"/scoped", "", 401, "Jwt is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			got := get(t, addr, test.path, func(r *http.Request) {
				if test.token != "" {
					r.Header.Set("Authorization", "Bearer "+test.token)
				}
			})
			require.Equal(t, test.code, got.code, got.body)
			if test.code == 200 {
				return
			}
			require.Contains(t, got.body, test.body)
			if test.code == 401 {
				challenge := `Bearer realm="http://127.0.0.1` + test.path + `"`
				if test.body != "Jwt is missing" {
					challenge += `, error="invalid_token"`
				}
				require.Equal(t, challenge, got.header.Get("Www-Authenticate"))
			}
		})
	}

	token := good.sign(t, claims(nil))
	t.Run("claims become headers, forged ones go", func(t *testing.T) {
		got := get(t, addr, "/main", header("Authorization", "Bearer "+token), header("X-Sub", "root"))
		require.Equal(t, []string{"alice"}, got.header.Values("Got-X-Sub"))
		require.Equal(t, "Bearer "+token, got.header.Get("Got-Authorization"))
	})
	t.Run("the payload is forwarded as it was signed, a forged one goes", func(t *testing.T) {
		got := get(t, addr, "/main", header("Authorization", "Bearer "+token), header("X-Payload", "forged"))
		require.Equal(t, []string{strings.Split(token, ".")[1]}, got.header.Values("Got-X-Payload"))
	})
	for _, path := range []string{"/optional", "/lenient"} {
		t.Run("without a token nothing is told of one at "+path, func(t *testing.T) {
			got := get(t, addr, path, header("X-Payload", "forged"), header("X-Sub", "root"))
			require.Equal(t, 200, got.code)
			require.Empty(t, got.header.Values("Got-X-Payload"))
			require.Empty(t, got.header.Values("Got-X-Sub"))
		})
	}
	t.Run("scheme in lower case", func(t *testing.T) {
		require.Equal(t, 200, get(t, addr, "/main", header("Authorization", "bearer "+token)).code)
	})
	t.Run("other places, and the token is not forwarded", func(t *testing.T) {
		got := get(t, addr, "/custom", header("X-Token", token))
		require.Equal(t, 200, got.code)
		require.Empty(t, got.header.Get("Got-X-Token"))
		got = get(t, addr, "/custom?a=1&token="+token+"&b=2")
		require.Equal(t, 200, got.code)
		require.Equal(t, "/custom?a=1&b=2", got.header.Get("Got-Path"))
		require.Equal(t, 401, get(t, addr, "/custom", header("Authorization", "Bearer "+token)).code)
	})
	t.Run("given twice", func(t *testing.T) {
		twice := func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer " + token, "Bearer " + token} }
		require.Equal(t, 401, get(t, addr, "/main", twice).code)
		other := func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer " + token, "Basic eA=="} }
		require.Equal(t, 401, get(t, addr, "/main", other).code)
		require.Equal(t, 401, get(t, addr, "/main?access_token="+token, header("Authorization", "Bearer "+token)).code)
		require.Equal(t, 401, get(t, addr, "/custom?token="+token, header("X-Token", token)).code)
		require.Equal(t, 401, get(t, addr, "/custom?token="+token+"&%74oken="+token).code)
	})
	t.Run("all: both", func(t *testing.T) {
		require.Equal(t, 200, get(t, addr, "/all", header("Authorization", "Bearer "+token), header("X-Token", token)).code)
	})
}
