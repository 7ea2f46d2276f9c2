package manifests_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// patience is how long a program may take to start and write a status.
const patience = time.Minute

// cluster is an API server with an installation's roles in it.
type cluster struct {
	config    *rest.Config
	admin     client.Client
	overlay   string
	namespace string
}

func install(t *testing.T, overlay string) *cluster {
	t.Helper()
	config := testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	admin, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	for _, object := range kinds(render(t, overlay), "Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
		"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding") {
		require.NoError(t, apply(t.Context(), admin, object), name(object))
	}
	return &cluster{config: config, admin: admin, overlay: overlay, namespace: testkit.Namespace(t, config)}
}

// start runs a program of cmd with the arguments of its Deployment and the
// rights of its service account. Later flags win: more says where to listen.
func (c *cluster) start(t *testing.T, program string, more ...string) {
	t.Helper()
	var arguments []string
	for _, w := range workloads(t, render(t, c.overlay)) {
		if w.Name == program {
			require.Equal(t, program, w.Spec.Template.Spec.ServiceAccountName)
			arguments = w.Spec.Template.Spec.Containers[0].Args
		}
	}
	require.NotEmpty(t, arguments)
	arguments = append(arguments, more...)

	var out bytes.Buffer
	// The test's own context ends before its cleanup, and would kill.
	ctx, kill := context.WithCancel(context.WithoutCancel(t.Context()))
	cmd := exec.CommandContext(ctx, filepath.Join(programs(t), program), append(arguments, "--kubeconfig", c.kubeconfig(t, program))...)
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		defer time.AfterFunc(patience, kill).Stop()
		if err := <-done; err != nil || t.Failed() || strings.Contains(out.String(), "forbidden") {
			t.Errorf("%s ended with %v and wrote:\n%s", program, err, &out)
		}
		kill()
	})
}

// kubeconfig acts as a service account of the system namespace.
func (c *cluster) kubeconfig(t *testing.T, serviceAccount string) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{
		ClientCertificateData: c.config.CertData, ClientKeyData: c.config.KeyData,
		Impersonate:       fmt.Sprintf("system:serviceaccount:%s:%s", v1alpha1.SystemNamespace, serviceAccount),
		ImpersonateGroups: []string{"system:serviceaccounts", "system:serviceaccounts:" + v1alpha1.SystemNamespace, "system:authenticated"},
	}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*config, file))
	return file
}

var built struct { //nolint:gochecknoglobals // once per test binary is its purpose
	once sync.Once
	dir  string
	err  error
}

// programs returns a directory with the programs of a cluster, built now.
func programs(t *testing.T) string {
	t.Helper()
	// go test's cache knows only of the files that the test itself opens.
	for _, dir := range []string{"cmd", "connector", "eventbus", "lambdas", "meshconfig", "pkg"} {
		require.NoError(t, filepath.WalkDir(filepath.Join("..", dir), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				_, err = os.ReadFile(path)
			}
			return err
		}))
	}
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "lambdamesh-programs-"); built.err != nil {
			return
		}
		build := exec.Command("go", "build", "-buildvcs=false", "-o", built.dir+"/", "../cmd/controlplane", "../cmd/eventbus", "../cmd/connector")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as `make build` does: what it compiled is used
		out, err := build.CombinedOutput()
		if err != nil {
			built.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	require.NoError(t, built.err)
	return built.dir
}

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

// awaitObserved waits until a controller has written the object's status.
func awaitObserved(t *testing.T, api client.Client, object v1alpha1.Object) {
	t.Helper()
	o, ok := object.(client.Object)
	require.True(t, ok)
	testkit.Eventually(t, patience, func() error {
		if err := api.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			return err
		}
		for _, condition := range *object.Conditions() {
			if condition.Type == v1alpha1.ConditionReady && condition.ObservedGeneration == o.GetGeneration() {
				return nil
			}
		}
		return fmt.Errorf("no Ready condition of generation %d in %+v", o.GetGeneration(), *object.Conditions())
	}, "the status is never written")
}

func awaitGone(t *testing.T, api client.Client, object client.Object) {
	t.Helper()
	require.NoError(t, api.Delete(t.Context(), object))
	testkit.Eventually(t, patience, func() error {
		err := api.Get(t.Context(), client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, fmt.Errorf("still there, finalizers %v", object.GetFinalizers()))
	}, "the object is never let go")
}

func awaitThere(t *testing.T, api client.Client, object client.Object, namespace, name string) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		return api.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, object)
	}, fmt.Sprintf("no %T %s", object, name))
}

