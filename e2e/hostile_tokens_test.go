package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

// issuer mints tokens and serves the key set they are checked with. It lives as
// long as the common mesh.
type issuer struct {
	name, url string
	rsa       *rsa.PrivateKey
	ec        *ecdsa.PrivateKey
	encrypts  *rsa.PrivateKey // its use is "enc"
	secret    []byte          // a symmetric key, in the set by mistake
	set       []byte
	fetches   atomic.Int64
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{name: "https://issuer.hostile.test", secret: []byte("0123456789abcdef0123456789abcdef")}
	var err error
	i.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	i.encrypts, err = rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	i.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	var set jwkset.JWKSMarshal
	for _, k := range []struct {
		key any
		jwkset.JWKMetadataOptions
	}{
		{i.rsa.Public(), jwkset.JWKMetadataOptions{KID: "rsa", ALG: jwkset.AlgRS256, USE: jwkset.UseSig}},
		{i.ec.Public(), jwkset.JWKMetadataOptions{KID: "ec", ALG: jwkset.AlgES256, USE: jwkset.UseSig}},
		{i.encrypts.Public(), jwkset.JWKMetadataOptions{KID: "enc", USE: jwkset.UseEnc}},
		{i.secret, jwkset.JWKMetadataOptions{KID: "secret", ALG: jwkset.AlgHS256, USE: jwkset.UseSig}},
	} {
		_, symmetric := k.key.([]byte)
		jwk, err := jwkset.NewJWKFromKey(k.key, jwkset.JWKOptions{Metadata: k.JWKMetadataOptions, Marshal: jwkset.JWKMarshalOptions{Private: symmetric}})
		require.NoError(t, err)
		set.Keys = append(set.Keys, jwk.Marshal())
	}
	i.set, err = json.Marshal(set)
	require.NoError(t, err)
	i.url = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:usetesting // outlives the test
		i.fetches.Add(1)
		_, _ = w.Write(i.set)
	})).URL + "/jwks.json"
	return i
}

// claims of a good token, but for what edit changes. A nil value removes one.
func (i *issuer) claims(edit map[string]any) jwt.MapClaims {
	now := time.Now()
	claims := jwt.MapClaims{"iss": i.name, "sub": "alice", "aud": "shop", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()}
	for name, value := range edit {
		if value == nil {
			delete(claims, name)
			continue
		}
		claims[name] = value
	}
	return claims
}

// token is good but for what edit changes.
func (i *issuer) token(t testing.TB, edit map[string]any) string {
	t.Helper()
	return sign(t, jwt.SigningMethodRS256, i.rsa, i.claims(edit), map[string]any{"kid": "rsa"})
}

// sign makes a token with these header fields; nil removes one.
func sign(t testing.TB, method jwt.SigningMethod, key any, claims jwt.MapClaims, header map[string]any) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	for name, value := range header {
		if value == nil {
			delete(token.Header, name)
			continue
		}
		token.Header[name] = value
	}
	signed, err := token.SignedString(key)
	require.NoError(t, err)
	return signed
}

