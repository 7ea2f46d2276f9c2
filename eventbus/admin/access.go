package admin

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Access is what a request needs: a verb on a subresource of subscriptions in a
// namespace, or, without a namespace, the path.
type Access struct {
	Namespace   string
	Subresource string // events, deadletters or replays
	Verb        string
	Path        string
}

// Authorize admits a request or fails with [ErrForbidden],
// [tokens.ErrUnauthenticated] or [tokens.ErrTooMany]; another error means that
// nobody could be asked.
type Authorize func(r *http.Request, access Access) error

// ErrForbidden is what [Authorize] returns for callers who are known and may not.
var ErrForbidden = errors.New("not allowed")

// KubernetesAccess admits those whose bearer token is good for the bus and who may
// do what is asked (SubjectAccessReview): in a namespace the verb on
// subscriptions/SUBRESOURCE of lambdamesh.dev, otherwise the method on the path as a
// nonResourceURL.
func KubernetesAccess(reviews *tokens.Reviews, client kubernetes.Interface) Authorize {
	return func(r *http.Request, access Access) error {
		user, err := reviews.User(r)
		if err != nil {
			return err
		}
		extra := map[string]authorizationv1.ExtraValue{}
		for key, value := range user.Extra {
			extra[key] = authorizationv1.ExtraValue(value)
		}
		spec := authorizationv1.SubjectAccessReviewSpec{User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra}
		if access.Namespace == "" {
			spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: access.Path, Verb: strings.ToLower(r.Method)}
		} else {
			spec.ResourceAttributes = &authorizationv1.ResourceAttributes{
				Namespace: access.Namespace, Verb: access.Verb,
				Group: v1alpha1.Group, Resource: "subscriptions", Subresource: access.Subresource,
			}
		}
		review, err := client.AuthorizationV1().SubjectAccessReviews().Create(r.Context(), &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("ask the API server about access: %w", err)
		}
		if !review.Status.Allowed {
			return ErrForbidden
		}
		return nil
	}
}

// guard serves a request that is admitted.
func (c *Config) guard(subresource, verb string, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.Authorize == nil {
			next(w, r)
			return
		}
		access := Access{Namespace: r.PathValue("namespace"), Subresource: subresource, Verb: verb, Path: r.URL.Path}
		switch err := c.Authorize(r, access); {
		case err == nil:
			next(w, r)
		case errors.Is(err, tokens.ErrUnauthenticated):
			w.Header().Set("WWW-Authenticate", "Bearer")
			httpserver.Problem(w, http.StatusUnauthorized, "", tokens.Hint)
		case errors.Is(err, tokens.ErrTooMany):
			w.Header().Set("Retry-After", "1")
			httpserver.Problem(w, http.StatusTooManyRequests, "", "too many tokens that are not known were sent at once")
		case errors.Is(err, ErrForbidden) && access.Namespace != "":
			httpserver.Problem(w, http.StatusForbidden, "", fmt.Sprintf("a Role must allow to %s subscriptions/%s of %s in namespace %s", verb, subresource, v1alpha1.Group, access.Namespace))
		case errors.Is(err, ErrForbidden):
			httpserver.Problem(w, http.StatusForbidden, "", "a ClusterRole must allow this nonResourceURL; or ask below /admin/v1/namespaces/NAMESPACE")
		default:
			httpserver.Problem(w, http.StatusServiceUnavailable, "", "the API server could not be asked about the token")
		}
	})
}
