package connector_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector"
	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestASystemPairsAsWithKyma(t *testing.T) {
	w := startPairing(t, nil)
	shop := systemOf("shop")
	w.create(shop)
	w.becomes(shop, v1alpha1.ReasonReady, "")
	request, secret := w.token("shop")
	require.WithinDuration(t, time.Now().Add(5*time.Minute), request.Status.ExpiresAt.Time, 30*time.Second)
	require.Equal(t, corev1.SecretType("lambdamesh.dev/pairing"), secret.Type)
	require.Contains(t, string(secret.Data["url"]), w.public+"/v1/applications/signingRequests/info?token=")
	require.NotEmpty(t, secret.Data["ca.crt"])
	object, err := json.Marshal(request)
	require.NoError(t, err)
	require.NotContains(t, string(object), string(secret.Data["token"]), "only a hash of the token is kept")

	stranger := w.system(nil)
	var begin info
	for range 2 { // asking uses nothing up
		stranger.must(t, http.StatusOK, http.MethodGet, string(secret.Data["url"]), nil, &begin)
	}
	require.Equal(t, w.public+"/shop/v1/metadata/services", begin.API.MetadataURL)
	require.Equal(t, w.public+"/shop/v1/events", begin.API.EventsURL)
	require.Equal(t, w.infoURL(), begin.API.InfoURL)
	require.Equal(t, w.public+"/v1/applications/certificates", begin.API.CertificatesURL)
	require.Equal(t, "rsa2048", begin.Certificate.KeyAlgorithm)
	require.Contains(t, begin.Certificate.Subject, "CN=shop")

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	good := csr(t, begin.Certificate.Subject, key)
	for name, body := range map[string]any{
		"no JSON": "<csr/>", "no base64": map[string]string{"csr": "%"}, "no request": map[string]string{"csr": "aGVsbG8="},
		"another's": csr(t, strings.Replace(begin.Certificate.Subject, "CN=shop", "CN=bank", 1), key),
	} {
		status, err := stranger.call(t, http.MethodPost, begin.CSRURL, body, nil)
		require.NoError(t, err, name)
		require.Equal(t, http.StatusBadRequest, status, name)
	}
	var answer signed
	stranger.must(t, http.StatusCreated, http.MethodPost, begin.CSRURL, good, &answer)
	stranger.must(t, http.StatusForbidden, http.MethodPost, begin.CSRURL, good, nil)
	stranger.must(t, http.StatusForbidden, http.MethodGet, string(secret.Data["url"]), nil, nil)
	w.becomes(request, "Used", "make a new TokenRequest")
	require.True(t, apierrors.IsNotFound(w.client.Get(t.Context(), client.ObjectKeyFromObject(secret), secret)), "the Secret goes on use")

	paired := w.holder(answer, key)
	leaf := paired.certificate.Leaf
	require.Empty(t, leaf.DNSNames, "what a request asks for besides its key is not granted")
	require.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, leaf.ExtKeyUsage)
	require.WithinDuration(t, time.Now().Add(90*24*time.Hour), leaf.NotAfter, time.Minute)
	require.Greater(t, leaf.SerialNumber.BitLen(), 64)
	var told management
	paired.must(t, http.StatusOK, http.MethodGet, begin.API.InfoURL, nil, &told)
	require.Equal(t, "shop", told.ClientIdentity.Application)
	require.Equal(t, w.public+"/shop/v1/events/subscribed", told.URLs.EventsInfoURL)
	require.Equal(t, begin.Certificate.Subject, told.Certificate.Subject)

	// The renewed one is another, and the one before it stays good.
	other := ecdsaKey(t)
	paired.must(t, http.StatusBadRequest, http.MethodPost, told.URLs.RenewURL, csr(t, "CN=shop", other), nil)
	paired.must(t, http.StatusCreated, http.MethodPost, told.URLs.RenewURL, csr(t, told.Certificate.Subject, other), &answer)
	renewed := w.holder(answer, other)
	require.NotEqual(t, leaf.SerialNumber, renewed.certificate.Leaf.SerialNumber)
	for _, s := range []*system{paired, renewed} {
		s.must(t, http.StatusOK, http.MethodGet, begin.API.InfoURL, nil, nil)
	}
	testkit.Eventually(t, 20*time.Second, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(shop), shop); err != nil {
			return err
		}
		for _, c := range shop.Status.CommonStatus.Conditions {
			if c.Type == v1alpha1.ConditionPaired && c.Status == metav1.ConditionTrue && strings.Contains(c.Message, "expires at") {
				return nil
			}
		}
		return fmt.Errorf("%+v", shop.Status)
	}, "the status says until when it is paired")
	require.Len(t, shop.Status.Certificates, 2)
	_, metrics, err := w.get(http.DefaultClient, w.admin+"/metrics", "")
	require.NoError(t, err)
	require.Contains(t, metrics, `lambdamesh_connector_client_certificate_expiry_timestamp_seconds{application="shop"}`)
	require.NotContains(t, w.log.String(), string(secret.Data["token"]))

	for _, nonsense := range []string{"", "x", "a.b.c", w.namespace + ".nobody.x", strings.Repeat("x", 4096), "..", string(secret.Data["token"])[1:]} {
		stranger.must(t, http.StatusForbidden, http.MethodGet, w.public+"/v1/applications/signingRequests/info?token="+nonsense, nil, nil)
	}
	stranger.must(t, http.StatusMethodNotAllowed, http.MethodGet, w.public+"/v1/applications/certificates", nil, nil)
}

