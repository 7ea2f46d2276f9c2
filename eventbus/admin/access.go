package admin

import (
	"fmt"
	"net/http"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
)

// KubernetesAccess returns an Authorize function that admits those whose bearer
// token is good for the bus and who may call the path as a nonResourceURL
// (SubjectAccessReview).
func KubernetesAccess(reviews *tokens.Reviews, client kubernetes.Interface) func(r *http.Request) error {
	return func(r *http.Request) error {
		user, err := reviews.User(r)
		if err != nil {
			return err
		}
		extra := map[string]authorizationv1.ExtraValue{}
		for key, value := range user.Extra {
			extra[key] = authorizationv1.ExtraValue(value)
		}
		access, err := client.AuthorizationV1().SubjectAccessReviews().Create(r.Context(), &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{
				User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
				NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: r.URL.Path, Verb: strings.ToLower(r.Method)},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("ask the API server about access: %w", err)
		}
		if !access.Status.Allowed {
			return ErrForbidden
		}
		return nil
	}
}
