package istio

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/istio"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

const (
	// writers bounds the writes at a time.
	writers = 8
	// firstRetry is the first pause after a failure; it doubles up to maxRetry.
	firstRetry = time.Second
	maxRetry   = 30 * time.Second
)

// kinds are all that [istio.Objects] writes.
func kinds() []schema.GroupVersionKind {
	return []schema.GroupVersionKind{
		networkingv1.SchemeGroupVersion.WithKind("VirtualService"),
		networkingv1.SchemeGroupVersion.WithKind("DestinationRule"),
		securityv1.SchemeGroupVersion.WithKind("AuthorizationPolicy"),
		securityv1.SchemeGroupVersion.WithKind("PeerAuthentication"),
		securityv1.SchemeGroupVersion.WithKind("RequestAuthentication"),
	}
}

// Config of an [Output]. Cache and Client are required.
type Config struct {
	// Cache watches the metadata of the objects written.
	Cache  cache.Cache
	Client client.Client
	// Elected is closed when this process may write. Nil: it may at once.
	Elected <-chan struct{}
	// Log; default slog.Default().
	Log *slog.Logger
}

// Output applies the mesh as Istio objects, repairs what others change of
// them and deletes those that nothing stands behind any more. It works in the
// background; an object that cannot be written does not hold up the others.
//
// After a start each object is applied once, which the API server takes for
// nothing when it is the same, and from then on only when it differs: the
// generation that the API server gave tells a foreign change from our own.
type Output struct {
	config Config
	log    *slog.Logger
	wake   chan struct{}

	mu sync.Mutex
	// mesh to be applied, and whether it has been taken up.
	mesh    *ir.Mesh
	pending bool
	desired map[objectID]*desired
	byOwner map[string][]objectID // namespace/name of an APIRule or a Lambda
	lambdas map[string][]string   // by APIRule: the workloads it routes to
	applied map[objectID]applied
	failed  map[objectID]error
	// seen is the newest that the watch told about an object.
	seen map[objectID]seen
	// stale: there may be objects to prune.
	stale bool

	written *ir.Mesh // what desired was made from; used by the worker only
}

type objectID struct {
	schema.GroupKind
	types.NamespacedName
}

func (id objectID) String() string { return id.Kind + " " + id.NamespacedName.String() }

type desired struct {
	object istio.Object
	hash   [sha256.Size]byte
}

type applied struct {
	hash       [sha256.Size]byte
	uid        types.UID
	generation int64
}

type seen struct {
	uid        types.UID
	generation int64
	deleted    bool
}

// New makes the output.
func New(config Config) (*Output, error) {
	if config.Cache == nil || config.Client == nil {
		return nil, errors.New("configure the Istio output: Cache and Client are required")
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	return &Output{
		config: config, log: config.Log.With("component", "istio-output"),
		wake:    make(chan struct{}, 1),
		applied: map[objectID]applied{}, failed: map[objectID]error{}, seen: map[objectID]seen{},
	}, nil
}

// Name implements [Output].
func (o *Output) Name() string { return "istio" }

// Needs implements [Output]: Istio's gateways look into no token.
func (o *Output) Needs() output.Needs {
	return output.Needs{TokensAtSidecars: true, Lacks: istio.Lacks()}
}

// Update implements [Output].
func (o *Output) Update(_ context.Context, update output.Update) {
	mesh := withoutEndpoints(update.Mesh)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mesh, o.pending = mesh, true
	output.Poke(o.wake)
}

// withoutEndpoints leaves out what no Istio object speaks of.
func withoutEndpoints(mesh *ir.Mesh) *ir.Mesh {
	out := *mesh
	out.Sidecars = nil
	out.Destinations = slices.Clone(mesh.Destinations)
	for i, d := range out.Destinations {
		without := *d
		without.Endpoints = nil
		out.Destinations[i] = &without
	}
	return &out
}

// Run implements [Output].
func (o *Output) Run(ctx context.Context, changed func()) error {
	if o.config.Elected != nil {
		select {
		case <-o.config.Elected:
		case <-ctx.Done():
			return nil
		}
	}
	if err := o.watch(ctx); err != nil {
		return err
	}
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	pause := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.wake:
		case <-retry.C:
		}
		if err := o.sync(ctx, changed); err != nil && ctx.Err() == nil {
			o.log.Warn("some Istio objects could not be written; they are tried again", "error", err, "after", pause)
			retry.Reset(pause)
			pause = min(2*pause, maxRetry)
		} else {
			pause = firstRetry
		}
		changed()
	}
}

func metadataOf(kind schema.GroupVersionKind) *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(kind)
	return m
}

