package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// webshopPort is the port of the nodes at which the shop is. It serves outside of the
// mesh, so that it has no name of a Service: the connector calls those through the
// mesh.
const webshopPort = 30884

// webshopAddress is where the shop is, at one of the nodes. The connector calls it
// only because the installation allows it.
func (c *cluster) webshopAddress(t testing.TB) string {
	t.Helper()
	addresses := slices.Sorted(maps.Values(c.nodeAddresses(t)))
	require.NotEmpty(t, addresses)
	return net.JoinHostPort(addresses[0], strconv.Itoa(webshopPort))
}

// testWebshop is the walk of examples/webshop with the shop in a pod: it pairs,
// registers, publishes with its certificate, is called with OAuth2, and is revoked.
func testWebshop(t *testing.T, c *cluster) {
	image := c.push(t, "webshop", "./examples/webshop")
	c.apply(t, namespaces("outside")+c.example(t, "webshop", ""))
	c.waitFor(t, "webshop", "tokenrequest/webshop", "Ready")
	secret := c.mustKubectl(t, "", "get", "-n", "webshop", "tokenrequest", "webshop", "-o", "jsonpath={.status.secretName}")
	token := c.mustKubectl(t, "", "get", "-n", "webshop", "secret", secret, "-o", "json")
	c.apply(t, c.webshop(t, image, token))
	c.waitFor(t, "outside", "pod/webshop", "Ready")
	eventually(t, patience, func() error { // the last that it registers
		_, err := c.kubectl(t, "", "get", "appsvc", "webshop.orders-odata")
		return err
	})
	for _, object := range []string{"webshop appsvc/webshop.orders", "webshop applicationbinding/webshop", "webshop lambda/receipts", "webshop subscription/receipts", "webshop apirule/receipts"} {
		namespace, name, _ := strings.Cut(object, " ")
		c.waitFor(t, namespace, name, "Ready")
	}
	c.waitFor(t, "webshop", "application/webshop", "Paired")

	bought, err := c.buy(t)
	require.NoError(t, err)
	gateway, reader := c.nodePort(t, "gateway", "https", ""), c.demoToken(t, "orders:read")
	eventually(t, patience, func() error {
		resp, err := c.ask(t.Context(), gateway, http.MethodGet, "receipts", "/orders/"+bought, "", "Authorization", "Bearer "+reader)
		if err == nil && (resp.status != http.StatusOK || !strings.Contains(resp.body, bought)) {
			err = fmt.Errorf("the receipt: %d %s", resp.status, resp.body)
		}
		return err
	})
	resp, err := c.ask(t.Context(), gateway, http.MethodGet, "receipts", "/orders/"+bought, "")
	require.NoError(t, err)
	require.Equal(t, http.StatusUnauthorized, resp.status)

	serial := c.mustKubectl(t, "", "get", "application", "webshop", "-o", "jsonpath={.status.certificates[-1:].serial}")
	c.mustKubectl(t, "", "patch", "application", "webshop", "--type", "merge", "-p", `{"spec":{"revokedCertificates":["`+serial+`"]}}`)
	eventually(t, patience, func() error { // at every replica of the connector
		for range 4 {
			if bought, err := c.buy(t); err == nil {
				return fmt.Errorf("the order %s was taken after the certificate was revoked", bought)
			} else if !strings.Contains(err.Error(), "was taken back") {
				return err
			}
		}
		return nil
	})
}

// webshop is the shop's pod, and its port of the nodes.
func (c *cluster) webshop(t *testing.T, image, token string) string {
	t.Helper()
	secret, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": "webshop-token", "namespace": "outside"},
		"stringData": map[string]string{"token.json": token},
	})
	require.NoError(t, err)
	return fmt.Sprintf(`---
%s
---
apiVersion: v1
kind: Service
metadata: {name: webshop, namespace: outside}
spec: {type: NodePort, selector: {app: webshop}, ports: [{port: 8084, nodePort: %d}]}
---
apiVersion: v1
kind: Pod
metadata: {name: webshop, namespace: outside, labels: {app: webshop}}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 1
  securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  volumes:
    - {name: token, secret: {secretName: webshop-token}}
    - {name: data, emptyDir: {}}
  containers:
    - name: webshop
      image: %s
      args: [--dir, /data, --token, /token/token.json, --address, "0.0.0.0:8084", --url, "http://%s"]
      readinessProbe: {tcpSocket: {port: 8084}, periodSeconds: 1}
      securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      volumeMounts:
        - {name: token, mountPath: /token}
        - {name: data, mountPath: /data}
`, secret, webshopPort, c.images+image, c.webshopAddress(t))
}

// buy something at the shop, by way of the API server; the order's code, or what the
// shop says why there is none.
func (c *cluster) buy(t *testing.T) (code string, err error) {
	t.Helper()
	answer, err := c.clients.CoreV1().RESTClient().Post().Namespace("outside").Resource("pods").Name("webshop:8084").
		SubResource("proxy").Suffix("checkout").Body([]byte(`{"customer":"ada","total":120}`)).Do(t.Context()).Raw()
	if err != nil {
		return "", fmt.Errorf("buy: %w: %s", err, answer)
	}
	var order struct{ Code string }
	return order.Code, json.Unmarshal(answer, &order)
}
