package e2e

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	commerceHost  = "commerce.lambdas.localhost"
	lastOrderHost = "last-order.lambdas.localhost"
	auditHost     = "audit.lambdas.localhost"

	demoTimeout = time.Minute
)

type order struct {
	Code, Customer, Currency string
	Total                    float64
}

// needs skips a test whose lambdas are written in a language that is not here.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: %s is not installed, so lambdas in it do not run", program)
		}
	}
}

// checkout buys something at the gateway.
func checkout(t *testing.T, m *mesh, body string) order {
	t.Helper()
	resp, err := m.request(t.Context(), http.MethodPost, commerceHost, "/checkout", body, "Content-Type", "application/json")
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, resp.status, resp.body)
	var bought order
	require.NoError(t, json.Unmarshal([]byte(resp.body), &bought))
	require.NotEmpty(t, bought.Code)
	return bought
}

// awaitLastOrder waits until everybody sees an order as the last one.
func awaitLastOrder(t *testing.T, m *mesh, code string) order {
	t.Helper()
	var last order
	eventually(t, demoTimeout, func() error {
		resp, err := m.get(t.Context(), lastOrderHost, "/")
		if err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(resp.body), &last); err != nil || last.Code != code {
			return errorf("last-order shows %d %s instead of %s", resp.status, resp.body, code)
		}
		return nil
	})
	return last
}

// demoToken mints a token with the scopes, as the README shows, and returns the
// header that carries it.
func demoToken(t *testing.T, m *mesh, scopes ...string) []string {
	t.Helper()
	args := []string{
		"token", "--key", "examples/commerce/keys/demo.jwk", "--issuer", "https://issuer.lambdas.localhost",
		"--audience", "shop", "--subject", "alice",
	}
	for _, scope := range scopes {
		args = append(args, "--scope", scope)
	}
	token, code := m.cli(t, args...)
	require.Zero(t, code, token)
	return []string{"Authorization", "Bearer " + strings.TrimSpace(token)}
}

type audited struct {
	Source, Type, ID string
	Data             struct{ OrderCode, Customer string }
}

// awaitAudit waits until the audit lists an event of the type and order.
func awaitAudit(t *testing.T, m *mesh, eventType, orderCode string) audited {
	t.Helper()
	reader := demoToken(t, m, "events:read")
	var found audited
	eventually(t, demoTimeout, func() error {
		resp, err := m.get(t.Context(), auditHost, "/", reader...)
		if err != nil {
			return err
		}
		var events []audited
		if err := json.Unmarshal([]byte(resp.body), &events); err != nil {
			return errorf("the audit answers %d %s", resp.status, resp.body)
		}
		for _, event := range events {
			if event.Type == eventType && event.Data.OrderCode == orderCode {
				found = event
				return nil
			}
		}
		return errorf("the audit has no %s of %s: %s", eventType, orderCode, resp.body)
	})
	return found
}

