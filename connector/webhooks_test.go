package connector_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// A webhook is called under its name, as its Secret has it at the moment, and the
// Application tells what came.
func TestWebhooksOfAnApplication(t *testing.T) {
	b := newBus(t)
	var public string
	names := testkit.NewAuthority(t)
	chain, key := names.Issue(t, "hooks.example.com")
	pair, err := tls.X509KeyPair(chain, key)
	require.NoError(t, err)
	w := startOn(t, testkit.KubeAPI(t, manifests.CRDs), func(c *connector.Config) {
		c.MeshProxyURL = b.URL
		public = c.Public.Addr().String()
		c.Webhooks = connector.Webhooks{
			Names: []string{"hooks.example.com"}, Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil },
		}
	})
	hooks := &system{Client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: names.Pool(), ServerName: "hooks.example.com"},
	}, Timeout: 30 * time.Second}}
	t.Cleanup(hooks.CloseIdleConnections)
	shop := systemOf("hooked-shop")
	shop.Spec.Webhooks = []v1alpha1.Webhook{{Name: "orders", Provider: "github", SecretName: "hooked"}}
	w.create(shop)
	w.becomes(shop, "SecretNotFound", "webhook orders: Secret lambdamesh-system/hooked does not exist")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "hooked"}, Data: map[string][]byte{"secrets": []byte("x")}}
	w.create(secret)
	w.becomes(shop, "SecretInvalid", "has no key secret")
	set := func(data map[string][]byte) {
		secret.Data = data
		require.NoError(t, w.client.Update(t.Context(), secret))
	}
	set(map[string][]byte{"secret": []byte("one")})
	w.becomes(shop, v1alpha1.ReasonReady, "")

	const body = `{"ref":"refs/heads/main"}`
	call := func(secret string) error {
		h := hmac.New(sha256.New, []byte(secret))
		h.Write([]byte(body))
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+public+"/webhooks/hooked-shop/orders", strings.NewReader(body))
		require.NoError(t, err)
		request.Host = "hooks.example.com"
		request.Header.Set("X-GitHub-Event", "push")
		request.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(h.Sum(nil)))
		request.Header.Set("Lambdamesh-Dedup-Window", "1s")
		answer, err := hooks.Do(request)
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("it is answered %d", answer.StatusCode)
		}
		return nil
	}
	require.NoError(t, call("one"))
	require.Contains(t, b.last(), "/hooked-shop/events com.github.push "+body)
	require.EqualError(t, call("two"), "it is answered 401")
	set(map[string][]byte{"secret": []byte("two"), "previous": []byte("one")})
	testkit.Eventually(t, time.Minute, func() error { return call("two") }, "the new secret is good")
	require.NoError(t, call("one"), "and so is the one before")
	set(map[string][]byte{"secret": []byte("two")})
	testkit.Eventually(t, time.Minute, func() error {
		if call("one") == nil {
			return fmt.Errorf("it is still good")
		}
		return nil
	}, "the secret before is no longer good")
	require.NoError(t, call("two"))

	testkit.Eventually(t, time.Minute, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(shop), shop); err != nil {
			return err
		}
		s := shop.Status
		if len(s.Webhooks) != 1 || s.Webhooks[0].LastEvent == nil || s.Webhooks[0].LastRefusedReason != "Signature" || s.Webhooks[0].Refused < 2 ||
			s.Webhooks[0].Events < 4 || s.Events == nil || s.Events.LastEvent == nil {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}, "the status tells what came")
	_, metrics, err := w.get(http.DefaultClient, w.admin+"/metrics", "")
	require.NoError(t, err)
	require.Contains(t, metrics, `lambdamesh_connector_webhook_calls_total{application="hooked-shop",result="Signature",webhook="orders"}`)
	require.NotContains(t, w.log.String(), "sha256=")
}
