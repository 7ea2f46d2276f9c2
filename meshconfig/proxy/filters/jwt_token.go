package filters

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	jwtv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	"github.com/golang-jwt/jwt/v5"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/strict"
)

// jwtStatus is the outcome of a requirement; its text is the body of the
// answer, as Envoy writes it.
type jwtStatus string

const (
	jwtOK              jwtStatus = ""
	jwtMissed          jwtStatus = "Jwt is missing"
	jwtMalformed       jwtStatus = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	jwtExpired         jwtStatus = "Jwt is expired"
	jwtNotYet          jwtStatus = "Jwt not yet valid"
	jwtUnknownIssuer   jwtStatus = "Jwt issuer is not configured"
	jwtAudience        jwtStatus = "Audiences in Jwt are not allowed"
	jwtUnverified      jwtStatus = "Jwt verification fails"
	jwtNoExpiration    jwtStatus = "Jwt has no expiration"
	jwtRepeated        jwtStatus = "Jwt is given more than once"
	jwtWrongRequirment jwtStatus = "Wrong requirement_name"
)

// jwtResult is what a requirement found, applied once the whole of it holds.
type jwtResult struct {
	status jwtStatus
	tokens []*verified
}

type verified struct {
	provider *jwtProvider
	claims   map[string]any
	header   map[string]any
	payload  string // as in the token, base64url
	header0  string // name of the header the token was in
	prefix   string
	param    string
}

// jwtProvider is a compiled JwtProvider.
type jwtProvider struct {
	name      string
	issuer    string
	audiences []string
	expires   bool // exp is required
	keys      keyfunc.Keyfunc
	parser    *jwt.Parser
	skew      time.Duration

	headers []jwtHeader
	params  []string
	forward bool

	payloadKey    string
	payloadHeader string
	pad           bool
	headerKey     string
	spaceClaims   []string
	claimHeaders  []claimHeader
}

type jwtHeader struct{ key, prefix string }

type claimHeader struct {
	key   string
	claim []string
}

// jwtAlgorithms are asymmetric only: a public key must never verify an HMAC
// (RFC 8725, section 3.1).
var jwtAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"} //nolint:gochecknoglobals // read only

const defaultClockSkew = 60 * time.Second

func compileProvider(at, name string, c *jwtv3.JwtProvider) (*jwtProvider, error) {
	if err := strict.Allow(at, c, "issuer", "audiences", "require_expiration", "local_jwks", "forward", "from_headers", "from_params",
		"forward_payload_header", "pad_forward_payload_header", "payload_in_metadata", "normalize_payload_in_metadata",
		"header_in_metadata", "clock_skew_seconds", "claim_to_headers", "jwt_cache_config"); err != nil {
		return nil, err
	}
	p := &jwtProvider{
		name: name, issuer: c.GetIssuer(), audiences: c.GetAudiences(), expires: c.GetRequireExpiration(),
		params: c.GetFromParams(), forward: c.GetForward(), payloadKey: c.GetPayloadInMetadata(), headerKey: c.GetHeaderInMetadata(),
		pad: c.GetPadForwardPayloadHeader(), spaceClaims: c.GetNormalizePayloadInMetadata().GetSpaceDelimitedClaims(),
		skew: time.Duration(c.GetClockSkewSeconds()) * time.Second,
	}
	if c.GetForwardPayloadHeader() != "" {
		p.payloadHeader = request.Canonical(c.GetForwardPayloadHeader())
	}
	if p.skew == 0 {
		p.skew = defaultClockSkew
	}
	jwks, err := strict.Inline(at+".local_jwks", c.GetLocalJwks())
	if err != nil {
		return nil, err
	}
	// Envoy takes a key set it cannot read, or an empty one, for a configuration
	// error. The control plane writes an empty one for a set it cannot fetch, so
	// that the route is closed: no key, 401 for everybody.
	if p.keys, err = keyfunc.NewJWKSetJSON(json.RawMessage(jwks)); err != nil {
		return nil, fmt.Errorf("%s.local_jwks: %w", at, err)
	}
	p.parser = jwt.NewParser(jwt.WithValidMethods(jwtAlgorithms), jwt.WithLeeway(p.skew), jwt.WithJSONNumber())
	for _, h := range c.GetFromHeaders() {
		p.headers = append(p.headers, jwtHeader{request.Canonical(h.GetName()), h.GetValuePrefix()})
	}
	if len(p.headers) == 0 && len(p.params) == 0 {
		p.headers = []jwtHeader{{"Authorization", "Bearer "}}
		p.params = []string{"access_token"}
	}
	for _, h := range c.GetClaimToHeaders() {
		p.claimHeaders = append(p.claimHeaders, claimHeader{request.Canonical(h.GetHeaderName()), splitClaim(h.GetClaimName())})
	}
	return p, nil
}

