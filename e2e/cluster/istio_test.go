package cluster

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
)

// TestIstio is the life of one installation beside an istiod, which injects a
// sidecar into each pod in the mesh and configures it and the gateway from the
// objects that our control plane writes. hack/istio/sidecar.yaml says what stands
// in the place of capture.
func TestIstio(t *testing.T) {
	c := newCluster(t, "istio")
	c.pushProbe(t)
	t.Cleanup(func() { c.remove(t) })
	for _, part := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"install", testInstall},
		{"sidecars", testIstioSidecars},
		{"figures", testFigures},
		{"demo", testDemo},
		{"hostile", testIstioHostile},
		{"outside", testOutside},
		{"rotate", testRotate},
		{"failures", testFailures},
		{"taken", testIstioTaken},
		{"kill", testKill},
		{"removal", testRemoval},
		{"overlay", testOverlay},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.run(t, c)
			if t.Failed() {
				c.tell(t)
			}
		})
		if !c.installed {
			return // nothing can be told from the rest
		}
	}
}

const istioProxy = "istio-proxy"

// istioSidecar is the container of a pod that Istio's is, or nil.
func istioSidecar(pod *corev1.Pod) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == istioProxy {
				return &list[i]
			}
		}
	}
	return nil
}

// testIstioSidecars: who has to be in the mesh is, and nobody else; and nothing in
// the pods has privileges.
func testIstioSidecars(t *testing.T, c *cluster) {
	for _, name := range []string{"eventbus", "connector", "gateway"} {
		require.NotNil(t, istioSidecar(c.pod(t, system, "app.kubernetes.io/name", name)), name)
	}
	for _, name := range []string{"controlplane", "nats"} {
		require.Nil(t, istioSidecar(c.pod(t, system, "app.kubernetes.io/name", name)), name)
	}
	require.NotNil(t, istioSidecar(c.pod(t, "hello", "lambdamesh.dev/lambda", "hello")), "a lambda's pod asks for one, whatever the labels of its namespace")
	var policies securityv1.PeerAuthenticationList
	require.NoError(t, c.client.List(t.Context(), &policies))
	strict := map[string]string{}
	for _, policy := range policies.Items {
		strict[policy.Namespace] = policy.Spec.GetMtls().GetMode().String()
	}
	require.Equal(t, "STRICT", strict[system], "%v", strict)
	require.Equal(t, "STRICT", strict["hello"], "%v", strict)
}

// tried is a request of a pod, how it must end, and with which status.
type tried struct {
	pod    string
	call   call
	status int
	end    string
}

func (c *cluster) try(t *testing.T, all map[string]tried) {
	t.Helper()
	for name, a := range all {
		t.Run(name, func(t *testing.T) {
			r := c.from(t, "attack", a.pod, a.call)
			t.Logf("%s: %d %s %s", r.End, r.Status, r.Error, r.Body)
			require.Equal(t, a.end, r.End, "%+v", r)
			require.Equal(t, a.status, r.Status, "%+v", r)
			require.NotContains(t, r.Body, "isEvent", "the lambda answered: %+v", r)
		})
	}
}

// testIstioHostile is testHostile where Istio's sidecars hold the mesh.
func testIstioHostile(t *testing.T, c *cluster) {
	c.apply(t, namespaces("hostile")+c.members("attack"))
	c.apply(t, c.probe("attack", "outsider", false, "")+c.probe("attack", "insider", true, "")+c.probe("attack", "guest", true, "")+
		lambda("hostile", "open", "nodejs", hello, "  access: [{namespace: attack, serviceAccount: guest}]\n")+
		lambda("hostile", "closed", "nodejs", hello, "")+hostileRule)
	for _, object := range []string{"lambda/open", "lambda/closed", "apirule/hostile"} {
		c.waitFor(t, "hostile", object, "Ready")
	}
	for _, pod := range []string{"outsider", "insider", "guest"} {
		c.waitFor(t, "attack", "pod/"+pod, "Ready")
	}
	require.Nil(t, istioSidecar(c.pod(t, "attack", "app", "outsider")))
	t.Run("gateway", func(t *testing.T) { testHostileGateway(t, c) })
	t.Run("pods", func(t *testing.T) { testIstioPods(t, c) })
	t.Run("bus", func(t *testing.T) { testIstioBus(t, c) })
	t.Run("authority", func(t *testing.T) { testIstioAuthority(t, c) })
	t.Run("probes still pass", func(t *testing.T) {
		for _, namespace := range []string{system, "hostile", "attack"} {
			c.noRestarts(t, namespace)
		}
	})
}