func TestEventBusGetsByWithItsFlagsAndRole(t *testing.T) {
	c := install(t, "overlays/istio")
	nats, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), MaxPayload: 2 << 20, NoSigs: true})
	require.NoError(t, err)
	nats.Start()
	t.Cleanup(nats.Shutdown)
	require.True(t, nats.ReadyForConnections(patience))
	c.start(t, "eventbus", "--nats-url="+nats.ClientURL(), "--replicas=1", "--max-bytes=1048576", "--dead-letter-max-bytes=1048576",
		"--mesh-address=127.0.0.1:0", "--admin-address=127.0.0.1:0", "--address=127.0.0.1:0",
		// What a pod finds in its volumes.
		"--tls-cert=", "--tls-key=", "--nats-ca=", "--nats-user-file=", "--nats-password-file=")

	sub := &v1alpha1.Subscription{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "orders"},
		Spec:       v1alpha1.SubscriptionSpec{Source: "/" + c.namespace + "/shop", Types: []string{"order.created"}, Sink: v1alpha1.Sink{URI: "https://example.com"}},
	}
	require.NoError(t, c.admin.Create(t.Context(), sub))
	awaitObserved(t, c.admin, sub)
	awaitGone(t, c.admin, sub)
}

func TestConnectorGetsByWithItsFlagsAndRole(t *testing.T) {
	c := install(t, "overlays/istio")
	dir := t.TempDir()
	authority := testkit.NewAuthority(t)
	certificate, key := authority.Issue(t, "127.0.0.1")
	for file, content := range map[string][]byte{"tls.crt": certificate, "tls.key": key, "ca.crt": authority.RootPEM()} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), content, 0o600))
	}
	c.start(t, "connector", "--outbound-address=127.0.0.1:0", "--public-address=127.0.0.1:0", "--admin-address=127.0.0.1:0",
		"--tls-cert="+filepath.Join(dir, "tls.crt"), "--tls-key="+filepath.Join(dir, "tls.key"), "--tls-ca="+filepath.Join(dir, "ca.crt"),
		"--webhook-tls-cert="+filepath.Join(dir, "tls.crt"), "--webhook-tls-key="+filepath.Join(dir, "tls.key"))

	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "erp"}, StringData: map[string]string{"username": "u", "password": "p"}}
	require.NoError(t, client.IgnoreAlreadyExists(c.admin.Create(t.Context(), secret)))
	application := &v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Name: c.namespace},
		Spec: v1alpha1.ApplicationSpec{Services: []v1alpha1.InlineService{{Name: "orders", ServiceDefinition: v1alpha1.ServiceDefinition{API: &v1alpha1.ServiceAPI{
			TargetURL: "https://erp.example.com", Auth: &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: "erp"}}},
		}}}}},
	}
	binding := &v1alpha1.ApplicationBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "erp"},
		Spec:       v1alpha1.ApplicationBindingSpec{Application: c.namespace},
	}
	require.NoError(t, c.admin.Create(t.Context(), application))
	require.NoError(t, c.admin.Create(t.Context(), binding))
	awaitObserved(t, c.admin, application)
	awaitObserved(t, c.admin, binding)
	token := &v1alpha1.TokenRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "erp"},
		Spec:       v1alpha1.TokenRequestSpec{Application: c.namespace},
	}
	require.NoError(t, c.admin.Create(t.Context(), token))
	testkit.Eventually(t, patience, func() error {
		if err := c.admin.Get(t.Context(), client.ObjectKeyFromObject(token), token); err != nil {
			return err
		}
		if !meta.IsStatusConditionTrue(token.Status.CommonStatus.Conditions, v1alpha1.ConditionReady) {
			return fmt.Errorf("%+v", token.Status)
		}
		return nil
	}, "a token is made")
	made := &corev1.Secret{}
	require.NoError(t, c.admin.Get(t.Context(), client.ObjectKey{Namespace: c.namespace, Name: token.Status.SecretName}, made))
	require.Equal(t, authority.RootPEM(), made.Data["ca.crt"])
	awaitGone(t, c.admin, binding)
	awaitGone(t, c.admin, application)
}