// compact is a token of these parts as they are.
func compact(t testing.TB, header, claims any, signature []byte) string {
	t.Helper()
	part := func(v any) string {
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	return part(header) + "." + part(claims) + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestHostileTokens(t *testing.T) {
	m, i := hostile(t)
	type fields = map[string]any
	hour := time.Hour
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }

	// Who would be asked for keys that a token brings along.
	var asked atomic.Int64
	foreign, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	foreignJWK, err := jwkset.NewJWKFromKey(foreign.Public(), jwkset.JWKOptions{Metadata: jwkset.JWKMetadataOptions{KID: "rsa", ALG: jwkset.AlgRS256}})
	require.NoError(t, err)
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_ = json.NewEncoder(w).Encode(jwkset.JWKSMarshal{Keys: []jwkset.JWKMarshal{foreignJWK.Marshal()}})
	}))
	t.Cleanup(thief.Close)

	pkix, err := x509.MarshalPKIXPublicKey(i.rsa.Public())
	require.NoError(t, err)
	pkcs1 := x509.MarshalPKCS1PublicKey(&i.rsa.PublicKey)
	asPEM := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	hs256 := func(key []byte, kid string) string {
		return sign(t, jwt.SigningMethodHS256, key, i.claims(nil), fields{"kid": kid})
	}
	rs256 := func(header fields) string {
		return sign(t, jwt.SigningMethodRS256, i.rsa, i.claims(nil), header)
	}
	byForeign := func(header fields) string {
		return sign(t, jwt.SigningMethodRS256, foreign, i.claims(nil), header)
	}
	good := i.token(t, nil)
	parts := strings.Split(good, ".")

	tests := map[string]struct {
		token  string
		status int
	}{
		"a good token lets in":                              {good, 200},
		"signed with the elliptic key too":                  {sign(t, jwt.SigningMethodES256, i.ec, i.claims(nil), fields{"kid": "ec"}), 200},
		"for one audience among others":                     {i.token(t, fields{"aud": []string{"bank", "shop"}}), 200},
		"alg none is refused":                               {compact(t, fields{"alg": "none", "kid": "rsa"}, i.claims(nil), nil), 401},
		"alg none in any case":                              {compact(t, fields{"alg": "nOnE", "kid": "rsa"}, i.claims(nil), nil), 401},
		"alg none with a signature":                         {compact(t, fields{"alg": "none", "kid": "rsa"}, i.claims(nil), []byte("x")), 401},
		"an empty alg":                                      {compact(t, fields{"alg": "", "kid": "rsa"}, i.claims(nil), nil), 401},
		"no alg":                                            {compact(t, fields{"kid": "rsa"}, i.claims(nil), nil), 401},
		"alg that is a number":                              {compact(t, fields{"alg": 256, "kid": "rsa"}, i.claims(nil), nil), 401},
		"HS256 with the RSA key in PEM as the secret":       {hs256(asPEM("PUBLIC KEY", pkix), "rsa"), 401},
		"in PKCS 1":                                         {hs256(asPEM("RSA PUBLIC KEY", pkcs1), "rsa"), 401},
		"in DER":                                            {hs256(pkix, "rsa"), 401},
		"its modulus":                                       {hs256(i.rsa.N.Bytes(), "rsa"), 401},
		"HS256 with the symmetric key of the set":           {hs256(i.secret, "secret"), 401},
		"HS256 with an empty key":                           {hs256([]byte{}, ""), 401},
		"another algorithm than the key is for":             {sign(t, jwt.SigningMethodPS256, i.rsa, i.claims(nil), fields{"kid": "rsa"}), 401},
		"a key that is for encryption":                      {sign(t, jwt.SigningMethodRS256, i.encrypts, i.claims(nil), fields{"kid": "enc"}), 401},
		"another key's signature":                           {byForeign(fields{"kid": "rsa"}), 401},
		"another key's kid":                                 {rs256(fields{"kid": "ec"}), 401},
		"an unknown kid":                                    {rs256(fields{"kid": "rsa2"}), 401},
		"no kid":                                            {rs256(fields{"kid": nil}), 401},
		"an empty kid":                                      {rs256(fields{"kid": ""}), 401},
		"a kid that is a path":                              {rs256(fields{"kid": "../../../../dev/null"}), 401},
		"a kid that is a statement":                         {rs256(fields{"kid": "rsa' OR '1'='1"}), 401},
		"a kid that is a list":                              {rs256(fields{"kid": []string{"rsa"}}), 401},
		"a key in the token":                                {byForeign(fields{"kid": "rsa", "jwk": foreignJWK.Marshal()}), 401},
		"the address of a key set in the token":             {byForeign(fields{"kid": "rsa", "jku": thief.URL}), 401},
		"the address of a certificate in the token":         {byForeign(fields{"kid": "rsa", "x5u": thief.URL}), 401},
		"a certificate in the token":                        {byForeign(fields{"kid": "rsa", "x5c": []string{base64.StdEncoding.EncodeToString(pkix)}}), 401},
		"an extension that must be understood":              {rs256(fields{"kid": "rsa", "crit": []string{"b64"}, "b64": false}), 401},
		"an elliptic signature of zeros":                    {compact(t, fields{"alg": "ES256", "kid": "ec"}, i.claims(nil), make([]byte, 64)), 401},
		"no signature":                                      {parts[0] + "." + parts[1] + ".", 401},
		"a signature of another token":                      {parts[0] + "." + parts[1] + "." + strings.Split(i.token(t, fields{"sub": "bob"}), ".")[2], 401},
		"other claims under a good signature":               {strings.Join([]string{parts[0], strings.Split(i.token(t, fields{"sub": "bob"}), ".")[1], parts[2]}, "."), 401},
		"a signature with its padding":                      {good + "==", 401},
		"a signature with something behind it":              {good + ".x", 401},
		"an encrypted token":                                {parts[0] + "." + parts[1] + "." + parts[2] + ".x.x", 401},
		"a token in JSON":                                   {`{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`, 401},
		"two dots":                                          {"..", 401},
		"nothing":                                           {"", 401},
		"claims that are a list":                            {compact(t, fields{"alg": "RS256", "kid": "rsa"}, []int{1}, []byte("x")), 401},
		"claims nested a thousand deep":                     {parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000))) + "." + parts[2], 401},
		"another issuer":                                    {i.token(t, fields{"iss": "https://other.test"}), 401},
		"an issuer with a slash more":                       {i.token(t, fields{"iss": i.name + "/"}), 401},
		"an issuer in another case":                         {i.token(t, fields{"iss": strings.ToUpper(i.name)}), 401},
		"no issuer":                                         {i.token(t, fields{"iss": nil}), 401},
		"an issuer that is a list":                          {i.token(t, fields{"iss": []string{i.name}}), 401},
		"another audience":                                  {i.token(t, fields{"aud": "bank"}), 403},
		"no audience":                                       {i.token(t, fields{"aud": nil}), 403},
		"an audience with something behind it":              {i.token(t, fields{"aud": "shop,bank"}), 403},
		"an audience in another case":                       {i.token(t, fields{"aud": "SHOP"}), 403},
		"no subject":                                        {i.token(t, fields{"sub": nil}), 403},
		"expired an hour ago":                               {i.token(t, fields{"exp": in(-hour)}), 401},
		"expired two minutes ago, past the leeway":          {i.token(t, fields{"exp": in(-2 * time.Minute)}), 401},
		"expired in 1970":                                   {i.token(t, fields{"exp": 1}), 401},
		"expired before 1970":                               {i.token(t, fields{"exp": -1}), 401},
		"an expiration that is text":                        {i.token(t, fields{"exp": strconv.FormatInt(in(hour), 10)}), 401},
		"an expiration that is a list":                      {i.token(t, fields{"exp": []int64{in(hour)}}), 401},
		"not valid before an hour from now":                 {i.token(t, fields{"nbf": in(hour)}), 401},
		"not valid before two minutes from now":             {i.token(t, fields{"nbf": in(2 * time.Minute)}), 401},
		"a beginning that is text":                          {i.token(t, fields{"nbf": "0"}), 401},
		"valid since a minute ago":                          {i.token(t, fields{"nbf": in(-time.Minute)}), 200},
		"a token that is longer than the gateway's headers": {good + strings.Repeat("x", 80<<10), 431},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			resp, err := m.get(t.Context(), hostileHost, "/private", "Authorization", "Bearer "+c.token)
			require.NoError(t, err)
			require.Equal(t, c.status, resp.status, resp.body)
			if c.status == http.StatusUnauthorized {
				require.Contains(t, resp.header.Get("WWW-Authenticate"), "Bearer")
			}
			if c.status != http.StatusOK {
				require.NotContains(t, resp.body, "eyJ", "no part of a token is sent back")
			}
		})
	}
	require.Zero(t, asked.Load(), "addresses in a token are not asked")

	// Where else a token may be, and how often.
	bad := i.token(t, fields{"exp": in(-hour)})
	for name, c := range map[string]struct {
		query  string
		header string
		want   []int
	}{
		"two Authorization headers are refused":         {"", "Authorization: Bearer " + good + "\r\nAuthorization: Bearer " + bad, []int{400, 401}},
		"the other way round too":                       {"", "Authorization: Bearer " + bad + "\r\nAuthorization: Bearer " + good, []int{400, 401}},
		"and twice the same":                            {"", "Authorization: Bearer " + good + "\r\nAuthorization: Bearer " + good, []int{400, 401}},
		"two in one header are refused":                 {"", "Authorization: Bearer " + good + ", Bearer " + good, []int{401}},
		"a second one after a blank is refused":         {"", "Authorization: Bearer " + good + " " + bad, []int{401}},
		"a token in the query is none":                  {"?access_token=" + good, "X: y", []int{401}},
		"under any name":                                {"?token=" + good + "&jwt=" + good + "&authorization=Bearer%20" + good, "X: y", []int{401}},
		"a bad one there does not replace a good":       {"?access_token=" + bad, "Authorization: Bearer " + good, []int{200, 400, 401}},
		"a good one there does not help a bad":          {"?access_token=" + good, "Authorization: Bearer " + bad, []int{401}},
		"a token in a cookie is none":                   {"", "Cookie: Authorization=" + good + "; access_token=" + good, []int{401}},
		"in another header neither":                     {"", "X-Authorization: Bearer " + good + "\r\nProxy-Authorization: Bearer " + good + "\r\nAccess-Token: " + good, []int{401}},
		"without its scheme neither":                    {"", "Authorization: " + good, []int{401}},
		"under another scheme neither":                  {"", "Authorization: Basic " + good, []int{401}},
		"in a folded header it is refused":              {"", "Authorization: Bearer\r\n " + good, []int{400}},
		"what the mesh itself writes is not taken":      {"", "X-Lambdamesh-Token: " + good + "\r\nX-Lambdamesh-Rule: hostile/hostile/0", []int{401}},
		"an underscore makes no header":                 {"", "Authorization_: Bearer " + good, []int{400}},
		"a preflight without its headers is a request":  {"", "Origin: https://evil.test", []int{401}},
		"verified claims are not the client's to write": {"", "X-Jwt-Payload: " + parts[1] + "\r\nX-Endpoint-Api-Userinfo: " + parts[1], []int{401}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := exchange(address(t, m.Gateway), "GET /private"+c.query+" HTTP/1.1\r\nHost: "+hostileHost+"\r\n"+c.header+"\r\nConnection: close\r\n\r\n", false)
			require.NoError(t, err)
			require.Contains(t, c.want, a.status(t), "%v", a)
		})
	}

	t.Run("a thousand random kids ask the issuer once at most", func(t *testing.T) {
		// One signature serves all: the kid is looked up before it is checked.
		before := i.fetches.Load()
		signature := []byte(strings.Repeat("x", 256))
		claims := i.claims(nil)
		var wg sync.WaitGroup
		failures := make(chan error, 1000)
		for worker := range 8 {
			wg.Go(func() {
				for n := range 125 {
					token := compact(t, fields{"alg": "RS256", "kid": fmt.Sprintf("%s-%d-%d", rand.Text(), worker, n)}, claims, signature)
					resp, err := m.get(t.Context(), hostileHost, "/private", "Authorization", "Bearer "+token)
					if err == nil && resp.status != http.StatusUnauthorized {
						err = errorf("answered %d: %s", resp.status, resp.body)
					}
					if err != nil {
						failures <- err
					}
				}
			})
		}
		wg.Wait()
		close(failures)
		for err := range failures {
			t.Error(err)
		}
		require.LessOrEqual(t, i.fetches.Load()-before, int64(1))
	})
}

