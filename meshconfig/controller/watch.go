package controller

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
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// ConfigureCache sets what the controller needs of a cache: no object keeps its
// managed fields, and Secrets that are watched for their metadata keep no
// annotations, where kubectl may have left their data. Of pods it keeps those that
// pods selects, [LambdaPods] or [MemberPods], and of them no more than who they
// are and whether they have ended.
func ConfigureCache(options *cache.Options, pods labels.Selector) {
	if options.DefaultTransform == nil {
		options.DefaultTransform = cache.TransformStripManagedFields()
	}
	if options.ByObject == nil {
		options.ByObject = map[client.Object]cache.ByObject{}
	}
	options.ByObject[&corev1.Pod{}] = cache.ByObject{Label: pods, Transform: func(obj any) (any, error) {
		if pod, ok := obj.(*corev1.Pod); ok {
			pod.Spec, pod.Status = corev1.PodSpec{ServiceAccountName: pod.Spec.ServiceAccountName}, corev1.PodStatus{Phase: pod.Status.Phase}
		}
		return cache.TransformStripManagedFields()(obj)
	}}
	options.ByObject[&corev1.Secret{}] = cache.ByObject{Transform: func(obj any) (any, error) {
		if secret, ok := obj.(*metav1.PartialObjectMetadata); ok {
			secret.Annotations, secret.ManagedFields = nil, nil
		}
		return obj, nil
	}}
}

// MemberPods have a sidecar of ours: what a mesh without Istio needs to know.
func MemberPods() labels.Selector {
	return labels.SelectorFromSet(labels.Set{v1alpha1.LabelSidecar: "true"})
}

// LambdaPods have the label, whatever its value: what is looked at under Istio.
func LambdaPods() labels.Selector {
	requirement, err := labels.NewRequirement(v1alpha1.LabelLambda, selection.Exists, nil)
	if err != nil {
		return labels.Nothing() // the label is a constant, and a good one
	}
	return labels.NewSelector().Add(*requirement)
}

func secretMetadata() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	return m
}

func podMetadata() *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	return m
}

// sameSidecar is for pods, whose status changes all the time.
func sameSidecar(before, after client.Object) bool {
	return before.GetUID() == after.GetUID() && maps.Equal(before.GetLabels(), after.GetLabels()) &&
		translate.HasSidecar(before) == translate.HasSidecar(after)
}

// sameMember is for pods of a mesh without Istio.
func sameMember(before, after client.Object) bool {
	a, ok1 := before.(*corev1.Pod)
	b, ok2 := after.(*corev1.Pod)
	return ok1 && ok2 && a.UID == b.UID && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) &&
		translate.IsMember(a) == translate.IsMember(b)
}

type watched struct {
	object  client.Object
	handler toolscache.ResourceEventHandler
}

// watch begins to mark the snapshot dirty on changes, and waits for the caches.
func (c *Controller) watch(ctx context.Context) error {
	var synced []toolscache.InformerSynced
	all := []watched{
		{&v1alpha1.APIRule{}, c.onChange(sameGeneration, c.apiRuleTouched)},
		{&v1alpha1.Lambda{}, c.onChange(sameGeneration, nil)},
		{&v1alpha1.Subscription{}, c.onChange(sameGeneration, nil)},
		{&v1alpha1.ApplicationBinding{}, c.onChange(sameGeneration, nil)},
		{&corev1.Service{}, c.onChange(sameVersion, nil)},
		{&discoveryv1.EndpointSlice{}, c.onChange(sameVersion, nil)},
		{&networkingv1.Gateway{}, c.onChange(sameGeneration, c.objectTouched("Gateway"))},
		{&networkingv1.Sidecar{}, c.onChange(sameGeneration, c.objectTouched("Sidecar"))},
		{&networkingv1.WorkloadEntry{}, c.onChange(sameGeneration, nil)},
		{secretMetadata(), c.onSecret()},
	}
	if c.config.Settings.TokensAtSidecars {
		all = append(all, watched{podMetadata(), c.onChange(sameSidecar, nil)})
	}
	if c.members {
		all = append(all, watched{&corev1.Pod{}, c.onChange(sameMember, nil)})
	}
	for _, w := range all {
		informer, err := c.config.Cache.GetInformer(ctx, w.object, cache.BlockUntilSynced(false))
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
func (c *Controller) onChange(same func(before, after client.Object) bool, otherwise func(client.Object)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { c.markDirty() },
		DeleteFunc: func(any) { c.markDirty() },
		UpdateFunc: func(old, updated any) {
			before, ok1 := old.(client.Object)
			after, ok2 := updated.(client.Object)
			switch {
			case !ok1 || !ok2 || !same(before, after):
				c.markDirty()
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
func (c *Controller) apiRuleTouched(rule client.Object) {
	c.writer.check(client.ObjectKeyFromObject(rule))
}

func (c *Controller) objectTouched(kind string) func(client.Object) {
	return func(o client.Object) { c.objects.check(objectKey{kind, client.ObjectKeyFromObject(o)}) }
}

// onSecret notes the versions of Secrets; only those that are named make the
// snapshot dirty.
func (c *Controller) onSecret() toolscache.ResourceEventHandler {
	changed := func(obj any) {
		if gone, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		o, ok := obj.(client.Object)
		if ok && c.secrets.named(types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}) {
			c.markDirty()
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed,
		UpdateFunc: func(_, updated any) { changed(updated) },
	}
}
