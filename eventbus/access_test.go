package eventbus_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestATokenForTheAPIServerIsNoneForTheBus(t *testing.T) {
	config := testkit.KubeAPI(t, manifests.CRDs)
	ns := testkit.Namespace(t, config)
	clientset, err := kubernetes.NewForConfig(config)
	require.NoError(t, err)
	_, err = clientset.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "cart"}}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = clientset.RbacV1().ClusterRoles().Create(t.Context(), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Rules:      []rbacv1.PolicyRule{{NonResourceURLs: []string{"/admin/*"}, Verbs: []string{"get"}}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	_, err = clientset.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: ns}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: ns},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: ns, Name: "cart"}},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	token := func(audiences ...string) string {
		answer, err := clientset.CoreV1().ServiceAccounts(ns).CreateToken(t.Context(), "cart",
			&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}, metav1.CreateOptions{})
		require.NoError(t, err)
		return answer.Status.Token
	}

	listener := listen(t)
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) {
		c.REST, c.TokenListener, c.AdminOpen = config, listener, false
	})
	call := func(method, url, token string, header map[string]string) int {
		r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader("{}"))
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+token)
		for name, value := range header {
			r.Header.Set(name, value)
		}
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer response.Body.Close()
		return response.StatusCode
	}
	for name, tt := range map[string]struct {
		token           string
		publish, letter int
	}{
		"for the bus":               {token(v1alpha1.EventBusTokenAudience), http.StatusAccepted, http.StatusOK},
		"for both":                  {token(v1alpha1.EventBusTokenAudience, "https://kubernetes.default.svc"), http.StatusAccepted, http.StatusOK},
		"for the API server":        {token(), http.StatusUnauthorized, http.StatusUnauthorized},
		"for the data planes":       {token(v1alpha1.XDSTokenAudience), http.StatusUnauthorized, http.StatusUnauthorized},
		"that nobody has ever made": {"x.y.z", http.StatusUnauthorized, http.StatusUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			event := map[string]string{"ce-specversion": "1.0", "ce-id": name, "ce-type": "t", "ce-source": v1alpha1.LambdaSource(ns, "cart")}
			require.Equal(t, tt.publish, call(http.MethodPost, "http://"+listener.Addr().String()+"/publish", tt.token, event))
			require.Equal(t, tt.letter, call(http.MethodGet, b.admin+"/admin/v1/dead-letters", tt.token, nil))
		})
	}
}

func TestASourceBelongsToAWorkloadAnApplicationOrNobody(t *testing.T) {
	config := testkit.KubeAPI(t, manifests.CRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	for _, tt := range []struct {
		mode      eventbus.UnownedSources
		unowned   int
		readable  metav1.ConditionStatus
		wantedIDs []string
	}{
		{"", http.StatusForbidden, metav1.ConditionFalse, []string{"spoken"}},
		{eventbus.UnownedOpen, http.StatusAccepted, metav1.ConditionTrue, []string{"nobody's", "spoken"}},
	} {
		t.Run(string(tt.mode), func(t *testing.T) {
			ns := testkit.Namespace(t, config)
			url, got := receiver(t, nil)
			b := startBus(t, t.TempDir(), func(c *eventbus.Config) { c.REST, c.UnownedSources = config, tt.mode })
			create := func(object client.Object) {
				require.NoError(t, c.Create(t.Context(), object))
				t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(t.Context()), object) })
			}
			shop, other := "shop-"+ns, "other-"+ns
			for _, name := range []string{shop, other} {
				create(&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ApplicationSpec{Sources: []string{"urn:" + name}}})
			}
			create(&v1alpha1.ApplicationBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "shop"}, Spec: v1alpha1.ApplicationBindingSpec{Application: shop}})
			subscribe := func(name, source string) *v1alpha1.Subscription {
				sub := &v1alpha1.Subscription{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: v1alpha1.SubscriptionSpec{
					Source: source, Types: []string{"**"}, Sink: v1alpha1.Sink{URI: url},
					Paused: source != "*", // one is enough to see what comes
				}}
				create(sub)
				return sub
			}
			subscribed := func(sub *v1alpha1.Subscription, status metav1.ConditionStatus) {
				testkit.Eventually(t, time.Minute, func() error {
					if err := c.Get(t.Context(), client.ObjectKeyFromObject(sub), sub); err != nil {
						return err
					}
					found := meta.FindStatusCondition(sub.Status.Conditions, v1alpha1.ConditionSubscribed)
					if found == nil || found.Status != status || (status == metav1.ConditionFalse && found.Reason != v1alpha1.ReasonNotPermitted) {
						return fmt.Errorf("it is %+v", found)
					}
					return nil
				}, sub.Name+" is subscribed: "+string(status))
			}
			for i, source := range []string{"urn:nobody-" + ns, "/a/b/c-" + ns} {
				subscribed(subscribe(fmt.Sprint("nobody-", i), source), tt.readable)
			}
			subscribed(subscribe("not-bound", "urn:"+other), metav1.ConditionFalse)
			subscribed(subscribe("all", "*"), metav1.ConditionTrue)

			publish := func(source, id string) int {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/publish", strings.NewReader("{}"))
				require.NoError(t, err)
				for name, value := range map[string]string{"ce-specversion": "1.0", "ce-id": id, "ce-type": "t", "ce-source": source} {
					r.Header.Set(name, value)
				}
				response, err := http.DefaultClient.Do(r)
				require.NoError(t, err)
				defer response.Body.Close()
				return response.StatusCode
			}
			require.Equal(t, http.StatusAccepted, publish("/another-namespace/cart", "foreign"), "it has an owner")
			require.Equal(t, http.StatusAccepted, publish("urn:"+other, "not bound"), "it has an owner")
			require.Equal(t, tt.unowned, publish("urn:nobody-"+ns, "nobody's"))
			require.Equal(t, http.StatusAccepted, publish("urn:"+shop, "spoken"))
			var ids []string
			for range tt.wantedIDs {
				select {
				case r := <-got:
					ids = append(ids, r.header.Get("Ce-Id"))
				case <-time.After(time.Minute):
					t.Fatalf("only %v came", ids)
				}
			}
			slices.Sort(ids)
			require.Equal(t, tt.wantedIDs, ids, "all that may be read, and nothing else")
		})
	}
}
