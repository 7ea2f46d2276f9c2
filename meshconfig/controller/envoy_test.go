package controller_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestAnAPIRuleIsProgrammedAnswersAndIsGoneWhenDeleted(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane()
	g := w.gateway(p.address)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireReady(rule)

	status, body, err := g.get("orders."+domain, "/")
	require.NoError(t, err)
	require.Equal(t, 200, status, "Programmed means that it answers")
	require.Equal(t, "an order", body)

	var now v1alpha1.APIRule
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(rule), &now))
	require.Equal(t, []string{"http://orders." + domain + "/"}, now.Status.URLs)
	require.Equal(t, now.Generation, now.Status.ObservedGeneration)

	w.delete(rule)
	g.requireStatus(404, "orders."+domain, "/")
}

func TestWithoutADataPlaneARuleIsNotProgrammed(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane()
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireCondition(rule, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, output.ReasonNoDataPlane)

	w.gateway(p.address)
	w.requireReady(rule)
}

func TestARefusalOfTheDataPlaneIsTold(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane()
	g := w.gateway(p.address)
	g.refuse("port 80 is taken here")
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	c := w.requireCondition(rule, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, output.ReasonDataPlaneRefused)
	require.Contains(t, c.Message, "port 80 is taken here")
	require.Contains(t, c.Message, "gateway~"+w.namespace)
}

func TestALambdaIsReachedThroughItsSidecar(t *testing.T) {
	w := newWorld(t)
	p := w.controlPlane()
	g := w.gateway(p.address)
	rule := w.apiRule("orders", "orders", toLambda("last-order"))
	w.create(rule)
	c := w.requireCondition(rule, v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, v1alpha1.ReasonNotFound)
	require.Contains(t, c.Message, "last-order")
	g.requireStatus(503, "orders."+domain, "/")

	w.lambda(p.address, "last-order")
	w.requireReady(rule)
	g.requireStatus(200, "orders."+domain, "/")
	second := w.apiRule("second", "second", toLambda("last-order"))
	w.create(second)
	w.requireReady(second)
	status, _, err := g.get("second."+domain, "/")
	require.NoError(t, err)
	require.Equal(t, 200, status, "the sidecar has acknowledged too")
	_, body, err := g.get("orders."+domain, "/")
	require.NoError(t, err)
	require.Contains(t, body, "URI=spiffe://cluster.local/ns/lambdamesh-system/sa/gateway", "the gateway's identity reaches the lambda")
}

// lambda runs a replica of a lambda, as the local node would.
func (w *world) lambda(address, name string) {
	w.t.Helper()
	socket := filepath.Join(testkit.TempSocketDir(w.t), "app")
	app, err := net.Listen("unix", socket)
	require.NoError(w.t, err)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.Header.Get(headers.ClientCert))
	})}
	go func() { _ = server.Serve(app) }()
	w.t.Cleanup(func() { server.Close() })
	inbound, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(w.t, err)
	tcp, ok := inbound.Addr().(*net.TCPAddr)
	require.True(w.t, ok)
	port := uint32(tcp.Port)

	replica := name + "-0"
	w.create(&v1alpha1.Lambda{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.LambdaSpec{Runtime: v1alpha1.RuntimeGo, Source: v1alpha1.SourceSpec{Inline: &v1alpha1.InlineSource{Code: "package main"}}},
	})
	w.create(httpService(name, map[string]string{v1alpha1.LabelLambda: name}))
	w.create(&networkingv1.Sidecar{
		ObjectMeta: metav1.ObjectMeta{Name: replica},
		Spec: istioapi.Sidecar{
			WorkloadSelector: &istioapi.WorkloadSelector{Labels: map[string]string{v1alpha1.LabelReplica: replica}},
			Ingress: []*istioapi.IstioIngressListener{{
				Port: &istioapi.SidecarPort{Number: port, Name: "http", Protocol: "HTTP"},
				Bind: "127.0.0.1", CaptureMode: istioapi.CaptureMode_NONE, DefaultEndpoint: "unix://" + socket,
			}},
		},
	})
	w.create(&networkingv1.WorkloadEntry{
		ObjectMeta: metav1.ObjectMeta{Name: replica, Labels: map[string]string{
			v1alpha1.LabelLambda: name, v1alpha1.LabelReplica: replica, v1alpha1.LabelIstioTLSMode: "istio",
		}},
		Spec: istioapi.WorkloadEntry{Address: "127.0.0.1", Ports: map[string]uint32{v1alpha1.ServiceHTTPPort: port}, ServiceAccount: name},
	})
	w.node(address, ads.SidecarTarget(w.namespace, replica), w.namespace+"/"+name, inbound)
}