func TestOneTokenMakesOneCertificateAtTwoReplicas(t *testing.T) {
	w := startPairing(t, nil)
	other := startOn(t, w.rest, func(c *connector.Config) { c.PublicURL, c.LeaderElection = w.public, true })
	w.create(systemOf("twice"))
	_, secret := w.token("twice")
	query := strings.TrimPrefix(string(secret.Data["url"]), w.public+"/v1/applications/signingRequests/info")
	var begin info
	w.system(nil).must(t, http.StatusOK, http.MethodGet, string(secret.Data["url"]), nil, &begin)
	body := csr(t, begin.Certificate.Subject, ecdsaKey(t))
	// The other one may not have heard of the authority's Secret yet.
	testkit.Eventually(t, 20*time.Second, func() error {
		status, err := other.system(nil).call(t, http.MethodPost, other.public+"/v1/applications/certificates"+query, csr(t, begin.Certificate.Subject+",OU=x", ecdsaKey(t)), nil)
		if err != nil || status != http.StatusBadRequest {
			return fmt.Errorf("%d %w", status, err)
		}
		return nil
	}, "the other replica knows the token")

	var mu sync.Mutex
	statuses := map[int]int{}
	var wg sync.WaitGroup
	for i := range 16 {
		at := []*world{w, other}[i%2]
		wg.Go(func() {
			status, err := at.system(nil).call(t, http.MethodPost, at.public+"/v1/applications/certificates"+query, body, nil)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			statuses[status]++
		})
	}
	wg.Wait()
	require.Equal(t, map[int]int{http.StatusCreated: 1, http.StatusForbidden: 15}, statuses)
	app := systemOf("twice")
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(app), app))
	require.Len(t, app.Status.Certificates, 1)
}

