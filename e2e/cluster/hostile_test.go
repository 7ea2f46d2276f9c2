package cluster

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const forgedCert = "By=spiffe://cluster.local/ns/hostile/sa/open;URI=spiffe://cluster.local/ns/lambdamesh-system/sa/eventbus"

// forged are headers of who pretends that the event bus calls.
func forged() map[string]string {
	return map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "/shop/forged", "Ce-Type": "order.created.v1", "Content-Type": "application/json",
		"X-Forwarded-Client-Cert": forgedCert, "X-Lambdamesh-Rule": "forged", "X-Lambdamesh-Claims": "eyJzdWIiOiJmb3JnZWQifQ",
	}
}

// told is what the lambda hello says of a call.
type told struct {
	IsEvent bool
	Type    *string
	Path    string
	Caller  struct{ Kind, Namespace, Name, Identity string }
	Headers map[string]any
}

// hostileRule lets everybody in to the lambda open, but for what is private.
const hostileRule = `---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: hostile, namespace: hostile}
spec:
  hosts: [hostile]
  rules:
    - path: /private/{**}
      lambda: open
      jwt: {authentications: [{issuer: "https://issuer.lambdas.localhost", jwksSecret: demo-jwks}]}
    - {path: "/*", lambda: open, noAuth: true}
---
apiVersion: v1
kind: Secret
metadata: {name: demo-jwks, namespace: hostile}
stringData:
  jwks.json: '{"keys": [{"kty": "EC", "use": "sig", "alg": "ES256", "kid": "demo-do-not-trust", "crv": "P-256", "x": "cJAQVjIhP74nArpUfg_VQkhmzxqADQZZAiEI70EQCOM", "y": "-3OuQ-zQf_HgwF1hIlX-Sa6NAD4OkdmBBoICY433fWA"}]}'
`

// testHostile is what the mesh has to withstand once it is made of pods. Each
// refusal stands beside the same request by who may make it.
func testHostile(t *testing.T, c *cluster) {
	c.apply(t, namespaces("hostile", "attack")+
		c.probe("attack", "outsider", false, "")+c.probe("attack", "insider", true, "")+c.probe("attack", "guest", true, "")+
		lambda("hostile", "open", "nodejs", hello, "  access: [{namespace: attack, serviceAccount: guest}]\n")+
		lambda("hostile", "closed", "nodejs", hello, "")+hostileRule)
	for _, object := range []string{"lambda/open", "lambda/closed", "apirule/hostile"} {
		c.waitFor(t, "hostile", object, "Ready")
	}
	for _, pod := range []string{"outsider", "insider", "guest"} {
		c.waitFor(t, "attack", "pod/"+pod, "Ready")
	}
	t.Run("gateway", func(t *testing.T) { testHostileGateway(t, c) })
	t.Run("pods", func(t *testing.T) { testHostilePods(t, c) })
	t.Run("bus", func(t *testing.T) { testHostileBus(t, c) })
	t.Run("ads", func(t *testing.T) { testHostileADS(t, c) })
	t.Run("probes still pass", func(t *testing.T) {
		for _, namespace := range []string{system, "hostile", "attack"} {
			c.noRestarts(t, namespace)
		}
	})
}

func testHostileGateway(t *testing.T, c *cluster) {
	gateway := c.nodePort(t, "gateway", "https", "")
	t.Run("no client makes an event or a caller", func(t *testing.T) {
		var header []string
		for name, value := range forged() {
			header = append(header, name, value)
		}
		resp, err := c.ask(t.Context(), gateway, http.MethodPost, "hostile", "/open", `{"orderCode": "1"}`, header...)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		heard := hear(t, resp.body)
		require.False(t, heard.IsEvent)
		require.Equal(t, "gateway", heard.Caller.Kind)
		require.NotContains(t, fmt.Sprint(heard.Headers), "spiffe://", "no header of the mesh reaches the lambda")
	})
	t.Run("every spelling of a path meets its rule", func(t *testing.T) {
		for _, path := range []string{
			"/private/a", "/PRIVATE/../private/a", "//private/a", "/./private/a", "/open/../private/a", "/%70rivate/a", "/private%2fa",
			"/open/%2e%2e/private/a", "/open/..%2fprivate/a", `/open\..\private\a`, "/private;x=1/a", "/open/..;/private/a", "/private/%2e/a",
		} {
			status, body := c.raw(t, gateway, path)
			if status == http.StatusUnauthorized || status == http.StatusBadRequest || status == http.StatusNotFound || status/100 == 3 {
				continue
			}
			require.Equal(t, http.StatusOK, status, "%s: %s", path, body)
			decoded, err := url.PathUnescape(hear(t, body).Path)
			require.NoError(t, err)
			require.NotContains(t, strings.ToLower(decoded), "private/a", "%s was let in as %s", path, decoded)
		}
		status, body := c.raw(t, gateway, "/open/a")
		require.Equal(t, http.StatusOK, status, body)
		require.Equal(t, "/open/a", hear(t, body).Path)
	})
}

