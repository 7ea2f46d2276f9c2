package jwks_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/jwks"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// newKey is a public key as JSON (RFC 7517, section 3).
func newKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	point, err := key.PublicKey.Bytes() // 4, x, y
	require.NoError(t, err)
	encode := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"kty":"EC","kid":"k","crv":"P-256","x":%q,"y":%q}`, encode(point[1:33]), encode(point[33:]))
}

func start(t *testing.T, issuer *httptest.Server, config jwks.Config) (*jwks.Fetcher, <-chan struct{}) {
	t.Helper()
	var err error
	config.Policy, err = targets.New(targets.Config{Allow: []string{strings.TrimPrefix(issuer.URL, "http://")}})
	require.NoError(t, err)
	changes := make(chan struct{}, 100)
	config.OnChange = func() { changes <- struct{}{} }
	f, err := jwks.New(config)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	<-f.Ready()
	return f, changes
}

func wait(t *testing.T, changes <-chan struct{}) {
	t.Helper()
	select {
	case <-changes:
	case <-time.After(time.Minute):
		t.Fatal("nothing changed")
	}
}

func TestWhatAnIssuerAnswersBecomesKeysOrAReason(t *testing.T) {
	key := newKey(t)
	symmetric := `{"kty":"oct","k":"c2VjcmV0"}`
	tests := map[string]struct {
		answer   http.HandlerFunc
		wantJSON string
		wantErr  string
	}{
		"a set of public keys is kept": {
			answer:   text(`{"keys":[` + key + `]}`),
			wantJSON: `{"keys":[` + key + `]}`,
		},
		"keys that cannot verify are left out": {
			answer:   text(`{"keys":[` + symmetric + `,{"kty":"RSA","n":"!"},` + key + `]}`),
			wantJSON: `{"keys":[` + key + `]}`,
		},
		"a set of symmetric keys is refused": {answer: text(`{"keys":[` + symmetric + `]}`), wantErr: "no RSA"},
		"an empty set is refused":            {answer: text(`{"keys":[]}`), wantErr: "no keys"},
		"what is no JSON is refused":         {answer: text(`<html>`), wantErr: "no JWK Set"},
		"an error of the issuer is told":     {answer: http.NotFound, wantErr: "404"},
		"a huge answer is refused":           {answer: text(strings.Repeat(" ", 2<<20)), wantErr: "longer than"},
		"a slow answer is given up":          {answer: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, wantErr: "no answer within"},
		"a redirect to another host is not followed": {
			answer: func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
			},
			wantErr: "redirects to http://192.0.2.1",
		},
		"a redirect on the same host is followed": {
			answer: func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/keys" {
					http.Redirect(w, r, "/moved", http.StatusFound)
					return
				}
				text(`{"keys":[`+key+`]}`)(w, r)
			},
			wantJSON: `{"keys":[` + key + `]}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			issuer := httptest.NewServer(tt.answer)
			defer issuer.Close()
			f, changes := start(t, issuer, jwks.Config{Timeout: 300 * time.Millisecond})
			uri := issuer.URL + "/keys"
			f.Keep([]string{uri})
			require.NoError(t, f.Settled(t.Context()))
			wait(t, changes)
			got := f.Results()[uri]
			require.Equal(t, tt.wantJSON, got.JSON)
			if tt.wantErr == "" {
				require.Empty(t, got.Err)
			} else {
				require.Contains(t, got.Err, tt.wantErr)
			}
		})
	}
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) }
}

func TestTheLastGoodSetIsKeptWhileItsIssuerIsDownAndReplacedWhenItIsBack(t *testing.T) {
	first, second := newKey(t), newKey(t)
	var answer atomic.Value
	answer.Store(`{"keys":[` + first + `]}`)
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		body, _ := answer.Load().(string)
		if body == "" {
			w.WriteHeader(http.StatusBadGateway)
		}
		fmt.Fprint(w, body)
	}))
	defer issuer.Close()
	f, changes := start(t, issuer, jwks.Config{Refresh: 20 * time.Millisecond, MinRefresh: 20 * time.Millisecond, MaxRefresh: 40 * time.Millisecond})
	f.Keep([]string{issuer.URL})
	wait(t, changes)
	require.Equal(t, jwks.Result{JSON: `{"keys":[` + first + `]}`}, f.Results()[issuer.URL])

	answer.Store("")
	wait(t, changes)
	require.Equal(t, jwks.Result{JSON: `{"keys":[` + first + `]}`, Err: "it answered 502 Bad Gateway"}, f.Results()[issuer.URL])

	answer.Store(`{"keys":[` + second + `]}`)
	wait(t, changes)
	require.Equal(t, jwks.Result{JSON: `{"keys":[` + second + `]}`}, f.Results()[issuer.URL])

	f.Keep(nil)
	require.Empty(t, f.Results(), "what nobody names is forgotten")
}

func TestAnAddressThatThePolicyRefusesIsNeverCalled(t *testing.T) {
	var called atomic.Bool
	issuer := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Store(true) }))
	defer issuer.Close()
	policy, err := targets.New(targets.Config{})
	require.NoError(t, err)
	f, err := jwks.New(jwks.Config{Policy: policy})
	require.NoError(t, err)
	f.Keep([]string{issuer.URL})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	require.NoError(t, f.Settled(t.Context()))
	require.Contains(t, f.Results()[issuer.URL].Err, "refused")
	require.False(t, called.Load())
	cancel()
	require.NoError(t, <-done)
}