func TestRevocationHoldsAtOnceAndAtEveryReplica(t *testing.T) {
	w := startPairing(t, newBus(t))
	other := startOn(t, w.rest, func(c *connector.Config) { c.LeaderElection = true })
	w.create(systemOf("gone"))
	key := ecdsaKey(t)
	paired := w.pair("gone", key)
	kept := w.pair("gone", key)
	there := other.system(paired.certificate)
	testkit.Eventually(t, 20*time.Second, func() error {
		status, err := there.call(t, http.MethodGet, other.infoURL(), nil, nil)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("%d %w", status, err)
		}
		return nil
	}, "the other replica knows the certificate")

	// Connections that wait for a request, one at each replica.
	open := func(at *world) net.Conn {
		raw, err := tls.Dial("tcp", strings.TrimPrefix(at.public, "https://"), &tls.Config{RootCAs: at.roots, Certificates: []tls.Certificate{*paired.certificate}})
		require.NoError(t, err)
		t.Cleanup(func() { raw.Close() })
		_, err = io.WriteString(raw, "GET /v1/applications/management/info HTTP/1.1\r\nHost: localhost\r\n\r\n")
		require.NoError(t, err)
		response, err := http.ReadResponse(bufio.NewReader(raw), nil)
		require.NoError(t, err)
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, response.StatusCode)
		return raw
	}
	idle := []net.Conn{open(w), open(other)}

	var told management
	paired.must(t, http.StatusOK, http.MethodGet, w.infoURL(), nil, &told)
	paired.must(t, http.StatusCreated, http.MethodPost, told.URLs.RevokeURL, nil, nil)
	require.NoError(t, w.refused(paired.certificate), "at the replica that was told at once")
	testkit.Eventually(t, 20*time.Second, func() error { return other.refused(paired.certificate) }, "the other replica refuses it")
	for _, c := range idle {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(30*time.Second)))
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err)
		var late net.Error
		require.False(t, errors.As(err, &late) && late.Timeout(), "an open connection is closed")
	}
	kept.must(t, http.StatusOK, http.MethodGet, w.infoURL(), nil, nil)

	// An operator revokes by the number in the status.
	app := systemOf("gone")
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(app), app))
	app.Spec.RevokedCertificates = []string{kept.certificate.Leaf.SerialNumber.Text(16)}
	if len(app.Spec.RevokedCertificates[0])%2 == 1 {
		app.Spec.RevokedCertificates[0] = "0" + app.Spec.RevokedCertificates[0]
	}
	require.Equal(t, app.Spec.RevokedCertificates[0], app.Status.Certificates[1].Serial)
	require.NoError(t, w.client.Update(t.Context(), app))
	for _, at := range []*world{w, other} {
		testkit.Eventually(t, 20*time.Second, func() error { return at.refused(kept.certificate) }, "it is refused")
	}
}

func TestOnlyGoodCertificatesAreLetIn(t *testing.T) {
	w := startPairing(t, newBus(t))
	w.create(systemOf("edge"))
	paired := w.pair("edge", ecdsaKey(t))
	secret := &corev1.Secret{}
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.SecretConnectorCA}, secret))
	ours, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	require.NoError(t, err)
	data, _, _, err := authority.Renew(nil, false, time.Now())
	require.NoError(t, err)
	foreign, err := tls.X509KeyPair(data["tls.crt"], data["tls.key"])
	require.NoError(t, err)

	now, leaf := time.Now(), paired.certificate.Leaf
	issue := func(by tls.Certificate, change func(*x509.Certificate)) *tls.Certificate {
		key := ecdsaKey(t)
		template := &x509.Certificate{
			SerialNumber: leaf.SerialNumber, RawSubject: leaf.RawSubject, NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(time.Hour),
			ExtKeyUsage: leaf.ExtKeyUsage, KeyUsage: leaf.KeyUsage, BasicConstraintsValid: true,
		}
		change(template)
		der, err := x509.CreateCertificate(rand.Reader, template, by.Leaf, key.Public(), by.PrivateKey)
		require.NoError(t, err)
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	same := func(*x509.Certificate) {}
	require.Error(t, w.refused(issue(ours, same)), "a certificate of ours is let in: the cases below differ in one thing each")
	for name, certificate := range map[string]*tls.Certificate{
		"none":             nil,
		"of another CA":    issue(foreign, same),
		"expired":          issue(ours, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }),
		"not valid yet":    issue(ours, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }),
		"for servers":      issue(ours, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"of no subject":    issue(ours, func(c *x509.Certificate) { c.RawSubject = nil; c.Subject = pkix.Name{CommonName: "edge"} }),
		"of an old number": issue(ours, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(7); c.NotBefore = now.Add(-time.Hour) }),
	} {
		require.NoError(t, w.refused(certificate), name)
	}

	// An Application of the same name is another one.
	app := systemOf("edge")
	require.NoError(t, w.client.Delete(t.Context(), app))
	testkit.Eventually(t, 20*time.Second, func() error {
		status, err := paired.call(t, http.MethodGet, w.infoURL(), nil, nil)
		if err != nil || status != http.StatusNotFound {
			return fmt.Errorf("%d %w", status, err)
		}
		return nil
	}, "without its Application a system is told that there is none")
	w.create(systemOf("edge"))
	old := issue(ours, func(c *x509.Certificate) { c.NotBefore = now.Add(-time.Hour) })
	testkit.Eventually(t, 20*time.Second, func() error { return w.refused(old) }, "a certificate of the one before it is not let in")
}

