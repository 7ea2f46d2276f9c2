package mesh_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/mesh"
)

const subject = "OU=Applications,O=Lambdamesh,L=Mesh,ST=Mesh,C=ZZ,CN=webshop"

// connector answers as the one of docs/applications.md; e2e drives the real one.
type connector struct {
	*httptest.Server
	t      *testing.T
	key    *ecdsa.PrivateKey
	ca     *x509.Certificate
	serial atomic.Int64
	posted chan string // services and events
}

func newConnector(t *testing.T) *connector {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &connector{t: t, key: key, posted: make(chan string, 16), ca: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "applications"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	der, err := x509.CreateCertificate(rand.Reader, c.ca, c.ca, key.Public(), key)
	require.NoError(t, err)
	clients := x509.NewCertPool()
	require.True(t, clients.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	mux := http.NewServeMux()
	c.Server = httptest.NewUnstartedServer(mux)
	c.TLS = &tls.Config{ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients}
	c.StartTLS()
	t.Cleanup(c.Close)
	info := map[string]string{"subject": subject, "key-algorithm": "rsa2048"}
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("token") != "good" {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"code":403,"error":"the token is unknown"}`)
			return
		}
		c.answer(w, map[string]any{"csrUrl": c.URL + "/sign", "api": map[string]string{"infoUrl": c.URL + "/management"}, "certificate": info})
	})
	mux.HandleFunc("GET /management", func(w http.ResponseWriter, r *http.Request) {
		assert.NotEmpty(t, r.TLS.PeerCertificates)
		c.answer(w, map[string]any{
			"clientIdentity": map[string]string{"application": "webshop"}, "certificate": info,
			"urls": map[string]string{"renewCertUrl": c.URL + "/renew", "eventsUrl": c.URL + "/events", "metadataUrl": c.URL + "/services"},
		})
	})
	mux.HandleFunc("POST /sign", c.sign)
	mux.HandleFunc("POST /renew", c.sign)
	take := func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		assert.NoError(t, json.NewDecoder(r.Body).Decode(&body))
		name, _ := body["name"].(string)
		c.posted <- fmt.Sprintf("%s %s %v%s", r.Method, r.URL.Path, r.TLS.PeerCertificates[0].SerialNumber, name)
		c.answer(w, map[string]any{"id": "new"})
	}
	mux.HandleFunc("GET /services", func(w http.ResponseWriter, _ *http.Request) {
		c.answer(w, []map[string]string{{"id": "1", "identifier": "old"}})
	})
	mux.HandleFunc("GET /services/{id}", func(w http.ResponseWriter, r *http.Request) {
		c.answer(w, map[string]string{"provider": "p", "name": "kept as " + r.PathValue("id")})
	})
	mux.HandleFunc("POST /services", take)
	mux.HandleFunc("PUT /services/{id}", take)
	mux.HandleFunc("POST /events", take)
	return c
}

func (c *connector) answer(w http.ResponseWriter, body any) {
	assert.NoError(c.t, json.NewEncoder(w).Encode(body))
}

// sign checks a request for a certificate as a Kyma does.
func (c *connector) sign(w http.ResponseWriter, r *http.Request) {
	var body struct{ CSR []byte }
	assert.NoError(c.t, json.NewDecoder(r.Body).Decode(&body))
	block, _ := pem.Decode(body.CSR)
	if !assert.NotNil(c.t, block) {
		return
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if !assert.NoError(c.t, err) {
		return
	}
	assert.NoError(c.t, request.CheckSignature())
	assert.Equal(c.t, x509.RSA, request.PublicKeyAlgorithm)
	assert.ElementsMatch(c.t, strings.Split(subject, ","), strings.Split(request.Subject.String(), ","))
	now := time.Now()
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1 + c.serial.Add(1)), RawSubject: request.RawSubject, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(90 * time.Minute),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, c.ca, request.PublicKey, c.key)
	assert.NoError(c.t, err)
	w.WriteHeader(http.StatusCreated)
	c.answer(w, map[string]string{"crt": base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))})
}

func (c *connector) token(token string) mesh.Token {
	return mesh.Token{URL: c.URL + "/info?token=" + token, CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})}
}

func TestAConnectionIsKeptAndRenewed(t *testing.T) {
	c, dir := newConnector(t), t.TempDir()
	paired, err := mesh.Pair(t.Context(), dir, c.token("good"))
	require.NoError(t, err)
	require.Equal(t, "webshop", paired.Application())
	require.NoError(t, paired.Publish(t.Context(), "order.created", "v1", "id", map[string]string{}))
	require.Equal(t, "POST /events 2", <-c.posted)

	opened, err := mesh.Open(dir)
	require.NoError(t, err)
	from, until := opened.Life()
	require.Equal(t, until.Add(-until.Sub(from)/3), opened.RenewAt())
	require.True(t, opened.RenewAt().After(time.Now()))
	before, err := os.ReadFile(filepath.Join(dir, "client.key"))
	require.NoError(t, err)
	require.NoError(t, opened.Renew(t.Context()))
	after, err := os.ReadFile(filepath.Join(dir, "client.key"))
	require.NoError(t, err)
	require.NotEqual(t, before, after, "another certificate is for another key")
	require.NoError(t, opened.Publish(t.Context(), "order.created", "v1", "id", map[string]string{}))
	require.Equal(t, "POST /events 3", <-c.posted)
	require.NoError(t, paired.Publish(t.Context(), "order.created", "v1", "id", map[string]string{}), "who runs with the one before goes on")
	require.Equal(t, "POST /events 2", <-c.posted)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 4)
	for _, entry := range entries {
		info, err := entry.Info()
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), entry.Name())
	}
}

func TestWhatIsThereIsReplacedAndTheRestIsMade(t *testing.T) {
	c := newConnector(t)
	paired, err := mesh.Pair(t.Context(), t.TempDir(), c.token("good"))
	require.NoError(t, err)
	has, err := paired.Register(t.Context(), []mesh.Service{{Name: "A", Identifier: "new"}, {Name: "B", Identifier: "old"}})
	require.NoError(t, err)
	require.Equal(t, []string{"POST /services 2A", "PUT /services/1 2B"}, []string{<-c.posted, <-c.posted})
	require.Equal(t, []string{"kept as new", "kept as 1"}, []string{has["new"].Name, has["old"].Name})
}

func TestPairingSaysWhatIsWrongAndNotTheToken(t *testing.T) {
	c, dir := newConnector(t), t.TempDir()
	_, err := mesh.Pair(t.Context(), dir, c.token("s3cret"))
	require.ErrorContains(t, err, "403: the token is unknown")
	stranger := c.token("s3cret")
	stranger.CA = nil
	_, err = mesh.Pair(t.Context(), dir, stranger)
	require.ErrorContains(t, err, "certificate")
	require.NotContains(t, err.Error(), "s3cret")
	_, err = mesh.Open(dir)
	require.ErrorIs(t, err, mesh.ErrNotPaired)
	for _, bad := range []string{"", "{}", `{"data":{"url":"!"}}`} {
		_, err := mesh.ReadToken([]byte(bad))
		require.ErrorContains(t, err, "Secret", bad)
	}
}