// An issuer that answers anything but a key set: the rule is closed, whoever
// waits is answered soon, and nobody else notices.
func TestHostileIssuers(t *testing.T) {
	m, i := hostile(t)
	var trapped atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		trapped.Add(1)
		_, _ = w.Write(i.set)
	}))
	t.Cleanup(trap.Close)
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // ends before the server
	answers := map[string]http.HandlerFunc{
		"huge": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprintf(w, `{"padding":%q,`, strings.Repeat("x", 2<<20))
			_, _ = w.Write(i.set[1:])
		},
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"silent": func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-ctx.Done():
			}
		},
		"elsewhere": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, trap.URL, http.StatusFound) },
		"metadata": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusTemporaryRedirect)
		},
		"in-a-circle": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusMovedPermanently)
		},
		"html":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"empty":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) },
		"broken": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
	}
	mux := http.NewServeMux()
	var objects strings.Builder
	objects.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: hostile-issuers}\n")
	server := httptest.NewServer(mux)
	t.Cleanup(func() { cancel(); server.Close() })
	for name, handler := range answers {
		mux.HandleFunc("/"+name, handler)
		fmt.Fprintf(&objects, `
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: %[1]s, namespace: hostile}
spec:
  hosts: [issuer-%[1]s]
  rules: [{path: "/*", lambda: reflect, jwt: {authentications: [{issuer: "https://%[1]s.test", jwksUri: "%[2]s/%[1]s"}]}}]
`, name, server.URL)
	}
	m.apply(t, objects.String())
	for name := range answers {
		t.Run(name, func(t *testing.T) {
			token := sign(t, jwt.SigningMethodRS256, i.rsa, i.claims(map[string]any{"iss": "https://" + name + ".test"}), map[string]any{"kid": "rsa"})
			eventually(t, time.Minute, func() error {
				refs := m.mustKubectl(t, "", "get", "apirule", "-n", hostileNamespace, name, "-o",
					`jsonpath={.status.conditions[?(@.type=="ResolvedRefs")].status} {.status.conditions[?(@.type=="ResolvedRefs")].message}`)
				if !strings.HasPrefix(refs, "False") || !strings.Contains(refs, server.URL+"/"+name) {
					return errorf("ResolvedRefs is %q", refs)
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			resp, err := m.get(ctx, "issuer-"+name+".lambdas.localhost", "/", "Authorization", "Bearer "+token)
			require.NoError(t, err)
			require.Contains(t, []int{http.StatusUnauthorized, http.StatusServiceUnavailable}, resp.status, resp.body)
		})
	}
	require.Zero(t, trapped.Load(), "no redirect leads to another host")
	resp, err := m.get(t.Context(), hostileHost, "/private", "Authorization", "Bearer "+i.token(t, nil))
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.status, "another rule's tokens are checked as before")
}
