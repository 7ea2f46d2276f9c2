package ingress

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/lambdamesh/lambdamesh/eventbus/tokens"
)

// Tokens knows callers by a service-account token in the Authorization header.
type Tokens struct {
	Reviews *tokens.Reviews
	// Publishers tells whether an application names a workload as a publisher;
	// nil: none do.
	Publishers Publishers
}

// Authorize implements [Authorizer].
func (t Tokens) Authorize(r *http.Request) (Caller, error) {
	user, err := t.Reviews.User(r)
	switch {
	case errors.Is(err, tokens.ErrUnauthenticated), errors.Is(err, tokens.ErrTooMany):
		return Caller{}, err
	case err != nil:
		return Caller{}, fmt.Errorf("%w: %w", errNoVerdict, err)
	}
	rest, ok := strings.CutPrefix(user.Username, "system:serviceaccount:")
	namespace, name, cut := strings.Cut(rest, ":")
	if !ok || !cut {
		return Caller{}, tokens.ErrUnauthenticated
	}
	return workload(user.Username, namespace, name, t.Publishers), nil
}
