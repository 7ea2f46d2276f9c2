package controller_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	istiometa "istio.io/api/meta/v1alpha1"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// One team's rules that would fill the gateway are refused, each with the number
// and the limit, and another team's rule is programmed and changed meanwhile.
func TestHostileRulesAreTooLargeAndAHealthyRuleIsProgrammedAndChanged(t *testing.T) {
	w := newWorld(t)
	w.service("first", "first")
	w.service("second", "second")
	p := w.controlPlane(func(o *options) {
		// Small, so that few objects fill it.
		require.NoError(t, o.limits.Set(map[string]int{"apirule.keysets": 8, "namespace.hosts": 24, "apirule.hosts": 16}))
	})
	g := w.gateway(p.address)

	multiplies := toService("first")
	multiplies.NoAuth, multiplies.JWT = nil, &v1alpha1.JWTAuth{}
	for i := range 8 {
		multiplies.JWT.Authentications = append(multiplies.JWT.Authentications, v1alpha1.JWTAuthentication{
			Issuer: fmt.Sprintf("https://issuer-%d.test", i), JWKSURI: "https://keys.test/set", Audiences: []string{fmt.Sprint(i)},
		})
	}
	for i := range 16 {
		a := v1alpha1.JWTAuthorization{RequiredScopes: []string{fmt.Sprint(i)}}
		for c := range 16 {
			claim := v1alpha1.ClaimMatch{Name: fmt.Sprint(c)}
			for v := range 32 {
				claim.Values = append(claim.Values, fmt.Sprint("v", v))
			}
			a.Claims = append(a.Claims, claim)
		}
		multiplies.JWT.Authorizations = append(multiplies.JWT.Authorizations, a)
	}
	hostile := w.apiRule("multiplies", "hostile", multiplies)
	w.create(hostile)
	c := w.requireCondition(hostile, v1alpha1.ConditionAccepted, metav1.ConditionFalse, translate.ReasonTooLarge)
	require.Regexp(t, `needs 39\d{4} matchers and an APIRule may have 4096`, c.Message)
	w.requireCondition(hostile, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, output.ReasonNotServed)

	healthy := w.apiRule("healthy", "healthy", toService("first"))
	w.create(healthy)
	w.requireReady(healthy)

	var crowd []*v1alpha1.APIRule
	for i := range 2 {
		rule := w.apiRule(fmt.Sprint("crowd-", i), fmt.Sprint("crowd-", i), toService("first"))
		for j := range 14 {
			rule.Spec.Hosts = append(rule.Spec.Hosts, fmt.Sprintf("crowd-%d-%d", i, j))
		}
		w.create(rule)
		crowd = append(crowd, rule)
		if i == 0 {
			w.requireReady(rule)
		}
	}
	c = w.requireCondition(crowd[1], v1alpha1.ConditionAccepted, metav1.ConditionFalse, translate.ReasonTooLarge)
	require.Contains(t, c.Message, "needs 15 hosts, and other APIRules of namespace "+w.namespace+" have 16 of the 24")

	g.requireStatus(200, "healthy."+domain, "/")
	var now v1alpha1.APIRule
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(healthy), &now))
	now.Spec.Rules[0].Service.Name = "second"
	require.NoError(t, w.client.Update(t.Context(), &now))
	w.requireReady(&now)
	_, body, err := g.get("healthy."+domain, "/")
	require.NoError(t, err)
	require.Equal(t, "second", body)
	g.requireStatus(404, "hostile."+domain, "/")

	w.delete(crowd[0])
	w.requireReady(crowd[1]) // there is room now
}

// requireObjectCondition waits for a condition of a Gateway or a Sidecar.
func (w *world) requireObjectCondition(object client.Object, status func() *istiometa.IstioStatus, conditionType, want, reason string) *istiometa.IstioCondition {
	w.t.Helper()
	var found *istiometa.IstioCondition
	testkit.Eventually(w.t, patience, func() error {
		if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		for _, c := range status().GetConditions() {
			if c.GetType() == conditionType && c.GetStatus() == want && c.GetReason() == reason && c.GetObservedGeneration() == object.GetGeneration() {
				found = c
				return nil
			}
		}
		return fmt.Errorf("generation %d: %+v", object.GetGeneration(), status().GetConditions())
	}, fmt.Sprintf("%T %s has %s=%s (%s)", object, object.GetName(), conditionType, want, reason))
	return found
}

