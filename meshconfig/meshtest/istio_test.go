package meshtest_test

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	networking "istio.io/api/networking/v1alpha3"
	security "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// The table of each case against the Istio objects, read as Istio's reference
// describes them. It is a model and no istiod: it shows that both outputs say
// the same, not that istiod obeys.
func TestIstioObjectsAnswerTheTable(t *testing.T) {
	for _, c := range meshtest.Cases(t) {
		requests := c.Requests(t)
		if len(requests) == 0 {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			m := newModel(c.Mesh(t))
			for _, r := range requests {
				if r.Only != "" && r.Only != "istio" {
					continue
				}
				t.Run(r.Name, func(t *testing.T) { check(t, r, m.answer(t, r)) })
			}
		})
	}
}

// model answers as gateway and sidecar would.
type model struct {
	mesh     *ir.Mesh
	virtual  []*networkingv1.VirtualService
	policies map[string]*securityv1.AuthorizationPolicy // by namespace/lambda
	tokens   map[string]*securityv1.RequestAuthentication
}

func newModel(mesh *ir.Mesh) *model {
	m := &model{mesh: mesh, policies: map[string]*securityv1.AuthorizationPolicy{}, tokens: map[string]*securityv1.RequestAuthentication{}}
	for _, o := range istio.Objects(mesh) {
		switch o := o.(type) {
		case *networkingv1.VirtualService:
			m.virtual = append(m.virtual, o)
		case *securityv1.AuthorizationPolicy:
			m.policies[o.Namespace+"/"+o.Spec.GetSelector().GetMatchLabels()[v1alpha1.LabelLambda]] = o
		case *securityv1.RequestAuthentication:
			m.tokens[o.Namespace+"/"+o.Spec.GetSelector().GetMatchLabels()[v1alpha1.LabelLambda]] = o
		}
	}
	return m
}

func (m *model) answer(t *testing.T, r meshtest.Request) answer {
	t.Helper()
	target, err := url.Parse(r.URL)
	require.NoError(t, err)
	header := http.Header{}
	for name, value := range r.Headers {
		header.Set(name, value)
	}
	if r.Token != nil {
		header.Set("Authorization", "Bearer "+r.Token.Mint(t, time.Now()))
	}
	return m.decide(r.Gateway, r.Method, target.Hostname(), strings.TrimPrefix(r.URL, target.Scheme+"://"+target.Host), header)
}

// decide about a request with a target in origin form. It changes the header.
func (m *model) decide(gateway, method, host, target string, header http.Header) answer {
	raw, query, hasQuery := strings.Cut(target, "?")
	request := &message{method: method, host: strings.ToLower(host), query: query, header: header}
	var canonical bool
	if request.path, canonical = canonicalPath(raw); !canonical {
		return answer{status: http.StatusBadRequest, header: http.Header{}}
	}
	if hasQuery {
		query = "?" + query
	}
	got := answer{status: http.StatusNotFound, header: http.Header{}}
	for _, vs := range m.virtual {
		if !slices.Contains(vs.Spec.GetGateways(), gateway) || !slices.ContainsFunc(vs.Spec.GetHosts(), func(h string) bool { return ir.CoversHost(h, request.host) }) {
			continue
		}
		for _, route := range vs.Spec.GetHttp() {
			if len(route.GetMatch()) > 0 && !slices.ContainsFunc(route.GetMatch(), request.matches) {
				continue
			}
			m.route(route, request, query, &got)
			return got
		}
	}
	return got
}

func (m *model) route(route *networking.HTTPRoute, request *message, query string, got *answer) {
	// The cors filter answers before the router and writes after it.
	if origin := request.header.Get("Origin"); allows(route.GetCorsPolicy(), origin) {
		defer func() {
			got.header.Set("Access-Control-Allow-Origin", origin)
			got.header.Set("Access-Control-Expose-Headers", strings.Join(route.GetCorsPolicy().GetExposeHeaders(), ","))
		}()
		if request.method == http.MethodOptions && request.header.Get("Access-Control-Request-Method") != "" {
			got.status = http.StatusOK
			return
		}
	}
	if route.GetDirectResponse() == nil {
		got.header = backendCORS()
	}
	edit(got.header, route.GetHeaders().GetResponse())
	if r := route.GetRedirect(); r != nil {
		got.status, got.header = int(r.GetRedirectCode()), http.Header{}
		location := url.URL{Scheme: cmp.Or(r.GetScheme(), "http"), Host: cmp.Or(r.GetAuthority(), request.host), Path: cmp.Or(r.GetUri(), request.path)}
		if r.GetPort() > 0 {
			location.Host += fmt.Sprintf(":%d", r.GetPort())
		}
		got.header.Set("Location", location.String()+query)
		return
	}
	if direct := route.GetDirectResponse(); direct != nil {
		got.status = int(direct.GetStatus())
		return
	}
	edit(request.header, route.GetHeaders().GetRequest())
	request.rewrite(route)
	destination := route.GetRoute()[0].GetDestination()
	parts := strings.Split(destination.GetHost(), ".")
	key := ir.DestinationKey(parts[1], parts[0], destination.GetPort().GetNumber())
	var workload string
	for _, d := range m.mesh.Destinations {
		if d.Key() == key {
			if workload = d.Workload; workload == "" && len(d.Endpoints) == 0 {
				got.status = http.StatusServiceUnavailable
				return
			}
		}
	}
	if got.status = m.sidecar(workload, request.header); got.status == http.StatusOK {
		got.echo = seen{Backend: key, Path: request.path + query, Host: request.host, Headers: request.header}
	}
}

