package outbound

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// pipes is a listener that is dialed without a network, so that time may be that
// of a bubble, and whose connections have no buffers.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }
func (l *pipes) Close() error   { close(l.closed); return nil }
func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve serves on the pipes until the test ends.
func (l *pipes) serve(t *testing.T, handler http.Handler) (end func()) {
	t.Helper()
	server := httpserver.New(httpserver.Config{Name: "pipes", Listener: l, Handler: handler})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	return func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// shop is a target in the bubble: it gives tokens, and takes those that it has not
// revoked.
type shop struct {
	mu      sync.Mutex
	issued  int
	revoked bool // all of them, and those to come
	lasts   int  // seconds
	paths   []string
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.URL.Path == "/token":
		s.issued++
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"t%d","token_type":"Bearer","expires_in":%d}`, s.issued, s.lasts)
	case s.revoked:
		w.WriteHeader(http.StatusUnauthorized)
	default:
		s.paths = append(s.paths, r.URL.Path+" "+r.Header.Get("Authorization"))
	}
}

func (s *shop) tokens() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issued
}

// inBubble runs test with a gateway whose targets are a shop; a service times out
// after five seconds.
func inBubble(t *testing.T, s http.Handler, test func(t *testing.T, g *Gateway)) {
	t.Helper()
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		objects := fake.NewClientBuilder().WithScheme(scheme).WithIndex(&v1alpha1.ApplicationBinding{}, catalog.ByApplication, catalog.Bound).WithObjects(
			&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.ApplicationSpec{Services: []v1alpha1.InlineService{
				{Name: "orders", ServiceDefinition: v1alpha1.ServiceDefinition{API: &v1alpha1.ServiceAPI{
					TargetURL: "http://203.0.113.7/api", Timeout: &metav1.Duration{Duration: 5 * time.Second},
					Auth: &v1alpha1.APIAuth{OAuth2: &v1alpha1.OAuth2Auth{TokenURL: "http://203.0.113.7/token", Secret: v1alpha1.SecretRef{Name: "oauth"}}},
				}}},
				{Name: "open", ServiceDefinition: v1alpha1.ServiceDefinition{API: &v1alpha1.ServiceAPI{
					TargetURL: "http://203.0.113.7/api", Timeout: &metav1.Duration{Duration: 5 * time.Second},
				}}},
			}}},
			&corev1.Secret{
				ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "oauth"},
				Data:       map[string][]byte{"clientId": []byte("id"), "clientSecret": []byte("secret")},
			},
			&v1alpha1.ApplicationBinding{
				ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "shop"},
				Spec:       v1alpha1.ApplicationBindingSpec{Application: "shop", Lambdas: &v1alpha1.LambdaSelection{Names: []string{"caller"}}},
			},
		).Build()
		policy, err := targets.New(targets.Config{Allow: []string{"203.0.113.7"}})
		require.NoError(t, err)
		g, err := New(Config{Objects: objects, Targets: policy, TrustDomain: "cluster.local"})
		require.NoError(t, err)
		target := newPipes()
		defer target.serve(t, s)()
		g.transports.plain = policy.Transport(targets.ClientOptions{Dial: target.dial})
		defer g.transports.plain.CloseIdleConnections()
		test(t, g)
	})
}

// sidecar is a connection of the sidecar's to the gateway.
type sidecar struct {
	net.Conn
	r *bufio.Reader
}

// sidecarOf serves the gateway and connects.
func sidecarOf(t *testing.T, g *Gateway) (c *sidecar, end func()) {
	t.Helper()
	l := newPipes()
	stop := l.serve(t, g)
	conn, err := l.dial(t.Context(), "", "")
	require.NoError(t, err)
	return &sidecar{conn, bufio.NewReader(conn)}, func() { conn.Close(); stop() }
}

func (c *sidecar) send(t *testing.T, method, path, rest string) {
	t.Helper()
	_, err := io.WriteString(c, method+" "+path+" HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/ns/sa/caller\r\n"+rest)
	require.NoError(t, err)
}

func (c *sidecar) answer(t *testing.T) (int, string) {
	t.Helper()
	response, err := http.ReadResponse(c.r, nil)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(body)
}

// All lambdas' calls come over the same connections: one that takes its answer late
// must not spoil what follows on its own.
func TestWhoTakesAnAnswerSlowlySpoilsNoLaterCall(t *testing.T) {
	for name, request := range map[string][2]string{
		"without a body":    {http.MethodGet, "\r\n"},
		"with a body":       {http.MethodPost, "Content-Length: 3\r\n\r\nabc"},
		"with an end":       {http.MethodPost, "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"},
		"with an empty one": {http.MethodPost, "Content-Length: 0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if strings.HasSuffix(r.URL.Path, "/slow") {
					<-r.Context().Done()
				}
			})
			inBubble(t, slow, func(t *testing.T, g *Gateway) {
				c, end := sidecarOf(t, g)
				defer end()
				c.send(t, request[0], "/shop/open/slow", request[1])
				time.Sleep(10 * time.Second) // the call's time is over, and so was the body's
				status, body := c.answer(t)
				require.Equal(t, http.StatusGatewayTimeout, status, body)
				for range 3 {
					c.send(t, http.MethodGet, "/shop/open/next", "\r\n")
					status, body := c.answer(t)
					require.Equal(t, http.StatusOK, status, body)
				}
			})
		})
	}
}

// Who sends slowly is given up with the call's time, and holds no target back.
func TestWhoSendsSlowlyIsGivenUpAndHoldsNoTargetBack(t *testing.T) {
	reads := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	inBubble(t, reads, func(t *testing.T, g *Gateway) {
		for range breakAfter + 1 {
			c, end := sidecarOf(t, g)
			begin := time.Now()
			c.send(t, http.MethodPost, "/shop/open/orders", "Content-Length: 6\r\n\r\nabc")
			status, body := c.answer(t)
			require.Equal(t, http.StatusGatewayTimeout, status, body)
			require.LessOrEqual(t, time.Since(begin), 7*time.Second)
			end()
		}
		require.Equal(t, http.StatusOK, g.called(t, "/shop/open/orders"))
	})
}

func (g *Gateway) called(t *testing.T, path string) int {
	t.Helper()
	c, end := sidecarOf(t, g)
	defer end()
	c.send(t, http.MethodGet, path, "\r\n")
	status, _ := c.answer(t)
	return status
}

func TestATokenIsRenewedBeforeItEnds(t *testing.T) {
	for _, life := range []struct{ seconds, renewed int }{{3600, 3570}, {100, 80}, {10, 8}, {1 << 30, 3570}} {
		t.Run(fmt.Sprint(life.seconds), func(t *testing.T) {
			s := &shop{lasts: life.seconds}
			inBubble(t, s, func(t *testing.T, g *Gateway) {
				require.Equal(t, http.StatusOK, g.called(t, "/shop/orders/1"))
				time.Sleep(time.Duration(life.renewed)*time.Second - 500*time.Millisecond)
				require.Equal(t, http.StatusOK, g.called(t, "/shop/orders/2"))
				require.Equal(t, 1, s.tokens())
				time.Sleep(time.Second)
				require.Equal(t, http.StatusOK, g.called(t, "/shop/orders/3"))
				require.Equal(t, 2, s.tokens())
			})
		})
	}
}

func TestARefusedTokenIsReplacedOnceInThirtySeconds(t *testing.T) {
	s := &shop{lasts: 3600}
	inBubble(t, s, func(t *testing.T, g *Gateway) {
		require.Equal(t, http.StatusOK, g.called(t, "/shop/orders/1"))
		s.mu.Lock()
		s.revoked = true
		s.mu.Unlock()
		for _, want := range []int{2, 3, 4} {
			begin := time.Now()
			for time.Since(begin) < 30*time.Second {
				require.Equal(t, http.StatusUnauthorized, g.called(t, "/shop/orders/1"))
				require.Equal(t, want, s.tokens())
				time.Sleep(5 * time.Second)
			}
		}
	})
}