// Who may make Secrets beside a service account can have a token of it made.
func TestTheConnectorMakesSecretsOfPairingOnly(t *testing.T) {
	for _, overlay := range []string{"overlays/istio", "overlays/envoy"} {
		t.Run(overlay, func(t *testing.T) {
			c := install(t, overlay)
			config := rest.CopyConfig(c.config)
			config.Impersonate = rest.ImpersonationConfig{
				UserName: "system:serviceaccount:" + v1alpha1.SystemNamespace + ":" + v1alpha1.ServiceAccountConnector,
				Groups:   []string{"system:serviceaccounts", "system:authenticated"},
			}
			connector, err := client.New(config, client.Options{Scheme: c.admin.Scheme()})
			require.NoError(t, err)
			secret := func(kind corev1.SecretType) *corev1.Secret {
				return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
					Namespace: v1alpha1.SystemNamespace, GenerateName: "tried-",
					Annotations: map[string]string{corev1.ServiceAccountNameKey: v1alpha1.ServiceAccountControlPlane},
				}, Type: kind, StringData: map[string]string{"x": "y"}}
			}
			// A policy takes a moment to hold.
			testkit.Eventually(t, patience, func() error {
				if err := connector.Create(t.Context(), secret(corev1.SecretTypeOpaque)); err == nil || !strings.Contains(err.Error(), "the connector makes and removes Secrets of") {
					return fmt.Errorf("it was made, or refused for something else: %w", err)
				}
				return nil
			}, "an Opaque Secret is refused")
			require.ErrorContains(t, connector.Create(t.Context(), secret(corev1.SecretTypeServiceAccountToken)), "the connector makes and removes Secrets of")
			others := secret(corev1.SecretTypeOpaque)
			require.NoError(t, c.admin.Create(t.Context(), others))
			require.ErrorContains(t, connector.Delete(t.Context(), others), "the connector makes and removes Secrets of")
			labeled := secret(corev1.SecretTypeServiceAccountToken)
			labeled.Labels = map[string]string{v1alpha1.LabelApplication: "erp"}
			require.ErrorContains(t, connector.Create(t.Context(), labeled), "the connector makes and removes Secrets of")
			credentials := secret(corev1.SecretTypeOpaque)
			credentials.Labels = labeled.Labels
			elsewhere := credentials.DeepCopy()
			elsewhere.Namespace = c.namespace
			require.ErrorContains(t, connector.Create(t.Context(), elsewhere), "the connector makes and removes Secrets of")
			for _, own := range []*corev1.Secret{secret(v1alpha1.SecretTypePairing), credentials} {
				require.NoError(t, connector.Create(t.Context(), own))
				require.NoError(t, connector.Delete(t.Context(), own))
			}
		})
	}
}

func TestControlPlaneGetsByWithItsFlagsAndRole(t *testing.T) {
	for _, overlay := range []string{"overlays/istio", "overlays/envoy"} {
		t.Run(overlay, func(t *testing.T) {
			c := install(t, overlay)
			c.start(t, "controlplane", "--xds-address=127.0.0.1:0", "--admin-address=127.0.0.1:0")
			lambda := &v1alpha1.Lambda{
				ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "hello"},
				Spec: v1alpha1.LambdaSpec{Runtime: v1alpha1.RuntimeNodeJS, Source: v1alpha1.SourceSpec{
					Inline: &v1alpha1.InlineSource{Code: "export const main = () => 'hello'"},
				}},
			}
			rule := &v1alpha1.APIRule{
				ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "hello"},
				Spec: v1alpha1.APIRuleSpec{Hosts: []string{"hello." + c.namespace + ".example.com"}, Rules: []v1alpha1.Rule{
					{Path: "/*", Lambda: "hello", NoAuth: new(true)},
				}},
			}
			require.NoError(t, c.admin.Create(t.Context(), lambda))
			require.NoError(t, c.admin.Create(t.Context(), rule))
			awaitObserved(t, c.admin, lambda)
			awaitObserved(t, c.admin, rule)
			for _, condition := range append(lambda.Status.Conditions, rule.Status.Conditions...) {
				require.NotContains(t, condition.Message, "forbidden", condition.Type)
			}
			awaitThere(t, c.admin, &corev1.ServiceAccount{}, c.namespace, "hello")
			awaitThere(t, c.admin, &corev1.Service{}, c.namespace, "hello")
			for _, made := range []string{"lambdamesh-ca", "nats", "nats-tls", "eventbus-tls", "gateway-tls", "connector-tls", "connector-ca", "webhooks-tls"} {
				awaitThere(t, c.admin, &corev1.Secret{}, v1alpha1.SystemNamespace, made)
			}
			awaitThere(t, c.admin, &networkingv1.Gateway{}, v1alpha1.SystemNamespace, "gateway")
		})
	}
}