func (o *Output) watch(ctx context.Context) error {
	var synced []toolscache.InformerSynced
	for _, kind := range kinds() {
		informer, err := o.config.Cache.GetInformer(ctx, metadataOf(kind), cache.BlockUntilSynced(false))
		if err != nil {
			return fmt.Errorf("watch %s: %w", kind.Kind, err)
		}
		note := func(obj any, gone bool) {
			if last, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
				o.note(kind.GroupKind(), m, gone)
			}
		}
		registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { note(obj, false) },
			UpdateFunc: func(_, obj any) { note(obj, false) },
			DeleteFunc: func(obj any) { note(obj, true) },
		})
		if err != nil {
			return fmt.Errorf("watch %s: %w", kind.Kind, err)
		}
		context.AfterFunc(ctx, func() { _ = informer.RemoveEventHandler(registration) })
		synced = append(synced, registration.HasSynced)
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), synced...) {
		return ctx.Err()
	}
	return nil
}

// note looks at an event: is it a foreign change of something of ours?
func (o *Output) note(kind schema.GroupKind, m *metav1.PartialObjectMetadata, gone bool) {
	id := objectID{kind, types.NamespacedName{Namespace: m.Namespace, Name: m.Name}}
	o.mu.Lock()
	defer o.mu.Unlock()
	now := seen{uid: m.UID, generation: m.Generation, deleted: gone}
	want := o.desired[id]
	if want == nil {
		delete(o.seen, id)
		if !gone && isOurs(m) {
			o.stale = true
			output.Poke(o.wake)
		}
		return
	}
	o.seen[id] = now
	if ours, ok := o.applied[id]; ok && (drifted(ours, now) || !hasLabels(m, want.object.GetLabels())) {
		o.log.Info("an object was changed by somebody else; it is put right", "object", id.String())
		delete(o.applied, id)
		output.Poke(o.wake)
	}
}

func drifted(ours applied, now seen) bool {
	if now.deleted {
		return now.uid == ours.uid
	}
	return now.uid != ours.uid || now.generation > ours.generation
}

func hasLabels(m metav1.Object, labels map[string]string) bool {
	for k, v := range labels {
		if m.GetLabels()[k] != v {
			return false
		}
	}
	return true
}

// isOurs tells an object made by this output from others that an installation
// of ours brings along.
func isOurs(m metav1.Object) bool {
	return m.GetLabels()[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy && m.GetLabels()[v1alpha1.LabelOwnerName] != ""
}

// sync makes the API server hold what the newest mesh says.
func (o *Output) sync(ctx context.Context, changed func()) error {
	if !o.take() {
		return nil // no mesh yet: nothing may be judged stale
	}
	var todo []objectID
	o.mu.Lock()
	for id, want := range o.desired {
		if o.applied[id].hash != want.hash {
			todo = append(todo, id)
		}
	}
	o.mu.Unlock()
	slices.SortFunc(todo, func(a, b objectID) int { return strings.Compare(a.String(), b.String()) })

	errs := make([]error, len(todo))
	var group errgroup.Group
	group.SetLimit(writers)
	for i, id := range todo {
		group.Go(func() error {
			errs[i] = o.apply(ctx, id)
			changed()
			return nil
		})
	}
	_ = group.Wait()
	return errors.Join(errors.Join(errs...), o.prune(ctx))
}

// take makes the newest mesh the desired one. It returns false when there is
// none.
func (o *Output) take() bool {
	o.mu.Lock()
	mesh := o.mesh
	o.mu.Unlock()
	if mesh == nil {
		return false
	}
	same := o.written != nil && reflect.DeepEqual(o.written, mesh)
	next := map[objectID]*desired{}
	byOwner := map[string][]objectID{}
	if !same {
		for _, object := range istio.Objects(mesh) {
			id := objectID{object.GetObjectKind().GroupVersionKind().GroupKind(), types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}}
			raw, err := json.Marshal(object)
			if err != nil {
				o.log.Error("cannot encode an object", "object", id.String(), "error", err)
				continue
			}
			next[id] = &desired{object: object, hash: sha256.Sum256(raw)}
			owner := ownerOf(object)
			byOwner[owner] = append(byOwner[owner], id)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mesh == mesh {
		o.pending = false
	}
	if same {
		return true
	}
	o.written, o.stale = mesh, true
	o.desired, o.byOwner, o.lambdas = next, byOwner, output.RoutedTo(mesh)
	gone := func(id objectID) bool { return next[id] == nil }
	maps.DeleteFunc(o.applied, func(id objectID, _ applied) bool { return gone(id) })
	maps.DeleteFunc(o.failed, func(id objectID, _ error) bool { return gone(id) })
	maps.DeleteFunc(o.seen, func(id objectID, _ seen) bool { return gone(id) })
	return true
}

func ownerOf(object metav1.Object) string {
	for _, owner := range object.GetOwnerReferences() {
		return object.GetNamespace() + "/" + owner.Name
	}
	labels := object.GetLabels()
	return labels[v1alpha1.LabelOwnerNamespace] + "/" + labels[v1alpha1.LabelOwnerName]
}

func (o *Output) apply(ctx context.Context, id objectID) error {
	o.mu.Lock()
	want := o.desired[id]
	delete(o.applied, id) // what is being written is no drift
	o.mu.Unlock()
	if want == nil {
		return nil
	}
	got, err := o.write(ctx, want.object)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%s: %w", id, err)
		o.failed[id] = err
		return err
	}
	delete(o.failed, id)
	ours := applied{hash: want.hash, uid: got.GetUID(), generation: got.GetGeneration()}
	// Somebody may have been faster than this line.
	if now, ok := o.seen[id]; ok && drifted(ours, now) && (now.deleted || now.uid == ours.uid) {
		output.Poke(o.wake)
		return nil
	}
	o.applied[id] = ours
	return nil
}

// write applies an object. Fields that somebody added to our spec would survive
// that; then the spec is replaced.
func (o *Output) write(ctx context.Context, object istio.Object) (metav1.Object, error) {
	typed, ok := object.(client.Object)
	if !ok {
		return nil, fmt.Errorf("%T is no object of the API server", object)
	}
	u, err := kube.ToUnstructured(o.config.Client, typed)
	if err != nil {
		return nil, err
	}
	spec := u.Object["spec"]
	want, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := o.config.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(output.FieldManager), client.ForceOwnership); err != nil {
		return nil, fmt.Errorf("apply: %w", err)
	}
	got, err := json.Marshal(u.Object["spec"])
	if err != nil {
		return nil, err
	}
	if string(got) != string(want) {
		u.Object["spec"] = spec
		if err := o.config.Client.Update(ctx, u, client.FieldOwner(output.FieldManager)); err != nil {
			return nil, fmt.Errorf("replace the spec: %w", err)
		}
	}
	return u, nil
}

