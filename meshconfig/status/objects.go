package status

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	istiometa "istio.io/api/meta/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
)

// objectKey names a Gateway or a Sidecar.
type objectKey struct {
	kind string
	types.NamespacedName
}

// ObjectWriter writes conditions into the statuses of Gateways and Sidecars,
// whose other conditions are istiod's.
type ObjectWriter struct {
	cache  client.Reader
	client client.Client
	log    *slog.Logger
	queue  workqueue.TypedRateLimitingInterface[objectKey]

	mu     sync.Mutex
	wishes map[objectKey]translate.ObjectStatus
}

// NewObjectWriter makes a writer, which writes from Run on.
func NewObjectWriter(cache client.Reader, c client.Client, log *slog.Logger) *ObjectWriter {
	return &ObjectWriter{
		cache: cache, client: c, log: log,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[objectKey](50*time.Millisecond, maxRetry)),
		wishes: map[objectKey]translate.ObjectStatus{},
	}
}

// Want replaces all wishes and logs what is newly wrong.
func (w *ObjectWriter) Want(all []translate.ObjectStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.wishes
	w.wishes = make(map[objectKey]translate.ObjectStatus, len(all))
	for _, status := range all {
		key := objectKey{status.Kind, types.NamespacedName{Namespace: status.Namespace, Name: status.Name}}
		w.wishes[key] = status
		old, known := before[key]
		if known && old.Generation == status.Generation && slices.Equal(old.Conditions, status.Conditions) {
			continue
		}
		w.queue.Add(key)
		for _, c := range status.Conditions {
			was := slices.ContainsFunc(old.Conditions, func(o metav1.Condition) bool {
				return o.Type == c.Type && o.Status == c.Status && o.Message == c.Message
			})
			switch {
			case was:
			case c.Status != metav1.ConditionTrue:
				w.log.Warn("a "+status.Kind+" has a problem", "object", key.NamespacedName.String(), "condition", c.Type, "reason", c.Reason, "message", c.Message)
			case known:
				w.log.Info("a problem of a "+status.Kind+" is gone", "object", key.NamespacedName.String(), "condition", c.Type)
			}
		}
	}
}

// Check compares an object with what it shall say.
func (w *ObjectWriter) Check(kind string, key types.NamespacedName) {
	w.queue.Add(objectKey{kind, key})
}

// Run writes until ctx ends, once elected is closed.
func (w *ObjectWriter) Run(ctx context.Context, elected <-chan struct{}) error {
	stop := context.AfterFunc(ctx, w.queue.ShutDown)
	defer stop()
	select {
	case <-elected:
	case <-ctx.Done():
		return nil
	}
	for {
		key, shutdown := w.queue.Get()
		if shutdown {
			return nil
		}
		switch err := w.write(ctx, key); {
		case err == nil:
			w.queue.Forget(key)
		case ctx.Err() == nil:
			if !apierrors.IsConflict(err) { // the cache is behind
				w.log.Warn("cannot write a status; it is tried again", "error", err)
			}
			w.queue.AddRateLimited(key)
		}
		w.queue.Done(key)
	}
}

func (w *ObjectWriter) write(ctx context.Context, key objectKey) error {
	w.mu.Lock()
	wish, found := w.wishes[key]
	w.mu.Unlock()
	if !found {
		return nil
	}
	object, status := newStatusObject(key.kind)
	if err := w.cache.Get(ctx, key.NamespacedName, object); err != nil {
		return client.IgnoreNotFound(err)
	}
	if object.GetGeneration() != wish.Generation {
		return nil // the rebuild for this generation is on its way
	}
	before, ok := object.DeepCopyObject().(client.Object)
	if !ok || !setConditions(status, wish) {
		return nil
	}
	// All conditions are written, istiod's too: not over what it wrote meanwhile.
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := w.client.Status().Patch(ctx, object, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of %s %s: %w", key.kind, key.NamespacedName, err)
	}
	return nil
}

func newStatusObject(kind string) (client.Object, *istiometa.IstioStatus) {
	if kind == "Sidecar" {
		o := &networkingv1.Sidecar{}
		return o, &o.Status
	}
	o := &networkingv1.Gateway{}
	return o, &o.Status
}

// setConditions says whether anything is new.
func setConditions(status *istiometa.IstioStatus, wish translate.ObjectStatus) (changed bool) {
	for _, c := range wish.Conditions {
		i := slices.IndexFunc(status.GetConditions(), func(o *istiometa.IstioCondition) bool { return o.GetType() == c.Type })
		next := &istiometa.IstioCondition{
			Type: c.Type, Status: string(c.Status), Reason: c.Reason, Message: c.Message, ObservedGeneration: wish.Generation,
			LastTransitionTime: timestamppb.New(time.Now().Truncate(time.Second)),
		}
		if i < 0 {
			status.Conditions = append(status.Conditions, next)
			changed = true
			continue
		}
		old := status.GetConditions()[i]
		if old.GetStatus() == next.GetStatus() {
			next.LastTransitionTime = old.GetLastTransitionTime()
			if old.GetReason() == next.GetReason() && old.GetMessage() == next.GetMessage() && old.GetObservedGeneration() == next.GetObservedGeneration() {
				continue
			}
		}
		status.Conditions[i] = next
		changed = true
	}
	return changed
}
