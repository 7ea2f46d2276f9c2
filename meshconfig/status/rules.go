package status

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/reconcile"
)

const (
	// statusWriters bounds the writes at a time.
	statusWriters = 8
	maxRetry      = 30 * time.Second
)

// Wish is what an APIRule's status shall say.
type Wish struct {
	Status     *translate.APIRuleStatus
	Programmed output.Programmed
}

func (w Wish) equal(o Wish) bool {
	return w.Programmed == o.Programmed && o.Status != nil && w.Status.Generation == o.Status.Generation &&
		slices.Equal(w.Status.URLs, o.Status.URLs) && sameCharge(w.Status.Charged, o.Status.Charged) && slices.Equal(w.Status.Conditions, o.Status.Conditions)
}

// RuleWriter writes statuses that differ from what they shall say, a few at a
// time and one at a time for each object, the newest wish only.
type RuleWriter struct {
	cache  client.Reader
	client client.Client
	writes *prometheus.CounterVec
	log    *slog.Logger
	queue  workqueue.TypedRateLimitingInterface[types.NamespacedName]

	mu     sync.Mutex
	wishes map[types.NamespacedName]Wish
	// written are objects as the API server answered to a write, until the
	// cache has caught up with them.
	written map[types.NamespacedName]*v1alpha1.APIRule
}

// NewRuleWriter makes a writer, which writes from Run on; registry may be nil.
func NewRuleWriter(cache client.Reader, c client.Client, registry prometheus.Registerer, log *slog.Logger) *RuleWriter {
	w := &RuleWriter{
		cache: cache, client: c, log: log,
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_apirule_status_writes_total", Help: "Statuses written, by result (ok, error).",
		}, []string{"result"}),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](50*time.Millisecond, maxRetry)),
		wishes:  map[types.NamespacedName]Wish{},
		written: map[types.NamespacedName]*v1alpha1.APIRule{},
	}
	if registry != nil {
		registry.MustRegister(w.writes)
	}
	return w
}

// Want says what the status of an APIRule shall say from now on.
func (w *RuleWriter) Want(key types.NamespacedName, wish Wish) {
	w.mu.Lock()
	same := wish.equal(w.wishes[key])
	w.wishes[key] = wish
	w.mu.Unlock()
	if !same {
		w.queue.Add(key)
	}
}

// Check compares an object with what it shall say.
func (w *RuleWriter) Check(key types.NamespacedName) { w.queue.Add(key) }

// ForgetAllBut drops the wishes for others.
func (w *RuleWriter) ForgetAllBut(current map[types.NamespacedName]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for key := range w.wishes {
		if !current[key] {
			delete(w.wishes, key)
			delete(w.written, key)
		}
	}
}

// Run writes until ctx ends, once elected is closed.
func (w *RuleWriter) Run(ctx context.Context, elected <-chan struct{}) error {
	stop := context.AfterFunc(ctx, w.queue.ShutDown)
	defer stop()
	select {
	case <-elected:
	case <-ctx.Done():
		return nil
	}
	var group errgroup.Group
	for range statusWriters {
		group.Go(func() error {
			for {
				key, shutdown := w.queue.Get()
				if shutdown {
					return nil
				}
				w.write(ctx, key)
				w.queue.Done(key)
			}
		})
	}
	return group.Wait()
}

func (w *RuleWriter) write(ctx context.Context, key types.NamespacedName) {
	err := w.tryWrite(ctx, key)
	switch {
	case err == nil:
		w.queue.Forget(key)
	case ctx.Err() == nil:
		w.writes.WithLabelValues("error").Inc()
		w.log.Warn("cannot write a status; it is tried again", "error", err)
		w.queue.AddRateLimited(key)
	}
}

func (w *RuleWriter) tryWrite(ctx context.Context, key types.NamespacedName) error {
	w.mu.Lock()
	wish, found := w.wishes[key]
	w.mu.Unlock()
	if !found {
		return nil
	}
	before, err := w.newest(ctx, key)
	if err != nil || before == nil || before.Generation != wish.Status.Generation {
		return err // gone, or the rebuild for this generation is on its way
	}
	after := before.DeepCopy()
	wish.apply(after)
	if sameStatus(&before.Status, &after.Status) {
		return nil
	}
	if err := reconcile.PatchStatus(ctx, w.client, before, after); err != nil {
		return err
	}
	w.writes.WithLabelValues("ok").Inc()
	w.mu.Lock()
	w.written[key] = after
	w.mu.Unlock()
	return nil
}

// newest is the object of the cache, or what our last write gave when the cache
// has not seen that yet: a difference to an old object could be no difference
// to the object as it is.
func (w *RuleWriter) newest(ctx context.Context, key types.NamespacedName) (*v1alpha1.APIRule, error) {
	cached := &v1alpha1.APIRule{}
	if err := w.cache.Get(ctx, key, cached); apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read APIRule %s: %w", key, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	ours := w.written[key]
	if ours == nil {
		return cached, nil
	}
	order, err := resourceversion.CompareResourceVersion(cached.ResourceVersion, ours.ResourceVersion)
	if err != nil || order >= 0 || cached.UID != ours.UID {
		delete(w.written, key)
		return cached, nil
	}
	return ours, nil
}

// apply sets the status of a rule of the same generation.
func (w Wish) apply(rule *v1alpha1.APIRule) {
	rule.Status.URLs = w.Status.URLs
	rule.Status.Charged = w.Status.Charged
	for _, condition := range w.Status.Conditions {
		reconcile.Set(rule, condition.Type, condition.Status, condition.Reason, condition.Message)
	}
	if !w.Programmed.Keep || !isProgrammed(rule) {
		reconcile.Set(rule, v1alpha1.ConditionProgrammed, w.Programmed.Status, w.Programmed.Reason, w.Programmed.Message)
	}
	reconcile.Summarize(rule, v1alpha1.ConditionAccepted, v1alpha1.ConditionResolvedRefs, v1alpha1.ConditionProgrammed)
}

func isProgrammed(rule *v1alpha1.APIRule) bool {
	c := meta.FindStatusCondition(rule.Status.Conditions, v1alpha1.ConditionProgrammed)
	return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == rule.Generation
}

func sameStatus(a, b *v1alpha1.APIRuleStatus) bool {
	return a.ObservedGeneration == b.ObservedGeneration && slices.Equal(a.URLs, b.URLs) && sameCharge(a.Charged, b.Charged) &&
		slices.EqualFunc(a.Conditions, b.Conditions, func(x, y metav1.Condition) bool {
			return x.Type == y.Type && x.Status == y.Status && x.Reason == y.Reason &&
				x.Message == y.Message && x.ObservedGeneration == y.ObservedGeneration
		})
}

func sameCharge(a, b *v1alpha1.Charge) bool {
	return a == b || a != nil && b != nil && *a == *b
}
