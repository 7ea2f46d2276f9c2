package shop_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/shop"
)

// open a shop whose events come to created.
func open(t *testing.T, created func(context.Context, shop.Order) error) *shop.Shop {
	t.Helper()
	return shop.New(shop.Config{
		Credentials: shop.Credentials{ClientID: "id", ClientSecret: "secret", Username: "user", Password: "password"},
		Created:     created, Changed: func(order shop.Order) { t.Logf("%s is %s", order.Code, order.Status) }, Log: t.Logf,
	})
}

func taken(context.Context, shop.Order) error { return nil }

func call(t *testing.T, s *shop.Shop, method, path, body string, change ...func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	raw, err := io.ReadAll(w.Result().Body)
	require.NoError(t, err)
	return w.Result(), strings.TrimSpace(string(raw))
}

func buy(t *testing.T, s *shop.Shop) shop.Order {
	t.Helper()
	resp, body := call(t, s, http.MethodPost, "/checkout", `{"customer":"ada","total":120}`)
	require.Equal(t, http.StatusCreated, resp.StatusCode, body)
	var order shop.Order
	require.NoError(t, json.Unmarshal([]byte(body), &order))
	return order
}

func withUser(r *http.Request) { r.SetBasicAuth("user", "password") }

// accessToken asks for one.
func accessToken(t *testing.T, s *shop.Shop, id, secret, grant string) (status int, header func(*http.Request)) {
	t.Helper()
	resp, body := call(t, s, http.MethodPost, "/oauth/token", url.Values{"grant_type": {grant}}.Encode(), func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth(id, secret)
	})
	var answer struct {
		Token string `json:"access_token"`
	}
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	return resp.StatusCode, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+answer.Token) }
}

func TestTheOrdersAreForWhoHasAnAccessToken(t *testing.T) {
	s := open(t, taken)
	order := buy(t, s)
	for _, tc := range []struct {
		id, secret, grant string
		want              int
	}{
		{"id", "wrong", "client_credentials", http.StatusUnauthorized},
		{"", "", "client_credentials", http.StatusUnauthorized},
		{"user", "password", "client_credentials", http.StatusUnauthorized},
		{"id", "secret", "password", http.StatusBadRequest},
	} {
		status, header := accessToken(t, s, tc.id, tc.secret, tc.grant)
		require.Equal(t, tc.want, status, tc)
		resp, _ := call(t, s, http.MethodGet, "/api/orders", "", header)
		require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	}
	status, header := accessToken(t, s, "id", "secret", "client_credentials")
	require.Equal(t, http.StatusOK, status)
	resp, body := call(t, s, http.MethodGet, "/api/orders/"+order.Code, "", header)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	want, err := json.Marshal(order)
	require.NoError(t, err)
	require.JSONEq(t, string(want), body)
	resp, _ = call(t, s, http.MethodGet, "/api/orders/4711", "", header)
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
	resp, body = call(t, open(t, taken), http.MethodGet, "/api/orders", "", header)
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode, "another shop's token")
	require.Contains(t, resp.Header.Get("WWW-Authenticate"), "invalid_token", body)
}

func TestAnOrderThatTheMeshWasNotToldOfIsTakenBack(t *testing.T) {
	s := open(t, func(context.Context, shop.Order) error { return errors.New("nobody listens") })
	resp, body := call(t, s, http.MethodPost, "/checkout", `{"customer":"ada","total":120}`)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.Contains(t, body, "nobody listens")
	_, header := accessToken(t, s, "id", "secret", "client_credentials")
	_, body = call(t, s, http.MethodGet, "/api/orders", "", header)
	require.Equal(t, "[]", body)
	for _, bad := range []string{"", "x", "{}", `{"customer":"ada"}`, `{"customer":"ada","total":-1}`, `{"customer":"` + strings.Repeat("a", 1<<20) + `","total":1}`} {
		resp, _ := call(t, s, http.MethodPost, "/checkout", bad)
		require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	}
}

