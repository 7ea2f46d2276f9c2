package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// cluster is an API server with a pod of lambda "both" in two namespaces, each
// with a sidecar, and a kubeconfig whose context names the namespace shop.
func cluster(t *testing.T) (kubeconfig string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/pods", func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("all namespaces were listed: %s", r.URL)
		http.Error(w, "forbidden", http.StatusForbidden)
	})
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods", func(w http.ResponseWriter, r *http.Request) {
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
		if r.PathValue("namespace") != "empty" && r.URL.Query().Get("labelSelector") == v1alpha1.LabelLambda+"=both" {
			for _, name := range []string{"both-1", "both-2"} {
				list.Items = append(list.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: r.PathValue("namespace"), Name: name}})
			}
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	})
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/both-1/log", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("container") != deploy.ContainerName {
			// What a real one answers for a pod of two containers.
			http.Error(w, "a container name must be specified for pod both-1", http.StatusBadRequest)
			return
		}
		if r.URL.Query().Get("previous") == "true" {
			fmt.Fprintln(w, "crashes")
			return
		}
		fmt.Fprintf(w, "in %s\n", r.PathValue("namespace"))
	})
	mux.HandleFunc("GET /api/v1/namespaces/{namespace}/pods/both-2/log", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: http.StatusBadRequest,
			Message: "container \"lambda\" is waiting to start: ImagePullBackOff",
		})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {}}],
contexts: [{name: c, context: {cluster: c, user: u, namespace: shop}}]}`, server.URL)), 0o600))
	return kubeconfig
}

func TestLogsOnAClusterAreThoseOfOneLambda(t *testing.T) {
	kubeconfig := cluster(t)
	// One pod without a log does not hide that of the other.
	const waiting = "lambdamesh: read the log of pod shop/both-2: container \"lambda\" is waiting to start: ImagePullBackOff\n"
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"the context's namespace": {nil, ExitOK, "both-1 in shop\n" + waiting},
		"another namespace":       {[]string{"-n", "test"}, ExitOK, "both-1 in test\n" + strings.ReplaceAll(waiting, "shop/", "test/")},
		"before the last restart": {[]string{"--previous"}, ExitOK, "both-1 crashes\n" + waiting},
		"what contradicts itself": {[]string{"-p", "-f"}, ExitUsage, "lambdamesh: --previous is of containers that write no more: leave out --follow\n"},
		"nothing there":           {[]string{"-n", "empty"}, ExitFailure, "lambdamesh: lambda \"both\" has no pods in namespace empty: pass -n NAMESPACE, or see `lambdamesh status -A`\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			args := append([]string{"logs", "both", "--kubeconfig", kubeconfig, "--data-dir", t.TempDir()}, tt.args...)
			require.Equal(t, tt.code, Run(t.Context(), "test", args, strings.NewReader(""), io.Writer(&out), &out), out.String())
			require.Equal(t, tt.want, out.String())
		})
	}
}
