package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/bootstrap"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// membership asks a control plane for the certificate of a node.
type membership struct {
	t       *testing.T
	address string
	clients kubernetes.Interface
	roots   *x509.CertPool
}

func newMembership(t *testing.T, clients kubernetes.Interface, address string) *membership {
	t.Helper()
	secret, err := clients.CoreV1().Secrets(v1alpha1.SystemNamespace).Get(t.Context(), ca.SecretName, metav1.GetOptions{})
	require.NoError(t, err)
	m := &membership{t: t, address: address, clients: clients, roots: x509.NewCertPool()}
	require.True(t, m.roots.AppendCertsFromPEM(secret.Data[corev1.TLSCertKey]))
	return m
}

// token is what the kubelet projects into a pod; without one, what anybody gets
// who may make tokens of the account.
func (m *membership) token(namespace, account, audience string, pod *corev1.Pod) string {
	m.t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{audience}}}
	if pod != nil {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}
	}
	answer, err := m.clients.CoreV1().ServiceAccounts(namespace).CreateToken(m.t.Context(), account, request, metav1.CreateOptions{})
	require.NoError(m.t, err)
	return answer.Status.Token
}

// identity is what the certificate says that the node is given.
func (m *membership) identity(node, token string) (string, error) {
	m.t.Helper()
	connection, err := grpc.NewClient("passthrough:///"+m.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: m.roots, ServerName: "controlplane.lambdamesh-system.svc", MinVersion: tls.VersionTLS13,
	})))
	require.NoError(m.t, err)
	defer connection.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(m.t.Context(), "authorization", "Bearer "+token), patience)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(connection).StreamAggregatedResources(ctx)
	require.NoError(m.t, err)
	_ = stream.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: node}, TypeUrl: resource.SecretType, ResourceNames: []string{"default"}})
	answer, err := stream.Recv()
	if err != nil {
		return "", err
	}
	secret := &tlsv3.Secret{}
	require.NoError(m.t, answer.GetResources()[0].UnmarshalTo(secret))
	block, _ := pem.Decode(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	require.NotNil(m.t, block)
	certificate, err := x509.ParseCertificate(block.Bytes)
	require.NoError(m.t, err)
	require.Len(m.t, certificate.URIs, 1)
	return certificate.URIs[0].String(), nil
}

func freeAddress(t *testing.T) string {
	t.Helper()
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer reserved.Close()
	return reserved.Addr().String()
}

