package proxy

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"
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

// jwtRequirement is a compiled JwtRequirement.
type jwtRequirement interface {
	check(e *exchange) jwtResult
}

type requireProvider struct {
	provider  *jwtProvider
	audiences []string
}

type requireAny []jwtRequirement

type requireAll []jwtRequirement

type allowMissing struct {
	failed    bool
	providers map[string]*jwtProvider
}

func (r requireAny) check(e *exchange) jwtResult {
	result := jwtResult{status: jwtMissed}
	for _, one := range r {
		got := one.check(e)
		if got.status == jwtOK {
			return got
		}
		// The failure that says most: anything before "unknown issuer" before
		// "missing".
		if result.status == jwtMissed || result.status == jwtUnknownIssuer && got.status != jwtMissed {
			result.status = got.status
		}
	}
	return result
}

func (r requireAll) check(e *exchange) jwtResult {
	var result jwtResult
	for _, one := range r {
		got := one.check(e)
		if got.status != jwtOK {
			return got
		}
		result.tokens = append(result.tokens, got.tokens...)
	}
	return result
}

func (r allowMissing) check(e *exchange) jwtResult {
	var result jwtResult
	for _, p := range r.providers {
		p.sanitize(e)
	}
	for _, name := range slices.Sorted(maps.Keys(r.providers)) {
		p := r.providers[name]
		got := requireProvider{p, p.audiences}.check(e)
		switch {
		case got.status == jwtOK:
			return got
		case got.status != jwtMissed && result.status != jwtMissed:
			result.status = got.status
		}
	}
	if r.failed {
		return jwtResult{}
	}
	return result
}

func (r requireProvider) check(e *exchange) jwtResult {
	r.provider.sanitize(e)
	token, status := r.provider.extract(e)
	if status != jwtOK {
		return jwtResult{status: status}
	}
	status = r.provider.verify(token, r.audiences)
	if status != jwtOK {
		return jwtResult{status: status}
	}
	return jwtResult{tokens: []*verified{token}}
}

// sanitize removes what the client wrote where the provider tells of a token,
// so that none is told of when there is none.
func (p *jwtProvider) sanitize(e *exchange) {
	if p.payloadHeader != "" {
		delete(e.r.Header, p.payloadHeader)
	}
	for _, c := range p.claimHeaders {
		delete(e.r.Header, c.key)
	}
}

// extract finds the one token of the provider.
func (p *jwtProvider) extract(e *exchange) (*verified, jwtStatus) {
	var found []*verified
	for _, h := range p.headers {
		values := e.r.Header[h.key]
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
		n := countQuery(e.query, name)
		if n == 0 {
			continue
		}
		if n > 1 {
			return nil, jwtRepeated
		}
		value, _ := queryValue(e.query, name)
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

// decode implements filter.
func (f *jwtFilter) decode(e *exchange, override any) bool {
	if f.bypassCORS && e.r.Method == http.MethodOptions && e.r.Header.Get("Origin") != "" && e.r.Header.Get("Access-Control-Request-Method") != "" {
		return true
	}
	requirement := f.rule(e)
	if name, ok := override.(jwtOverride); ok {
		if requirement, ok = f.requirements[string(name)]; !ok {
			e.reply(http.StatusForbidden, "jwt_authn_access_denied{Wrong_requirement_name}", string(jwtWrongRequirment), nil)
			return false
		}
	}
	if requirement == nil {
		return true
	}
	result := requirement.check(e)
	if result.status == jwtOK {
		for _, token := range result.tokens {
			token.apply(e)
		}
		return true
	}
	code := http.StatusUnauthorized
	if result.status == jwtAudience {
		code = http.StatusForbidden
	}
	details := "jwt_authn_access_denied{" + strings.ReplaceAll(string(result.status), " ", "_") + "}"
	challenge := `Bearer realm="` + quotable(e.scheme()+"://"+e.host+e.path) + `"`
	if result.status != jwtMissed {
		challenge += `, error="invalid_token"`
	}
	e.reply(code, details, string(result.status), func(h http.Header) { h.Set("Www-Authenticate", challenge) })
	return false
}

func (f *jwtFilter) rule(e *exchange) jwtRequirement {
	for i := range f.rules {
		if r := &f.rules[i]; r.match(e) && all(r.rest, e) {
			return r.check
		}
	}
	return nil
}

// quotable bounds a realm and takes the characters out that end a quoted
// string.
func quotable(s string) string {
	if len(s) > 256 {
		s = s[:256]
	}
	return strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' || r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}

// apply hands what the token says to the filters after this one and to the
// upstream.
func (v *verified) apply(e *exchange) {
	p := v.provider
	set := func(key string, value any) {
		if e.metadata == nil {
			e.metadata = map[string]map[string]any{}
		}
		if e.metadata[jwtFilterName] == nil {
			e.metadata[jwtFilterName] = map[string]any{}
		}
		e.metadata[jwtFilterName][key] = value
	}
	for _, c := range p.claimHeaders {
		if text, ok := claimText(v.claims, c.claim); ok {
			e.r.Header[c.key] = []string{text}
		}
	}
	if p.payloadHeader != "" {
		payload := v.payload
		if p.pad {
			if raw, err := base64.RawURLEncoding.DecodeString(payload); err == nil {
				payload = base64.URLEncoding.EncodeToString(raw)
			}
		}
		e.r.Header[p.payloadHeader] = []string{payload}
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
		set(p.payloadKey, claims)
	}
	if p.headerKey != "" {
		set(p.headerKey, v.header)
	}
	if p.forward {
		return
	}
	if v.header0 != "" {
		delete(e.r.Header, v.header0)
	}
	if v.param != "" {
		e.query = dropQuery(e.query, v.param)
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
		if key, _, _ := strings.Cut(pair, "="); key != "" && unescape(key) == name {
			n++
		}
	}
	return n
}

func dropQuery(query, name string) string {
	var kept []string
	for _, pair := range strings.Split(query, "&") {
		if key, _, _ := strings.Cut(pair, "="); unescape(key) != name {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}
