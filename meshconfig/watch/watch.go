package watch

import (
	"context"
	"errors"
	"fmt"
	"maps"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// ConfigureCache sets what the controller needs of a cache: no object keeps its
// managed fields, and Secrets that are watched for their metadata keep no
// annotations, where kubectl may have left their data. Of pods it keeps what a
// translation reads.
func ConfigureCache(options *cache.Options) {
	if options.DefaultTransform == nil {
		options.DefaultTransform = cache.TransformStripManagedFields()
	}
	if options.ByObject == nil {
		options.ByObject = map[client.Object]cache.ByObject{}
	}
	options.ByObject[&corev1.Pod{}] = cache.ByObject{Transform: func(obj any) (any, error) {
		if pod, ok := obj.(*corev1.Pod); ok {
			return translate.NeededOfPod(pod), nil
		}
		return obj, nil
	}}
	options.ByObject[&corev1.Secret{}] = cache.ByObject{Transform: func(obj any) (any, error) {
		if secret, ok := obj.(*metav1.PartialObjectMetadata); ok {
			secret.Annotations, secret.ManagedFields = nil, nil
		}
		return obj, nil
	}}
}

func secretMetadata() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	return m
}

// samePod is for pods, whose status changes all the time.
func samePod(before, after client.Object) bool {
	a, ok1 := before.(*corev1.Pod)
	b, ok2 := after.(*corev1.Pod)
	return ok1 && ok2 && translate.SameOfPod(a, b)
}

type watched struct {
	object  client.Object
	handler toolscache.ResourceEventHandler
}

// Watch begins to mark the snapshot dirty on changes, and waits for the caches.
func (s *Source) Watch(ctx context.Context) error {
	var synced []toolscache.InformerSynced
	all := []watched{
		{&v1alpha1.APIRule{}, s.onChange(sameGeneration, s.apiRuleTouched)},
		{&v1alpha1.Lambda{}, s.onChange(sameGeneration, nil)},
		{&v1alpha1.Subscription{}, s.onChange(sameGeneration, nil)},
		{&v1alpha1.ApplicationBinding{}, s.onChange(sameGeneration, nil)},
		{&corev1.Service{}, s.onChange(sameVersion, nil)},
		{&discoveryv1.EndpointSlice{}, s.onSlice()},
		{&corev1.Pod{}, s.onChange(samePod, nil)},
		{&networkingv1.Gateway{}, s.onChange(sameGeneration, s.objectTouched("Gateway"))},
		{&networkingv1.Sidecar{}, s.onChange(sameGeneration, s.objectTouched("Sidecar"))},
		{&networkingv1.WorkloadEntry{}, s.onChange(sameGeneration, nil)},
		{secretMetadata(), s.onSecret()},
	}
	for _, w := range all {
		informer, err := s.config.Cache.GetInformer(ctx, w.object, cache.BlockUntilSynced(false))
		if err != nil {
			if meta.IsNoMatchError(err) {
				return fmt.Errorf("watch %T: the API server does not know the kind; install the CustomResourceDefinitions: %w", w.object, err)
			}
			return fmt.Errorf("watch %T: %w", w.object, err)
		}
		registration, err := informer.AddEventHandler(w.handler)
		if err != nil {
			return fmt.Errorf("watch %T: %w", w.object, err)
		}
		context.AfterFunc(ctx, func() { _ = informer.RemoveEventHandler(registration) })
		synced = append(synced, registration.HasSynced)
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
		return errors.Join(errors.New("stopped before the caches had synced"), ctx.Err())
	}
	return nil
}

// onChange marks the snapshot dirty, but for updates that are the same to a
// translation; those go to otherwise, if it is there.
func (s *Source) onChange(same func(before, after client.Object) bool, otherwise func(client.Object)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { s.config.Changed() },
		DeleteFunc: func(any) { s.config.Changed() },
		UpdateFunc: func(old, updated any) {
			before, ok1 := old.(client.Object)
			after, ok2 := updated.(client.Object)
			switch {
			case !ok1 || !ok2 || !same(before, after):
				s.config.Changed()
			case otherwise != nil:
				otherwise(after)
			}
		},
	}
}

// sameGeneration is for kinds whose generation counts the changes of spec: a
// new status alone changes nothing.
func sameGeneration(before, after client.Object) bool {
	return before.GetUID() == after.GetUID() && before.GetGeneration() == after.GetGeneration() &&
		maps.Equal(before.GetLabels(), after.GetLabels()) && maps.Equal(before.GetAnnotations(), after.GetAnnotations())
}

func sameVersion(before, after client.Object) bool {
	return before.GetUID() == after.GetUID() && before.GetResourceVersion() == after.GetResourceVersion()
}

// apiRuleTouched looks at a status that was written, by us or by somebody else.
func (s *Source) apiRuleTouched(rule client.Object) {
	s.config.RuleTouched(client.ObjectKeyFromObject(rule))
}

func (s *Source) objectTouched(kind string) func(client.Object) {
	return func(o client.Object) { s.config.ObjectTouched(kind, client.ObjectKeyFromObject(o)) }
}

// onSlice marks the snapshot dirty for slices of Services that something leads to:
// of a cluster's others there may be a change every second.
func (s *Source) onSlice() toolscache.ResourceEventHandler {
	changed := func(obj any) {
		if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		slice, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok || s.led.concerns(serviceOf(slice)) {
			s.config.Changed()
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed,
		UpdateFunc: func(old, updated any) {
			before, ok1 := old.(*discoveryv1.EndpointSlice)
			after, ok2 := updated.(*discoveryv1.EndpointSlice)
			if ok1 && ok2 && sameVersion(before, after) {
				return
			}
			changed(old) // which may have been another Service's
			changed(updated)
		},
	}
}

// onSecret notes the versions of Secrets; only those that are named make the
// snapshot dirty.
func (s *Source) onSecret() toolscache.ResourceEventHandler {
	changed := func(obj any) {
		if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		o, ok := obj.(client.Object)
		if ok && s.secrets.named(types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}) {
			s.config.Changed()
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed,
		UpdateFunc: func(_, updated any) { changed(updated) },
	}
}
