package public_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/connector/public"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// behind is everything behind the port: it notes for whom it was called.
type behind struct{ called []string }

func (b *behind) note(w http.ResponseWriter, what string) {
	b.called = append(b.called, what)
	w.WriteHeader(http.StatusNoContent)
}

func (b *behind) Info(w http.ResponseWriter, _ *http.Request) { b.note(w, "info") }
func (b *behind) Sign(w http.ResponseWriter, _ *http.Request) { b.note(w, "sign") }
func (b *behind) Management(w http.ResponseWriter, _ *http.Request, c public.Client) {
	b.note(w, "management of "+c.Application)
}

func (b *behind) Renew(w http.ResponseWriter, _ *http.Request, c public.Client) {
	b.note(w, "renew of "+c.Application)
}

func (b *behind) Revoke(w http.ResponseWriter, _ *http.Request, c public.Client) {
	b.note(w, "revoke of "+c.Application)
}

func (b *behind) Services(w http.ResponseWriter, _ *http.Request, application string) {
	b.note(w, "services of "+application)
}

func (b *behind) Service(w http.ResponseWriter, _ *http.Request, application, id string) {
	b.note(w, "service "+id+" of "+application)
}

func (b *behind) Events(w http.ResponseWriter, _ *http.Request, application, path string) {
	b.note(w, path+" of "+application)
}

// paired returns clients of the applications shop and bank, and the connection of
// shop.
func paired(t testing.TB) (*public.Clients, *tls.ConnectionState) {
	t.Helper()
	data, _, _, err := authority.Renew(nil, false, time.Now())
	require.NoError(t, err)
	signer, err := authority.Parse(data)
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	var subject pkix.RDNSequence
	for part := range strings.SplitSeq(authority.Subject("shop"), ",") {
		kind, value, _ := strings.Cut(part, "=")
		last := map[string]int{"CN": 3, "C": 6, "L": 7, "ST": 8, "O": 10, "OU": 11}[kind]
		subject = append(subject, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, last}, Value: value}})
	}
	raw, err := asn1.Marshal(subject)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: raw}, key)
	require.NoError(t, err)
	request, err := authority.ParseRequest(base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), "shop")
	require.NoError(t, err)
	issued, err := signer.Sign(request, time.Now())
	require.NoError(t, err)
	block, _ := pem.Decode(issued.Certificate)
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: signer.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	require.NoError(t, err)

	clients := public.NewClients()
	clients.SetAuthority(signer)
	shop := &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}
	shop.Status.Certificates = []v1alpha1.ClientCertificate{{Serial: issued.Serial, ExpiresAt: metav1.NewTime(issued.ExpiresAt)}}
	clients.SetApplication(shop)
	clients.SetApplication(&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "bank"}})
	return clients, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: chains, HandshakeComplete: true}
}

func serve(clients *public.Clients, state *tls.ConnectionState, method, path string) (*behind, int) {
	b := &behind{}
	request := &http.Request{Method: method, URL: &url.URL{Path: path}, Host: "connector", Header: http.Header{}, TLS: state, RequestURI: path}
	if parsed, err := url.ParseRequestURI(path); err == nil {
		request.URL = parsed
	}
	recorder := httptest.NewRecorder()
	public.Config{Clients: clients, Pairing: b, Registry: b, Events: b}.Handler().ServeHTTP(recorder, request)
	return b, recorder.Code
}

func TestWhoIsServedWhat(t *testing.T) {
	clients, shop := paired(t)
	for _, c := range []struct {
		method, path string
		state        *tls.ConnectionState
		want         string
		status       int
	}{
		{"GET", "/v1/applications/signingRequests/info", nil, "info", 204},
		{"POST", "/v1/applications/certificates", nil, "sign", 204},
		{"GET", "/v1/applications/management/info", nil, "", 403},
		{"GET", "/v1/applications/management/info", shop, "management of shop", 204},
		{"POST", "/v1/applications/certificates/renewals", shop, "renew of shop", 204},
		{"GET", "/v1/applications/certificates/renewals", shop, "", 405},
		{"POST", "/v1/applications/certificates/revocations", shop, "revoke of shop", 204},
		{"PUT", "/shop/v1/metadata/services/7", shop, "service 7 of shop", 204},
		{"POST", "/shop/v1/metadata/services", shop, "services of shop", 204},
		{"POST", "/shop/v1/metadata/services", nil, "", 403},
		{"POST", "/bank/v1/metadata/services", shop, "", 403},
		{"POST", "/nobody/v1/metadata/services", shop, "", 404},
		{"POST", "/shop/events", shop, "/events of shop", 204},
		{"GET", "/shop/events", shop, "", 405},
		{"POST", "/shop/v1/events", &tls.ConnectionState{}, "", 403},
		{"POST", "/v1/events", shop, "", 404},
		{"GET", "/", shop, "", 404},
	} {
		b, status := serve(clients, c.state, c.method, c.path)
		require.Equal(t, c.status, status, "%s %s", c.method, c.path)
		require.Equal(t, c.want, strings.Join(b.called, ", "), "%s %s", c.method, c.path)
	}
}

// What is served goes by the answer that the certificate got: a namesake that comes
// after it does not take it over.
func TestACertificateIsOfTheApplicationThatWasThereWhenItWasLookedAt(t *testing.T) {
	clients, shop := paired(t)
	client, err := clients.Of(shop)
	require.NoError(t, err)
	require.True(t, client.Exists)
	clients.RemoveApplication("shop")
	client, err = clients.Of(shop)
	require.NoError(t, err)
	clients.SetApplication(&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	require.False(t, client.Exists)
	require.Equal(t, "shop", client.Application)

	clients.RemoveApplication("shop")
	for method, path := range map[string]string{"GET": "/v1/applications/management/info", "POST": "/shop/events"} {
		b, status := serve(clients, shop, method, path)
		require.Equal(t, http.StatusNotFound, status, path)
		require.Empty(t, b.called, path)
	}
}

// Whatever the path: nobody is served as another application.
func FuzzPath(f *testing.F) {
	for _, path := range []string{
		"/shop/events", "/bank/events", "/%62ank/events", "/shop%2F..%2Fbank/events", "/bank/v1/metadata/services/7",
		"/shop/../bank/v1/events", "//bank/v1/events", "/shop/v1/metadata/services/..%2f..%2fbank", "/shop;x/events", "*", "",
	} {
		f.Add("POST", path)
	}
	clients, shop := paired(f)
	f.Fuzz(func(t *testing.T, method, path string) {
		b, status := serve(clients, shop, method, path)
		for _, called := range b.called {
			require.True(t, called == "info" || called == "sign" || strings.HasSuffix(called, " of shop"), "%s %q: %s", method, path, called)
		}
		require.GreaterOrEqual(t, status, 200)
		if b, _ := serve(clients, nil, method, path); len(b.called) > 0 {
			require.Contains(t, []string{"info", "sign"}, b.called[0], "%s %q without a certificate", method, path)
		}
	})
}
