package admin

import (
	"fmt"
	"net/http"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// KubernetesAccess returns an Authorize function that admits those whose bearer
// token the API server knows (TokenReview) and who may call the path as a
// nonResourceURL (SubjectAccessReview).
func KubernetesAccess(client kubernetes.Interface) func(r *http.Request) error {
	return func(r *http.Request) error {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || token == "" {
			return ErrUnauthenticated
		}
		review, err := client.AuthenticationV1().TokenReviews().Create(r.Context(),
			&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("ask the API server about a token: %w", err)
		}
		if !review.Status.Authenticated {
			return ErrUnauthenticated
		}
		user := review.Status.User
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