func TestAnAuthorityIsReplacedWithAnOverlap(t *testing.T) {
	w := startPairing(t, nil)
	w.create(systemOf("overlap"))
	before := w.pair("overlap", ecdsaKey(t))
	secret := &corev1.Secret{}
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: v1alpha1.SecretConnectorCA}, secret))
	rotated, reason, _, err := authority.Renew(secret.Data, true, time.Now())
	require.NoError(t, err)
	require.NotEmpty(t, reason)
	secret.Data = rotated
	require.NoError(t, w.client.Update(t.Context(), secret))
	var after *system
	testkit.Eventually(t, 30*time.Second, func() error {
		after = w.pair("overlap", ecdsaKey(t))
		if !bytes.Equal(after.certificate.Leaf.AuthorityKeyId, before.certificate.Leaf.AuthorityKeyId) {
			return nil
		}
		return errors.New("the authority before it still signs")
	}, "the new authority signs")
	for _, s := range []*system{before, after} {
		w.system(s.certificate).must(t, http.StatusOK, http.MethodGet, w.infoURL(), nil, nil)
	}
	// Without the overlap who it signed for is out, with open connections too.
	secret.Data["ca.crt"] = rotated["tls.crt"]
	require.NoError(t, w.client.Update(t.Context(), secret))
	testkit.Eventually(t, 20*time.Second, func() error { return w.refused(before.certificate) }, "the old authority is trusted no more")
	after.must(t, http.StatusOK, http.MethodGet, w.infoURL(), nil, nil)
}

