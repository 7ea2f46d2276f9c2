package xds_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/filesource"
	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
)

// BenchmarkPipeline is a change's way through the pure stages: n APIRules of as
// many lambdas with a replica each.
func BenchmarkPipeline(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		s := rules(b, n)
		s.Settings.Local = true
		b.Run(fmt.Sprintf("translate/%d", n), func(b *testing.B) {
			for b.Loop() {
				translate.Translate(s)
			}
		})
		mesh, _ := translate.Translate(s)
		require.Len(b, mesh.Sidecars, n)
		b.Run(fmt.Sprintf("gateway/%d", n), func(b *testing.B) {
			for b.Loop() {
				_, err := xds.GatewayResources(&mesh, "lambdamesh-system", "gateway")
				require.NoError(b, err)
			}
		})
		b.Run(fmt.Sprintf("sidecars/%d", n), func(b *testing.B) {
			for b.Loop() {
				for i := range mesh.Sidecars {
					_, err := xds.SidecarResources(&mesh, mesh.Sidecars[i].Node)
					require.NoError(b, err)
				}
			}
		})
		b.Run(fmt.Sprintf("istio/%d", n), func(b *testing.B) {
			for b.Loop() {
				istio.Objects(&mesh)
			}
		})
	}
}

func rules(b *testing.B, n int) translate.Snapshot {
	b.Helper()
	var text strings.Builder
	for i := range n {
		text.WriteString(strings.ReplaceAll(`
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: l$, namespace: shop}
spec: {runtime: nodejs, source: {inline: {code: x}}}
---
apiVersion: v1
kind: Service
metadata: {name: l$, namespace: shop}
spec: {selector: {lambdamesh.dev/lambda: l$}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: l$-0, namespace: shop}
spec: {address: 127.0.0.1, ports: {http: 31000}, serviceAccount: l$, labels: {lambdamesh.dev/lambda: l$, lambdamesh.dev/replica: l$-0}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: l$-0, namespace: shop}
spec:
  workloadSelector: {labels: {lambdamesh.dev/replica: l$-0}}
  ingress: [{port: {number: 31000, name: http, protocol: HTTP}, bind: 127.0.0.1, defaultEndpoint: "unix:///s"}]
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: r$, namespace: shop}
spec:
  hosts: [h$]
  rules:
  - {path: "/orders/{*}", lambda: l$, noAuth: true}
  - {path: /*, lambda: l$, noAuth: true}
`, "$", fmt.Sprint(i)))
	}
	s, _, err := filesource.Read("rules", strings.NewReader(text.String()))
	require.NoError(b, err)
	return s
}