func testIstioPods(t *testing.T, c *cluster) {
	pod := c.pod(t, "hostile", "lambdamesh.dev/lambda", "open").Status.PodIP
	const open, closedLambda = "http://open.hostile.svc/", "http://closed.hostile.svc/"
	at := func(port, path string) string { return "http://" + net.JoinHostPort(pod, port) + path }
	secured := "https://" + net.JoinHostPort(pod, "8080") + "/"

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
	t.Run("everybody gets to the pod", func(t *testing.T) {
		for _, from := range []string{"outsider", "insider", "guest"} {
			r := c.from(t, "attack", from, call{URL: at("8081", "/healthz")})
			require.Equal(t, http.StatusOK, r.Status, "what is refused below is refused by who is there: %+v", r)
		}
	})
	c.try(t, map[string]tried{
		// The lambda's sidecar refuses whom no object names.
		"not named, through its sidecar":       {"insider", call{URL: open, Proxy: true}, http.StatusForbidden, answered},
		"not named, as an event":               {"insider", call{Method: http.MethodPost, URL: open, Header: forged(), Body: "{}", Proxy: true}, http.StatusForbidden, answered},
		"named elsewhere, through its sidecar": {"guest", call{URL: closedLambda, Proxy: true}, http.StatusForbidden, answered},
		"as a request under a rule":            {"insider", call{URL: open + "open", Header: map[string]string{"X-Lambdamesh-Rule": "hostile/hostile/1"}, Proxy: true}, http.StatusForbidden, answered},
		// It gets to whom the Host names.
		"another Host than the one it asks for": {"insider", call{URL: open, Header: map[string]string{"Host": "eventbus.lambdamesh-system.svc"}, Proxy: true}, http.StatusNotFound, answered},
		// PeerAuthentication STRICT.
		"with a sidecar and past it, to the Service":    {"guest", call{URL: open}, 0, closed},
		"with a sidecar and past it, to the pod":        {"guest", call{URL: at("8080", "/")}, 0, closed},
		"no sidecar, to the Service":                    {"outsider", call{URL: open}, 0, closed},
		"no sidecar, to the sidecar's port":             {"outsider", call{URL: at("8080", "/")}, 0, closed},
		"no sidecar, TLS without a certificate":         {"outsider", call{URL: secured}, 0, alert},
		"no sidecar, a certificate with a made-up name": {"outsider", call{URL: secured, Identity: "spiffe://cluster.local/ns/lambdamesh-system/sa/gateway"}, 0, alert},
		// There is no port past it.
		"no sidecar, by another's way out":            {"outsider", call{URL: at("15080", "/")}, 0, noListener},
		"no sidecar, the proxy's own administration":  {"outsider", call{URL: at("15000", "/config_dump")}, 0, noListener},
		"no sidecar, an invocation at the admin port": {"outsider", call{Method: http.MethodPost, URL: at("8081", "/"), Header: forged(), Body: "{}"}, http.StatusNotFound, answered},
	})
	t.Run("and the way is still there", func(t *testing.T) {
		r := c.from(t, "attack", "guest", call{URL: open, Proxy: true})
		require.Equal(t, http.StatusOK, r.Status, "%+v", r)
	})
}

func testIstioBus(t *testing.T, c *cluster) {
	bus := c.pod(t, system, "app.kubernetes.io/name", "eventbus").Status.PodIP
	const service, public = "http://eventbus.lambdamesh-system.svc/publish", "https://eventbus-public.lambdamesh-system.svc/publish"
	publish := func(url, source string, more ...string) call {
		header := map[string]string{
			"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": source, "Ce-Type": "test.v1", "Content-Type": "application/json",
		}
		for i := 0; i+1 < len(more); i += 2 {
			header[more[i]] = more[i+1]
		}
		return call{Method: http.MethodPost, URL: url, Header: header, Body: "{}", Proxy: url == service}
	}
	past := func(c call) call { c.Proxy = false; return c }
	as := func(c call, identity string) call { c.Identity = identity; return past(c) }
	const certificate, lastOrder = "X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/shop/sa/last-order"
	secured := "https://" + net.JoinHostPort(bus, "8080") + "/publish"

	t.Run("a member publishes what is its own", func(t *testing.T) {
		eventually(t, patience, func() error {
			if r := c.from(t, "attack", "insider", publish(service, "/attack/insider")); r.Status != http.StatusAccepted {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
	})
	c.try(t, map[string]tried{
		"a member in another's name":              {"insider", publish(service, "/shop/last-order"), http.StatusForbidden, answered},
		"a member in an application's name":       {"insider", publish(service, "commerce"), http.StatusForbidden, answered},
		"a member with another's certificate":     {"insider", publish(service, "/shop/last-order", certificate, lastOrder), http.StatusForbidden, answered},
		"a member past its sidecar":               {"insider", past(publish(service, "/attack/insider")), 0, closed},
		"no sidecar":                              {"outsider", past(publish(service, "/attack/outsider")), 0, closed},
		"no sidecar, a made-up certificate":       {"outsider", as(publish(secured, "/attack/outsider"), "spiffe://cluster.local/ns/attack/sa/outsider"), 0, alert},
		"the public port without a token":         {"outsider", publish(public, "/attack/outsider"), http.StatusUnauthorized, answered},
		"the public port, a certificate's header": {"outsider", publish(public, "/shop/last-order", certificate, lastOrder), http.StatusUnauthorized, answered},
		"the public port, a made-up token":        {"outsider", publish(public, "/attack/outsider", "Authorization", "Bearer made.up.token"), http.StatusUnauthorized, answered},
	})
}

// testIstioTaken: our proxy, where it stands for Envoy, has taken all that istiod
// sent. What it refuses would hold in an Envoy.
func testIstioTaken(t *testing.T, c *cluster) {
	var pods corev1.PodList
	require.NoError(t, c.client.List(t.Context(), &pods))
	looked := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		if istioSidecar(pod) == nil {
			continue
		}
		looked++
		out := c.mustKubectl(t, "", "logs", "-n", pod.Namespace, pod.Name, "-c", istioProxy)
		for line := range strings.Lines(out) {
			require.NotContains(t, line, "refused a ", "%s/%s", pod.Namespace, pod.Name)
			require.NotContains(t, line, "ACK ERROR", "%s/%s", pod.Namespace, pod.Name)
		}
	}
	require.GreaterOrEqual(t, looked, 6, "two of the gateway, two of the event bus, two of the connector, and lambdas'")
}