func TestEventsGoToTheBusInTheNameOfTheCertificate(t *testing.T) {
	b := newBus(t)
	w := startPairing(t, b)
	w.create(systemOf("sender"), systemOf("victim"))
	sender := w.pair("sender", ecdsaKey(t))
	spoofed := []string{
		"Ce-Type", "order.created.v1", "Ce-Source", "victim", "X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/lambdamesh-system/sa/gateway",
		"X-Lambdamesh-Claims", "e30", "X_Lambdamesh_Rule", "x", "Authorization", "Bearer x", "Cookie", "a=b",
	}
	for path, want := range map[string]string{
		"/sender/events":             "POST http://eventbus.lambdamesh-system.svc/sender/events order.created.v1 {}",
		"/sender/v1/events":          "POST http://eventbus.lambdamesh-system.svc/sender/v1/events order.created.v1 {}",
		"/%73ender/events":           "POST http://eventbus.lambdamesh-system.svc/sender/events order.created.v1 {}",
		"/sender/events?source=what": "POST http://eventbus.lambdamesh-system.svc/sender/events order.created.v1 {}",
	} {
		status, err := sender.call(t, http.MethodPost, w.public+path, "{}", nil, spoofed...)
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, status, path)
		require.Equal(t, want, b.last())
	}
	status, err := sender.call(t, http.MethodGet, w.public+"/sender/v1/events/subscribed", nil, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusAccepted, status)
	asked := b.last()
	require.Contains(t, asked, "GET http://eventbus.lambdamesh-system.svc/sender/v1/events/subscribed")

	for path, want := range map[string]int{
		"/victim/events": http.StatusForbidden, "/victim/v1/events": http.StatusForbidden, "/victim/v1/events/subscribed": http.StatusForbidden,
		"/nobody/events": http.StatusNotFound, "/nobody/v1/events": http.StatusNotFound, "/sender%2Fx/events": http.StatusNotFound,
		"/publish": http.StatusNotFound, "/v1/events": http.StatusNotFound, "/sender/events/x": http.StatusNotFound,
		"/sender/..%2Fvictim/events": http.StatusNotFound, "/victim%2F..%2Fsender/events": http.StatusNotFound,
	} {
		method := http.MethodPost
		if strings.HasSuffix(path, "subscribed") {
			method = http.MethodGet
		}
		status, err := sender.call(t, method, w.public+path, "{}", nil, spoofed...)
		require.NoError(t, err)
		require.Equal(t, want, status, path)
	}
	w.system(nil).must(t, http.StatusForbidden, http.MethodPost, w.public+"/sender/events", "{}", nil)
	sender.must(t, http.StatusMethodNotAllowed, http.MethodGet, w.public+"/sender/events", nil, nil)
	for mediaType, limit := range map[string]int{"application/json": 1 << 20, "application/cloudevents+json": 2<<20 + 64<<10, "application/cloudevents-batch+json": 16 << 20} {
		// Who asks first is told before it sends.
		status, err := sender.call(t, http.MethodPost, w.public+"/sender/events", strings.Repeat("x", limit+1), nil, "Expect", "100-continue", "Content-Type", mediaType)
		require.NoError(t, err)
		require.Equal(t, http.StatusRequestEntityTooLarge, status, mediaType)
	}
	require.Equal(t, asked, b.last(), "nothing of it reached the bus")
	b.Close()
	sender.must(t, http.StatusServiceUnavailable, http.MethodPost, w.public+"/sender/events", "{}", nil)
}

// away is an API server that goes away.
type away struct {
	mu    sync.Mutex
	gone  bool
	conns map[net.Conn]bool
}

// throughAway returns a config that reaches the API server as long as it is not
// away.
func throughAway(t *testing.T, api *rest.Config) (*rest.Config, *away) {
	t.Helper()
	a := &away{conns: map[net.Conn]bool{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close(); a.leave() })
	host := strings.TrimPrefix(strings.TrimPrefix(api.Host, "https://"), "http://")
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", strings.TrimSuffix(host, "/"))
			a.mu.Lock()
			if err != nil || a.gone {
				a.mu.Unlock()
				c.Close()
				if err == nil {
					up.Close()
				}
				continue
			}
			a.conns[c], a.conns[up] = true, true
			a.mu.Unlock()
			go func() { _, _ = io.Copy(up, c); up.Close() }()
			go func() { _, _ = io.Copy(c, up); c.Close() }()
		}
	}()
	through := rest.CopyConfig(api)
	through.Host = "https://" + listener.Addr().String()
	return through, a
}

func (a *away) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
	for c := range a.conns {
		c.Close()
	}
	a.conns = map[net.Conn]bool{}
}

func (a *away) comeBack() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = false
}

