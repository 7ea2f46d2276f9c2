package controller_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	envoyoutput "github.com/lambdamesh/lambdamesh/meshconfig/output/envoy"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// BenchmarkEditToAnswer is the time from an edit of one rule, among so many with a
// lambda and jwt each, until a gateway answers by it: translation, resources, ADS,
// the embedded proxy, a request. An API server is not in it. Its baseline is the
// same with a proxy that asks for state of the world, and so gets whole tables.
func BenchmarkEditToAnswer(b *testing.B) {
	for _, rules := range []int{100, 1000, 10_000} {
		for _, whole := range []bool{true, false} {
			name := "changes"
			if whole {
				name = "whole-tables"
			}
			b.Run(fmt.Sprintf("rules=%d/%s", rules, name), func(b *testing.B) { editToAnswer(b, rules, whole) })
		}
	}
}

func editToAnswer(b *testing.B, rules int, whole bool) {
	s := snapshotOf(rules)
	s.JWKS = map[string]translate.KeySetResult{"https://issuer.example/keys": {JSON: benchKeys}}
	for _, r := range s.APIRules {
		r.Spec.Rules[0].NoAuth, r.Spec.Rules[0].JWT = nil, &v1alpha1.JWTAuth{
			Authentications: []v1alpha1.JWTAuthentication{{Issuer: "https://issuer.example", JWKSURI: "https://issuer.example/keys"}},
			Authorizations:  []v1alpha1.JWTAuthorization{{RequiredScopes: []string{"orders"}}},
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	counted := &countingListener{Listener: listener}
	authority, err := ca.Open(context.Background(), ca.Directory(b.TempDir()), ca.Config{})
	require.NoError(b, err)
	scheme, err := kube.Scheme()
	require.NoError(b, err)
	known := fake.NewClientBuilder().WithScheme(scheme).WithObjects(&networkingv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "gateway"}}).Build()
	out, err := envoyoutput.New(envoyoutput.Config{
		ADS:   ads.Config{Listener: counted, CA: authority, Authenticator: tokens{}, Log: slog.New(slog.DiscardHandler), MaxResponseBytes: 200 << 20},
		Cache: known, Reader: known,
	})
	require.NoError(b, err)
	stopServer := run(b, out.Server())
	defer stopServer()
	update := func() {
		mesh, _ := translate.Translate(s)
		out.Update(b.Context(), output.Update{Mesh: &mesh})
	}
	update()

	var mu sync.Mutex
	address := ""
	p, err := proxy.New(proxy.Config{
		NodeID: ads.GatewayNodeID("shop", "gateway", "0"), ADSAddress: listener.Addr().String(), RootCAs: authority.Roots, WholeState: whole,
		Token: func(context.Context) (string, error) {
			return v1alpha1.SystemNamespace + "/" + v1alpha1.ServiceAccountGateway, nil
		},
		Log: slog.New(slog.DiscardHandler),
		Listen: func(ctx context.Context, _, _ string) (net.Listener, error) {
			l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
			if err == nil {
				mu.Lock()
				address = l.Addr().String()
				mu.Unlock()
			}
			return l, err
		},
	})
	require.NoError(b, err)
	stopProxy := run(b, p)
	defer stopProxy()
	select {
	case <-p.Ready():
	case <-time.After(patience):
		b.Fatal("the proxy is not ready")
	}
	mu.Lock()
	at := address
	mu.Unlock()
	ask := func(host, path string) int {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+at+path, http.NoBody)
		require.NoError(b, err)
		r.Host = host
		answer, err := http.DefaultClient.Do(r)
		require.NoError(b, err)
		require.NoError(b, answer.Body.Close())
		return answer.StatusCode
	}
	sent := counted.written.Load()
	edits := 0
	for b.Loop() {
		edits++
		i := edits % rules
		rule := s.APIRules[i].DeepCopy()
		rule.Spec.Rules[0].Path = fmt.Sprintf("/v%d/{**}", edits)
		rule.Generation++
		s.APIRules[i] = rule
		update()
		for deadline := time.Now().Add(patience); ask(rule.Name+"."+domain, fmt.Sprintf("/v%d/x", edits)) != http.StatusUnauthorized; {
			require.True(b, time.Now().Before(deadline), "the gateway never answered by the edit")
		}
	}
	b.ReportMetric(float64(counted.written.Load()-sent)/float64(edits), "sentB/edit")
}

// benchKeys is one public key.
const benchKeys = `{"keys":[{"kty":"EC","kid":"k","alg":"ES256","use":"sig","crv":"P-256",` +
	`"x":"oxUL_4U6f-CGaHGi9X0oyL2rZkUct3FhtwngjDp2rMU","y":"DW7P6IOQvSugorNr_obWZjl8Bkhih5xS8T6CgmEDGz4"}]}`

// countingListener counts what is sent.
type countingListener struct {
	net.Listener
	written atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countingConn{c, &l.written}, nil
}

type countingConn struct {
	net.Conn
	written *atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}
