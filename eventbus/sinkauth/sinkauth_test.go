package sinkauth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/lambdamesh/lambdamesh/eventbus/sinkauth"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const namespace = "shop"

func secret(name string, data ...string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Data: map[string][]byte{}}
	for i := 0; i+1 < len(data); i += 2 {
		s.Data[data[i]] = []byte(data[i+1])
	}
	return s
}

// resolver reads the Secrets; one named lent-not is forbidden.
func resolver(t *testing.T, objects ...client.Object) (*sinkauth.Resolver, client.Client) {
	t.Helper()
	policy, err := targets.New(targets.Config{Allow: []string{"127.0.0.1/32"}})
	require.NoError(t, err)
	c := fake.NewClientBuilder().WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			if key.Name == "not-lent" {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, key.Name, errors.New("no"))
			}
			return c.Get(ctx, key, obj, opts...)
		},
	}).Build()
	return sinkauth.New(sinkauth.Config{Secrets: c, Targets: policy}), c
}

func resolve(t *testing.T, r *sinkauth.Resolver, auth *v1alpha1.SinkAuth) *sinkauth.Auth {
	t.Helper()
	a, err := r.Resolve(t.Context(), "sink", namespace, auth)
	require.NoError(t, err)
	return a
}

func request(t *testing.T) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://hooks.example.com", nil)
	require.NoError(t, err)
	return r
}

// The vector that the libraries of Standard Webhooks share
// (https://github.com/standard-webhooks/standard-webhooks, libraries/*/test).
func TestAPublishedSignature(t *testing.T) {
	const (
		message   = "msg_p5jXN8AQM9LWM0D4loKWxJek"
		timestamp = 1614265330
		body      = `{"test": 2432232314}`
		signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	)
	for name, key := range map[string]string{"bare": "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "with its prefix": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "with a line end": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"} {
		t.Run(name, func(t *testing.T) {
			r, _ := resolver(t, secret("signing", "secret", key))
			auth := resolve(t, r, &v1alpha1.SinkAuth{Signing: &v1alpha1.SinkSigning{Secrets: []v1alpha1.SigningSecret{{Name: "signing"}}}})
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(time.Unix(timestamp, 0)))
				to := request(t)
				require.NoError(t, auth.Authorize(to, message, []byte(body)))
				require.Equal(t, signature, to.Header.Get("webhook-signature"))
				require.Equal(t, strconv.Itoa(timestamp), to.Header.Get("webhook-timestamp"))
				require.Equal(t, message, to.Header.Get("webhook-id"))
			})
		})
	}
}

func TestEachOfTwoSecretsSigns(t *testing.T) {
	before, after := strings.Repeat("b", 24), strings.Repeat("a", 64)
	r, c := resolver(t,
		secret("before", "secret", base64.StdEncoding.EncodeToString([]byte(before))),
		secret("after", "key", "whsec_"+base64.StdEncoding.EncodeToString([]byte(after))))
	both := &v1alpha1.SinkAuth{Signing: &v1alpha1.SinkSigning{Secrets: []v1alpha1.SigningSecret{{Name: "after", Key: "key"}, {Name: "before"}}}}
	auth := resolve(t, r, both)
	require.Same(t, auth, resolve(t, r, both), "the same one as long as nothing has changed")

	verify := func(auth *sinkauth.Auth, raw string) error {
		to := request(t)
		require.NoError(t, auth.Authorize(to, "msg_1", []byte("body")))
		hook, err := standardwebhooks.NewWebhookRaw([]byte(raw))
		require.NoError(t, err)
		return hook.Verify([]byte("body"), to.Header)
	}
	require.NoError(t, verify(auth, before))
	require.NoError(t, verify(auth, after))
	require.Error(t, verify(auth, "neither"))

	var changed corev1.Secret
	require.NoError(t, c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "before"}, &changed))
	third := strings.Repeat("c", 32)
	changed.Data["secret"] = []byte(base64.StdEncoding.EncodeToString([]byte(third)))
	require.NoError(t, c.Update(t.Context(), &changed))
	rotated := resolve(t, r, both)
	require.NotSame(t, auth, rotated)
	require.NoError(t, verify(rotated, third))
	require.Error(t, verify(rotated, before))
}