func TestAPodIsGivenTheIdentityOfItsOwnTokenAndNobodyElses(t *testing.T) {
	config, c := cluster(t)
	address := freeAddress(t)
	start(t, config, "--mesh=envoy", "--xds-address="+address)
	clients, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	m := newMembership(t, clients, address)
	namespace, elsewhere := testkit.Namespace(t, config), testkit.Namespace(t, config)
	for _, ns := range []string{namespace, elsewhere} {
		for _, account := range []string{"tax", "web"} {
			require.NoError(t, c.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: ns}}))
		}
	}
	pod := func(ns, name, account string, labels map[string]string) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: labels},
			Spec:       corev1.PodSpec{ServiceAccountName: account, Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
		require.NoError(t, c.Create(t.Context(), p))
		return p
	}
	member := map[string]string{v1alpha1.LabelSidecar: "true"}
	tax1, tax2 := pod(namespace, "tax-1", "tax", member), pod(namespace, "tax-2", "tax", member)
	web := pod(namespace, "web-1", "web", member)
	foreign := pod(elsewhere, "tax-1", "tax", member)
	plain := pod(namespace, "plain-1", "tax", nil)
	node := func(p *corev1.Pod) string { return "pod~" + p.Namespace + "~" + p.Name }
	const audience = v1alpha1.XDSTokenAudience

	for name, test := range map[string]struct{ node, token, identity string }{
		"itself":      {node(tax1), m.token(namespace, "tax", audience, tax1), "spiffe://cluster.local/ns/" + namespace + "/sa/tax"},
		"another one": {node(web), m.token(namespace, "web", audience, web), "spiffe://cluster.local/ns/" + namespace + "/sa/web"},
	} {
		t.Run(name, func(t *testing.T) {
			identity, err := m.identity(test.node, test.token)
			require.NoError(t, err)
			require.Equal(t, test.identity, identity)
		})
	}
	for name, test := range map[string]struct {
		node, token string
		code        codes.Code
	}{
		"another pod of the same account":  {node(tax1), m.token(namespace, "tax", audience, tax2), codes.PermissionDenied},
		"a pod of another account":         {node(tax1), m.token(namespace, "web", audience, web), codes.PermissionDenied},
		"a pod of its name elsewhere":      {node(tax1), m.token(elsewhere, "tax", audience, foreign), codes.PermissionDenied},
		"the account without a pod":        {node(tax1), m.token(namespace, "tax", audience, nil), codes.PermissionDenied},
		"a token for somebody else":        {node(tax1), m.token(namespace, "tax", v1alpha1.EventBusTokenAudience, tax1), codes.Unauthenticated},
		"a pod that asked for no sidecar":  {node(plain), m.token(namespace, "tax", audience, plain), codes.PermissionDenied},
		"a pod that there is not":          {"pod~" + namespace + "~none", m.token(namespace, "tax", audience, tax1), codes.PermissionDenied},
		"the gateway, by a pod":            {"gateway~lambdamesh-system~gateway~x", m.token(namespace, "tax", audience, tax1), codes.PermissionDenied},
		"an entry that nobody has written": {"tax-1." + namespace, m.token(namespace, "tax", audience, tax1), codes.PermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := m.identity(test.node, test.token)
			require.Equal(t, test.code, status.Code(err), "%v", err)
		})
	}

	// A pod that took the name of another is another one.
	token := m.token(namespace, "tax", audience, tax2)
	_, err = m.identity(node(tax2), token)
	require.NoError(t, err)
	require.NoError(t, c.Delete(t.Context(), tax2, client.GracePeriodSeconds(0)))
	pod(namespace, "tax-2", "tax", member)
	testkit.Eventually(t, patience+time.Minute, func() error {
		if _, err := m.identity(node(tax2), token); status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.Unauthenticated {
			return fmt.Errorf("it is let in: %w", err)
		}
		return nil
	}, "the token of the pod that is gone")
}

