package registry

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Fresh is the handler without what it remembers of who asked how often.
func (h *Handler) Fresh() *Handler { return New(h.config) }

// NewInMemory makes a handler of an application commerce, and of others, that
// stores nothing outside the test.
func NewInMemory(t *testing.T, policy *targets.Policy, others ...string) *Handler {
	t.Helper()
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	c := fake.NewClientBuilder().WithScheme(scheme).
		WithObjects(&v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: "commerce"}}).
		WithIndex(&v1alpha1.ApplicationService{}, catalog.ByApplication, func(obj client.Object) []string {
			service, _ := obj.(*v1alpha1.ApplicationService)
			return []string{service.Spec.Application}
		}).
		Build()
	for _, name := range others {
		if err := c.Create(t.Context(), &v1alpha1.Application{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	return New(Config{Objects: c, Live: c, Client: c, Targets: policy})
}