func TestAnODataWriteNeedsTheCSRFTokenOfItsSession(t *testing.T) {
	s := open(t, taken)
	order := buy(t, s)
	path := "/odata/Orders('" + order.Code + "')"
	session := func() (token string, cookie *http.Cookie) {
		resp, body := call(t, s, http.MethodGet, "/odata/", "", withUser, func(r *http.Request) { r.Header.Set("X-CSRF-Token", "fetch") })
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		require.Len(t, resp.Cookies(), 1)
		return resp.Header.Get("X-CSRF-Token"), resp.Cookies()[0]
	}
	token, cookie := session()
	otherToken, _ := session()
	write := func(token string, cookie *http.Cookie, body string) (*http.Response, string) {
		return call(t, s, http.MethodPatch, path, body, withUser, func(r *http.Request) {
			r.Header.Set("X-CSRF-Token", token)
			if cookie != nil {
				r.AddCookie(cookie)
			}
		})
	}
	for name, tc := range map[string]struct {
		token  string
		cookie *http.Cookie
	}{"no token": {"", cookie}, "no session": {token, nil}, "another session's token": {otherToken, cookie}, "a guess": {"guess", cookie}} {
		resp, _ := write(tc.token, tc.cookie, `{"Status":"PACKED"}`)
		require.Equal(t, http.StatusForbidden, resp.StatusCode, name)
		require.Equal(t, "Required", resp.Header.Get("X-CSRF-Token"), name)
	}
	resp, body := write(token, cookie, `{"Status":"PACKED"}`)
	require.Equal(t, http.StatusNoContent, resp.StatusCode, body)
	resp, _ = write(token, cookie, `{"Status":"EATEN"}`)
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	_, body = call(t, s, http.MethodGet, path, "", withUser)
	require.Contains(t, body, `{"d":{"Code":"`+order.Code)
	require.Contains(t, body, `"Status":"PACKED"`)
	_, body = call(t, s, http.MethodGet, "/odata/Orders", "", withUser)
	require.Contains(t, body, `{"d":{"results":[{"Code":"`)
	resp, _ = call(t, s, http.MethodGet, path, "")
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	resp, _ = call(t, s, http.MethodGet, "/odata/Orders('4711')", "", withUser)
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
}

// keyPair makes a self-signed client certificate, as the registry does.
func keyPair(t *testing.T) (certificate tls.Certificate, asPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestTheStockIsForTheCertificateThatWasAdmitted(t *testing.T) {
	s, dir := open(t, taken), t.TempDir()
	config, err := s.StockTLS(dir, "127.0.0.1")
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(s.StockHandler())
	server.TLS = config
	server.StartTLS()
	defer server.Close()
	ca, err := os.ReadFile(filepath.Join(dir, shop.CertificateFile))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca))
	ask := func(certificates ...tls.Certificate) (int, error) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates}}
		defer transport.CloseIdleConnections()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/stock/umbrella", nil)
		require.NoError(t, err)
		resp, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		return resp.StatusCode, nil
	}
	admitted, asPEM := keyPair(t)
	stranger, _ := keyPair(t)
	_, err = ask(admitted)
	require.Error(t, err, "not yet")
	require.NoError(t, s.Admit(asPEM))
	status, err := ask(admitted)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	_, err = ask(stranger)
	require.Error(t, err)
	_, err = ask()
	require.Error(t, err)

	_, err = open(t, taken).StockTLS(dir, "127.0.0.1")
	require.NoError(t, err)
	again, err := os.ReadFile(filepath.Join(dir, shop.CertificateFile))
	require.NoError(t, err)
	require.True(t, bytes.Equal(ca, again), "it is kept")
}

func TestCredentialsAreKept(t *testing.T) {
	dir := t.TempDir()
	made, err := shop.KeptCredentials(dir)
	require.NoError(t, err)
	require.NotEqual(t, made.ClientSecret, made.Password)
	kept, err := shop.KeptCredentials(dir)
	require.NoError(t, err)
	require.Equal(t, made, kept)
	path := filepath.Join(dir, "credentials.json")
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, os.WriteFile(path, []byte("{}"), 0o600))
	_, err = shop.KeptCredentials(dir)
	require.ErrorContains(t, err, "credentials.json", "nobody is let in without a secret")
}
