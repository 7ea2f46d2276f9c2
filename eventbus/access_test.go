package eventbus_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
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
