package e2e

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// kinds are valid objects, one of each kind.
var kinds = []struct{ plural, short, name, yaml string }{ //nolint:gochecknoglobals // a table
	{"lambdas", "lam", "k", "kind: Lambda\nmetadata: {name: k, namespace: kinds}\nspec: {runtime: nodejs, source: {inline: {code: 'export const main = () => 1'}}}"},
	{"apirules", "apir", "k", "kind: APIRule\nmetadata: {name: k, namespace: kinds}\nspec: {hosts: [k-kinds], rules: [{path: '/*', lambda: k, noAuth: true}]}"},
	{"subscriptions", "sub", "k", "kind: Subscription\nmetadata: {name: k, namespace: kinds}\nspec: {source: '*', types: ['**'], sink: {lambda: k}}"},
	{"eventgrants", "evg", "k", "kind: EventGrant\nmetadata: {name: k, namespace: kinds}\nspec: {namespaces: [other]}"},
	{"applications", "app", "kinds-app", "kind: Application\nmetadata: {name: kinds-app}\nspec: {displayName: Kinds}"},
	{"applicationservices", "appsvc", "kinds-app.k", "kind: ApplicationService\nmetadata: {name: kinds-app.k}\nspec: {application: kinds-app, name: k, events: {}}"},
	{"eventtypes", "evt", "k", "kind: EventType\nmetadata: {name: k, namespace: kinds}\nspec: {source: kinds-app, type: order.created.v1, schema: {type: object}}"},
	{"applicationbindings", "apb", "k", "kind: ApplicationBinding\nmetadata: {name: k, namespace: kinds}\nspec: {application: kinds-app}"},
	{"tokenrequests", "tkr", "k", "kind: TokenRequest\nmetadata: {name: k, namespace: kinds}\nspec: {application: kinds-app}"},
}

func TestKubectlOnEveryKind(t *testing.T) {
	m := shared(t)
	m.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: kinds}\n")
	for _, k := range kinds {
		t.Run(k.plural, func(t *testing.T) {
			yaml := "apiVersion: lambdamesh.dev/v1alpha1\n" + k.yaml
			m.mustKubectl(t, yaml, "apply", "-f", "-")
			require.Contains(t, m.mustKubectl(t, "", "get", "-n", "kinds", k.short), k.name, "by its short name")
			wide := m.mustKubectl(t, "", "get", "-n", "kinds", k.plural, "-o", "wide")
			require.Contains(t, strings.SplitN(wide, "\n", 2)[0], "READY")
			require.Contains(t, m.mustKubectl(t, "", "describe", "-n", "kinds", k.plural, k.name), k.name)
			explained := m.mustKubectl(t, "", "explain", k.plural+".spec")
			require.NotContains(t, explained, "<empty>", "the spec is documented")
			m.mustKubectl(t, yaml, "apply", "--server-side", "--force-conflicts", "-f", "-")
			m.mustKubectl(t, "", "delete", "-n", "kinds", k.plural, k.name, "--timeout=30s")
		})
	}
}

func TestInvalidObjectsAreRefusedWithWhatToWrite(t *testing.T) {
	m := shared(t)
	rule := func(rule string) string {
		return "kind: APIRule\nmetadata: {name: bad, namespace: default}\nspec: {hosts: [bad], rules: [" + rule + "]}"
	}
	lambda := func(spec string) string {
		return "kind: Lambda\nmetadata: {name: bad, namespace: default}\nspec: " + spec
	}
	tests := map[string]struct{ yaml, want string }{
		"a rule without an access strategy": {rule("{path: /, lambda: x}"), "exactly one of noAuth: true, jwt, extAuth"},
		"a rule with two":                   {rule("{path: /, lambda: x, noAuth: true, extAuth: {provider: p}}"), "exactly one of noAuth"},
		"noAuth: false":                     {rule("{path: /, lambda: x, noAuth: false}"), "use jwt or extAuth"},
		"a rule without a backend":          {rule("{path: /, noAuth: true}"), "exactly one of lambda, service, backends"},
		"a path that is not canonical":      {rule("{path: /a/../b, lambda: x, noAuth: true}"), "written canonically"},
		"a star inside a segment":           {rule("{path: '/a*b', lambda: x, noAuth: true}"), "{*} for one"},
		"{**} in the middle":                {rule("{path: '/{**}/b', lambda: x, noAuth: true}"), "only at the end"},
		"a host with a scheme":              {"kind: APIRule\nmetadata: {name: bad, namespace: default}\nspec: {hosts: ['https://x'], rules: [{path: /, lambda: x, noAuth: true}]}", "without scheme, port or path"},
		"a gateway without a namespace":     {"kind: APIRule\nmetadata: {name: bad, namespace: default}\nspec: {gateway: gw, hosts: [x], rules: [{path: /, lambda: x, noAuth: true}]}", "namespace/name"},
		"two sources of keys":               {rule("{path: /, lambda: x, jwt: {authentications: [{issuer: i, jwksUri: 'https://a/b', jwksSecret: s}]}}"), "exactly one of jwksUri"},
		"a jwksUri that is a file":          {rule("{path: /, lambda: x, jwt: {authentications: [{issuer: i, jwksUri: 'file:///etc/passwd'}]}}"), "http(s) URL"},
		"a timeout of a day":                {rule("{path: /, lambda: x, noAuth: true, timeout: 24h}"), "between 1s and 3900s"},
		"an unknown runtime":                {lambda("{runtime: cobol, source: {inline: {code: x}}}"), "Unsupported value"},
		"no source":                         {lambda("{runtime: go, source: {}}"), "exactly one of inline, git, image"},
		"an image with a language":          {lambda("{runtime: go, source: {image: x}}"), "runtime: container"},
		"min above max":                     {lambda("{runtime: go, source: {inline: {code: x}}, scale: {min: 3, max: 2}}"), "scale.min"},
		"a type with a wildcard inside":     {"kind: Subscription\nmetadata: {name: bad, namespace: default}\nspec: {source: x, types: ['a.**.b'], sink: {lambda: x}}", "dot-separated tokens"},
		"a sink that is two":                {"kind: Subscription\nmetadata: {name: bad, namespace: default}\nspec: {source: x, types: [a], sink: {lambda: x, uri: 'https://x'}}", "exactly one of lambda, service, uri"},
		"an application with a bus path":    {"kind: Application\nmetadata: {name: publish}", "choose another name"},
		"a targetUrl with a password":       {"kind: Application\nmetadata: {name: bad}\nspec: {services: [{name: a, api: {targetUrl: 'https://u:p@x/'}}]}", "without user information"},
		"a publisher without a namespace":   {"kind: Application\nmetadata: {name: bad}\nspec: {publishers: [{lambda: x}]}", "names its namespace"},
		"an access entry that is two":       {lambda("{runtime: go, source: {inline: {code: x}}, access: [{lambda: a, serviceAccount: b}]}"), "either a lambda or a serviceAccount"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, err := m.kubectl(t, "apiVersion: lambdamesh.dev/v1alpha1\n"+tt.yaml, "apply", "--dry-run=server", "-f", "-")
			require.Error(t, err, out)
			require.Contains(t, out, tt.want)
		})
	}
}