func TestNamespacesWithMembersHaveWhatTheirProxiesReadFirst(t *testing.T) {
	config, c := cluster(t)
	address := freeAddress(t)
	start(t, config, "--mesh=envoy", "--xds-address="+address, "--proxy-xds-address=controlplane.lambdamesh-system.svc:15010", "--proxy-image=registry.example/proxy:v1")
	withLambda, withPod, without, foreign := testkit.Namespace(t, config), testkit.Namespace(t, config), testkit.Namespace(t, config), testkit.Namespace(t, config)
	theirs := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.ConfigMapMesh, Namespace: foreign}, Data: map[string]string{"their": "own"}}
	require.NoError(t, c.Create(t.Context(), theirs))
	lambda, _ := greeting(withLambda)
	require.NoError(t, c.Create(t.Context(), lambda))
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", Namespace: withPod, Labels: map[string]string{v1alpha1.LabelSidecar: "true", v1alpha1.LabelMember: "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}},
	}
	require.NoError(t, c.Create(t.Context(), pod))
	foreignPod := pod.DeepCopy()
	foreignPod.ObjectMeta = metav1.ObjectMeta{Name: "web-1", Namespace: foreign, Labels: pod.Labels}
	require.NoError(t, c.Create(t.Context(), foreignPod))
	find := func(namespace string) (*corev1.ConfigMap, error) {
		found := &corev1.ConfigMap{}
		err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: v1alpha1.ConfigMapMesh}, found)
		return found, err
	}
	wait := func(namespace, why string, good func(*corev1.ConfigMap, error) error) {
		t.Helper()
		testkit.Eventually(t, patience, func() error { return good(find(namespace)) }, why)
	}
	var data map[string]string
	for _, namespace := range []string{v1alpha1.SystemNamespace, withLambda, withPod} {
		wait(namespace, "the ConfigMap of "+namespace, func(found *corev1.ConfigMap, err error) error { data = found.Data; return err })
	}
	_, err := find(without)
	require.True(t, apierrors.IsNotFound(err), "%v", err)

	// It is what a proxy understands, and the CA that the control plane has.
	clients, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	secret, err := clients.CoreV1().Secrets(v1alpha1.SystemNamespace).Get(t.Context(), ca.SecretName, metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, string(secret.Data[corev1.TLSCertKey]), data["ca.crt"])
	dir := t.TempDir()
	for _, name := range []string{"ca.crt", "envoy.yaml", "xds-token.yaml"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(data[name], sidecar.MeshDir, dir)), 0o600))
	}
	text, err := os.ReadFile(filepath.Join(dir, "envoy.yaml"))
	require.NoError(t, err)
	understood, err := bootstrap.Read(text, nil, false)
	require.NoError(t, err)
	require.Equal(t, &bootstrap.Bootstrap{
		Admin:     "127.0.0.1:15000",
		Listeners: []bootstrap.Listener{{Name: "ready", Address: "0.0.0.0:15021", Routes: []bootstrap.Route{{Path: "/ready"}, {Path: "/stats/prometheus"}}}},
		ControlPlane: bootstrap.ControlPlane{
			Address: "controlplane.lambdamesh-system.svc:15010", ServerName: "controlplane.lambdamesh-system.svc",
			CAFile: filepath.Join(dir, "ca.crt"), TokenFile: filepath.Join(dir, "token"),
		},
	}, understood)

	// The lambda's pods have a sidecar, and no port past it.
	testkit.Eventually(t, patience, func() error {
		deployment := &appsv1.Deployment{}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(lambda), deployment); err != nil {
			return err
		}
		template := deployment.Spec.Template
		require.Equal(t, "true", template.Labels[v1alpha1.LabelSidecar])
		require.Equal(t, "registry.example/proxy:v1", template.Spec.InitContainers[0].Image)
		require.Equal(t, "http", template.Spec.InitContainers[0].Ports[0].Name)
		require.Len(t, template.Spec.Containers[0].Ports, 1)
		require.Equal(t, int32(8081), template.Spec.Containers[0].Ports[0].ContainerPort)
		return nil
	}, "the lambda is deployed")

	// One that somebody else made stays as it is, and an Event tells of it.
	warned := func(reason string) func() error {
		return func() error {
			events, err := clients.EventsV1().Events(foreign).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, e := range events.Items {
				if e.Regarding.Name == v1alpha1.ConfigMapMesh && e.Reason == reason {
					return nil
				}
			}
			return fmt.Errorf("no Event %s of %d", reason, len(events.Items))
		}
	}
	testkit.Eventually(t, patience, warned("NotOurs"), "the namespace's own ConfigMap")
	kept, err := find(foreign)
	require.NoError(t, err)
	require.Equal(t, theirs.Data, kept.Data)
	kept.Labels = map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}
	require.NoError(t, c.Update(t.Context(), kept))
	wait(foreign, "who labels it gives it away", func(found *corev1.ConfigMap, err error) error {
		if err == nil && found.Data["ca.crt"] != data["ca.crt"] {
			return errors.New("it is not ours yet")
		}
		return err
	})

	// Who changes or deletes it gets it back; it goes with the last member.
	changed, err := find(withLambda)
	require.NoError(t, err)
	changed.Data["ca.crt"], changed.Labels = "another CA", nil
	require.NoError(t, c.Update(t.Context(), changed))
	wait(withLambda, "the ConfigMap is put right", func(found *corev1.ConfigMap, err error) error {
		if err == nil && (found.Data["ca.crt"] != data["ca.crt"] || found.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy) {
			return fmt.Errorf("%v %s", found.Labels, found.Data["ca.crt"])
		}
		return err
	})
	require.NoError(t, c.Delete(t.Context(), changed))
	wait(withLambda, "the ConfigMap is made again", func(_ *corev1.ConfigMap, err error) error { return err })
	require.NoError(t, c.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
	require.NoError(t, c.Delete(t.Context(), lambda))
	for _, namespace := range []string{withLambda, withPod} {
		wait(namespace, "the ConfigMap goes", func(_ *corev1.ConfigMap, err error) error {
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there: %w", err)
			}
			return nil
		})
	}
	_, err = find(v1alpha1.SystemNamespace)
	require.NoError(t, err)
}

