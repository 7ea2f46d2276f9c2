package outbound_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// protected is an API that asks for credentials, and for a CSRF token with the
// cookie of its session.
type protected struct {
	*commerce
	authorized func(r *http.Request) bool
	csrf       bool

	mu       sync.Mutex
	sessions int    // CSRF tokens that were given
	session  string // the one that is good
	seen     []string
}

func protect(w *world, authorized func(r *http.Request) bool, csrf bool) *protected {
	p := &protected{commerce: w.commerce, authorized: authorized, csrf: csrf}
	w.commerce.handle = p.handle
	return p
}

func (p *protected) handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.authorized(r) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.Path == "/api/csrf" {
		if r.Header.Get("X-CSRF-Token") != "fetch" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		p.sessions++
		p.session = strconv.Itoa(p.sessions)
		w.Header().Set("X-CSRF-Token", "csrf-"+p.session)
		http.SetCookie(w, &http.Cookie{Name: "SESSION", Value: p.session, Path: "/", HttpOnly: true})
		http.SetCookie(w, &http.Cookie{Name: "gone", Value: "x", MaxAge: -1})
		return
	}
	if p.csrf {
		cookie, err := r.Cookie("SESSION")
		if err != nil || cookie.Value != p.session || r.Header.Get("X-CSRF-Token") != "csrf-"+p.session {
			w.Header().Set("X-CSRF-Token", "Required")
			w.WriteHeader(http.StatusForbidden)
			return
		}
	}
	p.seen = append(p.seen, string(body))
	http.SetCookie(w, &http.Cookie{Name: "SESSION", Value: p.session})
	http.SetCookie(w, &http.Cookie{Name: "theme", Value: "dark"})
	w.Header().Set("X-CSRF-Token", "csrf-"+p.session)
	_, _ = io.WriteString(w, "done")
}

func (p *protected) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.session = "another"
}

func (p *protected) counts() (sessions int, seen []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions, append([]string(nil), p.seen...)
}

// ways to authenticate: how the service says it, and what the API takes.
func ways(w *commerce) map[string]struct {
	auth       *v1alpha1.APIAuth
	authorized func(r *http.Request) bool
} {
	type way = struct {
		auth       *v1alpha1.APIAuth
		authorized func(r *http.Request) bool
	}
	return map[string]way{
		"none": {&v1alpha1.APIAuth{}, func(r *http.Request) bool { return r.Header.Get("Authorization") == "" }},
		"basic": {&v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: "basic"}}}, func(r *http.Request) bool {
			user, pass, _ := r.BasicAuth()
			return user == "ada" && pass == password
		}},
		"oauth2": {&v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{TokenURL: w.URL + "/oauth/token", Secret: v1alpha1.SecretRef{Name: "oauth"}}}, func(r *http.Request) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.valid[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
		}},
		"header and query": {&v1alpha1.APIAuth{
			Headers:         []v1alpha1.AddedValue{{Name: "X-Key", Secret: &v1alpha1.SecretKeyRef{Name: "key", Key: "key"}}},
			QueryParameters: []v1alpha1.AddedValue{{Name: "tenant", Value: "acme"}},
		}, func(r *http.Request) bool {
			return r.Header.Get("X-Key") == apiKey && r.URL.Query().Get("tenant") == "acme"
		}},
	}
}

