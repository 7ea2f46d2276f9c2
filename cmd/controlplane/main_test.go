package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const patience = time.Minute

func noEnv(string) (string, bool) { return "", false }

func TestHelpNamesTheMeshesAndTheEnvironment(t *testing.T) {
	var out bytes.Buffer
	cmd := command(noEnv)
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--help"})
	require.NoError(t, cmd.Execute())
	for _, part := range []string{"--mesh=istio", "--mesh=envoy", "--xds-address", "--allow-target", "--leader-elect", "LAMBDAMESH_CONTROLPLANE_XDS_ADDRESS", "SIGTERM"} {
		require.Contains(t, out.String(), part)
	}
}

func TestMistakesAreNamedBeforeAnythingStarts(t *testing.T) {
	tests := map[string]struct {
		args []string
		want string
	}{
		"an unknown mesh":    {args: []string{"--mesh=linkerd"}, want: `--mesh "linkerd": use istio or envoy`},
		"a bad target":       {args: []string{"--allow-target=10.0.0.0/99"}, want: "10.0.0.0/99"},
		"a bad limit":        {args: []string{"--limit=namespace.hosts=1"}, want: "--limit: the limit apirule.hosts (16) is above namespace.hosts (1)"},
		"a bad log level":    {args: []string{"--log-level=loud"}, want: "loud"},
		"no such kubeconfig": {args: []string{"--kubeconfig=/nonexistent"}, want: "/nonexistent"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := command(noEnv)
			cmd.SetErr(io.Discard)
			cmd.SetArgs(tt.args)
			require.ErrorContains(t, cmd.ExecuteContext(t.Context()), tt.want)
		})
	}
}

// cluster is an API server with the system namespace and its gateway.
func cluster(t *testing.T) (*rest.Config, client.Client) {
	t.Helper()
	config := testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	for _, object := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "istio-system"}},
		&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "istio", Namespace: "istio-system"},
			Data:       map[string]string{"mesh": "pathNormalization:\n  normalization: MERGE_SLASHES\n"},
		},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ServiceAccountGateway, Namespace: v1alpha1.SystemNamespace}},
		&networkingv1.Gateway{
			ObjectMeta: metav1.ObjectMeta{
				Name: "gateway", Namespace: v1alpha1.SystemNamespace, Annotations: map[string]string{v1alpha1.AnnotationDomain: "example.test"},
			},
			Spec: istioapi.Gateway{Servers: []*istioapi.Server{{
				Port: &istioapi.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"},
			}}},
		},
	} {
		if err := c.Create(t.Context(), object); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	applyRBAC(t, c)
	return config, c
}

// applyRBAC gives the control plane's service account what an installation
// does.
func applyRBAC(t *testing.T, c client.Client) {
	t.Helper()
	file, err := os.Open("../../manifests/overlays/envoy/lambdamesh.yaml")
	require.NoError(t, err)
	defer file.Close()
	documents := utilyaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		u := &unstructured.Unstructured{}
		if err := documents.Decode(&u.Object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(u.GetAPIVersion(), "rbac.authorization.k8s.io/") {
			continue
		}
		require.NoError(t, c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("test"), client.ForceOwnership))
	}
}

func kubeconfig(t *testing.T, config *rest.Config) string {
	t.Helper()
	out := clientcmdapi.NewConfig()
	out.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	// With the rights of its service account, not those of an administrator.
	account := "system:serviceaccount:" + v1alpha1.SystemNamespace
	out.AuthInfos["u"] = &clientcmdapi.AuthInfo{
		ClientCertificateData: config.CertData, ClientKeyData: config.KeyData, Token: config.BearerToken,
		Impersonate:       account + ":" + v1alpha1.ServiceAccountControlPlane,
		ImpersonateGroups: []string{"system:serviceaccounts", account, "system:authenticated"},
	}
	out.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	out.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*out, path))
	return path
}

