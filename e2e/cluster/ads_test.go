package cluster

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	secretType  = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	clusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// testHostileADS: a data plane is who its token says, and the pod that its token
// is bound to. Whoever takes more gets no configuration and no certificate.
func testHostileADS(t *testing.T, c *cluster) {
	insider, guest := c.pod(t, "attack", "app", "insider"), c.pod(t, "attack", "app", "guest")
	const audience = v1alpha1.XDSTokenAudience
	server := c.forward(t, system, "deployment/controlplane", "15010")
	own := func(pod *corev1.Pod) string { return "pod~attack~" + pod.Name }

	t.Run("a pod's own", func(t *testing.T) {
		_, err := c.subscribe(t, server, own(insider), c.token(t, insider, "attack", "insider", audience), clusterType)
		require.NoError(t, err)
	})
	t.Run("with its own certificate past its own sidecar", func(t *testing.T) {
		for pod, want := range map[*corev1.Pod]int{guest: http.StatusOK, insider: http.StatusForbidden} {
			account := pod.Spec.ServiceAccountName
			secrets, err := c.subscribe(t, server, own(pod), c.token(t, pod, "attack", account, audience), secretType)
			require.NoError(t, err)
			status, body := c.direct(t, certificate(t, secrets))
			require.Equal(t, want, status, "%s: %s", account, body)
		}
	})
	for name, test := range map[string]struct{ node, token string }{
		"no token":                             {own(insider), ""},
		"another audience":                     {own(insider), c.token(t, insider, "attack", "insider", "somebody-else")},
		"another service account's pod":        {own(guest), c.token(t, insider, "attack", "insider", audience)},
		"its service account, but no pod":      {own(insider), c.token(t, nil, "attack", "insider", audience)},
		"a pod that is not there":              {"pod~attack~nobody", c.token(t, insider, "attack", "insider", audience)},
		"a pod of another namespace":           {"pod~hostile~insider", c.token(t, insider, "attack", "insider", audience)},
		"a lambda's pod":                       {"pod~hostile~" + c.pod(t, "hostile", v1alpha1.LabelLambda, "open").Name, c.token(t, insider, "attack", "insider", audience)},
		"the gateway":                          {"gateway~" + system + "~gateway~x", c.token(t, insider, "attack", "insider", audience)},
		"a node id of another form":            {"sidecar~attack~insider", c.token(t, insider, "attack", "insider", audience)},
		"the event bus":                        {"pod~" + system + "~" + c.pod(t, system, "app.kubernetes.io/name", "eventbus").Name, c.token(t, insider, "attack", "insider", audience)},
		"a pod without a sidecar, by its name": {"pod~attack~outsider", c.token(t, insider, "attack", "insider", audience)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, kind := range []string{clusterType, secretType} {
				_, err := c.subscribe(t, server, test.node, test.token, kind)
				require.Error(t, err, "it got resources")
				require.Contains(t, []codes.Code{codes.Unauthenticated, codes.PermissionDenied, codes.InvalidArgument}, status.Code(err), "it is refused, and not left waiting or without a way: %v", err)
			}
		})
	}
}

// token is one that the API server makes, bound to a pod when there is one.
func (c *cluster) token(t *testing.T, pod *corev1.Pod, namespace, account, audience string) string {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	answer, err := c.clients.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	require.NoError(t, err)
	return answer.Status.Token
}

// certificate is the one among a data plane's secrets.
func certificate(t *testing.T, secrets []*anypb.Any) tls.Certificate {
	t.Helper()
	for _, resource := range secrets {
		var secret tlsv3.Secret
		require.NoError(t, resource.UnmarshalTo(&secret))
		if own := secret.GetTlsCertificate(); own != nil {
			pair, err := tls.X509KeyPair(own.GetCertificateChain().GetInlineBytes(), own.GetPrivateKey().GetInlineBytes())
			require.NoError(t, err)
			return pair
		}
	}
	t.Fatalf("no certificate among %d secrets", len(secrets))
	return tls.Certificate{}
}

// direct calls the lambda hostile/open at its sidecar's port.
func (c *cluster) direct(t *testing.T, pair tls.Certificate) (int, string) {
	t.Helper()
	address := c.forward(t, "hostile", "pod/"+c.pod(t, "hostile", v1alpha1.LabelLambda, "open").Name, "15006")
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true}, //nolint:gosec // whom it calls is not the question
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/", nil)
	require.NoError(t, err)
	req.Host = "open.hostile.svc"
	resp, err := c.send(client, req)
	require.NoError(t, err)
	return resp.status, resp.body
}

// subscribe asks the ADS server for resources as a node, and returns what it
// says instead of them.
func (c *cluster) subscribe(t *testing.T, server, node, token, kind string) ([]*anypb.Any, error) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+server, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: c.root(t), ServerName: "controlplane." + system + ".svc", MinVersion: tls.VersionTLS13,
	})))
	require.NoError(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return nil, err
	}
	request := &discovery.DiscoveryRequest{Node: &core.Node{Id: node}, TypeUrl: kind}
	if kind == secretType {
		request.ResourceNames = []string{"default", "ROOTCA"}
	}
	_ = stream.Send(request) // the answer says why it failed
	answer, err := stream.Recv()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	case len(answer.Resources) == 0:
		return nil, fmt.Errorf("an answer without resources")
	}
	return answer.Resources, nil
}

// root is what members of the mesh trust.
func (c *cluster) root(t *testing.T) *x509.CertPool {
	t.Helper()
	var config corev1.ConfigMap
	require.NoError(t, c.client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "lambdamesh-mesh"}, &config))
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM([]byte(config.Data["ca.crt"])), "%v", config.Data)
	return pool
}

// forward is a port of this machine that leads to one of a pod.
func (c *cluster) forward(t *testing.T, namespace, object, port string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(os.Getenv(binVar), "kubectl"), "--kubeconfig", c.kubeconfig, "port-forward", "-n", namespace, object, ":"+port)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	address, _, found := strings.Cut(strings.TrimPrefix(line, "Forwarding from "), " ")
	require.True(t, found, line)
	return address
}
