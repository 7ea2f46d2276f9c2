package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// catalogCode calls the application that its environment names.
const catalogCode = `package caller

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func Main(w http.ResponseWriter, r *http.Request) {
	base := os.Getenv("APPLICATION_THIRD_SHOP_URL")
	if base == "" {
		fmt.Fprint(w, "not bound")
		return
	}
	response, err := http.Get(base + "/orders" + r.URL.Path)
	if err != nil {
		fmt.Fprint(w, err)
		return
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	fmt.Fprintf(w, "%d %s", response.StatusCode, body)
}
`

func TestACatalogOfObjectsIsBoundCalledAndUnbound(t *testing.T) {
	m := shared(t)
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch r.URL.Path {
		case "/api/missing":
			w.WriteHeader(http.StatusInternalServerError)
		case "/api/4711":
			fmt.Fprint(w, "order for ", user, " ", password)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer shop.Close()
	m.apply(t, echo("catalog", "caller", catalogCode)+`
apiVersion: v1
kind: Secret
metadata: {name: third-shop, namespace: lambdamesh-system}
stringData: {username: ada, password: s3cret-of-the-catalog}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: third-shop}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationService
metadata: {name: third-shop.orders}
spec:
  application: third-shop
  name: orders
  api:
    targetUrl: `+shop.URL+`/api
    auth: {basic: {secret: {name: third-shop}}}
  events:
    asyncapi: |
      asyncapi: 2.0.0
      channels:
        order.created.v1: {subscribe: {message: {payload: {type: object}}}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: caller, namespace: catalog}
spec: {hosts: [catalog], rules: [{path: '/*', methods: [GET], lambda: caller, noAuth: true}]}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: orders, namespace: catalog}
spec: {source: third-shop, types: ["order.**"], sink: {lambda: caller}}
`)
	m.mustKubectl(t, "", "wait", "appsvc/third-shop.orders", "--for=condition=Ready", "--timeout=50s")
	m.waitFor(t, "catalog", "lambda/caller", "Ready")
	m.waitFor(t, "catalog", "apirule/caller", "Ready")
	m.mustKubectl(t, "", "wait", "-n", "catalog", "subscription/orders", "--for=condition=Subscribed=false", "--timeout=50s")
	call := func(path, want string) {
		t.Helper()
		eventually(t, demoTimeout, func() error {
			resp, err := m.get(t.Context(), "catalog.lambdas.localhost", path)
			if err != nil || resp.status != http.StatusOK || !strings.HasPrefix(resp.body, want) {
				return errorf("%d %s %v", resp.status, resp.body, err)
			}
			return nil
		})
	}
	call("/4711", "not bound")

	m.mustKubectl(t, `
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: third-shop, namespace: catalog}
spec: {application: third-shop, services: [orders], lambdas: {names: [caller]}}
`, "apply", "-f", "-")
	call("/4711", "200 order for ada s3cret-of-the-catalog")
	call("/missing", "502 ")
	m.waitFor(t, "catalog", "subscription/orders", "Subscribed")
	require.Contains(t, m.mustKubectl(t, "", "get", "evt", "-n", "lambdamesh-system", "--field-selector", "spec.source=third-shop"), "order.created.v1")
	require.Contains(t, m.mustKubectl(t, "", "get", "appsvc", "--field-selector", "spec.application=third-shop"), shop.URL)
	eventually(t, demoTimeout, func() error {
		out, code := m.cli(t, "status", "-A")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "third-shop") && strings.Contains(line, "services 1, event types 1, calls ") &&
				strings.Contains(line, "orders: the target answered 500") && code == 0 {
				return nil
			}
		}
		return errorf("status does not tell of the calls: %s", out)
	})

	m.mustKubectl(t, "", "delete", "applicationbinding", "third-shop", "-n", "catalog")
	m.mustKubectl(t, "", "wait", "-n", "catalog", "subscription/orders", "--for=condition=Subscribed=false", "--timeout=50s")
	require.Contains(t, m.mustKubectl(t, "", "get", "-n", "catalog", "subscription/orders", "-o", "yaml"), "NotPermitted")
	call("/4711", "not bound")
	m.mustKubectl(t, "", "delete", "appsvc", "third-shop.orders")
	eventually(t, demoTimeout, func() error {
		if out := m.mustKubectl(t, "", "get", "evt", "-n", "lambdamesh-system", "--field-selector", "spec.source=third-shop"); strings.Contains(out, "order.created") {
			return errorf("its event types are still there: %s", out)
		}
		return nil
	})
	require.NotContains(t, m.output.String(), "s3cret-of-the-catalog")
}
