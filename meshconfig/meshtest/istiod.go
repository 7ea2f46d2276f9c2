package meshtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/process"
)

// istiodVariable names a pilot-discovery binary, Istio's control plane.
const istiodVariable = "LAMBDAMESH_ISTIOD"

// maxPush bounds what istiod may send at once.
const maxPush = 64 << 20

// RequireIstiod returns the binary that LAMBDAMESH_ISTIOD names, or skips the
// test, aloud. `make test-istio` builds it.
func RequireIstiod(t testing.TB) string {
	t.Helper()
	binary := os.Getenv(istiodVariable)
	if binary == "" {
		const why = "LEFT OUT: " + istiodVariable + " names no pilot-discovery binary, so nothing is shown about a real istiod (make test-istio)"
		if _, ok := t.(*testing.B); ok {
			fmt.Fprintln(os.Stderr, why) // benchmarks skip in silence
		}
		t.Skip(why)
	}
	return binary
}

// Istiod runs Istio's control plane on an API server until the test ends, and
// returns a connection to its plain ADS. Paths are normalized as our objects
// need it; meshConfig is added. Without a binary the test is skipped. The test
// binary's TestMain must call [process.WatcherMain].
func Istiod(t testing.TB, config *rest.Config, meshConfig string) *grpc.ClientConn {
	t.Helper()
	binary := RequireIstiod(t)
	const namespace = "istio-system"
	admin, err := client.New(config, client.Options{})
	require.NoError(t, err)
	err = admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	require.NoError(t, client.IgnoreAlreadyExists(err))

	dir := t.TempDir()
	kubeconfig, mesh := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "mesh")
	require.NoError(t, clientcmd.WriteToFile(kubeconfigOf(config), kubeconfig))
	require.NoError(t, os.WriteFile(mesh, []byte("pathNormalization: {normalization: MERGE_SLASHES}\n"+meshConfig), 0o600))
	address := freeAddress(t)
	log := process.LineFunc(func([]byte) {})
	if testing.Verbose() {
		log = process.LineFunc(func(line []byte) { fmt.Fprintf(t.Output(), "istiod: %s", line) })
	}
	p, err := process.Start(t.Context(), process.Spec{
		Name: "istiod", Path: binary, Dir: dir,
		Args: []string{
			"discovery", "--kubeconfig", kubeconfig, "--meshConfig", mesh, "--grpcAddr", address, "--httpAddr", freeAddress(t),
			"--httpsAddr", "", "--secureGRPCAddr", "", "--monitoringAddr", freeAddress(t), "--ctrlz_port", "0", "--log_output_level", "all:warn",
		},
		Env: []string{
			"HOME=" + dir, "POD_NAMESPACE=" + namespace, "PILOT_CERT_PROVIDER=istiod",
			"INJECTION_WEBHOOK_CONFIG_NAME=", "VALIDATION_WEBHOOK_CONFIG_NAME=",
		},
		Stdout: log, Stderr: log,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Logf("stop istiod: %v", err)
		}
	})
	connection, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPush), grpc.WaitForReady(true)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = connection.Close() })
	return connection
}

func kubeconfigOf(c *rest.Config) clientcmdapi.Config {
	const name = "world"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{Server: c.Host, CertificateAuthorityData: c.CAData}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: c.CertData, ClientKeyData: c.KeyData}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	config.CurrentContext = name
	return *config
}

// freeAddress is one that nobody listened on a moment ago: istiod does not tell
// which ports it got.
func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return listener.Addr().String()
}