func TestEveryWayToAuthenticateWithAndWithoutCSRF(t *testing.T) {
	names := ways(&commerce{Server: httptest.NewUnstartedServer(nil)})
	for name := range names {
		for _, csrf := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, CSRF %t", name, csrf), func(t *testing.T) {
				w := newWorld(t, func(a *v1alpha1.Application) {
					api := a.Spec.Services[3].API
					api.Auth = ways(&commerce{Server: &httptest.Server{URL: strings.TrimSuffix(api.TargetURL, "/api")}})[name].auth
					if csrf {
						api.Auth.CSRF = &v1alpha1.CSRFAuth{TokenURL: api.TargetURL + "/csrf"}
					}
				})
				api := protect(w, ways(w.commerce)[name].authorized, csrf)
				call := func() (*http.Response, string) {
					r := w.request(http.MethodPost, "/commerce/open/orders", strings.NewReader(`{"total":1}`))
					r.Header.Set("Cookie", "mine=1; SESSION=forged")
					r.Header.Set("X-CSRF-Token", "forged")
					r.Header.Set("X_CSRF_Token", "forged")
					r.Header.Set("X_Key", "forged")
					return w.do(r)
				}
				for range 2 {
					response, body := call()
					require.Equal(t, http.StatusOK, response.StatusCode, body)
					if csrf {
						require.Equal(t, []string{"theme=dark"}, response.Header.Values("Set-Cookie"), "the session is the application's")
						require.Empty(t, response.Header.Get("X-CSRF-Token"))
					}
				}
				sessions, seen := api.counts()
				require.Equal(t, []string{`{"total":1}`, `{"total":1}`}, seen)
				if !csrf {
					require.Zero(t, sessions)
					return
				}
				require.Equal(t, 1, sessions, "one token serves many calls")

				// The session ends in mid-request: once more, with the same body.
				api.expire()
				response, body := call()
				require.Equal(t, http.StatusOK, response.StatusCode, body)
				sessions, seen = api.counts()
				require.Equal(t, 2, sessions)
				require.Len(t, seen, 3)
				require.Equal(t, `{"total":1}`, seen[2])

				// One that is never good does not cost a token with every call.
				for range 5 {
					api.expire()
					response, _ = call()
					require.Equal(t, http.StatusForbidden, response.StatusCode)
				}
				sessions, _ = api.counts()
				require.Equal(t, 2, sessions)
			})
		}
	}
}

func TestConcurrentFirstCallsMakeOneCSRFRequest(t *testing.T) {
	w := newWorld(t, func(a *v1alpha1.Application) {
		api := a.Spec.Services[3].API
		api.Auth = &v1alpha1.APIAuth{CSRF: &v1alpha1.CSRFAuth{TokenURL: api.TargetURL + "/csrf"}}
	})
	api := protect(w, func(*http.Request) bool { return true }, true)
	var calls sync.WaitGroup
	for range 20 {
		calls.Go(func() {
			response, body := w.get("/commerce/open/x")
			if response.StatusCode != http.StatusOK {
				t.Errorf("%d %s", response.StatusCode, body)
			}
		})
	}
	calls.Wait()
	sessions, _ := api.counts()
	require.Equal(t, 1, sessions)
}

func TestWithoutACSRFTokenNothingIsSent(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(w http.ResponseWriter)
		want   string
	}{
		"no token": {func(http.ResponseWriter) {}, "it answered 200 without the header X-CSRF-Token"},
		"refused":  {func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) }, "it answered 403"},
		"a redirect": {func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusFound)
		}, "it answered 302"},
		"a token too big": {func(w http.ResponseWriter) { w.Header().Set("X-CSRF-Token", strings.Repeat("x", 5<<10)) }, "it answered 200 without the header"},
		"cookies too big": {func(w http.ResponseWriter) {
			w.Header().Set("X-CSRF-Token", "t")
			w.Header().Set("Set-Cookie", "a="+strings.Repeat("x", 17<<10))
		}, "its cookies are too large"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(a *v1alpha1.Application) {
				api := a.Spec.Services[3].API
				api.Auth = &v1alpha1.APIAuth{CSRF: &v1alpha1.CSRFAuth{TokenURL: api.TargetURL + "/csrf"}}
			})
			w.commerce.handle = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/api/csrf" {
					t.Error("the call was made")
				}
				tc.answer(w)
			}
			response, body := w.get("/commerce/open/x")
			require.Equal(t, http.StatusBadGateway, response.StatusCode)
			require.Contains(t, body, "no CSRF token from "+w.commerce.URL+"/api/csrf: "+tc.want)
		})
	}
}

func TestBadCredentialsAreToldWithoutThem(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"oauth", "basic"} {
		s := secret(name, map[string]string{"clientId": "lambdamesh", "clientSecret": "s3cret-wrong", "username": "ada", "password": "s3cret-wrong"})
		require.NoError(t, w.client.Update(t.Context(), s))
	}
	response, body := w.get("/commerce/orders/1")
	require.Equal(t, http.StatusBadGateway, response.StatusCode)
	require.Contains(t, body, "it answered 401 invalid_client")
	require.NotContains(t, body, "s3cret-wrong")
	w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }
	response, _ = w.get("/commerce/stock/1")
	require.Equal(t, http.StatusUnauthorized, response.StatusCode, "a target's 401 to a password is the answer")
}