func TestAHostGoesToTheNextRuleWhenItsOwnerIsDeleted(t *testing.T) {
	w := newWorld(t)
	w.service("first", "first")
	w.service("second", "second")
	p := w.controlPlane()
	g := w.gateway(p.address)
	winner := w.apiRule("a-winner", "shared", toService("first"))
	w.create(winner)
	w.requireReady(winner)
	loser := w.apiRule("b-loser", "shared", toService("second"))
	w.create(loser)
	c := w.requireCondition(loser, v1alpha1.ConditionAccepted, metav1.ConditionFalse, translate.ReasonHostConflict)
	require.Contains(t, c.Message, w.namespace+"/a-winner")
	w.requireCondition(loser, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, output.ReasonNotServed)

	w.delete(winner)
	w.requireReady(loser)
	_, body, err := g.get("shared."+domain, "/")
	require.NoError(t, err)
	require.Equal(t, "second", body)
}

func TestARestartedControlPlaneNeverServesLess(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	issuer := newIssuer(t)
	allow := func(o *options) { o.allow = []string{issuer.address} }
	p := w.controlPlane(allow)
	g := w.gateway(p.address)
	rule := w.apiRule("orders", "orders", issuer.protect(toService("orders")))
	w.create(rule)
	w.requireReady(rule)
	host := "orders." + domain
	token := issuer.token(t)
	g.requireStatus(200, host, "/", "Authorization", "Bearer "+token)

	stop := make(chan struct{})
	failures := make(chan string, 1)
	go func() {
		defer close(failures)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if status, body, err := g.get(host, "/", "Authorization", "Bearer "+token); err != nil || status != 200 {
				failures <- fmt.Sprintf("request %d: %d %s %v", n, status, body, err)
				return
			}
		}
	}()
	p.stop()
	// Its issuer is slow now; an empty key set must not be served meanwhile.
	issuer.delay.Store(int64(300 * time.Millisecond))
	p = w.controlPlane(allow, func(o *options) {
		o.address = p.address
		o.jwks = jwks.Config{Refresh: 50 * time.Millisecond, MinRefresh: 50 * time.Millisecond, MaxRefresh: 100 * time.Millisecond}
	})
	target := ads.GatewayTarget(w.namespace, "gateway")
	testkit.Eventually(t, patience, func() error {
		if s := p.ads.Status(target); !s.Acknowledged(s.Version) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}, "the gateway is back and has acknowledged")
	var now v1alpha1.APIRule
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(rule), &now))
	for _, c := range now.Status.Conditions {
		require.Equal(t, metav1.ConditionTrue, c.Status, "%+v", c)
	}
	// And then it is down: its last keys are good, and the status says they are old.
	issuer.down.Store(true)
	c := w.requireCondition(rule, v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, translate.ReasonKeysUnusable)
	require.Contains(t, c.Message, "are old")
	g.requireStatus(200, host, "/", "Authorization", "Bearer "+token)
	close(stop)
	for failure := range failures {
		t.Error(failure)
	}
}

func TestKeysThatCannotBeFetchedLetNobodyInAndHeal(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	issuer := newIssuer(t)
	issuer.down.Store(true)
	p := w.controlPlane(func(o *options) {
		o.allow = []string{issuer.address}
		o.jwks = jwks.Config{MinRefresh: 50 * time.Millisecond, MaxRefresh: 100 * time.Millisecond}
	})
	g := w.gateway(p.address)
	rule := w.apiRule("orders", "orders", issuer.protect(toService("orders")))
	w.create(rule)
	c := w.requireCondition(rule, v1alpha1.ConditionResolvedRefs, metav1.ConditionFalse, translate.ReasonKeysUnusable)
	require.Contains(t, c.Message, issuer.uri())
	require.Contains(t, c.Message, "502")
	w.requireCondition(rule, v1alpha1.ConditionProgrammed, metav1.ConditionTrue, output.ReasonProgrammed)
	g.requireStatus(401, "orders."+domain, "/", "Authorization", "Bearer "+issuer.token(t))

	issuer.down.Store(false)
	w.requireReady(rule)
	g.requireStatus(200, "orders."+domain, "/", "Authorization", "Bearer "+issuer.token(t))
	g.requireStatus(401, "orders."+domain, "/")
}

func TestANodeIsServedOnlyToTheAccountItStandsFor(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane()
	w.node(p.address, ads.GatewayNodeID(w.namespace, "gateway", "0"), w.namespace+"/somebody", nil)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireCondition(rule, v1alpha1.ConditionProgrammed, metav1.ConditionFalse, output.ReasonNoDataPlane)
	require.Empty(t, p.ads.Status(ads.GatewayTarget(w.namespace, "gateway")).Nodes)
}