// certificate is a new one for the domain, and what its Secret holds.
func (w *world) certificate() (*x509.Certificate, map[string][]byte) {
	w.t.Helper()
	leaf, err := w.ca.IssueServer("*." + domain)
	require.NoError(w.t, err)
	block, _ := pem.Decode(leaf.ChainPEM)
	certificate, err := x509.ParseCertificate(block.Bytes)
	require.NoError(w.t, err)
	return certificate, map[string][]byte{corev1.TLSCertKey: leaf.ChainPEM, corev1.TLSPrivateKeyKey: leaf.KeyPEM}
}

func tlsServerOf(name, secret string, hosts ...string) *istioapi.Server {
	return &istioapi.Server{
		Port: &istioapi.Port{Number: 443, Name: name, Protocol: "HTTPS"}, Hosts: hosts,
		Tls: &istioapi.ServerTLSSettings{Mode: istioapi.ServerTLSSettings_SIMPLE, CredentialName: secret},
	}
}

// A Secret that is deleted or broken is told, and takes nothing from anybody:
// the port, the certificate and open connections stay, over a restart of the
// control plane too.
func TestADeletedCertificateStaysAndIsTold(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane()
	g := w.gateway(p.address)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	first, data := w.certificate()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "certificate"}, Type: corev1.SecretTypeTLS, Data: data}
	w.create(secret)
	gateway := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "gateway"}}
	status := func() *istiometa.IstioStatus { return &gateway.Status }
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(gateway), gateway))
	gateway.Spec.Servers = append(gateway.Spec.Servers, tlsServerOf("https", "certificate", "*."+domain))
	require.NoError(t, w.client.Update(t.Context(), gateway))
	w.requireCertificate(g, first)
	w.requireReady(rule)
	w.requireObjectCondition(gateway, status, v1alpha1.ConditionResolvedRefs, "True", translate.ReasonResolved)
	open := w.dialTLS(g)

	w.delete(secret)
	c := w.requireObjectCondition(gateway, status, v1alpha1.ConditionResolvedRefs, "False", v1alpha1.ReasonNotFound)
	require.Contains(t, c.GetMessage(), "spec.servers[1].tls.credentialName: Secret "+w.namespace+"/certificate")
	told := w.requireCondition(rule, v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, v1alpha1.ReasonNotFound)
	require.Contains(t, told.Message, "Secret "+w.namespace+"/certificate")
	w.requireCondition(rule, v1alpha1.ConditionAccepted, metav1.ConditionTrue, translate.ReasonAccepted)
	w.requireCertificate(g, first)
	open.requireAnswer(t)

	// Another change reaches the data plane meanwhile.
	more := w.apiRule("more", "more", toService("orders"))
	w.create(more)
	w.requireCondition(more, v1alpha1.ConditionProgrammed, metav1.ConditionTrue, output.ReasonProgrammed)
	w.requireCertificate(g, first)

	// A control plane that never saw the Secret takes nothing away either.
	p.stop()
	p = w.controlPlane(func(o *options) { o.address = p.address })
	target := ads.GatewayTarget(w.namespace, "gateway")
	testkit.Eventually(t, patience, func() error {
		if s := p.ads.Status(target); !s.Acknowledged(s.Version) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}, "the gateway is back and has acknowledged")
	w.requireCertificate(g, first)
	open.requireAnswer(t)

	_, garbage := w.certificate()
	garbage[corev1.TLSPrivateKeyKey] = data[corev1.TLSPrivateKeyKey]
	secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "certificate"}, Type: corev1.SecretTypeTLS, Data: garbage}
	w.create(secret)
	c = w.requireObjectCondition(gateway, status, v1alpha1.ConditionResolvedRefs, "False", v1alpha1.ReasonInvalid)
	require.Contains(t, c.GetMessage(), "no pair")
	w.requireCertificate(g, first)

	second, data := w.certificate()
	secret.Data = data
	require.NoError(t, w.client.Update(t.Context(), secret))
	w.requireCertificate(g, second)
	w.requireReady(rule)
	w.requireObjectCondition(gateway, status, v1alpha1.ConditionResolvedRefs, "True", translate.ReasonResolved)
	open.requireAnswer(t)
}

// A gateway that starts without a certificate serves its other servers, on the
// same port too.
func TestAGatewayThatStartsWithoutACertificateServesItsOtherServers(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	gateway := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "gateway"}}
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(gateway), gateway))
	gateway.Spec.Servers = append(gateway.Spec.Servers, tlsServerOf("https", "certificate", "*."+domain), tlsServerOf("gone", "gone", "*.gone.test"))
	require.NoError(t, w.client.Update(t.Context(), gateway))
	certificate, data := w.certificate()
	w.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "certificate"}, Type: corev1.SecretTypeTLS, Data: data})
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	p := w.controlPlane()
	g := w.gateway(p.address)
	w.requireReady(rule)
	g.requireStatus(200, "orders."+domain, "/")
	w.requireCertificate(g, certificate)
}

