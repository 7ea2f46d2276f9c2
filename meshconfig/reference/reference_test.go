package reference_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/reference"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func rule(name string, age int64, hosts []string, paths ...string) *v1alpha1.APIRule {
	r := &v1alpha1.APIRule{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, CreationTimestamp: metav1.Unix(-age, 0)},
		Spec:       v1alpha1.APIRuleSpec{Hosts: hosts},
	}
	for _, path := range paths {
		r.Spec.Rules = append(r.Spec.Rules, v1alpha1.Rule{Path: path, Lambda: "l", NoAuth: new(true)})
	}
	return r
}

// What docs/rules.md says about paths, a line each.
func TestPaths(t *testing.T) {
	const refused = -400
	for path, requests := range map[string]map[string]int{
		"/orders:cancel": {
			"/orders:cancel": 0, "/orders%3Acancel": 0, "/orders%3acancel": 0, "//orders:cancel": 0, "/x/../orders:cancel": 0, `/x\..\orders:cancel`: 0,
			"/%2e/%6frders:cancel": 0, "/orders:cancel?x=;%zz": 0, "http://h.test/orders:cancel": 0, "/orders:cancel/": 1, "/Orders:cancel": 1,
			"/orders:cancel;x": refused, "/orders:cancel%3bx": refused, "/orders:cancel%00": refused, "/orders%2F:cancel": refused, "/%5corders:cancel": refused,
			"/orders:cancel%3f": refused, "/orders:cancel%23": refused, "/orders:cancel#x": refused, "/orders:cancel%0a": refused, "/%zz": refused, "/%": refused,
			"/%c0%af": refused, "/%ff": refused, "/\xff": refused, "/?\xff": refused, "orders:cancel": refused, "": refused,
		},
		"/größe":   {"/größe": 0, "/gr%C3%B6%C3%9Fe": 0, "/gr%c3%b6%c3%9Fe": 0, "/gr%C3ö": refused, "/grosse": 1},
		"/a%20b":   {"/a%20b": 0, "/a+b": 1},
		"/o/{*}":   {"/o/7": 0, "/o//7": 0, "/o/": 1, "/o": 1, "/o/7/8": 1, "/o/%7B": 0},
		"/a/{**}":  {"/a/": 0, "/a/b/c": 0, "/a": 1, "/a/..": 1, "/a/../a/": 0},
		"/":        {"/": 0, "//": 0, "/.": 0, "/a/..": 0, "/a": 1},
		"/{*}/{*}": {"/a/b": 0, "/a/": 1, "/a//b": 0},
	} {
		g := reference.Gateway{Domain: "test", Rules: []*v1alpha1.APIRule{rule("r", 0, []string{"h"}, path, "/*")}}
		for target, want := range requests {
			got := g.Answer(reference.Request{Method: "GET", Host: "h.test", Target: target})
			if want == refused {
				require.Equal(t, http.StatusBadRequest, got.Status, "%q", target)
				continue
			}
			require.Equal(t, http.StatusOK, got.Status, "%q", target)
			require.Equal(t, want, got.Rule.Index, "%q under %q", target, path)
		}
	}
	g := reference.Gateway{Domain: "test", Rules: []*v1alpha1.APIRule{rule("r", 0, []string{"h"}, "/a")}}
	got := g.Answer(reference.Request{Method: "GET", Host: "h.test", Target: "/;x/../a"})
	require.Equal(t, reference.Answer{Status: 200, Rule: &reference.Rule{Namespace: "shop", Name: "r"}, Backends: []string{"shop/l:80"}, MayRefuse: true}, got)
}

// What docs/rules.md says about methods.
func TestMethods(t *testing.T) {
	r := rule("r", 0, []string{"h"}, "/*", "/*")
	r.Spec.Rules[0].Methods = []v1alpha1.HTTPMethod{"GET", "PUT"}
	g := reference.Gateway{Domain: "test", Rules: []*v1alpha1.APIRule{r}}
	for method, want := range map[string]int{"GET": 0, "PUT": 0, "POST": 1, "PURGE": 1, "M-SEARCH": 1, "get": -1, "Get": -1, "GEt": -1, "pUT": -1, "post": -1, "x": -1} {
		got := g.Answer(reference.Request{Method: method, Host: "h.test", Target: "/"})
		if want < 0 {
			require.Equal(t, http.StatusBadRequest, got.Status, method)
			continue
		}
		require.Equal(t, http.StatusOK, got.Status, method)
		require.Equal(t, want, got.Rule.Index, method)
	}
	require.Equal(t, http.StatusNotFound, g.Answer(reference.Request{Method: "get", Host: "nobody.test", Target: "/"}).Status)
}

func TestHosts(t *testing.T) {
	g := reference.Gateway{Domain: "test", Rules: []*v1alpha1.APIRule{
		rule("young", 1, []string{"h", "*.wild.test", "own"}, "/*"),
		rule("old", 2, []string{"h", "x.wild.test"}, "/*"),
	}}
	for host, want := range map[string]string{
		"h.test": "old", "H.TEST": "old", "h.test.": "old", "h.test:8080": "old", "h.test.:80": "old", "own.test": "young", "x.wild.test": "old",
		"y.wild.test": "", "nobody.test": "", "h.test..": "",
	} {
		got := g.Answer(reference.Request{Method: "GET", Host: host, Target: "/"})
		if want == "" {
			require.Equal(t, http.StatusNotFound, got.Status, host)
			continue
		}
		require.Equal(t, want, got.Rule.Name, host)
	}
	for _, host := range []string{"", "h.test/a", "u@h.test"} {
		require.Equal(t, http.StatusBadRequest, g.Answer(reference.Request{Method: "GET", Host: host, Target: "/"}).Status, host)
	}
}

func TestTokens(t *testing.T) {
	r := rule("r", 0, []string{"h"}, "/")
	r.Spec.Rules[0].NoAuth = nil
	r.Spec.Rules[0].JWT = &v1alpha1.JWTAuth{
		Authentications: []v1alpha1.JWTAuthentication{{Issuer: "i", Audiences: []string{"web"}}},
		Authorizations: []v1alpha1.JWTAuthorization{
			{RequiredScopes: []string{"read", "write"}}, {Claims: []v1alpha1.ClaimMatch{{Name: "role", Values: []string{"admin"}}}},
		},
	}
	g := reference.Gateway{Domain: "test", Rules: []*v1alpha1.APIRule{r}}
	token := func(genuine bool, claims map[string]any) *reference.Token {
		all := map[string]any{"iss": "i", "sub": "u", "aud": []string{"web"}, "scope": "read write"}
		for name, value := range claims {
			all[name] = value
		}
		return &reference.Token{Genuine: genuine, Claims: all}
	}
	for name, c := range map[string]struct {
		token  *reference.Token
		status int
	}{
		"none":                    {nil, 401},
		"forged":                  {token(false, nil), 401},
		"another issuer":          {token(true, map[string]any{"iss": "j"}), 401},
		"good":                    {token(true, nil), 200},
		"no sub":                  {token(true, map[string]any{"sub": ""}), 403},
		"another audience":        {token(true, map[string]any{"aud": "api"}), 403},
		"a scope is missing":      {token(true, map[string]any{"scope": "read"}), 403},
		"scopes in two claims":    {token(true, map[string]any{"scope": "read", "scp": []string{"write"}}), 403},
		"the other authorization": {token(true, map[string]any{"scope": "", "role": []string{"x", "admin"}}), 200},
	} {
		require.Equal(t, c.status, g.Answer(reference.Request{Method: "GET", Host: "h.test", Target: "/", Token: c.token}).Status, name)
	}
}
