package outbound

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/lru"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// maxEndpoints are kept resolved; the others are when they are called.
const maxEndpoints = 1 << 15

func (g *Gateway) application(ctx context.Context, name string) (*v1alpha1.Application, error) {
	var app v1alpha1.Application
	err := g.objects.Get(ctx, client.ObjectKey{Name: name}, &app, client.UnsafeDisableDeepCopy)
	if name == "" || apierrors.IsNotFound(err) {
		return nil, refuse(http.StatusNotFound, "Unknown application",
			"there is no application %q: call /<application>/<service>/<path>", name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading Application %s: %w", name, err)
	}
	return &app, nil
}

// version of an object's spec. It stays while only the status changes.
func version(obj client.Object) string {
	if g := obj.GetGeneration(); g > 0 {
		return string(obj.GetUID()) + "/" + strconv.FormatInt(g, 10)
	}
	return string(obj.GetUID()) + "//" + obj.GetResourceVersion()
}

// api finds the API of a service: in the Application, or in an object of its own.
func (g *Gateway) api(ctx context.Context, app *v1alpha1.Application, service string) (api *v1alpha1.ServiceAPI, of string, err error) {
	for i := range app.Spec.Services {
		if app.Spec.Services[i].Name == service {
			return app.Spec.Services[i].API, version(app), nil
		}
	}
	var object v1alpha1.ApplicationService
	err = g.objects.Get(ctx, client.ObjectKey{Name: v1alpha1.ServiceObjectName(app.Name, service)}, &object, client.UnsafeDisableDeepCopy)
	switch {
	case apierrors.IsNotFound(err) || err == nil && !object.DeletionTimestamp.IsZero():
		return nil, "", nil
	case err != nil:
		return nil, "", fmt.Errorf("reading ApplicationService %s/%s: %w", app.Name, service, err)
	default:
		return object.Spec.API, version(&object), nil
	}
}

// endpoints are services as they were resolved. An entry holds as long as the
// object and the Secrets that it was made of are the same.
type endpoints struct {
	mu    sync.Mutex
	cache *lru.Cache // of *resolved, by endpointKey
}

type endpointKey struct{ application, service string }

type resolved struct {
	of       string // version of the object
	secrets  []usedSecret
	endpoint *Endpoint
	err      error
}

// usedSecret is a Secret that was read; version is empty when there was none.
type usedSecret struct{ name, version string }

func newEndpoints() *endpoints { return &endpoints{cache: lru.New(maxEndpoints)} }

func (e *endpoints) get(key endpointKey) *resolved {
	e.mu.Lock()
	defer e.mu.Unlock()
	value, _ := e.cache.Get(key)
	found, _ := value.(*resolved)
	return found
}

func (e *endpoints) put(key endpointKey, r *resolved) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r == nil {
		e.cache.Remove(key)
		return
	}
	e.cache.Add(key, r)
}

// endpoint returns a service as it is to be called.
func (g *Gateway) endpoint(ctx context.Context, app *v1alpha1.Application, service string) (*Endpoint, error) {
	key := endpointKey{app.Name, service}
	api, of, err := g.api(ctx, app, service)
	if err != nil {
		return nil, err
	}
	if api == nil {
		g.endpoints.put(key, nil)
		return nil, refuse(http.StatusNotFound, "Unknown service", "the application %s has no API %q", app.Name, service)
	}
	known := g.endpoints.get(key)
	if known != nil && known.of == of && g.unchanged(ctx, known.secrets) {
		return known.endpoint, known.err
	}
	fresh := &resolved{of: of}
	read := func(name string) (*corev1.Secret, error) {
		secret, err := g.secret(ctx, name)
		used := usedSecret{name: name}
		if err == nil {
			used.version = secretVersion(secret)
		}
		fresh.secrets = append(fresh.secrets, used)
		return secret, err
	}
	fresh.endpoint, fresh.err = Resolve(api, read, g.targets)
	if fresh.err == nil {
		// What was learned about the target is as good as before.
		fresh.endpoint.breaker = &breaker{}
		if known != nil && known.endpoint != nil && known.endpoint.target.String() == fresh.endpoint.target.String() {
			fresh.endpoint.breaker = known.endpoint.breaker
		}
	} else if _, ok := fresh.err.(*UnusableError); !ok { //nolint:errorlint // as Resolve returns it
		return nil, fresh.err // that of reading: the next call may succeed
	}
	g.endpoints.put(key, fresh)
	return fresh.endpoint, fresh.err
}

func (g *Gateway) unchanged(ctx context.Context, secrets []usedSecret) bool {
	return !slices.ContainsFunc(secrets, func(used usedSecret) bool {
		secret, err := g.secret(ctx, used.name)
		if err != nil {
			return used.version != "" || !apierrors.IsNotFound(err)
		}
		return used.version != secretVersion(secret)
	})
}

func (g *Gateway) secrets(ctx context.Context) SecretFunc {
	return func(name string) (*corev1.Secret, error) { return g.secret(ctx, name) }
}

func (g *Gateway) secret(ctx context.Context, name string) (*corev1.Secret, error) {
	var secret corev1.Secret
	err := g.objects.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: name}, &secret, client.UnsafeDisableDeepCopy)
	return &secret, err
}

// authorize looks for an ApplicationBinding in the caller's namespace that binds
// the caller to the service.
func (g *Gateway) authorize(ctx context.Context, who caller, application, service string) error {
	var bindings v1alpha1.ApplicationBindingList
	of := client.MatchingFields{catalog.ByApplication: application}
	if err := g.objects.List(ctx, &bindings, client.InNamespace(who.namespace), of, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing ApplicationBindings of %s: %w", who.namespace, err)
	}
	for i := range bindings.Items {
		binding := &bindings.Items[i]
		if binding.Spec.Application != application || binding.Spec.Lambdas == nil || !binding.DeletionTimestamp.IsZero() ||
			len(binding.Spec.Services) > 0 && !slices.Contains(binding.Spec.Services, service) {
			continue
		}
		picked, err := g.picks(ctx, binding.Spec.Lambdas, who)
		if err != nil {
			return err
		}
		if picked {
			return nil
		}
	}
	return refuse(http.StatusForbidden, "Not bound",
		"the lambda %[1]s/%[2]s is not bound to %[3]s/%[4]s: an ApplicationBinding in the namespace %[1]s has to name both",
		who.namespace, who.name, application, service)
}

// picks reports whether the selection holds the caller, by name or by the labels
// of the lambda of that name. A selector that cannot be read picks nobody.
func (g *Gateway) picks(ctx context.Context, selection *v1alpha1.LambdaSelection, who caller) (bool, error) {
	if slices.Contains(selection.Names, who.name) {
		return true, nil
	}
	if selection.Selector == nil {
		return false, nil
	}
	lambda := &metav1.PartialObjectMetadata{}
	lambda.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("Lambda"))
	err := g.objects.Get(ctx, client.ObjectKey{Namespace: who.namespace, Name: who.name}, lambda, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return false, nil // a selector picks lambdas, not whoever has labels
	}
	if err != nil {
		return false, fmt.Errorf("reading Lambda %s/%s: %w", who.namespace, who.name, err)
	}
	return selection.Picks(lambda.Name, lambda.Labels), nil
}