// Whoever was let in before the API server went away is let in while it is away,
// be it for longer than the leadership lasts; whoever was not is not.
func TestPairedSystemsPublishAndLambdasCallWhileTheAPIServerIsAway(t *testing.T) {
	b := newBus(t)
	var tokens atomic.Int64
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" { // one that is never used for a second call
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":"t%d","token_type":"Bearer","expires_in":-1}`, tokens.Add(1))
			return
		}
		_, _ = io.WriteString(w, r.Header.Get("Authorization")[:len("Bearer t")])
	}))
	defer shop.Close()
	api, server := throughAway(t, testkit.KubeAPI(t, manifests.CRDs))
	w := startOn(t, api, func(c *connector.Config) {
		c.MeshProxyURL, c.LeaderElection = b.URL, true
		var err error
		c.Targets, err = targets.New(targets.Config{Allow: []string{strings.TrimPrefix(shop.URL, "http://")}})
		require.NoError(t, err)
	})
	w.makeAuthority()
	secret := credentials("steady")
	secret.Data["clientId"], secret.Data["clientSecret"] = secret.Data["username"], secret.Data["password"]
	app := application("steady", shop.URL)
	app.Spec.Services[0].API.Auth = &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{
		TokenURL: shop.URL + "/token", Secret: v1alpha1.SecretRef{Name: "steady"},
	}}
	w.create(secret, app, &v1alpha1.ApplicationBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "steady"},
		Spec:       v1alpha1.ApplicationBindingSpec{Application: "steady", Lambdas: &v1alpha1.LambdaSelection{Names: []string{"last-order"}}},
	})
	call := func(caller string) (int, string, error) {
		return w.get(w.outbound, "http://connector-outbound/steady/orders/4", caller)
	}
	testkit.Eventually(t, time.Minute, func() error {
		if status, body, err := call("last-order"); err != nil || status != http.StatusOK {
			return fmt.Errorf("%d %s %w", status, body, err)
		}
		return nil
	}, "the lambda calls")
	paired, revoked := w.pair("steady", ecdsaKey(t)), w.pair("steady", ecdsaKey(t))
	var told management
	paired.must(t, http.StatusOK, http.MethodGet, w.infoURL(), nil, &told)
	revoked.must(t, http.StatusCreated, http.MethodPost, told.URLs.RevokeURL, nil, nil)

	server.leave()
	left := float64(time.Now().UnixMilli()) / 1e3
	goOn := func() {
		t.Helper()
		// A connection of its own each time: a handshake asks nobody.
		w.system(paired.certificate).must(t, http.StatusAccepted, http.MethodPost, w.public+"/steady/events", "{}", nil)
		require.NoError(t, w.refused(revoked.certificate), "what was revoked stays so")
		before := tokens.Load()
		status, body, err := call("last-order")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, status, body)
		require.Equal(t, before+1, tokens.Load(), "a token that has ended is replaced")
		status, body, err = call("other")
		require.NoError(t, err)
		require.Equal(t, http.StatusForbidden, status, body)
	}
	goOn()
	paired.must(t, http.StatusServiceUnavailable, http.MethodPost, told.URLs.RenewURL, csr(t, told.Certificate.Subject, ecdsaKey(t)), nil)
	paired.must(t, http.StatusServiceUnavailable, http.MethodPost, told.URLs.RevokeURL, nil, nil)
	testkit.Eventually(t, 2*time.Minute, func() error {
		goOn()
		if !strings.Contains(w.log.String(), "stand for election again") {
			return errors.New("it still leads")
		}
		return nil
	}, "the leadership is lost")
	goOn()
	heard := func() float64 {
		_, metrics, err := w.get(http.DefaultClient, w.admin+"/metrics", "") //nolint:forbidigo // a test
		require.NoError(t, err)
		_, rest, _ := strings.Cut(metrics, "\nlambdamesh_connector_api_server_contact_timestamp_seconds ")
		value, _, _ := strings.Cut(rest, "\n")
		at, err := strconv.ParseFloat(value, 64)
		require.NoError(t, err)
		return at
	}
	require.LessOrEqual(t, heard(), left, "it is told how old that is")

	server.comeBack()
	renewed := signed{}
	testkit.Eventually(t, time.Minute, func() error {
		status, err := paired.call(t, http.MethodPost, told.URLs.RenewURL, csr(t, told.Certificate.Subject, ecdsaKey(t)), &renewed)
		if err != nil || status != http.StatusCreated {
			return fmt.Errorf("%d %w", status, err)
		}
		return nil
	}, "it renews again")
	require.Greater(t, heard(), left)
	_, _ = w.token("steady") // made by who leads
}
