package manifests_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// readers of Secrets by what the roles of an installation grant: "kind
// namespace/name in where: verbs". Whatever else may be read by, has a line too.
func readers(t *testing.T, objects []*unstructured.Unstructured) []string {
	t.Helper()
	verbs := map[string][]string{} // by role
	for _, o := range kinds(objects, "ClusterRole", "Role") {
		for _, rule := range into[rbacv1.Role](t, withoutAggregation(o)).Rules {
			if len(intersect(rule.APIGroups, "", "*")) > 0 && len(intersect(rule.Resources, "secrets", "secrets/*", "*")) > 0 {
				verbs[name(o)] = append(verbs[name(o)], intersect(rule.Verbs, "get", "list", "watch", "*")...)
			}
		}
	}
	var all []string
	bound := map[string]bool{}
	for _, o := range kinds(objects, "ClusterRoleBinding", "RoleBinding") {
		binding := into[rbacv1.RoleBinding](t, o)
		where := "all namespaces"
		if o.GetKind() == "RoleBinding" {
			where = o.GetNamespace()
		}
		role := binding.RoleRef.Kind + " " + binding.RoleRef.Name
		if binding.RoleRef.Kind == "Role" {
			role = "Role " + o.GetNamespace() + "/" + binding.RoleRef.Name
		}
		found := slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return name(o) == role })
		bound[role] = true
		for _, subject := range binding.Subjects {
			who := subject.Kind + " " + strings.TrimPrefix(subject.Namespace+"/"+subject.Name, "/") + " in " + where
			switch {
			case !found: // what it grants is not ours to see
				all = append(all, who+": "+role)
			case len(verbs[role]) > 0:
				all = append(all, who+": "+strings.Join(verbs[role], " "))
			}
		}
	}
	for role, granted := range verbs {
		if !bound[role] && len(granted) > 0 {
			all = append(all, role+", which anybody may be given: "+strings.Join(granted, " "))
		}
	}
	slices.Sort(all)
	return all
}

func TestWhoMayReadSecrets(t *testing.T) {
	const system = v1alpha1.SystemNamespace
	check := func(t *testing.T, objects []*unstructured.Unstructured, istio bool) {
		t.Helper()
		want := []string{
			// Credentials of applications.
			"ServiceAccount " + system + "/connector in " + system + ": get list watch",
			// Key sets and certificates are Secrets of tenants' namespaces.
			"ServiceAccount " + system + "/controlplane in all namespaces: get list watch",
		}
		if istio {
			// istiod asks the API server whether it may; its pods cannot, see below.
			want = append(want, "ServiceAccount "+system+"/gateway in "+system+": list")
		}
		require.Equal(t, want, readers(t, objects))
		for _, w := range workloads(t, objects) {
			pod := w.Spec.Template.Spec
			if pod.ServiceAccountName != "gateway" {
				continue
			}
			require.Equal(t, new(false), pod.AutomountServiceAccountToken, "a pod of the gateway has no token for the API server")
			for _, volume := range pod.Volumes {
				require.Nil(t, volume.Secret, "nor a Secret that somebody wrote a token into")
				if volume.Projected == nil {
					continue
				}
				for _, source := range volume.Projected.Sources {
					require.Nil(t, source.Secret)
					require.False(t, source.ServiceAccountToken != nil && source.ServiceAccountToken.Audience == "", "one that the API server takes")
				}
			}
		}
	}
	for _, dir := range kustomizations() {
		t.Run(dir, func(t *testing.T) { check(t, render(t, dir), strings.HasSuffix(dir, "istio")) })
	}
	for name, set := range settings() {
		t.Run(name, func(t *testing.T) { check(t, template(t, set...), slices.Contains(set, "mesh=istio")) })
	}
}
