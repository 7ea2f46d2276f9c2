package manifests_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector"
	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/eventbus/stream"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// installed returns an administrator of an API server with our roles in it, a
// namespace there, and the configuration with which a component's service account reaches it.
func installed(t *testing.T) (admin client.Client, namespace string, as func(serviceAccount string) *rest.Config) {
	t.Helper()
	config := testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)
	namespace = testkit.Namespace(t, config)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	admin, err = client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	for _, object := range kinds(render(t, "base"), "Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding") {
		require.NoError(t, apply(t.Context(), admin, object), name(object))
	}
	return admin, namespace, func(serviceAccount string) *rest.Config {
		config := rest.CopyConfig(config)
		config.Impersonate = rest.ImpersonationConfig{
			UserName: fmt.Sprintf("system:serviceaccount:%s:%s", v1alpha1.SystemNamespace, serviceAccount),
			Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + v1alpha1.SystemNamespace, "system:authenticated"},
		}
		return config
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return listener
}

// run runs a component until the test ends.
func run(t *testing.T, c component.Component) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}

const patience = 30 * time.Second

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

func policy(t *testing.T) *targets.Policy {
	t.Helper()
	p, err := targets.New(targets.Config{})
	require.NoError(t, err)
	return p
}

func TestEventBusGetsByWithItsRole(t *testing.T) {
	api, namespace, as := installed(t)
	quiet := slog.New(slog.DiscardHandler)
	nats, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Logger: quiet})
	require.NoError(t, err)
	bus, err := eventbus.New(eventbus.Config{
		Stream: stream.Config{InProcess: nats}, REST: as(v1alpha1.ServiceAccountEventBus), LeaderElection: true,
		TokenListener: listen(t), AdminListener: listen(t), Targets: policy(t), Log: quiet,
	})
	require.NoError(t, err)
	run(t, component.NewGroup("test", component.GroupConfig{}, nats, bus))

	sub := &v1alpha1.Subscription{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "orders"},
		Spec:       v1alpha1.SubscriptionSpec{Source: "/" + namespace + "/shop", Types: []string{"order.created"}, Sink: v1alpha1.Sink{URI: "https://example.com"}},
	}
	require.NoError(t, api.Create(t.Context(), sub))
	awaitObserved(t, api, sub)
	awaitGone(t, api, sub)
}

func TestConnectorGetsByWithItsRole(t *testing.T) {
	api, namespace, as := installed(t)
	c, err := connector.New(connector.Config{
		REST: as(v1alpha1.ServiceAccountConnector), LeaderElection: true,
		Outbound: listen(t), Public: listen(t), Admin: listen(t), Targets: policy(t),
	})
	require.NoError(t, err)
	run(t, c)

	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: v1alpha1.SystemNamespace, Name: "erp"}, StringData: map[string]string{"username": "u", "password": "p"}}
	require.NoError(t, client.IgnoreAlreadyExists(api.Create(t.Context(), secret)))
	application := &v1alpha1.Application{
		ObjectMeta: metav1.ObjectMeta{Name: namespace},
		Spec: v1alpha1.ApplicationSpec{Services: []v1alpha1.ApplicationService{{Name: "orders", API: &v1alpha1.ServiceAPI{
			TargetURL: "https://erp.example.com", Auth: &v1alpha1.APIAuth{Basic: &v1alpha1.BasicAuth{Secret: v1alpha1.SecretRef{Name: "erp"}}},
		}}}},
	}
	binding := &v1alpha1.ApplicationBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "erp"},
		Spec:       v1alpha1.ApplicationBindingSpec{Application: namespace},
	}
	require.NoError(t, api.Create(t.Context(), application))
	require.NoError(t, api.Create(t.Context(), binding))
	awaitObserved(t, api, application)
	awaitObserved(t, api, binding)
	awaitGone(t, api, binding)
	awaitGone(t, api, application)
}
