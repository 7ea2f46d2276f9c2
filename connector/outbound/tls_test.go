package outbound_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
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