// shippedWebhook is what an installation brings.
func shippedWebhook(t *testing.T) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	file, err := os.Open("../../manifests/overlays/envoy/lambdamesh.yaml")
	require.NoError(t, err)
	defer file.Close()
	documents := utilyaml.NewYAMLOrJSONDecoder(file, 4096)
	for {
		configuration := &admissionregistrationv1.MutatingWebhookConfiguration{}
		require.NoError(t, documents.Decode(configuration))
		if configuration.Kind == "MutatingWebhookConfiguration" {
			return configuration
		}
	}
}

func TestPodsThatAskForOneGetASidecar(t *testing.T) {
	config, c := cluster(t)
	webhook := freeAddress(t)
	configuration := shippedWebhook(t)
	// A test's API server is no pod's neighbor.
	configuration.Webhooks[0].ClientConfig = admissionregistrationv1.WebhookClientConfig{URL: new("https://" + webhook + *configuration.Webhooks[0].ClientConfig.Service.Path)}
	require.NoError(t, c.Create(t.Context(), configuration))
	t.Cleanup(func() { require.NoError(t, c.Delete(context.Background(), configuration)) })
	start(t, config, "--mesh=envoy", "--xds-address="+freeAddress(t), "--webhook-address="+webhook, "--proxy-image=registry.example/proxy:v1", "--proxy-limits=memory=100Mi")

	namespace := testkit.Namespace(t, config)
	web := func(name string, change func(*corev1.Pod)) *corev1.Pod {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{v1alpha1.LabelSidecar: "true"}},
			Spec: corev1.PodSpec{
				ServiceAccountName: "web",
				SecurityContext:    &corev1.PodSecurityContext{RunAsUser: new(int64(2000))},
				InitContainers:     []corev1.Container{{Name: "migrate", Image: "migrate"}},
				Containers: []corev1.Container{{
					Name: "web", Image: "web", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}},
					Env: []corev1.EnvVar{{Name: "NO_PROXY", Value: "intranet.example"}},
				}},
			},
		}
		if change != nil {
			change(pod)
		}
		return pod
	}
	// The API server verifies the webhook once it has been told by what.
	pod := web("web-1", nil)
	testkit.Eventually(t, patience, func() error { return c.Create(t.Context(), pod) }, "the pod is made")
	require.Equal(t, []string{"mesh-proxy", "migrate"}, []string{pod.Spec.InitContainers[0].Name, pod.Spec.InitContainers[1].Name}, "the sidecar is there before anything calls")
	proxy := pod.Spec.InitContainers[0]
	require.Equal(t, "registry.example/proxy:v1", proxy.Image)
	require.Equal(t, corev1.ContainerRestartPolicyAlways, *proxy.RestartPolicy)
	require.Equal(t, int64(2000), *proxy.SecurityContext.RunAsUser)
	require.Equal(t, "100Mi", proxy.Resources.Limits.Memory().String())
	env := map[string]string{}
	for _, variable := range pod.Spec.Containers[0].Env {
		env[variable.Name] = variable.Value
	}
	require.Equal(t, "unix:/var/run/lambdamesh/app/app.sock", env["LAMBDAMESH_LISTEN"])
	require.Equal(t, "http://127.0.0.1:15001", env["HTTP_PROXY"])
	require.Equal(t, "intranet.example", env["NO_PROXY"], "what the pod says stays")
	require.Equal(t, "lambdamesh-xds", pod.Spec.Volumes[1].Projected.Sources[0].ServiceAccountToken.Audience)

	byPort := web("web-2", func(p *corev1.Pod) {
		p.Annotations = map[string]string{v1alpha1.AnnotationAppAddress: "127.0.0.1:8080"}
	})
	require.NoError(t, c.Create(t.Context(), byPort))
	require.Contains(t, byPort.Spec.Containers[0].Env, corev1.EnvVar{Name: "LAMBDAMESH_LISTEN", Value: "tcp:127.0.0.1:8080"})

	unlabeled := web("web-3", func(p *corev1.Pod) { p.Labels = nil })
	require.NoError(t, c.Create(t.Context(), unlabeled))
	require.Len(t, unlabeled.Spec.InitContainers, 1)

	own := web("web-4", func(p *corev1.Pod) { p.Spec.InitContainers[0].Name = "mesh-proxy" })
	require.NoError(t, c.Create(t.Context(), own))
	require.Equal(t, "migrate", own.Spec.InitContainers[0].Image, "who brings his own keeps it")

	// The proxy refuses to be root, whatever the pod says.
	byRoot := web("web-5", func(p *corev1.Pod) {
		p.Spec.SecurityContext.RunAsUser = new(int64(0))
		p.Annotations = map[string]string{v1alpha1.AnnotationAppAddress: "127.0.0.1:8080"}
	})
	require.NoError(t, c.Create(t.Context(), byRoot))
	require.Equal(t, int64(65532), *byRoot.Spec.InitContainers[0].SecurityContext.RunAsUser)
	byNobody := web("web-6", func(p *corev1.Pod) { p.Spec.SecurityContext = nil })
	require.NoError(t, c.Create(t.Context(), byNobody))
	require.Equal(t, int64(65532), *byNobody.Spec.InitContainers[0].SecurityContext.RunAsUser)

	native := func(change func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			helper := corev1.Container{Name: "helper", Image: "helper", RestartPolicy: new(corev1.ContainerRestartPolicyAlways)}
			if change != nil {
				change(&helper)
			}
			p.Spec.InitContainers = append(p.Spec.InitContainers, helper)
		}
	}
	withHelper := web("web-7", native(nil))
	require.NoError(t, c.Create(t.Context(), withHelper))
	require.Contains(t, withHelper.Spec.InitContainers[2].VolumeMounts, sidecar.Mount())
	require.Contains(t, withHelper.Spec.InitContainers[2].Env, corev1.EnvVar{Name: "HTTP_PROXY", Value: "http://127.0.0.1:15001"})
	require.NotContains(t, withHelper.Spec.InitContainers[1].VolumeMounts, sidecar.Mount(), "what ends before the application begins needs nothing")

	for name, test := range map[string]struct {
		change  func(*corev1.Pod)
		refused string
	}{
		"root's socket": {func(p *corev1.Pod) { p.Spec.SecurityContext.RunAsUser = new(int64(0)) }, "runAsUser 0: the sidecar is never root"},
		"a port of the sidecar's name, of a sidecar": {native(func(c *corev1.Container) {
			c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
		}), "container helper: the port named http is the sidecar's"},
		"a port of the sidecar, of a sidecar": {native(func(c *corev1.Container) {
			c.Ports = []corev1.ContainerPort{{ContainerPort: 15021}}
		}), "container helper: port 15021 is the sidecar's"},
		"the sidecar's directory, of a sidecar": {func(p *corev1.Pod) {
			native(func(c *corev1.Container) {
				c.VolumeMounts = []corev1.VolumeMount{{Name: "own", MountPath: sidecar.AppDir}}
			})(p)
			p.Spec.Volumes = []corev1.Volume{{Name: "own", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		}, "container helper: /var/run/lambdamesh/app is where the sidecar shares a directory"},
		"the node's network":            {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "hostNetwork: everybody on the node would call with the pod's identity"},
		"processes that see each other": {func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = new(true) }, "shareProcessNamespace: the application would read the sidecar's token"},
		"an address of others": {func(p *corev1.Pod) {
			p.Annotations = map[string]string{v1alpha1.AnnotationAppAddress: "0.0.0.0:8080"}
		}, "is not on loopback"},
		"a port of the sidecar's name": {func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].Name = "http" }, "container web: the port named http is the sidecar's"},
		"a port of the sidecar":        {func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].ContainerPort = 15001 }, "container web: port 15001 is the sidecar's"},
		"a volume of the sidecar's name": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "mesh-identity", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		}, "volume mesh-identity: the name is the sidecar's"},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, c.Create(t.Context(), web("refused", test.change)), test.refused)
		})
	}

	// Who takes the certificate away from the API server gets it back.
	require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(configuration), configuration))
	require.NotEmpty(t, configuration.Webhooks[0].ClientConfig.CABundle)
	configuration.Webhooks[0].ClientConfig.CABundle = nil
	require.NoError(t, c.Update(t.Context(), configuration))
	testkit.Eventually(t, patience, func() error {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(configuration), configuration); err != nil {
			return err
		}
		if len(configuration.Webhooks[0].ClientConfig.CABundle) == 0 {
			return errors.New("there is none")
		}
		return nil
	}, "the certificate is there again")
}