// TestDemo is the walk of examples/commerce/README.md.
func TestDemo(t *testing.T) {
	m := shared(t)
	for namespace, names := range map[string][]string{"commerce": {"commerce-system"}, "shop": {"last-order"}} {
		for _, name := range names {
			m.waitFor(t, namespace, "lambda/"+name, "Ready")
		}
	}
	m.waitFor(t, "shop", "subscription/last-order", "Ready")
	m.mustKubectl(t, "", "wait", "application/commerce", "--for=condition=Ready", "--timeout=50s")

	t.Run("what is bought is the last order", func(t *testing.T) {
		bought := checkout(t, m, `{"customer":"ada","total":42.5}`)
		require.Equal(t, order{Code: bought.Code, Customer: "ada", Total: 42.5, Currency: "EUR"}, bought)
		require.Equal(t, bought, awaitLastOrder(t, m, bought.Code), "it comes from the commerce system's API, not from the event")
	})

	t.Run("an order by its code needs a token with the scope", func(t *testing.T) {
		bought := checkout(t, m, `{"customer":"grace","total":10}`)
		awaitLastOrder(t, m, bought.Code)
		for name, tc := range map[string]struct {
			header []string
			want   int
		}{
			"no token":          {nil, http.StatusUnauthorized},
			"not a token":       {[]string{"Authorization", "Bearer guessed"}, http.StatusUnauthorized},
			"the scope":         {demoToken(t, m, "orders:read"), http.StatusOK},
			"one more scope":    {demoToken(t, m, "carts:read", "orders:read"), http.StatusOK},
			"another scope":     {demoToken(t, m, "orders:write"), http.StatusForbidden},
			"no scope":          {demoToken(t, m), http.StatusForbidden},
			"a longer scope":    {demoToken(t, m, "orders:read:all"), http.StatusForbidden},
			"the audit's scope": {demoToken(t, m, "events:read"), http.StatusForbidden},
		} {
			resp, err := m.get(t.Context(), lastOrderHost, "/orders/"+bought.Code, tc.header...)
			require.NoError(t, err)
			require.Equal(t, tc.want, resp.status, "%s: %s", name, resp.body)
			if tc.want == http.StatusOK {
				require.Contains(t, resp.body, bought.Code)
			} else {
				require.NotContains(t, resp.body, `"customer"`)
			}
		}
	})

	t.Run("loyalty grants a promotion from the threshold on", func(t *testing.T) {
		needs(t, "node")
		m.waitFor(t, "shop", "subscription/loyalty", "Ready")
		r := newReceiver(t, nil)
		m.apply(t, `
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: demo-promotions, namespace: shop}
spec:
  source: /shop/loyalty
  types: [promotion.granted.v1]
  sink: {uri: "`+r.url+`/"}
`)
		m.waitFor(t, "shop", "subscription/demo-promotions", "Subscribed")
		checkout(t, m, `{"customer":"edsger","total":99.99}`)
		large := checkout(t, m, `{"customer":"barbara","total":100}`)
		promotion := r.next(t)
		require.Equal(t, []string{"/shop/loyalty", "promotion.granted.v1", large.Code, "barbara"},
			[]string{promotion.Source(), promotion.Type(), promotion.ID(), promotion.Subject()}, "the smaller order grants nothing")
	})

	t.Run("the audit lists what happened", func(t *testing.T) {
		needs(t, "python3")
		m.waitFor(t, "shop", "subscription/audit", "Ready")
		bought := checkout(t, m, `{"customer":"ada","total":120}`)
		created := awaitAudit(t, m, "order.created.v1", bought.Code)
		require.Equal(t, []string{"commerce", bought.Code}, []string{created.Source, created.ID})
		needs(t, "node")
		granted := awaitAudit(t, m, "promotion.granted.v1", bought.Code)
		require.Equal(t, []string{"/shop/loyalty", "ada"}, []string{granted.Source, granted.Data.Customer})
		resp, err := m.get(t.Context(), auditHost, "/")
		require.NoError(t, err)
		require.Equal(t, http.StatusUnauthorized, resp.status)
	})

	t.Run("an event published by hand has an order behind it", func(t *testing.T) {
		out, code := m.cli(t, "publish", "--source", "commerce", "--type", "order.created.v1", "--data", `{"orderCode":"4711"}`)
		require.Zero(t, code, out)
		require.Equal(t, order{Code: "4711", Customer: "edsger", Total: 111, Currency: "EUR"}, awaitLastOrder(t, m, "4711"))
	})

	t.Run("an event in the older format has one too", func(t *testing.T) {
		const code = "4caad296-e0c5-491e-98ac-0ed118f9474e"
		resp := post(t, m.EventBus+"/v1/events", "application/json", `{"source-id":"commerce","event-type":"order.created","event-type-version":"v1",`+
			`"event-time":"2018-11-02T22:08:41+00:00","data":{"orderCode":"`+code+`"}}`)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		require.Contains(t, resp.body, `"event-id"`)
		require.Equal(t, order{Code: code, Customer: "ada", Total: 243, Currency: "EUR"}, awaitLastOrder(t, m, code))
	})

	t.Run("status and logs show the demo", func(t *testing.T) {
		out, code := m.cli(t, "status", "-n", "shop")
		require.Zero(t, code, out)
		for _, name := range []string{"last-order", "loyalty", "audit", "commerce"} {
			require.Contains(t, out, name)
		}
		out, code = m.cli(t, "logs", "last-order", "-n", "shop")
		require.Zero(t, code, out)
		require.Contains(t, out, `"lambda":"last-order"`)
	})
}

