package controller

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/lambdamesh/lambdamesh/connector/outbound"
	"github.com/lambdamesh/lambdamesh/connector/webhooks"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// unusableWebhooks tells why webhooks of an application cannot be called.
func (r *applications) unusableWebhooks(ctx context.Context, app *v1alpha1.Application) (problems []problem, err error) {
	if len(app.Spec.Webhooks) > 0 && !r.webhooks {
		return []problem{{v1alpha1.ReasonNotSupported, "this installation serves no webhooks: set connector.public.webhooks.enabled"}}, nil
	}
	for i := range app.Spec.Webhooks {
		hook := &app.Spec.Webhooks[i]
		_, err := webhooks.Secrets(ctx, r.client, hook)
		switch {
		case err == nil:
		case apierrors.IsNotFound(err):
			problems = append(problems, problem{outbound.ReasonSecretNotFound, fmt.Sprintf(
				"webhook %s: Secret %s/%s does not exist", hook.Name, v1alpha1.SystemNamespace, hook.SecretName)})
		case errors.Is(err, webhooks.ErrNoKey):
			problems = append(problems, problem{outbound.ReasonSecretInvalid, fmt.Sprintf("webhook %s: %v", hook.Name, err)})
		default:
			return nil, err
		}
	}
	return problems, nil
}
