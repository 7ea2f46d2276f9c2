package meshtest_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/reference"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func pick[T any](r *rand.Rand, all ...T) T { return all[r.IntN(len(all))] }

func one(r *rand.Rand, in int) bool { return r.IntN(in) == 0 }

// methods of requests, most of which rules name.
func methods() []string {
	return []string{"GET", "GET", "GET", "POST", "POST", "PUT", "PUT", "HEAD", "OPTIONS", "PURGE", "M-SEARCH", "get", "Post", "GeT", "pUT", "x-custom"}
}

// words are segments as they read: few, so that rules and requests meet, and
// full of what has several spellings.
func words() []string {
	return []string{"a", "b", "orders:cancel", "orders", "größe", "a b", "x|y", "@me", "v1.0", "a+b", "100%", "{id}", "é!$&'()*,=", "~_-", "\ufffd", "^`\"<>", "[1]"}
}

// randomPath is a path as it reads.
func randomPath(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(4) {
		b.WriteString("/" + pick(r, words()...))
	}
	if b.Len() == 0 || one(r, 5) {
		b.WriteString("/")
	}
	return b.String()
}

// write a segment as a rule may: what cannot stand there is escaped, and
// sometimes what could stand there, too.
func write(r *rand.Rand, word string) string {
	always, sometimes := " %{}*", ""
	if one(r, 3) {
		sometimes = ":@!$&'()+,=|^"
	}
	var b strings.Builder
	for i := range len(word) {
		c := word[i]
		if strings.IndexByte(always, c) >= 0 || sometimes != "" && (c >= 0x80 || strings.IndexByte(sometimes, c) >= 0) {
			b.WriteString(escape(r, c))
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func escape(r *rand.Rand, c byte) string {
	digits := pick(r, "0123456789ABCDEF", "0123456789abcdef", "0123456789AbCdEf")
	return string([]byte{'%', digits[c>>4], digits[c&15]})
}

func randomRulePath(r *rand.Rand) string {
	if one(r, 12) {
		return "/*"
	}
	var segments []string
	for range r.IntN(4) {
		if one(r, 5) {
			segments = append(segments, "{*}")
		} else {
			segments = append(segments, write(r, pick(r, words()...)))
		}
	}
	switch {
	case one(r, 3):
		segments = append(segments, "{**}")
	case len(segments) == 0 || one(r, 5):
		segments = append(segments, "")
	}
	return "/" + strings.Join(segments, "/")
}

// spell a path in one of the ways that backends may take for it; hostile
// spellings may also be some that they take for something else.
func spell(r *rand.Rand, path string, hostile bool) string {
	escapes := pick(r, 0, 2, 5)
	var b strings.Builder
	for i := range len(path) {
		c := path[i]
		switch {
		case c == '/':
			b.WriteString(pick(r, "/", "/", "/", "/", "/", "/", "//", "/./", "/%2e/", "/x/../", `/x\..\`, "/x/%2E./"))
		case c == '%' || c == ' ' || escapes > 0 && one(r, escapes):
			b.WriteString(escape(r, c))
		default:
			b.WriteByte(c)
		}
		if hostile && one(r, 60) {
			b.WriteString(pick(r, ";", ";x=1", "%3b", "%3B", "%2f", "%2F", "%5c", `\`, "%00", "%0a", "%7f", "%3f", "%3F", "%23", "#", "#x", "%c0%af",
				"%e0%80%af", "%ed%a0%80", "%f4%90%80%80", "%ff", "%C3", "%B6", "\xff", "\xc3", "ö", "%zz", "%", "%4", "%25", "%252f", "..", "/..", "/..;/",
				"/.", "?", "?x=1", "?\xff", "+", "%20", "%c3%b6"))
		}
	}
	if b.Len() == 0 || b.String()[0] != '/' {
		return "/" + b.String()
	}
	return b.String()
}

const issuer = "https://issuer.shop.example"

// randomRules are APIRules that admission takes and that resolve, each with a
// host of its own, some in conflict about others.
func randomRules(r *rand.Rand, n int) []*v1alpha1.APIRule {
	all := make([]*v1alpha1.APIRule, n)
	for i := range all {
		rule := &v1alpha1.APIRule{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("r%d", i), Generation: 1, CreationTimestamp: metav1.Unix(int64(r.IntN(5)), 0)},
			Spec:       v1alpha1.APIRuleSpec{Hosts: []string{fmt.Sprintf("h%d", i)}},
		}
		if one(r, 4) {
			rule.Spec.Hosts = append(rule.Spec.Hosts, pick(r, "*.wild.example", "a.wild.example", "b.a.wild.example", "*.a.wild.example", "other"))
		}
		for range 1 + r.IntN(5) {
			rule.Spec.Rules = append(rule.Spec.Rules, randomRule(r))
		}
		all[i] = rule
	}
	return all
}

func randomRule(r *rand.Rand) v1alpha1.Rule {
	out := v1alpha1.Rule{Path: randomRulePath(r), Lambda: pick(r, "orders", "open")}
	if one(r, 3) {
		out.Methods = pick(r, []v1alpha1.HTTPMethod{"GET"}, []v1alpha1.HTTPMethod{"POST"}, []v1alpha1.HTTPMethod{"GET", "PUT"})
	}
	for one(r, 4) {
		out.Headers = append(out.Headers, pick(r,
			v1alpha1.HeaderMatch{Name: "X-Key", Exact: new("secret")}, v1alpha1.HeaderMatch{Name: "x-key", Prefix: new("s")},
			v1alpha1.HeaderMatch{Name: "x-key", Regex: new("s.*|[0-9]+")}, v1alpha1.HeaderMatch{Name: "x-key", Present: new(true)},
			v1alpha1.HeaderMatch{Name: "x-key", Present: new(false)}, v1alpha1.HeaderMatch{Name: "x-other", Regex: new("(?i)a|b")},
			v1alpha1.HeaderMatch{Name: "x-other", Present: new(false)}))
	}
	if one(r, 6) {
		out.ClientIPs = pick(r, &v1alpha1.ClientIPs{Allow: []v1alpha1.CIDR{"127.0.0.0/8"}}, &v1alpha1.ClientIPs{Allow: []v1alpha1.CIDR{"192.0.2.0/24", "::1/128"}},
			&v1alpha1.ClientIPs{Deny: []v1alpha1.CIDR{"127.0.0.1/32"}}, &v1alpha1.ClientIPs{Allow: []v1alpha1.CIDR{"127.0.0.0/8"}, Deny: []v1alpha1.CIDR{"127.0.0.0/30", "2001:db8::/32"}})
	}
	if out.ClientIPs == nil && one(r, 12) {
		out.Lambda, out.NoAuth = "", new(true)
		out.Redirect = pick(r, &v1alpha1.Redirect{Path: "/elsewhere"}, &v1alpha1.Redirect{Host: "elsewhere.example", Code: 307})
		return out
	}
	if one(r, 2) {
		out.NoAuth = new(true)
		return out
	}
	out.JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{{Issuer: issuer, JWKSSecret: "issuer-keys"}}}
	if one(r, 3) {
		out.JWT.Authentications[0].Audiences = []string{"web", "mobile"}
	}
	if one(r, 2) {
		out.JWT.Authorizations = pick(r,
			[]v1alpha1.JWTAuthorization{{RequiredScopes: []string{"read"}, Audiences: []string{"shop"}}},
			[]v1alpha1.JWTAuthorization{{RequiredScopes: []string{"read", "write"}}, {Claims: []v1alpha1.ClaimMatch{{Name: "role", Values: []string{"admin", "owner"}}}}},
			[]v1alpha1.JWTAuthorization{{Audiences: []string{"web", "shop"}}})
	}
	return out
}

// bearer is a token, minted, and as the reference sees it.
type bearer struct {
	text string
	is   *reference.Token
}

func bearers(t testing.TB) []bearer {
	t.Helper()
	all := []bearer{{}, {"nonsense", &reference.Token{}}}
	for _, tok := range []meshtest.Token{
		{Issuer: issuer, Subject: "u"},
		{Issuer: issuer, Subject: "u", Audiences: []string{"web"}},
		{Issuer: issuer, Subject: "u", Audiences: []string{"shop", "web"}, Claims: map[string]any{"scope": "read write"}},
		{Issuer: issuer, Subject: "u", Audiences: []string{"shop"}, Claims: map[string]any{"scp": []string{"read"}}},
		{Issuer: issuer, Subject: "u", Claims: map[string]any{"scopes": "read", "role": "owner"}},
		{Issuer: issuer, Subject: "u", Claims: map[string]any{"role": []string{"guest", "admin"}}},
		{Issuer: issuer, Audiences: []string{"web", "shop"}, Claims: map[string]any{"scope": "read write", "role": "admin"}},
		{Issuer: "https://evil.example", Subject: "u", Audiences: []string{"web"}},
		{Issuer: issuer, Subject: "u", Expired: true},
		{Issuer: issuer, Subject: "u", Alg: "none"},
		{Issuer: issuer, Subject: "u", Key: "other"},
	} {
		claims := map[string]any{"iss": tok.Issuer, "sub": tok.Subject, "aud": tok.Audiences}
		for name, value := range tok.Claims {
			claims[name] = value
		}
		all = append(all, bearer{tok.Mint(t, now()), &reference.Token{
			Genuine: tok.Alg == "" && tok.Key == "" && !tok.Expired && tok.Issuer == issuer, Claims: claims,
		}})
	}
	return all
}

// randomHost is one that a rule has, mostly, in one of its spellings.
func randomHost(r *rand.Rand, n int) string {
	host := fmt.Sprintf("h%d.lambdas.localhost", r.IntN(n))
	if one(r, 10) {
		host = pick(r, "a.wild.example", "x.wild.example", "b.a.wild.example", "c.a.wild.example", "wild.example", "other.lambdas.localhost", "nobody.example")
	}
	return host
}

func spellHost(r *rand.Rand, host string) string {
	switch r.IntN(12) {
	case 0:
		return strings.ToUpper(host)
	case 1:
		return host + ":8080"
	case 2:
		return host + "."
	case 3:
		return host + ".:80"
	default:
		return host
	}
}

func randomHeader(r *rand.Rand) http.Header {
	h := http.Header{}
	if one(r, 2) {
		h.Set("X-Key", pick(r, "secret", "s", "public", "12", "1s"))
		if one(r, 6) {
			h.Add("X-Key", "second")
		}
	}
	if one(r, 6) { // which nobody is to believe
		h.Set("X-Forwarded-For", pick(r, "192.0.2.7", "127.0.0.1", "198.51.100.1, 192.0.2.7", "nonsense"))
	}
	if one(r, 4) {
		h.Set("X-Other", pick(r, "a", "B", "c"))
	}
	return h
}
