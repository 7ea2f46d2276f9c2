package outbound_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// clientCertificate returns a certificate of its own authority, and its key.
func clientCertificate(t *testing.T, name string) (certificate *x509.Certificate, certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return certificate, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestMutualTLS(t *testing.T) {
	first, firstPEM, firstKey := clientCertificate(t, "first")
	second, secondPEM, secondKey := clientCertificate(t, "second")
	clients := x509.NewCertPool()
	clients.AddCert(first)
	clients.AddCert(second)
	shop := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	shop.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, MinVersion: tls.VersionTLS12}
	shop.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	shop.StartTLS()
	defer shop.Close()
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: shop.Certificate().Raw}))

	w := newWorld(t, func(a *v1alpha1.Application) {
		a.Spec.Services[3].API.TargetURL = shop.URL
		a.Spec.Services[3].API.Auth = &v1alpha1.APIAuth{MTLS: &v1alpha1.MTLSAuth{Secret: v1alpha1.SecretRef{Name: "certificate"}}}
	})
	policy, err := targets.New(targets.Config{Allow: []string{strings.TrimPrefix(shop.URL, "https://")}})
	require.NoError(t, err)
	gateway, err := outbound.New(outbound.Config{Objects: w.client, Targets: policy, TrustDomain: "cluster.local"})
	require.NoError(t, err)
	w.gateway.Config.Handler = gateway

	require.NoError(t, w.client.Create(t.Context(), secret("certificate", map[string]string{"tls.crt": firstPEM, "tls.key": firstKey, "ca.crt": ca})))
	for range 2 {
		response, body := w.get("/commerce/open/")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
		require.Equal(t, "first", body)
	}

	update := func(data map[string]string) {
		t.Helper()
		s := secret("certificate", data)
		require.NoError(t, w.client.Update(t.Context(), s))
	}
	update(map[string]string{"tls.crt": secondPEM, "tls.key": secondKey, "ca.crt": ca})
	_, body := w.get("/commerce/open/")
	require.Equal(t, "second", body, "a rotated certificate is used at once")

	update(map[string]string{"tls.crt": secondPEM, "tls.key": secondKey})
	response, _ := w.get("/commerce/open/")
	require.Equal(t, http.StatusBadGateway, response.StatusCode, "without ca.crt the system's authorities count")

	update(map[string]string{"tls.crt": secondPEM, "tls.key": firstKey, "ca.crt": ca})
	response, body = w.get("/commerce/open/")
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode)
	require.Contains(t, body, "SecretInvalid")

	update(map[string]string{"tls.crt": secondPEM, "tls.key": secondKey, "ca.crt": "x"})
	_, body = w.get("/commerce/open/")
	require.Contains(t, body, "ca.crt holds no PEM certificate")
}

// securedShop asks for a certificate of its clients' authority, for tokens and for
// calls, and for a token that was given to the same certificate (RFC 8705).
func securedShop(t *testing.T, server, clients *testkit.Authority) (shop *httptest.Server, forms func() []string) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	of := map[string]string{} // token: serial number of the certificate
	shop = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serial := r.TLS.PeerCertificates[0].SerialNumber.String()
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			_ = r.ParseForm()
			_, _, basic := r.BasicAuth()
			asked = append(asked, fmt.Sprint(r.PostForm.Encode(), " ", basic))
			token := fmt.Sprintf("token-of-tls-%d", len(asked))
			of[token] = serial
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, token)
			return
		}
		if of[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")] != serial {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, "order")
	}))
	certificate, key := server.Issue(t, "127.0.0.1")
	pair, err := tls.X509KeyPair(certificate, key)
	require.NoError(t, err)
	shop.TLS = &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.Pool(), MinVersion: tls.VersionTLS12,
	}
	shop.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	shop.StartTLS()
	t.Cleanup(shop.Close)
	return shop, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(asked)
	}
}

func TestOAuth2WithACertificateAndAnAuthorityOfItsOwn(t *testing.T) {
	server, clients := testkit.NewAuthority(t), testkit.NewAuthority(t)
	shop, forms := securedShop(t, server, clients)
	w := newWorld(t, func(a *v1alpha1.Application) {
		for i := range 2 { // orders and stock are the same client of the same system
			a.Spec.Services[i].API.TargetURL = shop.URL + "/api"
			a.Spec.Services[i].API.CA = &v1alpha1.SecretKeyRef{Name: "authority", Key: "root.pem"}
			a.Spec.Services[i].API.Auth = &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{
				TokenURL: shop.URL + "/token", Secret: v1alpha1.SecretRef{Name: "client"}, AuthStyle: "mtls",
				MTLS: &v1alpha1.MTLSAuth{Secret: v1alpha1.SecretRef{Name: "certificate"}},
			}}
		}
	})
	policy, err := targets.New(targets.Config{Allow: []string{strings.TrimPrefix(shop.URL, "https://")}})
	require.NoError(t, err)
	gateway, err := outbound.New(outbound.Config{Objects: w.client, Targets: policy, TrustDomain: "cluster.local"})
	require.NoError(t, err)
	w.gateway.Config.Handler = gateway

	certificate, key := clients.Issue(t, "connector")
	pair := func(crt, key []byte) *corev1.Secret {
		return secret("certificate", map[string]string{"tls.crt": string(crt), "tls.key": string(key)})
	}
	require.NoError(t, w.client.Create(t.Context(), secret("client", map[string]string{"clientId": "lambdamesh"})))
	require.NoError(t, w.client.Create(t.Context(), secret("authority", map[string]string{"root.pem": string(server.RootPEM())})))
	require.NoError(t, w.client.Create(t.Context(), pair(certificate, key)))
	for _, service := range []string{"orders", "stock", "orders"} {
		response, body := w.get("/commerce/" + service + "/1")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
		require.Equal(t, "order", body)
	}
	const form = "client_id=lambdamesh&grant_type=client_credentials false"
	require.Equal(t, []string{form}, forms(), "the certificate is the authentication, and one token serves both services")

	certificate, key = clients.Issue(t, "connector")
	require.NoError(t, w.client.Update(t.Context(), pair(certificate, key)))
	response, body := w.get("/commerce/orders/1")
	require.Equal(t, http.StatusOK, response.StatusCode, body)
	require.Equal(t, []string{form, form}, forms(), "another certificate has a token of its own")

	// Whom the target does not know, and who does not know the target, gets nothing.
	strange, strangeKey := testkit.NewAuthority(t).Issue(t, "connector")
	require.NoError(t, w.client.Update(t.Context(), pair(strange, strangeKey)))
	response, body = w.get("/commerce/orders/1")
	require.Equal(t, http.StatusBadGateway, response.StatusCode)
	require.Contains(t, body, "no token from "+shop.URL+"/token")
	require.NoError(t, w.client.Update(t.Context(), pair(certificate, key)))
	require.NoError(t, w.client.Update(t.Context(), secret("authority", map[string]string{"root.pem": string(testkit.NewAuthority(t).RootPEM())})))
	response, body = w.get("/commerce/orders/1")
	require.Equal(t, http.StatusBadGateway, response.StatusCode)
	require.Contains(t, body, "unknown authority")
	require.Len(t, forms(), 2)
}