// sidecar authenticates, then authorizes.
func (m *model) sidecar(workload string, header http.Header) int {
	claims, err := authenticate(m.tokens[workload], header)
	if err != nil {
		return http.StatusUnauthorized
	}
	policy := m.policies[workload]
	if policy == nil || slices.ContainsFunc(policy.Spec.GetRules(), func(r *security.Rule) bool { return lets(r, header, claims) }) {
		header.Del(headers.Token) // not forwarded
		return http.StatusOK
	}
	return http.StatusForbidden
}

func authenticate(tokens *securityv1.RequestAuthentication, header http.Header) (jwt.MapClaims, error) {
	if tokens == nil {
		return nil, nil //nolint:nilnil // nothing to check
	}
	for _, rule := range tokens.Spec.GetJwtRules() {
		from := rule.GetFromHeaders()[0]
		text, found := strings.CutPrefix(header.Get(from.GetName()), from.GetPrefix())
		if !found {
			return nil, nil //nolint:nilnil // istiod lets requests without a token pass
		}
		claims := jwt.MapClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(text, claims); err != nil {
			return nil, err
		}
		if claims["iss"] != rule.GetIssuer() {
			continue
		}
		if name := rule.GetOutputPayloadToHeader(); name != "" {
			header.Set(name, strings.Split(text, ".")[1])
		}
		_, err := jwt.NewParser(jwt.WithValidMethods([]string{"ES256"})).ParseWithClaims(text, claims, func(token *jwt.Token) (any, error) {
			return publicKey(rule.GetJwks(), token.Header["kid"])
		})
		return claims, err
	}
	return nil, errors.New("no rule for the issuer")
}

func publicKey(jwks string, kid any) (*ecdsa.PublicKey, error) {
	var set struct {
		Keys []struct{ Kid, X, Y string }
	}
	if err := json.Unmarshal([]byte(jwks), &set); err != nil {
		return nil, err
	}
	for _, k := range set.Keys {
		if k.Kid == kid {
			x, _ := base64.RawURLEncoding.DecodeString(k.X)
			y, _ := base64.RawURLEncoding.DecodeString(k.Y)
			return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		}
	}
	return nil, errors.New("no such key")
}

func loopback() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }

func lets(rule *security.Rule, header http.Header, claims jwt.MapClaims) bool {
	source := rule.GetFrom()[0].GetSource()
	if !slices.Contains(source.GetPrincipals(), "cluster.local/ns/lambdamesh-system/sa/gateway") {
		return false
	}
	// Clients of the tests are on this machine.
	within := func(ranges []string) bool {
		return slices.ContainsFunc(ranges, func(r string) bool { return netip.MustParsePrefix(r).Contains(loopback()) })
	}
	if allow := source.GetRemoteIpBlocks(); len(allow) > 0 && !within(allow) || within(source.GetNotRemoteIpBlocks()) {
		return false
	}
	iss, _ := claims["iss"].(string)
	sub, _ := claims["sub"].(string)
	if want := source.GetRequestPrincipals(); len(want) > 0 && !slices.ContainsFunc(want, func(w string) bool { return isPrincipal(w, iss, sub) }) {
		return false
	}
	return !slices.ContainsFunc(rule.GetWhen(), func(c *security.Condition) bool { return !holds(c, header, claims) })
}

func TestTheModelComparesIssuersAsAWhole(t *testing.T) {
	rule := &security.Rule{From: []*security.Rule_From{{Source: &security.Source{
		Principals: []string{"cluster.local/ns/lambdamesh-system/sa/gateway"}, RequestPrincipals: []string{"https://a.example/x/*"},
	}}}}
	for issuer, want := range map[string]bool{
		"https://a.example/x": true, "https://a.example/x/y": false, "https://a.example/x/": false, "https://a.example": false, "": false,
	} {
		require.Equal(t, want, lets(rule, http.Header{}, jwt.MapClaims{"iss": issuer, "sub": "u"}), issuer)
		require.False(t, lets(rule, http.Header{}, jwt.MapClaims{"iss": issuer}), "%s without a subject", issuer)
	}
}

// isPrincipal reads issuer/subject, where the subject alone may have a pattern
// and the issuer is compared as a whole: istiod cuts it at the last slash into two
// matchers (requestPrincipalGenerator in pilot/pkg/security/authz/model), and what
// we write begins with an issuer.
func isPrincipal(want, iss, sub string) bool {
	i := strings.LastIndexByte(want, '/')
	return i >= 0 && want[:i] == iss && like(want[i+1:], sub)
}