// sanitize removes what the client wrote where the provider tells of a token,
// so that none is told of when there is none.
func (p *jwtProvider) sanitize(req *request.Request) {
	if p.payloadHeader != "" {
		delete(req.HTTP.Header, p.payloadHeader)
	}
	for _, c := range p.claimHeaders {
		delete(req.HTTP.Header, c.key)
	}
}

// extract finds the one token of the provider.
func (p *jwtProvider) extract(req *request.Request) (*verified, jwtStatus) {
	var found []*verified
	for _, h := range p.headers {
		values := req.HTTP.Header[h.key]
		if len(values) > 1 {
			return nil, jwtRepeated
		}
		if len(values) == 0 {
			continue
		}
		// Schemes are case-insensitive (RFC 9110, section 11.1), and Envoy finds
		// the prefix anywhere in the value; a token after it ends at the first
		// character that no token has.
		value := values[0]
		if len(value) < len(h.prefix) || !strings.EqualFold(value[:len(h.prefix)], h.prefix) {
			continue
		}
		found = append(found, &verified{provider: p, payload: strings.TrimSpace(value[len(h.prefix):]), header0: h.key, prefix: h.prefix})
	}
	for _, name := range p.params {
		n := countQuery(req.Query, name)
		if n == 0 {
			continue
		}
		if n > 1 {
			return nil, jwtRepeated
		}
		value, _ := request.QueryValue(req.Query, name)
		found = append(found, &verified{provider: p, payload: value, param: name})
	}
	switch len(found) {
	case 0:
		return nil, jwtMissed
	case 1:
		return found[0], jwtOK
	default:
		return nil, jwtRepeated
	}
}

// verify checks the token's signature and claims, and fills it in.
func (p *jwtProvider) verify(v *verified, audiences []string) jwtStatus {
	token := v.payload
	if strings.Count(token, ".") != 2 {
		return jwtMalformed
	}
	claims := jwt.MapClaims{}
	unverified, _, err := p.parser.ParseUnverified(token, claims)
	if err != nil {
		return jwtMalformed
	}
	// Extensions that must be understood are not (RFC 7515, section 4.1.11).
	if _, ok := unverified.Header["crit"]; ok {
		return jwtUnverified
	}
	// Without a key id every key would be tried, and a set would be as good as
	// its weakest key.
	if kid, _ := unverified.Header["kid"].(string); kid == "" {
		return jwtUnverified
	}
	issuer, err := claims.GetIssuer()
	if err != nil {
		return jwtMalformed
	}
	if p.issuer != "" && issuer != p.issuer {
		return jwtUnknownIssuer
	}
	claims = jwt.MapClaims{}
	parsed, err := p.parser.ParseWithClaims(token, claims, p.keys.Keyfunc)
	switch {
	case err == nil:
	case errors.Is(err, jwt.ErrTokenExpired):
		return jwtExpired
	case errors.Is(err, jwt.ErrTokenNotValidYet):
		return jwtNotYet
	case errors.Is(err, jwt.ErrTokenMalformed):
		return jwtMalformed
	default:
		return jwtUnverified
	}
	if p.expires {
		if exp, err := claims.GetExpirationTime(); err != nil || exp == nil {
			return jwtNoExpiration
		}
	}
	if len(audiences) > 0 {
		got, err := claims.GetAudience()
		if err != nil || !slices.ContainsFunc(got, func(a string) bool {
			return slices.ContainsFunc(audiences, func(want string) bool { return sameAudience(a, want) })
		}) {
			return jwtAudience
		}
	}
	v.claims, v.header = plain(claims).(map[string]any), parsed.Header //nolint:errcheck // plain keeps a map a map
	v.payload = strings.Split(token, ".")[1]
	return jwtOK
}

