package cluster

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
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
	server := c.forward(t, "deployment/controlplane", "15010")
	own := func(pod *corev1.Pod) string { return "pod~attack~" + pod.Name }

	t.Run("a pod's own", func(t *testing.T) {
		require.NoError(t, c.subscribe(t, server, own(insider), c.token(t, insider, "attack", "insider", audience)))
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
			err := c.subscribe(t, server, test.node, test.token)
			require.Error(t, err, "it got resources")
			require.NotErrorIs(t, err, context.DeadlineExceeded, "it is refused, and not left waiting")
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

// subscribe asks the ADS server for clusters and certificates as a node, and
// returns what it says instead of them.
func (c *cluster) subscribe(t *testing.T, server, node, token string) error {
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
		return err
	}
	for _, kind := range []string{clusterType, secretType} {
		request := &discovery.DiscoveryRequest{Node: &core.Node{Id: node}, TypeUrl: kind}
		if kind == secretType {
			request.ResourceNames = []string{"default", "ROOTCA", "identity"}
		}
		if err := stream.Send(request); err != nil {
			break // the answer says why
		}
	}
	answer, err := stream.Recv()
	if err == nil && len(answer.Resources) == 0 {
		return fmt.Errorf("an answer without resources")
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
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
func (c *cluster) forward(t *testing.T, object, port string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(os.Getenv(binVar), "kubectl"), "--kubeconfig", c.kubeconfig, "port-forward", "-n", system, object, ":"+port)
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