// raw sends a path as it is written, which net/http would tidy.
func (c *cluster) raw(t *testing.T, gateway, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://hostile."+domain, nil)
	require.NoError(t, err)
	req.URL.Opaque = path
	client, err := c.browser(t.Context(), gateway)
	require.NoError(t, err)
	resp, err := c.send(client, req)
	require.NoError(t, err, path)
	return resp.status, resp.body
}

func hear(t *testing.T, body string) told {
	t.Helper()
	var heard told
	require.NoError(t, json.Unmarshal([]byte(body), &heard), body)
	return heard
}

func testHostilePods(t *testing.T, c *cluster) {
	pod := c.pod(t, "hostile", "lambdamesh.dev/lambda", "open").Status.PodIP
	const open, closedLambda = "http://open.hostile.svc/", "http://closed.hostile.svc/"
	identity := "spiffe://cluster.local/ns/lambdamesh-system/sa/gateway"

	t.Run("who is named may call, as who it is", func(t *testing.T) {
		var r result
		eventually(t, patience, func() error {
			if r = c.from(t, "attack", "guest", call{Method: http.MethodPost, URL: open, Header: forged(), Body: "{}", Proxy: true}); r.Status != http.StatusOK {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		heard := hear(t, r.Body)
		require.False(t, heard.IsEvent, "%+v", heard)
		require.Equal(t, "spiffe://cluster.local/ns/attack/sa/guest", heard.Caller.Identity, "%+v", heard)
		require.Equal(t, "lambda", heard.Caller.Kind)
	})
	// Where nobody may get to, everybody can: what is refused below is refused by who
	// is there. Where the network has fences of its own, they come first.
	at := func(port, path string) string { return "http://" + net.JoinHostPort(pod, port) + path }
	fenced := false
	t.Run("there is a way", func(t *testing.T) {
		fenced = c.from(t, "attack", "outsider", call{URL: at("8081", "/healthz")}).End == timeout
		t.Logf("network policies are enforced: %t", fenced)
		for _, from := range []string{"outsider", "insider", "guest"} {
			if r := c.from(t, "attack", from, call{URL: at("8081", "/healthz")}); !fenced {
				require.Equal(t, http.StatusOK, r.Status, "%s: %+v", from, r)
			}
		}
	})
	require.True(t, !fenced || c.name == "", "the network of `make cluster` enforces no policies")
	for name, test := range map[string]struct {
		pod    string
		call   call
		end    string
		status int
	}{
		// Its own sidecar knows only whom it may call.
		"not named, through its sidecar":       {"insider", call{URL: open, Proxy: true}, answered, http.StatusNotFound},
		"not named, as an event":               {"insider", call{Method: http.MethodPost, URL: open, Header: forged(), Proxy: true}, answered, http.StatusNotFound},
		"named elsewhere, through its sidecar": {"guest", call{URL: closedLambda, Proxy: true}, answered, http.StatusNotFound},
		// It gets to whom the Host names, if it may, and not to the other one.
		"another Host than the one it asks for": {"insider", call{URL: open, Header: map[string]string{"Host": "eventbus.lambdamesh-system.svc"}, Proxy: true}, answered, http.StatusNotFound},
		// The other one's wants TLS, and a certificate of the mesh.
		"with a sidecar and past it, to the Service":    {"guest", call{URL: open}, closed, 0},
		"with a sidecar and past it, to the pod":        {"guest", call{URL: at("15006", "/")}, closed, 0},
		"no sidecar, to the Service":                    {"outsider", call{URL: open}, closed, 0},
		"no sidecar, to the sidecar's port":             {"outsider", call{URL: at("15006", "/")}, closed, 0},
		"no sidecar, TLS without a certificate":         {"outsider", call{URL: "https://" + net.JoinHostPort(pod, "15006") + "/"}, alert, 0},
		"no sidecar, a certificate with a made-up name": {"outsider", call{URL: "https://" + net.JoinHostPort(pod, "15006") + "/", Identity: identity}, alert, 0},
		// There is no port past it.
		"no sidecar, past the sidecar":                {"outsider", call{URL: at("8080", "/")}, noListener, 0},
		"no sidecar, by another's way out":            {"outsider", call{URL: at("15001", "/")}, noListener, 0},
		"no sidecar, the proxy's own administration":  {"outsider", call{URL: at("15000", "/config_dump")}, noListener, 0},
		"no sidecar, an invocation at the admin port": {"outsider", call{Method: http.MethodPost, URL: at("8081", "/"), Header: forged(), Body: "{}"}, answered, http.StatusNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.from(t, "attack", test.pod, test.call)
			t.Logf("%s: %d %s %s", r.End, r.Status, r.Error, r.Body)
			if fenced && r.End == timeout {
				require.NotEqual(t, answered, test.end, "%+v", r)
				return // it did not get as far as that
			}
			require.Equal(t, test.end, r.End, "%+v", r)
			require.Equal(t, test.status, r.Status, "%+v", r)
			require.NotContains(t, r.Body, "isEvent", "the lambda answered: %+v", r)
			switch {
			case test.call.Header["Host"] != "":
				require.Contains(t, r.Body, "there is nothing at /", "the event bus answers")
			case test.call.Proxy:
				require.Contains(t, r.Body, "this workload may not reach that host")
			}
		})
	}
	t.Run("and the way is still there", func(t *testing.T) {
		r := c.from(t, "attack", "guest", call{URL: open, Proxy: true})
		require.Equal(t, http.StatusOK, r.Status, "%+v", r)
	})
}

func testHostileBus(t *testing.T, c *cluster) {
	bus := c.pod(t, system, "app.kubernetes.io/name", "eventbus").Status.PodIP
	event := map[string]string{
		"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "/attack/insider", "Ce-Type": "test.v1", "Content-Type": "application/json",
	}
	as := func(source string, more ...string) map[string]string {
		header := map[string]string{"Ce-Source": source}
		for name, value := range event {
			if name != "Ce-Source" {
				header[name] = value
			}
		}
		for i := 0; i+1 < len(more); i += 2 {
			header[more[i]] = more[i+1]
		}
		return header
	}
	const service = "http://eventbus.lambdamesh-system.svc/publish"
	t.Run("a member publishes what is its own", func(t *testing.T) {
		eventually(t, patience, func() error {
			if r := c.from(t, "attack", "insider", call{Method: http.MethodPost, URL: service, Header: event, Body: "{}", Proxy: true}); r.Status != http.StatusAccepted {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	})
	const public = "https://eventbus-public.lambdamesh-system.svc/publish"
	t.Run("everybody with a token of its own may, and gets there", func(t *testing.T) {
		token := c.token(t, nil, "attack", "outsider", v1alpha1.EventBusTokenAudience)
		r := c.from(t, "attack", "outsider", call{Method: http.MethodPost, URL: public, Header: as("/attack/outsider", "Authorization", "Bearer "+token), Body: "{}"})
		require.Equal(t, http.StatusAccepted, r.Status, "%+v", r)
	})
	for name, test := range map[string]struct {
		pod    string
		call   call
		end    string
		status int
	}{
		"a member in another's name":              {"insider", call{URL: service, Header: as("/shop/last-order"), Proxy: true}, answered, http.StatusForbidden},
		"a member in an application's name":       {"insider", call{URL: service, Header: as("commerce"), Proxy: true}, answered, http.StatusForbidden},
		"a member with another's certificate":     {"insider", call{URL: service, Header: as("/shop/last-order", "X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/shop/sa/last-order"), Proxy: true}, answered, http.StatusForbidden},
		"no sidecar":                              {"outsider", call{URL: service, Header: as("/attack/outsider")}, closed, 0},
		"no sidecar, to the sidecar's port":       {"outsider", call{URL: "https://" + net.JoinHostPort(bus, "15006") + "/publish", Header: as("/attack/outsider"), Identity: "spiffe://cluster.local/ns/attack/sa/outsider"}, alert, 0},
		"the public port without a token":         {"outsider", call{URL: public, Header: as("/attack/outsider")}, answered, http.StatusUnauthorized},
		"the public port, a certificate's header": {"outsider", call{URL: public, Header: as("/shop/last-order", "X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/shop/sa/last-order")}, answered, http.StatusUnauthorized},
		"the public port, a made-up token":        {"outsider", call{URL: public, Header: as("/attack/outsider", "Authorization", "Bearer made.up.token")}, answered, http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			test.call.Method, test.call.Body = http.MethodPost, "{}"
			r := c.from(t, "attack", test.pod, test.call)
			t.Logf("%s: %d %s %s", r.End, r.Status, r.Error, r.Body)
			require.Equal(t, test.end, r.End, "%+v", r)
			require.Equal(t, test.status, r.Status, "%+v", r)
		})
	}
}
