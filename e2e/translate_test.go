package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// translate runs `lambdamesh translate` and returns the documents it printed.
func translate(t *testing.T, path, output string) (documents []map[string]any, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary(t, "lambdamesh"), "translate", "-f", path, "-o", output)
	cmd.Dir = ".."
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	for document := range strings.SplitSeq("\n"+string(out), "\n---\n") {
		var object map[string]any
		require.NoError(t, yaml.Unmarshal([]byte(document), &object))
		if object != nil {
			documents = append(documents, object)
		}
	}
	return documents, problems.String(), cmd.ProcessState.ExitCode()
}

// field is what lies at a dotted path, in every element of the lists on the way.
func field(value any, path string) (found []string) {
	if list, ok := value.([]any); ok {
		for _, element := range list {
			found = append(found, field(element, path)...)
		}
		return found
	}
	if path == "" {
		return []string{fmt.Sprint(value)}
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil
	}
	name, rest, _ := strings.Cut(path, ".")
	if object[name] == nil {
		return nil
	}
	return field(object[name], rest)
}

func TestTranslateShowsEveryStageOffline(t *testing.T) {
	const host = "last-order.lambdas.localhost"
	t.Run("ir", func(t *testing.T) {
		documents, problems, code := translate(t, "examples/commerce", "ir")
		require.Zero(t, code, problems)
		require.Len(t, documents, 1)
		require.ElementsMatch(t, []string{"commerce-system", "audit", "last-order", "loyalty"}, field(documents[0]["destinations"], "name"))
		hosts := documents[0]["gateways"]
		require.ElementsMatch(t, []string{host, "audit.lambdas.localhost", "commerce.lambdas.localhost"}, field(hosts, "virtualHosts.hosts"))
		require.ElementsMatch(t, []string{"/checkout", "/", "/", "/orders/{*}"}, field(hosts, "virtualHosts.rules.path.value"))
	})
	t.Run("istio", func(t *testing.T) {
		documents, problems, code := translate(t, "examples/commerce", "istio")
		require.Zero(t, code, problems)
		objects := map[string]map[string]any{}
		for _, object := range documents {
			objects[field(object, "kind")[0]+" "+field(object, "metadata.namespace")[0]+"/"+field(object, "metadata.name")[0]] = object
		}
		rule := objects["VirtualService shop/apirule-last-order"]
		require.Equal(t, []string{host}, field(rule, "spec.hosts"))
		require.Contains(t, field(rule, "spec.http.route.destination.host"), "last-order.shop.svc.cluster.local")
		for name, callers := range map[string][]string{
			"last-order":      {"cluster.local/ns/lambdamesh-system/sa/eventbus", "cluster.local/ns/lambdamesh-system/sa/gateway"},
			"loyalty":         {"cluster.local/ns/lambdamesh-system/sa/eventbus"},
			"commerce-system": {"cluster.local/ns/lambdamesh-system/sa/connector", "cluster.local/ns/lambdamesh-system/sa/gateway"},
		} {
			namespace := "shop"
			if name == "commerce-system" {
				namespace = "commerce"
			}
			policy := objects["AuthorizationPolicy "+namespace+"/lambda-"+name]
			require.Subset(t, callers, field(policy, "spec.rules.from.source.principals"), name)
			require.Subset(t, field(policy, "spec.rules.from.source.principals"), callers, name)
			require.Equal(t, []string{"STRICT"}, field(objects["PeerAuthentication "+namespace+"/lambda-"+name], "spec.mtls.mode"))
		}
		require.Equal(t, []string{"https://issuer.lambdas.localhost"}, field(objects["RequestAuthentication shop/lambda-last-order"], "spec.jwtRules.issuer"))
	})
	t.Run("envoy", func(t *testing.T) {
		documents, problems, code := translate(t, "examples/commerce", "envoy")
		require.Zero(t, code, problems)
		gateway := documents[0]
		require.Contains(t, field(gateway, "routes.virtualHosts.domains"), host)
		require.Contains(t, field(gateway, "routes.virtualHosts.routes.route.cluster"), "outbound|80||last-order.shop.svc.cluster.local")
		require.Contains(t, field(gateway, "clusters.name"), "outbound|80||last-order.shop.svc.cluster.local")
		require.Contains(t, field(gateway, "clusters.transportSocket.typedConfig.commonTlsContext.combinedValidationContext.defaultValidationContext.matchTypedSubjectAltNames.matcher.exact"),
			"spiffe://cluster.local/ns/shop/sa/last-order")
		require.Len(t, field(gateway, "listeners.name"), 1)
	})
	t.Run("what cannot be translated is named, and the command fails", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "rule.yaml")
		require.NoError(t, os.WriteFile(file, []byte(`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: broken, namespace: shop}
spec: {hosts: [broken], rules: [{path: /, lambda: nowhere, noAuth: true}]}
`), 0o600))
		documents, problems, code := translate(t, file, "envoy")
		require.Equal(t, 1, code, problems)
		require.Contains(t, problems, "nowhere")
		require.Contains(t, field(documents[0], "routes.virtualHosts.routes.directResponse.status"), "503", "it is closed")
	})
}