// What a Gateway or a Sidecar asks for and does not get is in its status, beside
// what istiod wrote there.
func TestProblemsOfGatewaysAndSidecarsAreInTheirStatuses(t *testing.T) {
	w := newWorld(t)
	gateway := &networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "gateway"}}
	gatewayStatus := func() *istiometa.IstioStatus { return &gateway.Status }
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(gateway), gateway))
	gateway.Status.Conditions = []*istiometa.IstioCondition{{Type: "Reconciled", Status: "True", Message: "istiod's"}}
	require.NoError(t, w.client.Status().Update(t.Context(), gateway))
	sidecar := &networkingv1.Sidecar{ObjectMeta: metav1.ObjectMeta{Name: "orders"}, Spec: istioapi.Sidecar{
		WorkloadSelector: &istioapi.WorkloadSelector{Labels: map[string]string{"app": "orders"}},
		Ingress:          []*istioapi.IstioIngressListener{{Port: &istioapi.SidecarPort{Number: 8080, Protocol: "HTTP", Name: "http"}, DefaultEndpoint: "127.0.0.1:8080"}},
	}}
	w.create(sidecar)
	w.create(&networkingv1.WorkloadEntry{
		ObjectMeta: metav1.ObjectMeta{Name: "orders", Labels: map[string]string{"app": "orders"}}, Spec: istioapi.WorkloadEntry{Address: "127.0.0.1"},
	})
	sidecarStatus := func() *istiometa.IstioStatus { return &sidecar.Status }
	w.controlPlane()
	w.requireObjectCondition(gateway, gatewayStatus, v1alpha1.ConditionAccepted, "True", translate.ReasonAccepted)
	c := w.requireObjectCondition(sidecar, sidecarStatus, v1alpha1.ConditionAccepted, "False", v1alpha1.ReasonInvalid)
	require.Contains(t, c.GetMessage(), "spec.ingress[0]")

	gateway.Spec.Servers = append(gateway.Spec.Servers, tlsServerOf("https", "certificate", "*"))
	gateway.Spec.Servers[1].Tls.CaCrl = "/etc/crl"
	require.NoError(t, w.client.Update(t.Context(), gateway))
	c = w.requireObjectCondition(gateway, gatewayStatus, v1alpha1.ConditionAccepted, "False", v1alpha1.ReasonNotSupported)
	require.Contains(t, c.GetMessage(), "spec.servers[1].tls.caCrl: caCrl is not supported")
	var others []string
	for _, c := range gateway.Status.GetConditions() {
		if c.GetType() == "Reconciled" {
			others = append(others, c.GetMessage())
		}
	}
	require.Equal(t, []string{"istiod's"}, others)

	// What somebody takes away is put back, and what is mended says so.
	gateway.Status.Conditions = nil
	require.NoError(t, w.client.Status().Update(t.Context(), gateway))
	w.requireObjectCondition(gateway, gatewayStatus, v1alpha1.ConditionAccepted, "False", v1alpha1.ReasonNotSupported)
	sidecar.Spec.Ingress[0].Bind = "127.0.0.1"
	require.NoError(t, w.client.Update(t.Context(), sidecar))
	w.requireObjectCondition(sidecar, sidecarStatus, v1alpha1.ConditionAccepted, "True", translate.ReasonAccepted)
}

// openTLS is a connection that stays open.
type openTLS struct {
	conn   net.Conn
	reader *bufio.Reader
}

func (w *world) dialTLS(g *node) *openTLS {
	w.t.Helper()
	g.mu.Lock()
	address := g.real["443"]
	g.mu.Unlock()
	dialer := tls.Dialer{Config: &tls.Config{ServerName: "orders." + domain, RootCAs: w.ca.Pool(), MinVersion: tls.VersionTLS12}}
	conn, err := dialer.DialContext(w.t.Context(), "tcp", address)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	return &openTLS{conn: conn, reader: bufio.NewReader(conn)}
}

// requireAnswer asks over the connection, which must not be asked to close.
func (o *openTLS) requireAnswer(t *testing.T) {
	t.Helper()
	require.NoError(t, o.conn.SetDeadline(time.Now().Add(patience)))
	_, err := fmt.Fprintf(o.conn, "GET / HTTP/1.1\r\nHost: orders.%s\r\n\r\n", domain)
	require.NoError(t, err)
	response, err := http.ReadResponse(o.reader, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, "an order", string(body))
	require.False(t, response.Close, "the connection is drained")
}