func TestWhatCannotBeUsedIsNamedAndNotTold(t *testing.T) {
	const hidden = "s3cret"
	authority := testkit.NewAuthority(t)
	certificate, _ := authority.Issue(t, "bus")
	r, _ := resolver(t,
		secret("short", "secret", base64.StdEncoding.EncodeToString([]byte(hidden))),
		secret("text", "secret", hidden+"!"),
		secret("colon", "username", "a:b", "password", hidden),
		secret("half", "username", "a"),
		secret("pair", "tls.crt", string(certificate), "tls.key", hidden),
		secret("value", "key", "a\x00"+hidden),
		secret("client", "clientId", "bus", "clientSecret", hidden),
	)
	signing := func(name string) *v1alpha1.SinkAuth {
		return &v1alpha1.SinkAuth{Signing: &v1alpha1.SinkSigning{Secrets: []v1alpha1.SigningSecret{{Name: name, Key: "secret"}}}}
	}
	basic := func(name string) *v1alpha1.SinkAuth {
		return &v1alpha1.SinkAuth{Basic: &v1alpha1.SinkBasic{Secret: v1alpha1.SinkSecret{Name: name}}}
	}
	tokens := func(url string) *v1alpha1.SinkAuth {
		return &v1alpha1.SinkAuth{OAuth2: &v1alpha1.SinkOAuth2{TokenURL: url, Secret: v1alpha1.SinkSecret{Name: "client"}}}
	}
	for name, tc := range map[string]struct {
		auth         *v1alpha1.SinkAuth
		reason, says string
	}{
		"no such Secret":             {signing("none"), "SecretNotFound", "no Secret none in namespace shop"},
		"not lent":                   {signing("not-lent"), "SecretNotPermitted", "--resource-name=not-lent"},
		"a short key":                {signing("short"), "SecretInvalid", "24 to 64"},
		"no base64":                  {signing("text"), "SecretInvalid", "24 to 64"},
		"a name with a colon":        {basic("colon"), "SecretInvalid", "colon"},
		"no password":                {basic("half"), "SecretInvalid", "no key password"},
		"no key of a certificate":    {&v1alpha1.SinkAuth{MTLS: &v1alpha1.SinkMTLS{Secret: v1alpha1.SinkSecret{Name: "pair"}}}, "SecretInvalid", "tls.key"},
		"no value of a header":       {&v1alpha1.SinkAuth{Headers: []v1alpha1.SinkHeader{{Name: "X-Key", Secret: &v1alpha1.SinkSecretKey{Name: "value", Key: "key"}}}}, "SecretInvalid", "X-Key"},
		"tokens from the metadata":   {tokens("http://169.254.169.254/token"), "TargetRefused", "tokenUrl"},
		"tokens from a Service":      {tokens("http://login.other.svc/token"), "TargetRefused", "tokenUrl"},
		"tokens from the API server": {tokens("https://kubernetes.default.svc/token"), "TargetRefused", "tokenUrl"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Resolve(t.Context(), name, namespace, tc.auth)
			why, ok := sinkauth.IsUnusable(err)
			require.True(t, ok, "%v", err)
			require.Equal(t, tc.reason, why.Reason)
			require.Contains(t, why.Message, tc.says)
			require.NotContains(t, why.Message, hidden)
		})
	}
}

// names resolves every name to one address.
type names struct{ at netip.Addr }

func (n names) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{n.at}, nil
}

func TestATokenURLThatTurnsOutToBeElsewhereIsNotCalled(t *testing.T) {
	var called atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called.Store(true) }))
	defer server.Close()
	at, err := netip.ParseAddrPort(server.Listener.Addr().String())
	require.NoError(t, err)
	policy, err := targets.New(targets.Config{Resolver: names{at.Addr()}})
	require.NoError(t, err)
	c := fake.NewClientBuilder().WithObjects(secret("client", "clientId", "bus", "clientSecret", "s3cret")).Build()
	r := sinkauth.New(sinkauth.Config{Secrets: c, Targets: policy})
	auth := resolve(t, r, &v1alpha1.SinkAuth{OAuth2: &v1alpha1.SinkOAuth2{
		TokenURL: fmt.Sprintf("http://login.example.com:%d/token", at.Port()), Secret: v1alpha1.SinkSecret{Name: "client"},
	}})
	err = auth.Authorize(request(t), "msg_1", nil)
	require.ErrorContains(t, err, "refused")
	require.True(t, targets.IsRefused(err))
	require.False(t, called.Load())
}
