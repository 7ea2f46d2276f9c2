package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestHostileLimits: what one team or one mistake can do to a gateway that all
// share. It has a mesh of its own, whose Gateway it changes.
func TestHostileLimits(t *testing.T) {
	m := start(t, t.TempDir(), "--limit", "namespace.hosts=40", "--allow-target", "127.0.0.1")
	m.apply(t, plainBackend(t, "bank", "vault"))
	m.apply(t, plainBackend(t, "shop", "till"))
	m.apply(t, openRule("bank", "vault", "vault", "vault"))
	m.waitFor(t, "bank", "apirule/vault", "Ready")

	t.Run("too large", func(t *testing.T) { tooLarge(t, m) })
	t.Run("backends", func(t *testing.T) { manyBackends(t, m) })
	t.Run("admission", func(t *testing.T) { admission(t, m) })
	t.Run("certificate", func(t *testing.T) { deletedCertificate(t, m) })
	t.Run("tls parameters", func(t *testing.T) { tlsParameters(t, m) })
}

// plainBackend is a namespace with a Service that this process answers for.
func plainBackend(t *testing.T, namespace, name string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	require.NoError(t, err)
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec: {selector: {app: %[2]s}, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: %[2]s, namespace: %[1]s, labels: {app: %[2]s}}
spec: {address: 127.0.0.1, ports: {http: %[3]s}}
`, namespace, name, port)
}

func openRule(namespace, name, service string, hosts ...string) string {
	return fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: %s, namespace: %s}
spec:
  hosts: [%s]
  rules: [{path: /*, service: {name: %s}, noAuth: true}]
`, name, namespace, strings.Join(hosts, ", "), service)
}

// requireRefused waits until a condition is False and returns reason and message.
func (m *mesh) requireRefused(t *testing.T, namespace, object, condition string) string {
	t.Helper()
	m.waitFor(t, namespace, object, condition+"=false")
	return m.mustKubectl(t, "", "get", "-n", namespace, object, "-o", fmt.Sprintf(`jsonpath={range .status.conditions[?(@.type=="%s")]}{.reason}: {.message}{end}`, condition))
}

func (m *mesh) requireBody(t *testing.T, host, want string) {
	t.Helper()
	eventually(t, startTimeout, func() error {
		r, err := m.get(t.Context(), host+".lambdas.localhost", "/")
		if err == nil && r.body != want {
			err = errorf("%d %s", r.status, r.body)
		}
		return err
	})
}

// A rule of some 65 KB that every limit of the kind allows would be 390,000
// conditions in the message that all rules travel in.
func tooLarge(t *testing.T, m *mesh) {
	var b strings.Builder
	b.WriteString(`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: hostile, namespace: shop}
spec:
  hosts: [hostile]
  rules:
  - path: /*
    service: {name: till}
    jwt:
      authentications:
`)
	for i := range 8 {
		fmt.Fprintf(&b, "      - {issuer: \"https://issuer-%d.test\", jwksUri: \"https://keys.test/set\", audiences: [a%d]}\n", i, i)
	}
	b.WriteString("      authorizations:\n")
	for i := range 16 {
		fmt.Fprintf(&b, "      - requiredScopes: [s%d]\n        claims:\n", i)
		for c := range 16 {
			values := make([]string, 32)
			for v := range values {
				values[v] = fmt.Sprint("v", v)
			}
			fmt.Fprintf(&b, "        - {name: c%d, values: [%s]}\n", c, strings.Join(values, ", "))
		}
	}
	m.apply(t, b.String())
	require.Regexp(t, `^TooLarge: spec: it needs 39\d{4} matchers and an APIRule may have 4096`, m.requireRefused(t, "shop", "apirule/hostile", "Accepted"))

	// Many small ones fill the namespace's own budget and no other.
	for i := range 3 {
		hosts := make([]string, 16)
		for h := range hosts {
			hosts[h] = fmt.Sprintf("crowd-%d-%d", i, h)
		}
		m.apply(t, openRule("shop", fmt.Sprint("crowd-", i), "till", hosts...))
		if i < 2 {
			m.waitFor(t, "shop", fmt.Sprint("apirule/crowd-", i), "Ready")
		}
	}
	require.Contains(t, m.requireRefused(t, "shop", "apirule/crowd-2", "Accepted"), "needs 16 hosts, and other APIRules of namespace shop have")
	m.mustKubectl(t, openRule("bank", "vault", "vault", "vault", "safe"), "apply", "-f", "-")
	m.waitFor(t, "bank", "apirule/vault", "Ready")
	m.requireBody(t, "safe", "vault")
	m.requireBody(t, "crowd-1-3", "till")
}