func holds(c *security.Condition, header http.Header, claims jwt.MapClaims) bool {
	var have []string
	name := strings.TrimSuffix(c.GetKey()[strings.Index(c.GetKey(), "[")+1:], "]")
	switch {
	case strings.HasPrefix(c.GetKey(), "request.headers["):
		have = header.Values(name)
	case c.GetKey() == "request.auth.audiences":
		have = texts(claims["aud"], false)
	case strings.HasPrefix(c.GetKey(), "request.auth.claims["):
		have = texts(claims[name], slices.Contains(ir.ScopeClaims(), name))
	}
	return slices.ContainsFunc(have, func(h string) bool {
		return slices.ContainsFunc(c.GetValues(), func(w string) bool { return like(w, h) })
	})
}

// texts of a claim: one, an array of them, or a space-delimited list.
func texts(claim any, delimited bool) []string {
	switch v := claim.(type) {
	case string:
		if delimited {
			return strings.Fields(v)
		}
		return []string{v}
	case []any:
		var all []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				all = append(all, s)
			}
		}
		return all
	}
	return nil
}

// like compares as Istio's policies do: * anything, *x a suffix, x* a prefix.
func like(pattern, value string) bool {
	switch {
	case pattern == "*":
		return value != ""
	case strings.HasPrefix(pattern, "*"):
		return strings.HasSuffix(value, pattern[1:])
	case strings.HasSuffix(pattern, "*"):
		return strings.HasPrefix(value, pattern[:len(pattern)-1])
	default:
		return pattern == value
	}
}

type message struct {
	method, host, path, query string
	header                    http.Header
}

// values of a header, joined as Envoy joins them, or of a pseudo header.
func (r *message) value(name string) (string, bool) {
	if strings.EqualFold(name, ":path") {
		if r.query != "" {
			return r.path + "?" + r.query, true
		}
		return r.path, true
	}
	values := r.header.Values(name)
	return strings.Join(values, ","), len(values) > 0
}

func (r *message) matches(m *networking.HTTPMatchRequest) bool {
	if m.GetUri() != nil && !fits(m.GetUri(), r.path) || m.GetMethod() != nil && !fits(m.GetMethod(), r.method) {
		return false
	}
	// TranslateRouteMatch of istiod's pilot/pkg/networking/core/route/route.go: a
	// match without a type is present_match, others a string_match; those of
	// withoutHeaders are turned around, and newer versions then take a missing
	// header for an empty one. Envoy looks names up in lower case.
	for name, want := range m.GetHeaders() {
		if value, there := r.value(name); !there || want.GetMatchType() != nil && !fits(want, value) {
			return false
		}
	}
	for name, want := range m.GetWithoutHeaders() {
		if value, there := r.value(name); there && want.GetMatchType() == nil || want.GetMatchType() != nil && fits(want, value) {
			return false
		}
	}
	return true
}

func (r *message) rewrite(route *networking.HTTPRoute) {
	rewrite := route.GetRewrite()
	if rewrite.GetAuthority() != "" {
		r.host = rewrite.GetAuthority()
	}
	if regex := rewrite.GetUriRegexRewrite(); regex != nil {
		// RE2's \1 is Go's ${1}; a doubled backslash is one.
		text := strings.ReplaceAll(strings.ReplaceAll(regex.GetRewrite(), `$`, `$$`), `\\`, `\`)
		r.path = regexp.MustCompile(regex.GetMatch()).ReplaceAllString(r.path, text)
	}
	if rewrite.GetUri() == "" {
		return
	}
	switch uri := route.GetMatch()[0].GetUri().GetMatchType().(type) {
	case *networking.StringMatch_Prefix:
		r.path = rewrite.GetUri() + strings.TrimPrefix(r.path, uri.Prefix)
	case *networking.StringMatch_Exact:
		r.path = rewrite.GetUri()
	}
}

// compiled expressions by their text.
var compiled sync.Map

func fits(m *networking.StringMatch, value string) bool {
	switch p := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return p.Exact == value
	case *networking.StringMatch_Prefix:
		return strings.HasPrefix(value, p.Prefix)
	case *networking.StringMatch_Regex:
		re, known := compiled.Load(p.Regex)
		if !known {
			re, _ = compiled.LoadOrStore(p.Regex, regexp.MustCompile(`\A(?:`+p.Regex+`)\z`))
		}
		return re.(*regexp.Regexp).MatchString(value)
	}
	return false
}

func allows(c *networking.CorsPolicy, origin string) bool {
	return c != nil && origin != "" && slices.ContainsFunc(c.GetAllowOrigins(), func(m *networking.StringMatch) bool { return fits(m, origin) })
}

// edit removes, then sets, as Envoy does.
func edit(h http.Header, ops *networking.Headers_HeaderOperations) {
	values := map[string]string{}
	for name, value := range ops.GetSet() {
		if inner, command := strings.CutPrefix(value, "%REQ("); command {
			value = h.Get(strings.TrimSuffix(inner, ")%"))
		}
		values[name] = strings.ReplaceAll(value, "%%", "%")
	}
	for _, name := range ops.GetRemove() {
		h.Del(name)
	}
	for name, value := range values {
		h.Set(name, value)
	}
}
