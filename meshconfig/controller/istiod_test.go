package controller_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/structpb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/process"
)

// istiodVariable names a pilot-discovery binary, Istio's control plane.
const istiodVariable = "LAMBDAMESH_ISTIOD"

// maxPush bounds what istiod may send at once.
const maxPush = 64 << 20

func TestMain(m *testing.M) {
	process.WatcherMain()
	os.Exit(m.Run())
}

// requireIstiod returns the binary, or skips the test.
func requireIstiod(t testing.TB) string {
	t.Helper()
	binary := os.Getenv(istiodVariable)
	if binary == "" {
		const why = "LEFT OUT: " + istiodVariable + " names no pilot-discovery binary, so nothing is shown about a real istiod"
		if _, ok := t.(*testing.B); ok {
			fmt.Fprintln(os.Stderr, why) // benchmarks skip in silence
		}
		t.Skip(why)
	}
	return binary
}

// istiod runs Istio's control plane on the world's API server until the test
// ends, and returns a connection to its plain ADS. Without a binary the test is
// skipped.
func (w *world) istiod(t testing.TB, meshConfig string) *grpc.ClientConn {
	t.Helper()
	binary := requireIstiod(t)
	const namespace = "istio-system"
	err := w.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	require.NoError(t, client.IgnoreAlreadyExists(err))

	dir := t.TempDir()
	kubeconfig, mesh := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "mesh")
	require.NoError(t, clientcmd.WriteToFile(kubeconfigOf(w.config), kubeconfig))
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
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Logf("stop istiod: %v", err)
		}
	})
	connection, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxPush), grpc.WaitForReady(true)))
	require.NoError(t, err)
	t.Cleanup(func() { connection.Close() })
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
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	return listener.Addr().String()
}

// istioGateway is a gateway's proxy to istiod.
func istioGateway(t testing.TB) *corev3.Node {
	t.Helper()
	metadata, err := structpb.NewStruct(map[string]any{
		"NAMESPACE": v1alpha1.SystemNamespace,
		"LABELS":    map[string]any{"istio": "ingressgateway"},
	})
	require.NoError(t, err)
	const domain = v1alpha1.SystemNamespace + ".svc.cluster.local"
	// An address of documentation: with that of a WorkloadEntry istiod would take
	// the gateway for the entry's workload, and its ports for the Service's.
	return &corev3.Node{Id: "router~192.0.2.1~gw." + v1alpha1.SystemNamespace + "~" + domain, Metadata: metadata}
}

func subscribe(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient, node *corev3.Node, typeURL string, names ...string) error {
	return stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNames: names})
}

// A gateway that is the embedded proxy takes what istiod makes of our objects.
// Automatic mutual TLS is off: its certificates come from a cluster of Envoy's
// bootstrap (sds-grpc), which the embedded proxy does not know.
func TestEmbeddedProxyTakesWhatIstiodServes(t *testing.T) {
	requireIstiod(t)
	w := newWorld(t)
	relay := &relay{istiod: discoveryv3.NewAggregatedDiscoveryServiceClient(w.istiod(t, "enableAutoMtls: false\n")), node: istioGateway(t)}
	t.Cleanup(func() {
		for _, nack := range relay.refused() {
			t.Errorf("the proxy refused %s", nack)
		}
	})
	w.service("orders", "an order")
	w.controlPlane(istioOnly)
	rule := toService("orders")
	rule.Path, rule.Methods = "/orders/{*}", []v1alpha1.HTTPMethod{"GET"}
	rule.Timeout, rule.Retries = &metav1.Duration{Duration: 5 * time.Second}, &v1alpha1.Retries{Attempts: 2}
	rule.Rewrite = &v1alpha1.Rewrite{Path: "/v1/orders"}
	rule.Request = &v1alpha1.HeaderEdits{SetHeaders: map[string]v1alpha1.HeaderValue{"x-from": "gateway"}, RemoveHeaders: []string{"x-secret"}}
	rule.Response = &v1alpha1.HeaderEdits{SetHeaders: map[string]v1alpha1.HeaderValue{"x-served": "yes"}, RemoveHeaders: []string{"server"}}
	w.create(keySecret(newIssuer(t).set))
	w.create(nodeLambda("greet"))
	w.create(lambdaPod("greet", "greet-0", true))
	w.create(httpService("greet", map[string]string{v1alpha1.LabelLambda: "greet"}))
	closed := toLambda("greet")
	closed.Path, closed.NoAuth = "/closed", nil
	closed.JWT = &v1alpha1.JWTAuth{Authentications: []v1alpha1.JWTAuthentication{{Issuer: "https://issuer.test", JWKSSecret: "keys"}}}
	orders := w.apiRule("orders", "orders", rule, closed)
	orders.Spec.CORS = &v1alpha1.CORSPolicy{AllowOrigins: []v1alpha1.OriginMatch{{Exact: new("https://shop.test")}}, AllowMethods: []v1alpha1.HTTPMethod{"GET"}}
	w.create(orders)
	gateway := w.gateway(w.serve(t, relay))

	gateway.requireStatus(http.StatusOK, "orders."+domain, "/orders/1")
	gateway.requireStatus(http.StatusNotFound, "orders."+domain, "/else")
	gateway.requireStatus(http.StatusBadRequest, "orders."+domain, "/orders/a%2fb")
	gateway.requireStatus(http.StatusUnauthorized, "orders."+domain, "/closed")
	gateway.requireStatus(http.StatusNotFound, "unknown."+domain, "/orders/1")
}

// relay passes streams of embedded proxies, which want TLS and send a token, on
// to istiod's plain ADS, under the name of a gateway of Istio's.
type relay struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	istiod discoveryv3.AggregatedDiscoveryServiceClient
	node   *corev3.Node

	mu    sync.Mutex
	nacks []string
}

func (w *world) serve(t *testing.T, r *relay) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	leaf, err := w.ca.IssueServer("127.0.0.1")
	require.NoError(t, err)
	certificate, err := tls.X509KeyPair(leaf.ChainPEM, leaf.KeyPEM)
	require.NoError(t, err)
	server := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, r)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String()
}

func (r *relay) StreamAggregatedResources(down discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	up, err := r.istiod.StreamAggregatedResources(down.Context())
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	go func() {
		for {
			response, err := up.Recv()
			if err == nil {
				err = down.Send(response)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		for {
			request, err := down.Recv()
			if err == nil {
				r.note(request)
				err = up.Send(request)
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	return <-ended
}

func (r *relay) note(request *discoveryv3.DiscoveryRequest) {
	if request.GetNode() != nil {
		request.Node = r.node
	}
	if problem := request.GetErrorDetail(); problem != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.nacks = append(r.nacks, request.GetTypeUrl()+": "+problem.GetMessage())
	}
}

func (r *relay) refused() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.nacks)
}