// Controllers believe what they wrote: what a rule is charged for, which hosts it
// has, where events go on. So a tenant must not be able to write it.
func TestNobodyButTheProgramsWritesStatuses(t *testing.T) {
	// No objects: the API server serves none, the event bus asks whether they are allowed.
	askedAbout := []string{"subscriptions/events", "subscriptions/deadletters"}
	for _, dir := range kustomizations() {
		t.Run(dir, func(t *testing.T) {
			objects := render(t, dir)
			writers := map[string]bool{}
			for _, o := range kinds(objects, "ClusterRole", "Role") {
				for _, rule := range into[rbacv1.Role](t, withoutAggregation(o)).Rules {
					ours := slices.Contains(rule.APIGroups, v1alpha1.Group) || slices.Contains(rule.APIGroups, "*")
					if !ours || len(intersect(rule.Verbs, "create", "update", "patch", "delete", "deletecollection", "*")) == 0 {
						continue
					}
					if !slices.ContainsFunc(rule.Resources, func(r string) bool {
						return strings.ContainsAny(r, "/*") && !slices.Contains(askedAbout, r)
					}) {
						continue
					}
					writers[o.GetName()] = true
					for label := range o.GetLabels() {
						require.NotContains(t, label, "rbac.authorization.k8s.io/aggregate-to-", "%s is part of a role of tenants", name(o))
					}
				}
			}
			require.NotEmpty(t, writers)
			for _, o := range kinds(objects, "ClusterRoleBinding", "RoleBinding") {
				binding := into[rbacv1.RoleBinding](t, o)
				if !writers[binding.RoleRef.Name] {
					continue
				}
				for _, s := range binding.Subjects {
					require.Equal(t, "ServiceAccount", s.Kind, name(o))
					require.Equal(t, v1alpha1.SystemNamespace, s.Namespace, name(o))
					require.Contains(t, []string{v1alpha1.ServiceAccountControlPlane, v1alpha1.ServiceAccountEventBus, v1alpha1.ServiceAccountConnector}, s.Name, name(o))
				}
			}
		})
	}
}

// A tenant with every role for users still cannot say what a rule is charged for,
// by no way that the API server has.
func TestATenantCannotWriteWhatARuleIsChargedFor(t *testing.T) {
	c := install(t, "overlays/istio")
	user := c.namespace + "-tenant"
	for _, o := range kinds(render(t, c.overlay), "ClusterRole") {
		// Those of the programs are named after what runs as them.
		if slices.Contains([]string{"lambdamesh-controlplane", "lambdamesh-eventbus", "lambdamesh-connector"}, o.GetName()) {
			continue
		}
		require.NoError(t, c.admin.Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: user + "-" + o.GetName()},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: o.GetName()},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
		}))
	}
	config := rest.CopyConfig(c.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}}
	tenant, err := client.New(config, client.Options{Scheme: c.admin.Scheme()})
	require.NoError(t, err)

	rule := &v1alpha1.APIRule{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "greedy"},
		Spec:       v1alpha1.APIRuleSpec{Hosts: []string{"greedy"}, Rules: []v1alpha1.Rule{{Path: "/*", Lambda: "hello", NoAuth: new(true)}}},
	}
	claim := func() {
		rule.Status.Charged = &v1alpha1.Charge{Gateway: v1alpha1.DefaultGateway, Bytes: 1 << 40, Hosts: 1 << 20}
	}
	claim()
	testkit.Eventually(t, patience, func() error { return tenant.Create(t.Context(), rule) }, "the roles are not there yet")
	claim()
	require.NoError(t, tenant.Update(t.Context(), rule))
	claim()
	require.True(t, apierrors.IsForbidden(tenant.Status().Update(t.Context(), rule)))
	require.True(t, apierrors.IsForbidden(tenant.Status().Patch(t.Context(), rule, client.RawPatch(types.MergePatchType, []byte(`{"status":{"charged":{"hosts":9}}}`)))))
	require.NoError(t, c.admin.Get(t.Context(), client.ObjectKeyFromObject(rule), rule))
	require.Nil(t, rule.Status.Charged)

	for _, definition := range definitions(t) {
		require.NotNil(t, definition.Spec.Versions[0].Subresources, definition.Name)
		require.NotNil(t, definition.Spec.Versions[0].Subresources.Status, "%s: its status would be written with its spec", definition.Name)
		for _, verb := range []string{"create", "update", "patch", "delete"} {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user, Groups: []string{"system:authenticated"}, ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: c.namespace, Verb: verb, Group: v1alpha1.Group, Resource: definition.Spec.Names.Plural, Subresource: "status",
			}}}
			require.NoError(t, c.admin.Create(t.Context(), review))
			require.False(t, review.Status.Allowed, "%s %s/status: %s", verb, definition.Spec.Names.Plural, review.Status.Reason)
		}
	}
}
