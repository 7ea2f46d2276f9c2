package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/stretchr/testify/require"
)

func start(t *testing.T, bus http.HandlerFunc) string {
	t.Helper()
	busServer := httptest.NewServer(bus)
	t.Cleanup(busServer.Close)
	server := httptest.NewServer(newSystem(busServer.URL, credentials{id: "id", secret: "secret"}).handler())
	t.Cleanup(server.Close)
	return server.URL
}

func call(t *testing.T, r *http.Request) (int, string) {
	t.Helper()
	response, err := http.DefaultClient.Do(r) //nolint:forbidigo // a test
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(body)
}

func get(t *testing.T, url, token string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return call(t, r)
}

func fetchToken(t *testing.T, base, id, secret, grant string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/oauth/token", strings.NewReader(url.Values{"grant_type": {grant}}.Encode()))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(id, secret)
	status, body := call(t, r)
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	require.NoError(t, json.Unmarshal([]byte(body), &answer))
	return status, answer.AccessToken
}

func TestACheckoutTellsTheBusAndTheOrderCanBeReadWithAToken(t *testing.T) {
	events := make(chan *cloudevents.Event, 1)
	base := start(t, func(w http.ResponseWriter, r *http.Request) {
		event, err := cloudevents.NewEventFromHTTPRequest(r)
		if err != nil || r.URL.Path != "/publish" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		events <- event
		w.WriteHeader(http.StatusAccepted)
	})
	var out strings.Builder
	require.NoError(t, run(t.Context(), []string{"order", "--url", base, "--total", "120", "--customer", "ada"}, &out))
	var order Order
	require.NoError(t, json.Unmarshal([]byte(out.String()), &order))

	event := <-events
	require.NoError(t, event.Validate())
	require.Equal(t, []string{"commerce", "order.created.v1", order.Code}, []string{event.Source(), event.Type(), event.Subject()})
	require.JSONEq(t, `{"orderCode":"`+order.Code+`"}`, string(event.Data()))

	status, _ := get(t, base+"/api/orders/"+order.Code, "")
	require.Equal(t, http.StatusUnauthorized, status)
	status, _ = get(t, base+"/api/orders/"+order.Code, "guessed")
	require.Equal(t, http.StatusUnauthorized, status)
	status, token := fetchToken(t, base, "id", "secret", "client_credentials")
	require.Equal(t, http.StatusOK, status)
	status, body := get(t, base+"/api/orders/"+order.Code, token)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, `"customer":"ada","total":120`)
	status, body = get(t, base+"/api/orders", token)
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, order.Code)
	status, _ = get(t, base+"/api/orders/unknown", token)
	require.Equal(t, http.StatusNotFound, status)
}

func TestTokensNeedTheCredentialsAndTheGrant(t *testing.T) {
	base := start(t, func(http.ResponseWriter, *http.Request) {})
	for _, tc := range []struct {
		id, secret, grant string
		want              int
	}{
		{"id", "secret", "client_credentials", 200},
		{"id", "wrong", "client_credentials", 401},
		{"", "", "client_credentials", 401},
		{"id", "secret", "password", 400},
	} {
		status, _ := fetchToken(t, base, tc.id, tc.secret, tc.grant)
		require.Equal(t, tc.want, status, tc)
	}
}

func TestAnOrderThatNobodyWasToldOfIsTakenBack(t *testing.T) {
	base := start(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "full", http.StatusInsufficientStorage) })
	var out strings.Builder
	err := run(t.Context(), []string{"order", "--url", base}, &out)
	require.ErrorContains(t, err, "the event bus answered 507 Insufficient Storage: full")
	_, token := fetchToken(t, base, "id", "secret", "client_credentials")
	_, body := get(t, base+"/api/orders", token)
	require.Equal(t, 1, strings.Count(body, `"code"`), "only the one that was there before")

	err = run(t.Context(), []string{"order", "--url", base, "--total", "-1"}, &out)
	require.ErrorContains(t, err, "400 Bad Request")
}

func TestItServesUntilItIsStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"--address", "127.0.0.1:0"}, writer) }()
	line := make([]byte, 100)
	n, err := reader.Read(line)
	require.NoError(t, err)
	require.Contains(t, string(line[:n]), "commerce system at http://")
	cancel()
	require.NoError(t, <-done)
}