func TestA403ThatSaysTheTokenIsInvalidGetsAnother(t *testing.T) {
	w := newWorld(t)
	w.get("/commerce/orders/1")
	challenge := `Bearer realm="shop", error="invalid_token", error_description="expired"`
	w.commerce.handle = func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer token-1" {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusForbidden)
		}
	}
	response, _ := w.get("/commerce/orders/1")
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, 2, w.commerce.tokens())
	w = newWorld(t)
	w.get("/commerce/orders/1")
	w.commerce.handle = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope"`)
		w.WriteHeader(http.StatusForbidden)
	}
	response, _ = w.get("/commerce/orders/1")
	require.Equal(t, http.StatusForbidden, response.StatusCode)
	require.Equal(t, 1, w.commerce.tokens(), "the token is as good as before")
}

func TestALambdaHasItsShareOfCalls(t *testing.T) {
	w := newWorld(t)
	entered, leave := make(chan struct{}, 64), make(chan struct{})
	w.commerce.handle = func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-leave
	}
	var calls sync.WaitGroup
	for range 64 {
		calls.Go(func() { w.get("/commerce/open/slow") })
		<-entered
	}
	response, body := w.get("/commerce/open/one-more")
	require.Equal(t, http.StatusTooManyRequests, response.StatusCode)
	require.Equal(t, "1", response.Header.Get("Retry-After"))
	require.Contains(t, body, "the lambda shop/last-order has 64 calls under way")
	other := w.request(http.MethodGet, "/commerce/stock/1", nil)
	other.Header.Set("X-Forwarded-Client-Cert", "URI="+v1alpha1.SPIFFEID("cluster.local", "shop", "labeled"))
	calls.Go(func() {
		response, _ := w.do(other)
		if response.StatusCode != http.StatusOK {
			t.Errorf("another lambda is answered %d", response.StatusCode)
		}
	})
	<-entered
	close(leave)
	calls.Wait()
	response, _ = w.get("/commerce/open/one-more")
	require.Equal(t, http.StatusOK, response.StatusCode, "its share is free again")
}

func TestARateIsThatOfOneLambdaAndService(t *testing.T) {
	w := newWorld(t, func(a *v1alpha1.Application) {
		for _, i := range []int{1, 3} {
			a.Spec.Services[i].API.RateLimit = &v1alpha1.ServiceRateLimit{Requests: 3, Per: &metav1.Duration{Duration: time.Hour}}
		}
	})
	as := func(lambda, service string) *http.Response {
		r := w.request(http.MethodGet, "/commerce/"+service+"/1", nil)
		r.Header.Set("X-Forwarded-Client-Cert", "URI="+v1alpha1.SPIFFEID("cluster.local", "shop", lambda))
		response, _ := w.do(r)
		return response
	}
	for range 3 {
		require.Equal(t, http.StatusOK, as("last-order", "stock").StatusCode)
	}
	refused := as("last-order", "stock")
	require.Equal(t, http.StatusTooManyRequests, refused.StatusCode)
	wait, err := strconv.Atoi(refused.Header.Get("Retry-After"))
	require.NoError(t, err)
	require.InDelta(t, 1200, wait, 60, "the third of an hour")
	require.Equal(t, http.StatusOK, as("last-order", "open").StatusCode, "another service")
	require.Equal(t, http.StatusOK, as("labeled", "stock").StatusCode, "another lambda")
}

func TestATargetThatIsDownIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.commerce.Close()
	var last *http.Response
	for range 11 {
		last, _ = w.get("/commerce/open/1")
	}
	require.Equal(t, http.StatusServiceUnavailable, last.StatusCode)
	require.Equal(t, "1", last.Header.Get("Retry-After"))
	response, _ := w.get("/commerce/prices/1")
	require.Equal(t, http.StatusBadGateway, response.StatusCode, "another service is asked")
}
