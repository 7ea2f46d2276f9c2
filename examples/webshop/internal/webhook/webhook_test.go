package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/examples/webshop/internal/webhook"
)

func TestACallIsRepeatedWithOneIDUntilItIsTaken(t *testing.T) {
	type received struct{ id, at, signature, body string }
	calls := make(chan received, 8)
	var failing atomic.Int32
	failing.Store(2)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- received{r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp"), r.Header.Get("Webhook-Signature"), string(body)}
		if failing.Add(-1) >= 0 {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	dir := t.TempDir()
	sender, err := webhook.NewSender(webhook.Config{
		URL: server.URL, CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), Dir: dir,
		FirstPause: time.Millisecond, Log: t.Logf,
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { sender.Run(ctx); close(ended) }()
	require.NoError(t, sender.Send("order.packed.v1", map[string]string{"orderCode": "4711"}))
	require.NoError(t, sender.Send("order.shipped.v1", nil))

	raw, err := os.ReadFile(filepath.Join(dir, webhook.SecretFile))
	require.NoError(t, err)
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimSpace(string(raw)), "whsec_"))
	require.NoError(t, err)
	first := <-calls
	require.Contains(t, first.body, `"type":"order.packed.v1"`)
	require.Contains(t, first.body, `{"orderCode":"4711"}`)
	for i := range 3 { // https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
		c := first
		if i > 0 {
			c = <-calls
		}
		require.Equal(t, []string{first.id, first.body}, []string{c.id, c.body})
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", c.id, c.at, c.body)
		require.Equal(t, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)), c.signature)
	}
	second := <-calls
	require.Contains(t, second.body, "order.shipped.v1", "the one before was taken at last")
	require.NotEqual(t, first.id, second.id)
	cancel()
	<-ended
}

func TestASecretIsKeptAndOneThatIsNoneRefused(t *testing.T) {
	config := webhook.Config{URL: "https://127.0.0.1:1", Dir: t.TempDir(), Log: t.Logf}
	path := filepath.Join(config.Dir, webhook.SecretFile)
	_, err := webhook.NewSender(config)
	require.NoError(t, err)
	made, err := os.ReadFile(path)
	require.NoError(t, err)
	_, err = webhook.NewSender(config)
	require.NoError(t, err)
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, made, kept)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	for _, bad := range []string{"", "whsec_", "whsec_c2hvcnQ=", "secret"} {
		require.NoError(t, os.WriteFile(path, []byte(bad), 0o600))
		_, err := webhook.NewSender(config)
		require.ErrorContains(t, err, "whsec_", "with %q anybody could sign", bad)
	}
}

func TestWhoTellsTooMuchIsRefused(t *testing.T) {
	sender, err := webhook.NewSender(webhook.Config{URL: "https://127.0.0.1:1", Dir: t.TempDir(), Log: t.Logf})
	require.NoError(t, err)
	for range 1000 { // it does not run
		require.NoError(t, sender.Send("order.packed.v1", nil))
	}
	require.ErrorContains(t, sender.Send("order.packed.v1", nil), "is not told")
}