func TestDemoExposesTheCheckoutOnly(t *testing.T) {
	m := shared(t)
	m.waitFor(t, "commerce", "apirule/commerce", "Ready")
	for _, tc := range []struct{ method, path string }{
		{http.MethodPost, "/oauth/token"},
		{http.MethodGet, "/api/orders"},
		{http.MethodGet, "/api/orders/4711"},
		{http.MethodGet, "/checkout"},
		{http.MethodGet, "/checkout/../api/orders"},
		{http.MethodGet, "//api/orders"},
	} {
		resp, err := m.request(t.Context(), tc.method, commerceHost, tc.path, "")
		require.NoError(t, err)
		require.Contains(t, []int{http.StatusNotFound, http.StatusMethodNotAllowed}, resp.status, "%v: %s", tc, resp.body)
	}
}

// strangerCode tells what came of a call and of publishing under a source.
const strangerCode = `package stranger

import (
	"fmt"
	"io"
	"net/http"

	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

func Main(w http.ResponseWriter, r *http.Request) {
	c := lambda.FromContext(r.Context())
	if source := r.URL.Query().Get("source"); source != "" {
		_, err := c.Publish(r.Context(), "order.created.v1", map[string]string{"orderCode": "stolen"}, &lambda.PublishOptions{Source: source})
		fmt.Fprintf(w, "publish: %v", err)
		return
	}
	if target := r.URL.Query().Get("get"); target != "" {
		response, err := http.Get(target)
		if err != nil {
			fmt.Fprintf(w, "get: %v", err)
			return
		}
		defer response.Body.Close()
		fmt.Fprintf(w, "get: %d", response.StatusCode)
		return
	}
	response, err := c.Application("commerce").Fetch(r.Context(), "orders", "/orders/4711", nil)
	if err != nil {
		fmt.Fprintf(w, "call: %v", err)
		return
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	fmt.Fprintf(w, "call: %d %s", response.StatusCode, body)
}
`

// The stranger has the name of a lambda that is bound, and the namespace of none.
func TestDemoRefusesAStranger(t *testing.T) {
	m := shared(t)
	m.apply(t, echo("stranger", "last-order", strangerCode)+`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: stranger, namespace: stranger}
spec:
  hosts: [stranger]
  rules:
    - {path: /, methods: [GET], lambda: last-order, noAuth: true}
`)
	m.waitFor(t, "stranger", "lambda/last-order", "Ready")
	m.waitFor(t, "stranger", "apirule/stranger", "Ready")
	m.mustKubectl(t, "", "wait", "application/commerce", "--for=condition=Ready", "--timeout=50s")
	ask := func(query string) string {
		resp, err := m.get(t.Context(), "stranger.lambdas.localhost", "/?"+query)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		return resp.body
	}
	require.Contains(t, ask(""), "call: 403 ", "who is bound to nothing is refused by the connector's sidecar")
	m.apply(t, `
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: stranger}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: stranger, namespace: stranger}
spec: {application: stranger, lambdas: {names: [last-order]}}
`)
	eventually(t, demoTimeout, func() error {
		if called := ask(""); !strings.HasPrefix(called, "call: 403 ") || !strings.Contains(called, "not bound to commerce/orders") {
			return errorf("who is bound to another application is not refused by the connector: %s", called)
		}
		return nil
	})

	for _, source := range []string{"commerce", "/shop/loyalty", "/commerce/commerce-system", "/shop/last-order"} {
		published := ask("source=" + url.QueryEscape(source))
		require.Contains(t, published, "the event bus answered 403", source)
	}
	require.Equal(t, "publish: <nil>", ask("source="+url.QueryEscape("/stranger/last-order")))

	for _, target := range []string{
		"http://commerce-system.commerce.svc/api/orders", "http://commerce-system.commerce.svc/checkout", "http://commerce-system.commerce.svc/oauth/token",
	} {
		require.Contains(t, []string{"get: 403", "get: 404"}, ask("get="+url.QueryEscape(target)), "only the connector has access")
	}
}
