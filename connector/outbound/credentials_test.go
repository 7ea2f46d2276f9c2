package outbound_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

func TestCredentialsAreAdded(t *testing.T) {
	t.Run("oauth2", func(t *testing.T) {
		w := newWorld(t)
		response, body := w.get("/commerce/orders/4caad296?expand=lines")
		require.Equal(t, http.StatusOK, response.StatusCode, body)
		require.Equal(t, "order", body)
		require.Equal(t, "yes", response.Header.Get("X-Commerce"))
		require.Equal(t, "/api/4caad296?expand=lines", w.commerce.last(t).URL.String())
		require.Equal(t, "Bearer token-1", w.commerce.last(t).Header.Get("Authorization"))
		require.Equal(t, []string{"grant_type=client_credentials&scope=read+write"}, w.commerce.tokenForm)
	})
	t.Run("oauth2 with parameters and an audience", func(t *testing.T) {
		w := newWorld(t, func(a *v1alpha1.Application) {
			a.Spec.Services[0].API.Auth.OAuth2.AuthStyle = "params"
			a.Spec.Services[0].API.Auth.OAuth2.Audience = "commerce-api"
		})
		response, _ := w.get("/commerce/orders/1")
		require.Equal(t, http.StatusOK, response.StatusCode)
		require.Contains(t, w.commerce.tokenForm[0], "client_id=lambdamesh")
		require.Contains(t, w.commerce.tokenForm[0], "audience=commerce-api")
	})
	t.Run("basic", func(t *testing.T) {
		w := newWorld(t)
		w.get("/commerce/stock/1")
		username, pass, ok := w.commerce.last(t).BasicAuth()
		require.True(t, ok)
		require.Equal(t, []string{"ada", password}, []string{username, pass})
	})
	t.Run("headers and query parameters", func(t *testing.T) {
		w := newWorld(t)
		r := w.request(http.MethodGet, "/commerce/prices/1?a=b%20c&api+key=mine&%61pi%20key=mine;too&d", nil)
		r.Header.Set("X-Tenant", "mine")
		w.do(r)
		require.Equal(t, []string{"acme"}, w.commerce.last(t).Header.Values("X-Tenant"))
		require.Equal(t, "a=b%20c&d&api+key="+apiKey, w.commerce.last(t).URL.RawQuery, "the rest stays as it was written")
	})
	t.Run("a token of the caller's own is removed", func(t *testing.T) {
		w := newWorld(t)
		for service, want := range map[string]string{"orders": "Bearer token-1", "stock": "Basic YWRhOnBhc3Mtd29yZC05", "open": ""} {
			r := w.request(http.MethodGet, "/commerce/"+service+"/1", nil)
			r.Header.Set("Access-Token", "own-token")
			response, _ := w.do(r)
			require.Equal(t, http.StatusOK, response.StatusCode)
			require.Equal(t, want, w.commerce.last(t).Header.Get("Authorization"), service)
			require.Empty(t, w.commerce.last(t).Header.Get("Access-Token"))
		}
	})
	t.Run("a token of the caller's own goes before the application's where the service allows it", func(t *testing.T) {
		w := newWorld(t, func(a *v1alpha1.Application) {
			for i := range a.Spec.Services {
				if api := a.Spec.Services[i].API; api != nil {
					if api.Auth == nil {
						api.Auth = &v1alpha1.APIAuth{}
					}
					api.Auth.AllowCallerToken = true
				}
			}
		})
		for _, service := range []string{"orders", "stock", "open"} {
			r := w.request(http.MethodGet, "/commerce/"+service+"/1", nil)
			r.Header.Set("Access-Token", "own-token")
			r.Header.Set("Authorization", "Bearer of the caller")
			response, _ := w.do(r)
			require.Equal(t, http.StatusUnauthorized, response.StatusCode, "it is not replaced when it is refused")
			require.Equal(t, "Bearer own-token", w.commerce.last(t).Header.Get("Authorization"))
			require.Empty(t, w.commerce.last(t).Header.Get("Access-Token"))
		}
		require.Zero(t, w.commerce.tokens())
	})
}

func TestOneTokenServesManyCalls(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { w.get("/commerce/orders/1") })
	}
	wg.Wait()
	w.get("/commerce/orders/1")
	require.Equal(t, 1, w.commerce.tokens())
}

func TestTokensThatEndAreRenewed(t *testing.T) {
	for name, tc := range map[string]struct {
		expiresIn any
		want      int // tokens after two calls
	}{
		"an hour":                 {3600, 1},
		"longer than is believed": {math32, 1},
		"no lifetime given":       {nil, 1},
		"a lifetime as a string":  {"3600", 1},
		"negative":                {-5, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.commerce.expiresIn = tc.expiresIn
			for range 2 {
				response, body := w.get("/commerce/orders/1")
				require.Equal(t, http.StatusOK, response.StatusCode, body)
			}
			require.Equal(t, tc.want, w.commerce.tokens())
		})
	}
}