// A namespace that the Gateway does not admit keeps a host from nobody.
// manyBackends: a Service of many ports, each of which leads to many machines under
// as many accounts, all of them named by rules that every budget has room for.
func manyBackends(t *testing.T, m *mesh) {
	const machines, ports, perRule = 250, 448, 64
	var b strings.Builder
	b.WriteString(`
apiVersion: v1
kind: Namespace
metadata: {name: mallory}
---
apiVersion: v1
kind: Service
metadata: {name: fat, namespace: mallory}
spec:
  selector: {app: fat}
  ports:
`)
	for i := range ports {
		fmt.Fprintf(&b, "  - {name: p%d, port: %d}\n", i, 1000+i)
	}
	for i := range machines {
		fmt.Fprintf(&b, `---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w%[1]d, namespace: mallory}
spec: {address: 8.8.8.%[2]d, serviceAccount: s%03[1]d%[3]s, labels: {app: fat, security.istio.io/tlsMode: istio}}
`, i, i+1, strings.Repeat("a", 249))
	}
	for i := range ports / perRule {
		fmt.Fprintf(&b, "---\napiVersion: lambdamesh.dev/v1alpha1\nkind: APIRule\nmetadata: {name: fat%[1]d, namespace: mallory}\nspec:\n  hosts: [fat%[1]d]\n  rules:\n", i)
		for j := range perRule {
			fmt.Fprintf(&b, "  - {path: /%[1]d, service: {name: fat, port: %[2]d}, noAuth: true}\n", j, 1000+perRule*i+j)
		}
	}
	answers := func(want int, path string) {
		t.Helper()
		eventually(t, startTimeout, func() error {
			r, err := m.get(t.Context(), "fresh.lambdas.localhost", path)
			if err == nil && r.status != want {
				err = errorf("%d %.200s", r.status, r.body)
			}
			return err
		})
	}
	fresh := openRule("bank", "fresh", "vault", "fresh")
	m.apply(t, openRule("bank", "gone", "vault", "gone"))
	m.requireBody(t, "gone", "vault")
	m.apply(t, b.String())
	require.Contains(t, m.requireRefused(t, "mallory", "apirule/fat0", "ResolvedRefs"), "its endpoints have 250 identities and those of a Service may have 16")
	require.Contains(t, m.requireRefused(t, "mallory", "apirule/fat6", "ResolvedRefs"), "has 50000 of the 50000 there are for it")

	m.mustKubectl(t, "", "delete", "-n", "bank", "apirule/gone")
	eventually(t, startTimeout, func() error {
		r, err := m.get(t.Context(), "gone.lambdas.localhost", "/")
		if err == nil && r.status != http.StatusNotFound {
			err = errorf("%d %.200s", r.status, r.body)
		}
		return err
	})
	m.apply(t, fresh)
	m.waitFor(t, "bank", "apirule/fresh", "Ready")
	answers(http.StatusOK, "/")
	m.apply(t, strings.Replace(fresh, "path: /*", "path: /other", 1))
	answers(http.StatusNotFound, "/")
	answers(http.StatusOK, "/other")
	m.mustKubectl(t, "", "delete", "-n", "bank", "apirule/fresh")
	answers(http.StatusNotFound, "/other")
	m.mustKubectl(t, "", "delete", "namespace", "mallory", "--wait=false")
}

func admission(t *testing.T, m *mesh) {
	gateway := m.gateway(t)
	m.apply(t, openRule("bank", "squatter", "vault", "pay.lambdas.localhost"))
	m.waitFor(t, "bank", "apirule/squatter", "Ready")
	m.apply(t, openRule("shop", "pay", "till", "pay.lambdas.localhost"))
	require.Contains(t, m.requireRefused(t, "shop", "apirule/pay", "Accepted"), "HostConflict")

	m.mustKubectl(t, "", "patch", "-n", "lambdamesh-system", gateway, "--type=json", "-p",
		`[{"op":"replace","path":"/spec/servers/0/hosts","value":["shop/*"]},{"op":"replace","path":"/spec/servers/1/hosts","value":["shop/*"]}]`)
	m.waitFor(t, "shop", "apirule/pay", "Accepted")
	require.Contains(t, m.requireRefused(t, "bank", "apirule/squatter", "Accepted"), "HostNotServed")
	m.requireBody(t, "pay", "till")
	m.mustKubectl(t, "", "patch", "-n", "lambdamesh-system", gateway, "--type=json", "-p",
		`[{"op":"replace","path":"/spec/servers/0/hosts","value":["*"]},{"op":"replace","path":"/spec/servers/1/hosts","value":["*"]}]`)
	m.requireBody(t, "vault", "vault")
}