// prune deletes objects of ours that the mesh does not have.
func (o *Output) prune(ctx context.Context) error {
	o.mu.Lock()
	due := o.stale
	o.stale = false
	o.mu.Unlock()
	if !due {
		return nil
	}
	var errs []error
	for _, kind := range kinds() {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(kind)
		if err := o.config.Cache.List(ctx, list, client.MatchingLabels{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
			errs = append(errs, fmt.Errorf("list %s: %w", kind.Kind, err))
			continue
		}
		for i := range list.Items {
			m := &list.Items[i]
			id := objectID{kind.GroupKind(), client.ObjectKeyFromObject(m)}
			o.mu.Lock()
			wanted := o.desired[id] != nil
			o.mu.Unlock()
			if wanted || !isOurs(m) || m.DeletionTimestamp != nil {
				continue
			}
			stale := metadataOf(kind)
			stale.Namespace, stale.Name = m.Namespace, m.Name
			err := o.config.Client.Delete(ctx, stale, client.Preconditions{UID: &m.UID})
			if client.IgnoreNotFound(err) != nil {
				errs = append(errs, fmt.Errorf("delete the stale %s: %w", id, err))
			}
		}
	}
	if len(errs) > 0 {
		o.mu.Lock()
		o.stale = true
		o.mu.Unlock()
	}
	return errors.Join(errs...)
}

// Programmed implements [Output].
func (o *Output) Programmed() func(*translate.APIRuleStatus) output.Programmed {
	return func(rule *translate.APIRuleStatus) output.Programmed {
		key := rule.Namespace + "/" + rule.Name
		o.mu.Lock()
		defer o.mu.Unlock()
		waiting := output.Programmed{Status: metav1.ConditionUnknown, Reason: v1alpha1.ReasonPending, Message: "its Istio objects are being written", Keep: true}
		if o.pending || o.desired == nil {
			return waiting
		}
		all := true
		for _, owner := range append([]string{key}, o.lambdas[key]...) {
			for _, id := range o.byOwner[owner] {
				if err := o.failed[id]; err != nil {
					return output.Programmed{Status: metav1.ConditionFalse, Reason: output.ReasonApplyFailed, Message: err.Error()}
				}
				all = all && o.applied[id].hash == o.desired[id].hash
			}
		}
		if !all {
			return waiting
		}
		return output.Programmed{Status: metav1.ConditionTrue, Reason: output.ReasonProgrammed}
	}
}
