package filesource_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/filesource"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
)

const rule = `
# a comment
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: r}
spec:
  hosts: [r]
  rules:
  - path: /*
    lambda: a
    jwt: {authentications: [{issuer: i, jwksUri: "https://i.example/keys"}]}
`

const lambda = `
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: a}
spec: {runtime: nodejs, source: {inline: {code: x}}}
`

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestLoadFindsObjectsInFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "deep/er/rule.yaml", rule+"---\n# nothing here\n---\n")
	write(t, dir, "lambda.yml", lambda)
	write(t, dir, "notes.txt", "not: [yaml")
	write(t, dir, "other.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec: {whatever: true}\n")
	single := write(t, t.TempDir(), "secret.txt", "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {jwks.json: '{}'}\n")

	s, notes, err := filesource.Load(dir, single)
	require.NoError(t, err)
	require.Len(t, s.APIRules, 1)
	require.Len(t, s.Lambdas, 1)
	require.Equal(t, "default", s.Lambdas[0].Namespace)
	require.Equal(t, "{}", string(s.Secrets[0].Data["jwks.json"]))
	require.Len(t, notes, 2)
	require.Contains(t, notes[0], "lambdas.localhost", "the assumed Gateway is said")
	require.Contains(t, notes[1], "https://i.example/keys", "keys that are not fetched are said")

	mesh, problems := translate.Translate(s)
	require.Equal(t, []string{"r.lambdas.localhost"}, mesh.Gateways[0].VirtualHosts[0].Hosts)
	require.Len(t, problems, 1, "the keys are missing, nothing else is wrong: %v", problems)
}

func TestAGatewayInTheFilesIsTaken(t *testing.T) {
	s, notes, err := filesource.Read("stdin", strings.NewReader(lambda+"---"+strings.Replace(rule, "jwt: {authentications: [{issuer: i, jwksUri: \"https://i.example/keys\"}]}", "noAuth: true", 1)+`
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: gateway, namespace: lambdamesh-system, annotations: {lambdamesh.dev/domain: example.com}}
spec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]}
`))
	require.NoError(t, err)
	require.Empty(t, notes)
	require.Len(t, s.Gateways, 1)
}

func TestErrorsNameTheFileAndTheField(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a misspelled field":   {strings.Replace(rule, "path:", "paht:", 1), `bad.yaml: document 1: strict decoding error: unknown field "spec.rules[0].paht"`},
		"no YAML":              {"a: [b", "bad.yaml: document 1"},
		"no kind":              {"metadata: {name: x}", "bad.yaml: document 1"},
		"an object twice":      {lambda + "---" + lambda, "Lambda default/a is in"},
		"an object of no name": {strings.Replace(lambda, "name: a", "labels: {}", 1), "Lambda has no metadata.name"},
		"a list":               {"apiVersion: v1\nkind: SecretList\nitems: []\n", "write the objects of a list one by one"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := filesource.Load(write(t, t.TempDir(), "bad.yaml", c.text))
			require.ErrorContains(t, err, c.want)
		})
	}
	_, _, err := filesource.Load(filepath.Join(t.TempDir(), "missing.yaml"))
	require.ErrorContains(t, err, "missing.yaml")
}
