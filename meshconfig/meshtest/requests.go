package meshtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// Request is a row of requests.yaml: what a client sends to a gateway of the
// case and what it must get.
type Request struct {
	// Name says what the row shows; default method and URL.
	Name string `json:"name,omitempty"`
	// Only runs the row against one output: "envoy" or "istio".
	Only string `json:"only,omitempty"`
	// Gateway, namespace/name, it is sent to; default lambdamesh-system/gateway.
	Gateway string `json:"gateway,omitempty"`
	// Port of the gateway's server; default 80.
	Port uint32 `json:"port,omitempty"`
	// Method; default GET.
	Method string `json:"method,omitempty"`
	// URL whose host becomes the Host header. Its path and query are sent as
	// they are written, without any cleaning.
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers,omitempty"`
	// Token becomes Authorization: Bearer, or what its fields say.
	Token *Token `json:"token,omitempty"`
	// Body of so many bytes, with its length said before or, Chunked, not.
	Body    int    `json:"body,omitempty"`
	Chunked bool   `json:"chunked,omitempty"`
	Want    Answer `json:"want"`
}

// Answer is what the client must get and the backend must have seen. What is
// empty is not looked at.
type Answer struct {
	Status int `json:"status"`
	// Backend (a destination's key, namespace/name:port) that answered.
	Backend string `json:"backend,omitempty"`
	// OneOf these backends answered.
	OneOf []string `json:"oneOf,omitempty"`
	// Path with query, and Host, as the backend saw them.
	Path string `json:"path,omitempty"`
	Host string `json:"host,omitempty"`
	// RequestHeaders as the backend saw them.
	RequestHeaders map[string]string `json:"requestHeaders,omitempty"`
	// Absent request headers: the backend must not have seen them.
	Absent []string `json:"absent,omitempty"`
	// Claims of the verified token as the backend was told them, or more.
	Claims map[string]any `json:"claims,omitempty"`
	// Headers of the response.
	Headers map[string]string `json:"headers,omitempty"`
	// Present: headers in the response (of a refusal), or in the request that
	// the backend saw.
	Present []string `json:"present,omitempty"`
	// AbsentResponse headers must not be in the response.
	AbsentResponse []string `json:"absentResponse,omitempty"`
}

// Token is minted for a request.
type Token struct {
	// Key of testdata/keys that signs; default shop.
	Key string `json:"key,omitempty"`
	// Alg "none" leaves the token unsigned; default ES256.
	Alg       string         `json:"alg,omitempty"`
	Issuer    string         `json:"issuer"`
	Subject   string         `json:"subject,omitempty"`
	Audiences []string       `json:"audiences,omitempty"`
	Claims    map[string]any `json:"claims,omitempty"`
	Expired   bool           `json:"expired,omitempty"`
	// Header that has the token behind Prefix, or Param of the query.
	Header string `json:"header,omitempty"`
	Prefix string `json:"prefix,omitempty"`
	Param  string `json:"param,omitempty"`
}

// Requests reads requests.yaml; a case may have none.
func (c Case) Requests(t testing.TB) []Request {
	t.Helper()
	text, err := os.ReadFile(c.Path("requests.yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	var all []Request
	require.NoError(t, yaml.UnmarshalStrict(text, &all), c.Name)
	for i := range all {
		r := &all[i]
		if r.Method == "" {
			r.Method = "GET"
		}
		if r.Gateway == "" {
			r.Gateway = "lambdamesh-system/gateway"
		}
		if r.Port == 0 {
			r.Port = 80
		}
		if r.Name == "" {
			r.Name = r.Method + " " + r.URL
		}
		require.NotZero(t, r.Want.Status, "%s: %s wants no status", c.Name, r.Name)
	}
	return all
}

// Mint signs the token, valid for an hour around now or expired an hour ago.
func (tok Token) Mint(t testing.TB, now time.Time) string {
	t.Helper()
	expires := now.Add(time.Hour)
	if tok.Expired {
		expires = now.Add(-time.Hour)
	}
	claims := jwt.MapClaims{"iss": tok.Issuer, "iat": expires.Add(-2 * time.Hour).Unix(), "exp": expires.Unix()}
	if tok.Subject != "" {
		claims["sub"] = tok.Subject
	}
	if len(tok.Audiences) > 0 {
		claims["aud"] = tok.Audiences
	}
	for k, v := range tok.Claims {
		claims[k] = v
	}
	if tok.Alg == "none" {
		signed, err := jwt.NewWithClaims(jwt.SigningMethodNone, claims).SignedString(jwt.UnsafeAllowNoneSignatureType)
		require.NoError(t, err)
		return signed
	}
	kid := tok.Key
	if kid == "" {
		kid = "shop"
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"] = kid
	signed, err := token.SignedString(privateKey(t, kid))
	require.NoError(t, err)
	return signed
}

func privateKey(t testing.TB, name string) *ecdsa.PrivateKey {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testdata(t), "keys", name+".json"))
	require.NoError(t, err)
	var jwk struct{ D string }
	require.NoError(t, json.Unmarshal(text, &jwk))
	raw, err := base64.RawURLEncoding.DecodeString(jwk.D)
	require.NoError(t, err)
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	require.NoError(t, err)
	return key
}