const math32 = 1<<31 - 1

func TestARotatedSecretGetsATokenOfItsOwn(t *testing.T) {
	w := newWorld(t)
	w.get("/commerce/orders/1")
	rotated := secret("oauth", map[string]string{"clientId": "lambdamesh", "clientSecret": "wrong now"})
	require.NoError(t, w.client.Update(t.Context(), rotated))
	response, body := w.get("/commerce/orders/1")
	require.Equal(t, http.StatusBadGateway, response.StatusCode)
	require.Contains(t, body, "/oauth/token: it answered 401 invalid_client")
	require.NotContains(t, body, "wrong now", "the token endpoint repeats what it was sent")
}

func TestARefusedTokenIsReplacedOnce(t *testing.T) {
	for name, body := range map[string]string{"without a body": "", "with a body": `{"total":12}`} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.get("/commerce/orders/1")
			w.commerce.revoke()
			response, answer := w.do(w.request(http.MethodPost, "/commerce/orders/1", strings.NewReader(body)))
			require.Equal(t, http.StatusOK, response.StatusCode)
			require.Equal(t, "order", answer)
			require.Equal(t, 2, w.commerce.tokens())
			require.Equal(t, []string{"", body, body}, w.commerce.bodies)
		})
	}
	t.Run("not for a call that is forbidden", func(t *testing.T) {
		w := newWorld(t)
		w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }
		for range 10 {
			response, _ := w.get("/commerce/orders/forbidden")
			require.Equal(t, http.StatusForbidden, response.StatusCode)
		}
		require.Equal(t, 1, w.commerce.tokens(), "the token is everybody's")
	})
	t.Run("not again and again for a target that takes none", func(t *testing.T) {
		w := newWorld(t)
		w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
		for range 10 {
			response, _ := w.get("/commerce/orders/1")
			require.Equal(t, http.StatusUnauthorized, response.StatusCode)
			response, _ = w.do(w.request(http.MethodPost, "/commerce/orders/1", bytes.NewReader(make([]byte, 1<<20))))
			require.Equal(t, http.StatusUnauthorized, response.StatusCode)
		}
		require.Equal(t, 2, w.commerce.tokens(), "the first, and one in its place")
	})
	t.Run("at once for all who call meanwhile", func(t *testing.T) {
		w := newWorld(t)
		w.get("/commerce/orders/1")
		w.commerce.revoke()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				response, _ := w.get("/commerce/orders/1")
				require.Equal(t, http.StatusOK, response.StatusCode)
			})
		}
		wg.Wait()
		require.Equal(t, 2, w.commerce.tokens())
	})
	t.Run("a body too large to keep is not sent again", func(t *testing.T) {
		w := newWorld(t)
		w.get("/commerce/orders/1")
		w.commerce.revoke()
		response, answer := w.do(w.request(http.MethodPost, "/commerce/orders/1", bytes.NewReader(make([]byte, 1<<20))))
		require.Equal(t, http.StatusUnauthorized, response.StatusCode)
		require.Equal(t, "expired", answer)
		response, _ = w.get("/commerce/orders/1")
		require.Equal(t, http.StatusOK, response.StatusCode, "the next call has a fresh token")
	})
}

func TestTheTokenEndpointCannotSendTheSecretElsewhere(t *testing.T) {
	w := newWorld(t)
	stolen := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer stolen.Close()
	redirecting := httptest.NewServer(http.RedirectHandler(stolen.URL, http.StatusTemporaryRedirect))
	defer redirecting.Close()
	var app v1alpha1.Application
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKey{Name: "commerce"}, &app))
	app.Spec.Services[0].API.Auth.OAuth2.TokenURL = redirecting.URL
	require.NoError(t, w.client.Update(t.Context(), &app))
	response, body := w.get("/commerce/orders/1")
	require.Equal(t, http.StatusServiceUnavailable, response.StatusCode, "another port is not allowed: %s", body)

	policy, err := targets.New(targets.Config{Allow: []string{"127.0.0.1"}})
	require.NoError(t, err)
	gateway, err := outbound.New(outbound.Config{Objects: w.client, Targets: policy, TrustDomain: "cluster.local"})
	require.NoError(t, err)
	recorder := httptest.NewRecorder()
	gateway.ServeHTTP(recorder, w.request(http.MethodGet, "/commerce/orders/1", nil))
	require.Equal(t, http.StatusBadGateway, recorder.Code)
	require.Contains(t, recorder.Body.String(), "it answered 307")
}
