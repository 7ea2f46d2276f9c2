package cluster

import (
	"fmt"
	"strings"
)

// probe is a pod of testdata/probe as the restricted pod security standard wants
// it. With a sidecar its application listens where the sidecar looks for it.
func (c *cluster) probe(namespace, name string, sidecar bool, more string) string {
	labels, env := "app: "+name, ""
	switch {
	case sidecar && c.mesh == "istio": // hack/istio/sidecar.yaml says where it listens
		labels += `, sidecar.istio.io/inject: "true"`
	case sidecar:
		labels += `, lambdamesh.dev/sidecar: "true"`
		env = `
      env: [{name: LAMBDAMESH_LISTEN, value: "unix:/var/run/lambdamesh/app/app.sock"}]`
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: %[2]s, namespace: %[1]s}
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {%[3]s}}
spec:
  serviceAccountName: %[2]s
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
%[5]s  containers:
    - name: probe
      image: %[6]s%[4]s
      readinessProbe: {httpGet: {path: /healthz, port: 8081}, periodSeconds: 1}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
`, namespace, name, labels, env, more, c.images+c.probeImage)
}

// namespaces admits only what the restricted pod security standard allows.
func namespaces(names ...string) string {
	var b strings.Builder
	for _, name := range names {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {pod-security.kubernetes.io/enforce: restricted}}\n", name)
	}
	return b.String()
}

// members is namespaces for pods with a sidecar that are no lambda's. Of lambdas and
// our own parts the control plane sees to it under Istio; our proxy, which stands for
// Envoy there, has no port that takes plain text and TLS alike, as Istio's default is
// for everybody else.
func (c *cluster) members(names ...string) string {
	out := namespaces(names...)
	if c.mesh == "istio" {
		for _, name := range names {
			out += fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: %s}\nspec: {mtls: {mode: STRICT}}\n", name)
		}
	}
	return out
}

// lambda is one with inline source.
func lambda(namespace, name, runtime, code, more string) string {
	return fmt.Sprintf(`---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  runtime: %[3]s
%[5]s  source:
    inline:
      code: |
        %[4]s
`, namespace, name, runtime, strings.ReplaceAll(strings.TrimSpace(code), "\n", "\n        "), more)
}

// open is an APIRule that lets everybody in.
func open(namespace, name string) string {
	return fmt.Sprintf(`---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: %[2]s, namespace: %[1]s}
spec:
  hosts: [%[2]s]
  rules: [{path: "/*", lambda: %[2]s, noAuth: true}]
`, namespace, name)
}