// start runs the command, waits until it is ready, and returns a function that
// stops it as SIGTERM would.
func start(t *testing.T, config *rest.Config, args ...string) (stop func(), admin *http.Client) {
	t.Helper()
	socket := filepath.Join(testkit.TempSocketDir(t), "admin")
	cmd := command(noEnv)
	cmd.SetErr(t.Output())
	cmd.SetArgs(append([]string{"--kubeconfig=" + kubeconfig(t, config), "--admin-address=unix:" + socket, "--log-format=text"}, args...))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(patience):
			t.Error("it did not stop")
		}
	}
	t.Cleanup(stop)
	admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	testkit.Eventually(t, patience, func() error {
		status, body, err := get(t, admin, "http://admin/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	}, "the control plane is ready")
	return stop, admin
}

func get(t *testing.T, c *http.Client, url string) (int, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	response, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

func TestWithIstioItWritesItsObjectsAndDeploysLambdas(t *testing.T) {
	config, c := cluster(t)
	stop, admin := start(t, config, "--mesh=istio")
	namespace := testkit.Namespace(t, config)
	lambda, rule := greeting(namespace)
	require.NoError(t, c.Create(t.Context(), lambda))
	require.NoError(t, c.Create(t.Context(), rule))
	requireProgrammed(t, c, rule)
	require.NoError(t, c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "lambda-greeting"}, object("security.istio.io/v1", "AuthorizationPolicy")))
	testkit.Eventually(t, patience, func() error {
		return c.Get(t.Context(), client.ObjectKeyFromObject(lambda), object("apps/v1", "Deployment"))
	}, "the lambda is deployed")
	_, metrics, err := get(t, admin, "http://admin/metrics")
	require.NoError(t, err)
	require.Contains(t, metrics, "lambdamesh_mesh_rebuild_seconds_count")
	require.Contains(t, metrics, "workqueue_depth")
	stop()

	// The lease was given back: the next one need not wait for its end.
	start(t, config, "--mesh=istio")
	rule.Name, rule.ResourceVersion, rule.Spec.Hosts = "again", "", []string{"again"}
	require.NoError(t, c.Create(t.Context(), rule))
	requireProgrammed(t, c, rule)
}

func TestWithEnvoyItServesDataPlanesThatProveWhoTheyAre(t *testing.T) {
	config, c := cluster(t)
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := reserved.Addr().String()
	require.NoError(t, reserved.Close())
	start(t, config, "--mesh=envoy", "--xds-address="+address)
	namespace := testkit.Namespace(t, config)
	lambda, rule := greeting(namespace)
	require.NoError(t, c.Create(t.Context(), lambda))
	require.NoError(t, c.Create(t.Context(), rule))

	clients, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	// As a cluster's gateway does: with a token, and the CA of the Secret.
	secret, err := clients.CoreV1().Secrets(v1alpha1.SystemNamespace).Get(t.Context(), ca.SecretName, metav1.GetOptions{})
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(secret.Data[corev1.TLSCertKey]))
	p, err := proxy.New(proxy.Config{
		NodeID: ads.GatewayNodeID(v1alpha1.SystemNamespace, "gateway", "0"), ADSAddress: address,
		ADSServerName: "controlplane.lambdamesh-system.svc", RootCAs: func() (*x509.CertPool, error) { return roots, nil }, Log: slog.New(slog.DiscardHandler),
		Token: func(ctx context.Context) (string, error) {
			request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{v1alpha1.XDSTokenAudience}}}
			answer, err := clients.CoreV1().ServiceAccounts(v1alpha1.SystemNamespace).CreateToken(ctx, v1alpha1.ServiceAccountGateway, request, metav1.CreateOptions{})
			if err != nil {
				return "", err
			}
			return answer.Status.Token, nil
		},
		Listen: func(ctx context.Context, _, _ string) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		},
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	requireProgrammed(t, c, rule)
}

func object(apiVersion, kind string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}}
}

func greeting(namespace string) (*v1alpha1.Lambda, *v1alpha1.APIRule) {
	meta := metav1.ObjectMeta{Name: "greeting", Namespace: namespace}
	lambda := &v1alpha1.Lambda{ObjectMeta: meta}
	lambda.Spec.Runtime = v1alpha1.RuntimeNodeJS
	lambda.Spec.Source.Inline = &v1alpha1.InlineSource{Code: "export function main() { return 'hello' }"}
	rule := &v1alpha1.APIRule{ObjectMeta: meta}
	rule.Spec.Hosts = []string{namespace}
	rule.Spec.Rules = []v1alpha1.Rule{{Path: "/*", Lambda: "greeting", NoAuth: new(true)}}
	return lambda, rule
}

func requireProgrammed(t *testing.T, c client.Client, rule *v1alpha1.APIRule) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		var now v1alpha1.APIRule
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(rule), &now); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(now.Status.Conditions, v1alpha1.ConditionReady) {
			return fmt.Errorf("%+v", now.Status.Conditions)
		}
		return nil
	}, "the APIRule is ready")
}
