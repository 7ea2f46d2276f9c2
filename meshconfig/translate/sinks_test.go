package translate_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
)

// A URI into the namespace is what the event bus calls, as it is with service.
func TestTheEventBusReachesWhatItsSinksName(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {selector: {lambdamesh.dev/lambda: a}, ports: [{name: http, port: 80}]}"
	for sink, reached := range map[string]bool{
		`{lambda: a}`:                        true,
		`{service: {name: a}}`:               true,
		`{uri: "http://a.shop.svc/hook"}`:    true,
		`{uri: "http://a.shop/hook?x=1"}`:    true,
		`{uri: "https://a.shop.svc/hook"}`:   false,
		`{uri: "http://a.bank.svc/hook"}`:    false,
		`{uri: "http://no.shop.svc/hook"}`:   false,
		`{service: {name: a, namespace: b}}`: false,
	} {
		for _, spec := range []string{
			"{source: x, types: [t], sink: " + sink + "}",
			"{source: x, types: [t], sink: {uri: 'https://example.com'}, delivery: {deadLetter: {sink: " + sink + "}}}",
		} {
			mesh, _ := translate.Translate(snapshot(t, lambdaA, service,
				"apiVersion: lambdamesh.dev/v1alpha1\nkind: Subscription\nmetadata: {name: s, namespace: shop}\nspec: "+spec))
			i := slices.IndexFunc(mesh.Workloads, func(w *ir.Workload) bool { return w.Key() == "shop/a" })
			require.GreaterOrEqual(t, i, 0)
			require.Equal(t, reached, slices.ContainsFunc(mesh.Workloads[i].Allow, func(a ir.Allow) bool { return a.Reason == ir.AllowEventBus }), spec)
		}
	}
}