func TestAGatewayServesTheCertificateOfItsSecretAndItsSuccessor(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	p := w.controlPlane()
	g := w.gateway(p.address)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireReady(rule)

	var gateway networkingv1.Gateway
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "gateway"}, &gateway))
	gateway.Spec.Servers = append(gateway.Spec.Servers, &istioapi.Server{
		Port: &istioapi.Port{Number: 443, Name: "https", Protocol: "HTTPS"}, Hosts: []string{"*"},
		Tls: &istioapi.ServerTLSSettings{Mode: istioapi.ServerTLSSettings_SIMPLE, CredentialName: "certificate"},
	})
	require.NoError(t, w.client.Update(t.Context(), &gateway))
	g.requireStatus(200, "orders."+domain, "/") // the other server is no worse for it

	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "certificate"}, Type: corev1.SecretTypeTLS}
	issue := func() *x509.Certificate {
		leaf, err := w.ca.IssueServer("*." + domain)
		require.NoError(t, err)
		secret.Data = map[string][]byte{corev1.TLSCertKey: leaf.ChainPEM, corev1.TLSPrivateKeyKey: leaf.KeyPEM}
		block, _ := pem.Decode(leaf.ChainPEM)
		certificate, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		return certificate
	}
	first := issue()
	w.create(secret)
	w.requireCertificate(g, first)
	second := issue()
	require.NoError(t, w.client.Update(t.Context(), secret))
	w.requireCertificate(g, second)
}

func (w *world) requireCertificate(g *node, want *x509.Certificate) {
	w.t.Helper()
	testkit.Eventually(w.t, patience, func() error {
		g.mu.Lock()
		address := g.real["443"]
		g.mu.Unlock()
		dialer := tls.Dialer{Config: &tls.Config{ServerName: "orders." + domain, RootCAs: w.ca.Pool(), MinVersion: tls.VersionTLS12}}
		conn, err := dialer.DialContext(w.t.Context(), "tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		secured, ok := conn.(*tls.Conn)
		require.True(w.t, ok)
		if got := secured.ConnectionState().PeerCertificates[0]; !got.Equal(want) {
			return fmt.Errorf("the certificate has serial %s", got.SerialNumber)
		}
		return nil
	}, "the gateway serves the certificate")
}

func TestADataPlaneOfAnotherReplicaCounts(t *testing.T) {
	w := newWorld(t)
	w.service("orders", "an order")
	w.controlPlane(func(o *options) { o.replica = "leader" })
	standby := w.controlPlane(func(o *options) { o.replica, o.standby = "standby", true })
	g := w.gateway(standby.address)
	rule := w.apiRule("orders", "orders", toService("orders"))
	w.create(rule)
	w.requireReady(rule)
	g.requireStatus(200, "orders."+domain, "/")

	g.refuse("no")
	g.stop()
	// A gateway that refuses, at the other replica again.
	second := w.gateway(standby.address)
	second.refuse("port 80 is taken there")
	more := w.apiRule("more", "more", toService("orders"))
	w.create(more)
	testkit.Eventually(t, patience, func() error {
		var now v1alpha1.APIRule
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(more), &now); err != nil {
			return err
		}
		c := meta.FindStatusCondition(now.Status.Conditions, v1alpha1.ConditionProgrammed)
		if c == nil || !strings.Contains(c.Message, "port 80 is taken there") {
			return fmt.Errorf("%+v", c)
		}
		return nil
	}, "the refusal is told")
}

// issuer is an identity provider.
type issuer struct {
	address string
	set     string
	key     *ecdsa.PrivateKey
	down    atomic.Bool
	delay   atomic.Int64
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	point, err := key.PublicKey.Bytes() // 4, x, y
	require.NoError(t, err)
	encode := base64.RawURLEncoding.EncodeToString
	set := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"k","x":%q,"y":%q}]}`, encode(point[1:33]), encode(point[33:]))
	i := &issuer{key: key, set: set}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(time.Duration(i.delay.Load())):
		case <-r.Context().Done():
		}
		if i.down.Load() {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		fmt.Fprint(rw, set)
	}))
	t.Cleanup(server.Close)
	i.address = strings.TrimPrefix(server.URL, "http://")
	return i
}

func (i *issuer) uri() string { return "http://" + i.address + "/keys" }

func (i *issuer) protect(rule v1alpha1.Rule) v1alpha1.Rule {
	rule.NoAuth = nil
	rule.JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{{Issuer: "https://issuer.test", JWKSURI: i.uri()}}}
	return rule
}

func (i *issuer) token(t *testing.T) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{"iss": "https://issuer.test", "sub": "somebody", "exp": time.Now().Add(time.Hour).Unix()})
	token.Header["kid"] = "k"
	signed, err := token.SignedString(i.key)
	require.NoError(t, err)
	return signed
}