// gateway is the Gateway of the mesh as kubectl names it.
func (m *mesh) gateway(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(m.mustKubectl(t, "", "get", "-n", "lambdamesh-system", "gateways.networking.istio.io", "-o", "name"))
}

// served is the certificate of the HTTPS port, and what it answers.
func (m *mesh) served(config *tls.Config) (certificate []byte, body string, err error) {
	config.ServerName, config.InsecureSkipVerify = "vault.lambdas.localhost", true //nolint:gosec // the certificate is compared
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequest(http.MethodGet, m.GatewayTLS, http.NoBody)
	if err != nil {
		return nil, "", err
	}
	request.Host = "vault.lambdas.localhost"
	response, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(response.Body)
	return response.TLS.PeerCertificates[0].Raw, string(raw), err
}

func deletedCertificate(t *testing.T, m *mesh) {
	gateway := m.gateway(t)
	secret := strings.TrimSpace(m.mustKubectl(t, "", "get", "-n", "lambdamesh-system", gateway, "-o", "jsonpath={.spec.servers[1].tls.credentialName}"))
	before, body, err := m.served(&tls.Config{})
	require.NoError(t, err)
	require.Equal(t, "vault", body)

	m.mustKubectl(t, "", "delete", "-n", "lambdamesh-system", "secret", secret)
	why := m.requireRefused(t, "lambdamesh-system", gateway, "ResolvedRefs")
	require.Regexp(t, `^NotFound: spec.servers\[1\].tls.credentialName: Secret lambdamesh-system/`+secret, why)
	require.Contains(t, m.requireRefused(t, "bank", "apirule/vault", "ResolvedRefs"), "Secret lambdamesh-system/"+secret)
	require.Contains(t, m.output.String(), "a Gateway has a problem")
	after, body, err := m.served(&tls.Config{})
	require.NoError(t, err, "the port stays open")
	require.Equal(t, "vault", body)
	require.Equal(t, before, after, "the last good certificate")
	m.requireBody(t, "vault", "vault")

	certificate, key := selfSigned(t)
	m.mustKubectl(t, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: lambdamesh-system}\ntype: kubernetes.io/tls\nstringData:\n  tls.crt: %q\n  tls.key: %q\n",
		secret, certificate, key), "create", "-f", "-")
	m.waitFor(t, "lambdamesh-system", gateway, "ResolvedRefs")
	m.waitFor(t, "bank", "apirule/vault", "Ready")
	block, _ := pem.Decode(certificate)
	eventually(t, startTimeout, func() error {
		now, _, err := m.served(&tls.Config{})
		if err == nil && !bytes.Equal(now, block.Bytes) {
			err = errorf("the former certificate is served")
		}
		return err
	})
}

func selfSigned(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lambdas.localhost"}, DNSNames: []string{"*.lambdas.localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// What the Gateway says about TLS is obeyed, and what is not can be read.
func tlsParameters(t *testing.T, m *mesh) {
	gateway := m.gateway(t)
	patch := func(tls string) {
		m.mustKubectl(t, "", "patch", "-n", "lambdamesh-system", gateway, "--type=json", "-p", `[{"op":"add","path":"/spec/servers/1/tls/`+tls+`}]`)
	}
	only12 := func(suites ...uint16) *tls.Config {
		return &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: suites}
	}
	_, _, err := m.served(only12())
	require.NoError(t, err)
	patch(`cipherSuites","value":["ECDHE-ECDSA-AES256-GCM-SHA384"]`)
	eventually(t, startTimeout, func() error {
		if _, _, err := m.served(only12(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)); err == nil {
			return errorf("a cipher suite that is not in the list is spoken")
		}
		_, _, err := m.served(only12(tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384))
		return err
	})
	patch(`minProtocolVersion","value":"TLSV1_3"`)
	eventually(t, startTimeout, func() error {
		if _, _, err := m.served(only12()); err == nil {
			return errorf("TLS 1.2 is spoken")
		}
		_, _, err := m.served(&tls.Config{MinVersion: tls.VersionTLS13})
		return err
	})
	patch(`subjectAltNames","value":["client.test"]`)
	require.Equal(t, "NotSupported: spec.servers[1].tls.subjectAltNames: subjectAltNames is not supported; remove it",
		m.requireRefused(t, "lambdamesh-system", gateway, "Accepted"))
}
