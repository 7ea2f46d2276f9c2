package cli

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// busInACluster is an API server behind which two pods of an event bus are, one
// of which is ready, and a kubeconfig whose context names the namespace shop.
func busInACluster(t *testing.T, trusted, actual *testkit.Authority, got *cloudevents.Event) (kubeconfig string) {
	t.Helper()
	certificate, key := actual.Issue(t, "eventbus-public.lambdamesh-system.svc")
	pair, err := tls.X509KeyPair(certificate, key)
	require.NoError(t, err)
	bus := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer of shop/default" {
			http.Error(w, r.Header.Get("Authorization"), http.StatusUnauthorized)
			return
		}
		event, err := cloudevents.NewEventFromHTTPRequest(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		*got = *event
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"events":[{"id":"a","sequence":7}]}`)
	}))
	bus.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	bus.StartTLS()
	t.Cleanup(bus.Close)

	const system = "/api/v1/namespaces/" + v1alpha1.SystemNamespace
	answer := func(w http.ResponseWriter, object any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(object)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+system+"/services/eventbus-public", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app.kubernetes.io/name": "eventbus"}}})
	})
	mux.HandleFunc("GET "+system+"/pods", func(w http.ResponseWriter, _ *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		for name, ready := range map[string]corev1.ConditionStatus{"eventbus-0": corev1.ConditionFalse, "eventbus-1": corev1.ConditionTrue} {
			list.Items = append(list.Items, corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "eventbus", Ports: []corev1.ContainerPort{{Name: "public", ContainerPort: 8443}}}}},
				Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
			})
		}
		answer(w, list)
	})
	mux.HandleFunc("GET "+system+"/secrets/eventbus-tls", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, Data: map[string][]byte{"ca.crt": trusted.RootPEM()}})
	})
	mux.HandleFunc("POST /api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", func(w http.ResponseWriter, r *http.Request) {
		// JSON or protobuf, as the client likes it.
		if body, err := io.ReadAll(r.Body); err != nil || !bytes.Contains(body, []byte(v1alpha1.EventBusTokenAudience)) {
			http.Error(w, "for another audience", http.StatusForbidden)
			return
		}
		answer(w, authenticationv1.TokenRequest{
			TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "TokenRequest"},
			Status:   authenticationv1.TokenRequestStatus{Token: "of " + r.PathValue("namespace") + "/" + r.PathValue("account")},
		})
	})
	mux.HandleFunc("POST "+system+"/pods/eventbus-1/portforward", func(w http.ResponseWriter, r *http.Request) {
		carry(w, r, bus.Listener.Addr().String())
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {}}],
contexts: [{name: c, context: {cluster: c, user: u, namespace: shop}}]}`, server.URL)), 0o600))
	return kubeconfig
}

// carry forwards ports to address, as a kubelet does.
func carry(w http.ResponseWriter, r *http.Request, address string) {
	if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	streams := make(chan httpstream.Stream, 2)
	connection := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, replySent <-chan struct{}) error {
		go func() {
			<-replySent
			streams <- stream
		}()
		return nil
	})
	if connection == nil {
		return
	}
	defer connection.Close()
	for {
		select {
		case <-connection.CloseChan():
			return
		case stream := <-streams:
			if stream.Headers().Get(corev1.StreamType) != corev1.StreamTypeData || stream.Headers().Get(corev1.PortHeader) != "8443" {
				_ = stream.Close()
				continue
			}
			to, err := net.Dial("tcp", address) //nolint:noctx // it ends with the server
			if err != nil {
				_ = stream.Reset()
				continue
			}
			go func() {
				_, _ = io.Copy(to, stream)
				_ = to.Close()
			}()
			go func() {
				_, _ = io.Copy(stream, to)
				_ = stream.Close()
			}()
		}
	}
}

func TestPublishReachesTheBusOfAClusterThroughItsAPIServer(t *testing.T) {
	authority := testkit.NewAuthority(t)
	var got cloudevents.Event
	kubeconfig := busInACluster(t, authority, authority, &got)
	for _, account := range [][]string{nil, {"--service-account", "default"}, {"-n", "shop"}, {"--service-account", "shop/default", "-n", "other"}} {
		got = cloudevents.Event{}
		code, stdout, stderr := run(t, "", append([]string{"publish", "--kubeconfig", kubeconfig, "--source", "/shop/default", "--type", "order.created.v1", "--id", "a"}, account...)...)
		require.Equal(t, ExitOK, code, stderr)
		require.Equal(t, "stored a as number 7\n", stdout)
		require.Equal(t, "/shop/default", got.Source())
	}
	code, _, stderr := run(t, "", "publish", "--kubeconfig", kubeconfig, "--source", "s", "--type", "t", "-n", "other")
	require.Equal(t, ExitFailure, code)
	require.Contains(t, stderr, "Bearer of other/default")
}

func TestPublishTellsItsTokenToNobodyElse(t *testing.T) {
	authority := testkit.NewAuthority(t)
	var got cloudevents.Event
	kubeconfig := busInACluster(t, authority, testkit.NewAuthority(t), &got)
	code, _, stderr := run(t, "", "publish", "--kubeconfig", kubeconfig, "--source", "/shop/default", "--type", "order.created.v1", "--id", "a")
	require.Equal(t, ExitFailure, code)
	require.Contains(t, stderr, "certificate signed by unknown authority")
	require.Empty(t, got.ID())

	ca := filepath.Join(t.TempDir(), "ca.crt")
	require.NoError(t, os.WriteFile(ca, []byte("none"), 0o600))
	code, _, stderr = run(t, "", "publish", "--kubeconfig", kubeconfig, "--ca", ca, "--source", "/shop/default", "--type", "t")
	require.Equal(t, ExitUsage, code, stderr)
}
