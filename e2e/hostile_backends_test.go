package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Who writes Services says where the gateway's requests go, and the gateway
// reaches what nobody outside may: what listens on its own machine first. The
// common mesh allows 127.0.0.1 as a target, so that only what is never allowed
// stands between a stranger and the port; the second mesh allows nothing.
func TestHostileBackends(t *testing.T) {
	backend := func(address, port string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE}
---
apiVersion: v1
kind: Service
metadata: {name: way-in, namespace: NAMESPACE}
spec: {selector: {app: way-in}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: way-in, namespace: NAMESPACE, labels: {app: way-in}}
spec: {address: %q, ports: {http: %s}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: way-in, namespace: NAMESPACE}
spec:
  hosts: [HOST]
  rules: [{path: "/{**}", service: {name: way-in}, noAuth: true, rewrite: {host: localhost}}]
`, address, port)
	}
	const externalName = `
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: NAMESPACE}
spec: {type: ExternalName, externalName: localhost, ports: [{name: http, port: 15000}]}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: way-in, namespace: NAMESPACE}
spec:
  hosts: [HOST]
  rules: [{path: "/{**}", service: {name: elsewhere, port: 15000}, noAuth: true}]
`
	portOf := func(t *testing.T, url string) string {
		t.Helper()
		_, port, err := net.SplitHostPort(address(t, url))
		require.NoError(t, err)
		return port
	}
	cases := 0
	closed := func(t *testing.T, m *mesh, objects, why string) {
		t.Helper()
		cases++ // a namespace of its own, for the last one's takes its time to end
		namespace, host := fmt.Sprint("backends-", cases), fmt.Sprint("host-", cases)
		m.apply(t, strings.NewReplacer("NAMESPACE", namespace, "HOST", host).Replace(objects))
		require.Regexp(t, why, m.requireRefused(t, namespace, "apirule/way-in", "ResolvedRefs"))
		eventually(t, startTimeout, func() error {
			r, err := m.get(t.Context(), host+".lambdas.localhost", "/metrics")
			if err == nil && r.status != http.StatusServiceUnavailable {
				err = errorf("%d %.200s", r.status, r.body)
			}
			return err
		})
	}
	common := shared(t)
	t.Run("the admin port", func(t *testing.T) {
		closed(t, common, backend("127.0.0.1", portOf(t, common.EventBusAdmin)), `TargetRefused: .*WorkloadEntry way-in.*this installation denies it`)
	})
	t.Run("the admin port by an IPv4-mapped address", func(t *testing.T) {
		closed(t, common, backend("::ffff:127.0.0.1", portOf(t, common.EventBusAdmin)), `TargetRefused: `)
	})
	t.Run("the API server", func(t *testing.T) {
		closed(t, common, backend("127.0.0.1", portOf(t, common.Kubernetes)), `TargetRefused: .*this installation denies it`)
	})
	t.Run("a metadata service", func(t *testing.T) {
		closed(t, common, backend("169.254.169.254", "80"), `TargetRefused: .*never called`)
	})
	t.Run("an ExternalName", func(t *testing.T) {
		closed(t, common, externalName, `TargetRefused: .*ExternalName`)
	})
	t.Run("an allowed target", func(t *testing.T) {
		common.apply(t, plainBackend(t, "neighbor", "stall"))
		common.apply(t, openRule("neighbor", "stall", "stall", "stall"))
		common.requireBody(t, "stall", "stall")
	})

	strict := start(t, t.TempDir())
	t.Run("the event bus, with nothing allowed", func(t *testing.T) {
		closed(t, strict, backend("127.0.0.1", portOf(t, strict.EventBus)), `TargetRefused: .*loopback.*--allow-target 127\.0\.0\.1:`)
	})
	t.Run("a port of this machine, with nothing allowed", func(t *testing.T) {
		closed(t, strict, backend("127.0.0.1", portOf(t, "http://"+listen(t).Addr().String())), `TargetRefused: .*loopback.*--allow-target 127\.0\.0\.1:`)
	})
}
