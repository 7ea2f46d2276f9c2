// Tests of the code in ../commerce/05-commerce-system.yaml; examples_test.go
// puts both into one package.
package commerce

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func call(t *testing.T, method, path, body string, change func(*http.Request)) (int, string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	Main(w, r)
	return w.Code, strings.TrimSpace(w.Body.String())
}

func fetchToken(t *testing.T, id, secret, grant string) (int, string) {
	t.Helper()
	status, body := call(t, http.MethodPost, "/oauth/token", url.Values{"grant_type": {grant}}.Encode(), func(r *http.Request) {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth(id, secret)
	})
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	return status, answer.AccessToken
}

func bearer(token string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func TestTokensNeedTheCredentialsAndTheGrant(t *testing.T) {
	for _, tc := range []struct {
		id, secret, grant string
		want              int
	}{
		{"id", "secret", "client_credentials", 200},
		{"id", "wrong", "client_credentials", 401},
		{"other", "secret", "client_credentials", 401},
		{"", "", "client_credentials", 401},
		{"id", "secret", "password", 400},
	} {
		status, token := fetchToken(t, tc.id, tc.secret, tc.grant)
		require.Equal(t, tc.want, status, tc)
		require.Equal(t, tc.want == 200, token != "", tc)
	}
}

func TestTheAPINeedsATokenOfItsOwn(t *testing.T) {
	_, token := fetchToken(t, "id", "secret", "client_credentials")
	end, signature, _ := strings.Cut(token, ".")
	past := fmt.Sprint(time.Now().Add(-time.Second).Unix())
	for name, tc := range map[string]struct {
		token string
		want  int
	}{
		"that was issued":     {token, 200},
		"none":                {"", 401},
		"guessed":             {"guessed", 401},
		"without a signature": {end + ".", 401},
		"made longer":         {"9" + end + "." + signature, 401},
		"that has ended":      {past + "." + sign(past), 401},
		"without an end":      {"." + sign(""), 401},
	} {
		for _, path := range []string{"/api/orders", "/api/orders/4711"} {
			status, _ := call(t, http.MethodGet, path, "", bearer(tc.token))
			require.Equal(t, tc.want, status, name)
		}
	}
}

func TestACheckoutTellsTheBusAndTheOrderCanBeRead(t *testing.T) {
	var published []string
	bus := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		published = append(published, string(body))
		w.WriteHeader(http.StatusAccepted)
	}))
	defer bus.Close()
	t.Setenv("LAMBDAMESH_PUBLISH_URL", bus.URL)
	status, body := call(t, http.MethodPost, "/checkout", `{"customer":"ada","total":120}`, nil)
	require.Equal(t, 201, status, body)
	var order Order
	require.NoError(t, json.Unmarshal([]byte(body), &order))
	require.Len(t, published, 1)
	var event struct {
		ID, Source, Type string
		Data             map[string]string
	}
	require.NoError(t, json.Unmarshal([]byte(published[0]), &event))
	require.Equal(t, []string{order.Code, "commerce", "order.created.v1"}, []string{event.ID, event.Source, event.Type})
	require.Equal(t, map[string]string{"orderCode": order.Code}, event.Data)

	_, token := fetchToken(t, "id", "secret", "client_credentials")
	_, again := call(t, http.MethodGet, "/api/orders/"+order.Code, "", bearer(token))
	require.Equal(t, body, again)
	_, list := call(t, http.MethodGet, "/api/orders", "", bearer(token))
	require.Equal(t, "["+body+"]", list)

	bus.Close()
	status, body = call(t, http.MethodPost, "/checkout", `{"customer":"ada","total":1}`, nil)
	require.Equal(t, 503, status)
	require.NotContains(t, body, bus.URL)
	_, again = call(t, http.MethodGet, "/api/orders", "", bearer(token))
	require.Equal(t, list, again, "an order that nobody was told of is taken back")
}

func TestAnOrderThatWasNeverSoldIsAlwaysTheSame(t *testing.T) {
	_, token := fetchToken(t, "id", "secret", "client_credentials")
	status, body := call(t, http.MethodGet, "/api/orders/4711", "", bearer(token))
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"code":"4711","customer":"edsger","total":111,"currency":"EUR"}`, body)
}

func TestACheckoutNeedsACustomerAndATotal(t *testing.T) {
	for _, body := range []string{"", "x", "{}", `{"customer":"ada"}`, `{"total":1}`, `{"customer":"ada","total":-1}`} {
		status, answer := call(t, http.MethodPost, "/checkout", body, nil)
		require.Equal(t, 400, status, body)
		require.Contains(t, answer, "send {")
	}
}
