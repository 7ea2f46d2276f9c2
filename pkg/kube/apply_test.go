package kube_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1"
	istionetworking "istio.io/client-go/pkg/apis/networking/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(testkit.KubeAPI(t), client.Options{Scheme: scheme})
	require.NoError(t, err)
	return c
}

func TestApplyOwnsWhatItNamesAndLeavesTheRest(t *testing.T) {
	ctx := t.Context()
	c := newClient(t)
	cm := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "apply", Namespace: "default"},
		Data:       map[string]string{"ours": "1", "gone": "1"},
	}
	require.NoError(t, kube.Apply(ctx, c, "lambdamesh-test", cm))

	var got corev1.ConfigMap
	require.NoError(t, c.Get(ctx, client.ObjectKeyFromObject(cm), &got))
	got.Data["ours"] = "foreign change"
	got.Data["theirs"] = "kept"
	require.NoError(t, c.Update(ctx, &got, client.FieldOwner("somebody")))

	delete(cm.Data, "gone")
	require.NoError(t, kube.Apply(ctx, c, "lambdamesh-test", cm))
	require.NoError(t, c.Get(ctx, client.ObjectKeyFromObject(cm), &got))
	require.Equal(t, "1", got.Data["ours"], "drift is repaired")
	require.Equal(t, "kept", got.Data["theirs"], "a field of another owner stays")
}

func TestToUnstructuredSendsNoServerSetFields(t *testing.T) {
	c := newClient(t)
	u, err := kube.ToUnstructured(c, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "n", ResourceVersion: "7"}})
	require.NoError(t, err)
	require.NotContains(t, u.Object, "status")
	require.Equal(t, map[string]any{"name": "d", "namespace": "n"}, u.Object["metadata"])
	require.Equal(t, "Deployment", u.GetKind())

	we, err := kube.ToUnstructured(c, &istionetworking.WorkloadEntry{
		ObjectMeta: metav1.ObjectMeta{Name: "w", Namespace: "n"},
		Spec:       istioapi.WorkloadEntry{Address: "127.0.0.1", Ports: map[string]uint32{"http": 8080}},
	})
	require.NoError(t, err)
	require.Equal(t, map[string]any{"address": "127.0.0.1", "ports": map[string]any{"http": float64(8080)}}, we.Object["spec"])
}