// sameAudience compares without scheme and trailing slash, as Envoy does.
func sameAudience(a, b string) bool {
	trim := func(s string) string {
		s = strings.TrimPrefix(strings.TrimPrefix(s, "http://"), "https://")
		return strings.TrimSuffix(s, "/")
	}
	return trim(a) == trim(b)
}

// plain turns claims into the values that dynamic metadata has: numbers are
// float64.
func plain(v any) any {
	switch t := v.(type) {
	case jwt.MapClaims:
		return plain(map[string]any(t))
	case map[string]any:
		out := make(map[string]any, len(t))
		for k, one := range t {
			out[k] = plain(one)
		}
		return out
	case []any:
		out := make([]any, len(t))
		for i, one := range t {
			out[i] = plain(one)
		}
		return out
	case json.Number:
		f, _ := t.Float64()
		return f
	default:
		return v
	}
}

// apply hands what the token says to the filters after this one and to the
// upstream.
func (v *verified) apply(req *request.Request) {
	p := v.provider
	for _, c := range p.claimHeaders {
		if text, ok := claimText(v.claims, c.claim); ok {
			req.HTTP.Header[c.key] = []string{text}
		}
	}
	if p.payloadHeader != "" {
		payload := v.payload
		if p.pad {
			if raw, err := base64.RawURLEncoding.DecodeString(payload); err == nil {
				payload = base64.URLEncoding.EncodeToString(raw)
			}
		}
		req.HTTP.Header[p.payloadHeader] = []string{payload}
	}
	if p.payloadKey != "" {
		claims := v.claims
		for _, name := range p.spaceClaims {
			if text, ok := claims[name].(string); ok {
				var list []any
				for _, one := range strings.Fields(text) {
					list = append(list, one)
				}
				claims[name] = list
			}
		}
		req.SetMetadata(jwtFilterName, p.payloadKey, claims)
	}
	if p.headerKey != "" {
		req.SetMetadata(jwtFilterName, p.headerKey, v.header)
	}
	if p.forward {
		return
	}
	if v.header0 != "" {
		delete(req.HTTP.Header, v.header0)
	}
	if v.param != "" {
		req.Query = dropQuery(req.Query, v.param)
	}
}

func splitClaim(name string) []string { return strings.Split(name, ".") }

func claimText(claims map[string]any, path []string) (string, bool) {
	var value any = claims
	for _, key := range path {
		object, ok := value.(map[string]any)
		if !ok {
			return "", false
		}
		value = object[key]
	}
	switch t := value.(type) {
	case string:
		return t, true
	case nil:
		return "", false
	case map[string]any, []any:
		b, err := json.Marshal(t)
		return base64.StdEncoding.EncodeToString(b), err == nil
	default:
		b, err := json.Marshal(t)
		return string(b), err == nil
	}
}

func countQuery(query, name string) int {
	n := 0
	for _, pair := range strings.Split(query, "&") {
		if key, _, _ := strings.Cut(pair, "="); key != "" && request.Unescape(key) == name {
			n++
		}
	}
	return n
}

func dropQuery(query, name string) string {
	var kept []string
	for _, pair := range strings.Split(query, "&") {
		if key, _, _ := strings.Cut(pair, "="); request.Unescape(key) != name {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}
