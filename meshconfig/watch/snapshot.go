package watch

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// Snapshot reads all that a translation depends on. The objects are the cache's
// own: translations change none.
func (s *Source) Snapshot(ctx context.Context) (translate.Snapshot, error) {
	out := translate.Snapshot{Settings: s.config.Settings}
	s.led.begin()
	var (
		lambdas  v1alpha1.LambdaList
		subs     v1alpha1.SubscriptionList
		bindings v1alpha1.ApplicationBindingList
		services corev1.ServiceList
		slices   discoveryv1.EndpointSliceList
		pods     corev1.PodList
		gateways networkingv1.GatewayList
		sidecars networkingv1.SidecarList
		entries  networkingv1.WorkloadEntryList
	)
	for _, list := range []client.ObjectList{&lambdas, &subs, &bindings, &services, &slices, &pods, &gateways, &sidecars, &entries} {
		if err := s.list(ctx, list); err != nil {
			return out, err
		}
	}
	var err error
	if out.MeshProblem, err = s.meshConfig.lacks(); err != nil {
		return out, err
	}
	if out.APIRules, err = s.apiRules(ctx); err != nil {
		return out, err
	}
	out.Lambdas = pointers(lambdas.Items)
	out.Subscriptions = pointers(subs.Items)
	out.ApplicationBindings = pointers(bindings.Items)
	out.Services = pointers(services.Items)
	out.EndpointSlices = pointers(slices.Items)
	out.Pods = pointers(pods.Items)
	if s.config.Members {
		out.Members = out.Pods
	}
	out.Gateways, out.Sidecars, out.WorkloadEntries = gateways.Items, sidecars.Items, entries.Items

	refs, uris := translate.References(out.Settings, out.APIRules, out.Gateways)
	if out.Secrets, err = s.readSecrets(ctx, refs); err != nil {
		return out, err
	}
	s.keySets.Keep(uris)
	out.JWKS = map[string]translate.KeySetResult{}
	for uri, result := range s.keySets.Results() {
		out.JWKS[uri] = translate.KeySetResult(result)
	}
	return out, nil
}

func (s *Source) apiRules(ctx context.Context) ([]*v1alpha1.APIRule, error) {
	var rules v1alpha1.APIRuleList
	if err := s.list(ctx, &rules); err != nil {
		return nil, err
	}
	return pointers(rules.Items), nil
}

func (s *Source) list(ctx context.Context, list client.ObjectList) error {
	if err := s.config.Cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list %T: %w", list, err)
	}
	return nil
}

func pointers[T any](items []T) []*T {
	all := make([]*T, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}

// secrets are those that the mesh names, and nothing of any other.
type secrets struct {
	reader client.Reader

	mu    sync.Mutex
	known map[types.NamespacedName]*corev1.Secret // nil: named and not there
}

func newSecrets(reader client.Reader) *secrets {
	return &secrets{reader: reader, known: map[types.NamespacedName]*corev1.Secret{}}
}

func (s *secrets) named(key types.NamespacedName) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.known[key]
	return ok
}

// readSecrets returns the Secrets of refs that exist. It reads those whose
// metadata has changed since the last time and forgets the others' data.
func (s *Source) readSecrets(ctx context.Context, refs []types.NamespacedName) ([]*corev1.Secret, error) {
	next := make(map[types.NamespacedName]*corev1.Secret, len(refs))
	s.secrets.mu.Lock()
	for _, ref := range refs {
		next[ref] = s.secrets.known[ref]
	}
	// Named before they are looked up, so that no change is missed.
	s.secrets.known = next
	s.secrets.mu.Unlock()

	found := make([]*corev1.Secret, len(refs))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, ref := range refs {
		group.Go(func() error {
			secret, err := s.readSecret(ctx, ref, next[ref])
			found[i] = secret
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	s.secrets.mu.Lock()
	defer s.secrets.mu.Unlock()
	known := make(map[types.NamespacedName]*corev1.Secret, len(refs))
	var existing []*corev1.Secret
	for i, ref := range refs {
		known[ref] = found[i]
		if found[i] != nil {
			existing = append(existing, found[i])
		}
	}
	s.secrets.known = known
	return existing, nil
}

func (s *Source) readSecret(ctx context.Context, ref types.NamespacedName, known *corev1.Secret) (*corev1.Secret, error) {
	metadata := secretMetadata()
	if err := s.config.Cache.Get(ctx, ref, metadata); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("look up Secret %s: %w", ref, err)
	}
	if known != nil && known.UID == metadata.UID && known.ResourceVersion == metadata.ResourceVersion {
		return known, nil
	}
	secret := &corev1.Secret{}
	if err := s.secrets.reader.Get(ctx, ref, secret); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", ref, err)
	}
	return secret, nil
}
