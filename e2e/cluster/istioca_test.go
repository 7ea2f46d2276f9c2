package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	istioca "istio.io/api/security/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// testIstioAuthority: who asks istiod's CA for a certificate gets one for who its
// token says, whatever it writes into the request, and with it no more than before.
func testIstioAuthority(t *testing.T, c *cluster) {
	const gateway, own = "spiffe://cluster.local/ns/lambdamesh-system/sa/gateway", "spiffe://cluster.local/ns/attack/sa/"
	insider, guest := c.pod(t, "attack", "app", "insider"), c.pod(t, "attack", "app", "guest")
	open := c.pod(t, "hostile", "lambdamesh.dev/lambda", "open").Status.PodIP
	ask := c.istiod(t)
	token := func(pod *corev1.Pod, audience string) string {
		return c.token(t, pod, "attack", pod.Spec.ServiceAccountName, audience)
	}
	for pod, want := range map[*corev1.Pod]int{guest: http.StatusOK, insider: http.StatusForbidden} {
		account := pod.Spec.ServiceAccountName
		t.Run("another's name, by "+account, func(t *testing.T) {
			issued, err := ask(token(pod, "istio-ca"), gateway, nil)
			require.NoError(t, err)
			require.Len(t, issued.leaf.URIs, 1)
			require.Equal(t, own+account, issued.leaf.URIs[0].String())
			require.Empty(t, issued.leaf.DNSNames)
			r := c.from(t, "attack", "outsider", call{
				URL: "https://" + net.JoinHostPort(open, "8080") + "/", Header: map[string]string{"Host": "open.hostile.svc"},
				Certificate: issued.certificate, Key: issued.key,
			})
			require.Equal(t, want, r.Status, "%+v", r)
		})
	}
	for name, test := range map[string]struct {
		token        string
		impersonated *structpb.Struct
	}{
		"no token":         {"", nil},
		"another audience": {token(insider, "somebody-else"), nil},
		"for somebody else, as agents of nodes do": {token(insider, "istio-ca"), &structpb.Struct{Fields: map[string]*structpb.Value{
			"ImpersonatedIdentity": structpb.NewStringValue(gateway),
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ask(test.token, gateway, test.impersonated)
			require.Error(t, err, "it got a certificate")
			require.Contains(t, []codes.Code{codes.Unauthenticated, codes.PermissionDenied}, status.Code(err), "%v", err)
		})
	}
}

// issued is a certificate (PEM, with what it is signed by) and its key.
type issued struct {
	certificate, key string
	leaf             *x509.Certificate
}

// istiod asks its CA with a token for a certificate with a SAN, as agents do.
func (c *cluster) istiod(t *testing.T) func(token, san string, more *structpb.Struct) (issued, error) {
	t.Helper()
	var root corev1.ConfigMap
	require.NoError(t, c.client.Get(t.Context(), client.ObjectKey{Namespace: "attack", Name: "istio-ca-root-cert"}, &root))
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM([]byte(root.Data["root-cert.pem"])), "%v", root.Data)
	conn, err := grpc.NewClient("passthrough:///"+c.forward(t, "istio-system", "deployment/istiod", "15012"), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: roots, ServerName: "istiod.istio-system.svc", MinVersion: tls.VersionTLS12,
	})))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return func(token, san string, more *structpb.Struct) (issued, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		uri, err := url.Parse(san)
		require.NoError(t, err)
		request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: san}, URIs: []*url.URL{uri}, DNSNames: []string{"gateway.lambdamesh-system.svc"},
		}, key)
		require.NoError(t, err)
		ctx := t.Context()
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
		answer, err := istioca.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &istioca.IstioCertificateRequest{
			Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})), ValidityDuration: 3600, Metadata: more,
		})
		if err != nil {
			return issued{}, err
		}
		encoded, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		chain := strings.Join(answer.GetCertChain(), "\n")
		block, _ := pem.Decode([]byte(chain))
		require.NotNil(t, block, chain)
		leaf, err := x509.ParseCertificate(block.Bytes)
		require.NoError(t, err)
		return issued{chain, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})), leaf}, nil
	}
}
