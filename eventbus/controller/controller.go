package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	kubeevent "sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/reconcile"
)

// finalizer is what older versions kept a Subscription with until its consumer was
// deleted. Where no event bus was, it was kept for ever.
const finalizer = v1alpha1.Group + "/event-consumer"

// Reasons of conditions that only this controller gives.
const (
	ReasonSubscribed        = "Subscribed"
	ReasonBrokerUnavailable = "BrokerUnavailable"
	ReasonResolved          = "Resolved"
	ReasonDelivering        = "Delivering"
	ReasonPaused            = "Paused"
	ReasonNotDispatched     = "NotDispatched"
	ReasonPushFailing       = "PushFailing"
	ReasonSinkUnreachable   = "SinkUnreachable"
	ReasonGone              = "Gone"
)

const (
	// brokerRetry is when a subscription is tried again that the broker did not
	// take.
	brokerRetry = 2 * time.Second
	// refresh is how often the backlog of a subscription is counted anew while
	// it may change without the dispatcher's doing.
	refresh = 5 * time.Second
)

// Dispatcher is what pushes events; *dispatch.Dispatcher is one.
type Dispatcher interface {
	Set(ctx context.Context, sub dispatch.Subscription) error
	Hold(ctx context.Context, sub dispatch.Subscription) error
	Remove(ctx context.Context, uid string) error
	Stats(uid string) (dispatch.Stats, bool)
	Info(ctx context.Context, uid string) (broker.ConsumerInfo, error)
}

// Changes tells the controller of Subscriptions whose stats changed.
type Changes chan kubeevent.GenericEvent

// NewChanges makes an empty one.
func NewChanges() Changes { return make(Changes, 1024) }

// Report is for [dispatch.Config.Changed]. It never blocks: a report that does not
// fit is replaced by the next one.
func (c Changes) Report(namespace, name string) {
	sub := &v1alpha1.Subscription{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	select {
	case c <- kubeevent.GenericEvent{Object: sub}:
	default:
	}
}

// Reconciler reconciles Subscriptions.
type Reconciler struct {
	client     client.Client
	dispatcher Dispatcher
	policy     URLPolicy
	auths      Auths
	bases      bases
	// openSources: every namespace may read a source that nobody owns.
	openSources bool

	mu sync.Mutex
	// uids are those of the Subscriptions that have been looked at, by name: one that
	// is gone does not say whose consumer goes with it.
	uids map[types.NamespacedName]types.UID
}

// Register adds the controller to a manager. openSources lets every namespace
// read sources that nobody owns.
func Register(mgr ctrl.Manager, dispatcher Dispatcher, consumers Consumers, policy URLPolicy, auths Auths, changes Changes, openSources bool) error {
	if err := IndexAddresses(context.Background(), mgr.GetFieldIndexer()); err != nil {
		return fmt.Errorf("subscription controller: %w", err)
	}
	if err := mgr.GetFieldIndexer().IndexField(context.Background(), &v1alpha1.Subscription{}, bySink, sinks); err != nil {
		return fmt.Errorf("subscription controller: %w", err)
	}
	r := &Reconciler{client: mgr.GetClient(), dispatcher: dispatcher, policy: policy, auths: auths, openSources: openSources, uids: map[types.NamespacedName]types.UID{}}
	skipNameValidation := true // several buses may live in one test process
	err := ctrl.NewControllerManagedBy(mgr).
		Named("subscription").
		For(&v1alpha1.Subscription{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.Lambda{}, handler.EnqueueRequestsFromMapFunc(r.inNamespace)).
		Watches(&corev1.Service{}, handler.EnqueueRequestsFromMapFunc(r.reaching)).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(r.reaching), builder.WithPredicates(addressChanged())).
		Watches(&discoveryv1.EndpointSlice{}, handler.EnqueueRequestsFromMapFunc(r.inNamespace)).
		Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(r.everywhere), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&v1alpha1.ApplicationBinding{}, handler.EnqueueRequestsFromMapFunc(r.inNamespace)).
		Watches(&v1alpha1.EventGrant{}, handler.EnqueueRequestsFromMapFunc(r.granted)).
		WatchesRawSource(source.Channel(changes, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4, SkipNameValidation: &skipNameValidation}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("subscription controller: %w", err)
	}
	if consumers == nil {
		return nil // its broker does not say what it keeps
	}
	if err := mgr.Add(&sweeper{reader: mgr.GetAPIReader(), consumers: consumers, dispatcher: dispatcher}); err != nil {
		return fmt.Errorf("subscription controller: %w", err)
	}
	return nil
}

// inNamespace asks for all Subscriptions in the namespace of an object.
func (r *Reconciler) inNamespace(ctx context.Context, obj client.Object) []ctrl.Request {
	return r.requests(ctx, client.InNamespace(obj.GetNamespace()))
}

// reaching asks for all Subscriptions that a Service, or the owner of an address,
// decides about: those in its namespace, those where an EndpointSlice names the
// address, and those with a URI that names either.
func (r *Reconciler) reaching(ctx context.Context, obj client.Object) []ctrl.Request {
	namespaces := map[string]bool{obj.GetNamespace(): true}
	named := addresses(obj)
	for _, address := range named {
		var list discoveryv1.EndpointSliceList
		if err := r.client.List(ctx, &list, client.MatchingFields{byAddress: address}, client.UnsafeDisableDeepCopy); err != nil {
			ctrl.LoggerFrom(ctx).Error(err, "listing endpoints failed", "address", address)
			continue
		}
		for i := range list.Items {
			namespaces[list.Items[i].Namespace] = true
		}
	}
	var all []ctrl.Request
	for namespace := range namespaces {
		all = append(all, r.requests(ctx, client.InNamespace(namespace))...)
	}
	if _, isService := obj.(*corev1.Service); isService {
		named = append(named, obj.GetName()+"."+obj.GetNamespace())
	}
	for _, sink := range named {
		all = append(all, r.requests(ctx, client.MatchingFields{bySink: sink})...)
	}
	return all
}

// addressChanged passes over what else changes in a pod, which is much.
func addressChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e kubeevent.UpdateEvent) bool {
		return !slices.Equal(addresses(e.ObjectOld), addresses(e.ObjectNew))
	}}
}

// everywhere asks for all Subscriptions: an application may own what any of them
// reads.
func (r *Reconciler) everywhere(ctx context.Context, _ client.Object) []ctrl.Request {
	return r.requests(ctx)
}

// granted asks for all Subscriptions in the namespaces of an EventGrant.
func (r *Reconciler) granted(ctx context.Context, obj client.Object) []ctrl.Request {
	grant, ok := obj.(*v1alpha1.EventGrant)
	if !ok {
		return nil
	}
	var all []ctrl.Request
	for _, namespace := range grant.Spec.Namespaces {
		all = append(all, r.requests(ctx, client.InNamespace(namespace))...)
	}
	return all
}

func (r *Reconciler) requests(ctx context.Context, which ...client.ListOption) []ctrl.Request {
	var subs v1alpha1.SubscriptionList
	if err := r.client.List(ctx, &subs, which...); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "listing subscriptions failed", "which", which)
		return nil
	}
	requests := make([]ctrl.Request, len(subs.Items))
	for i := range subs.Items {
		requests[i] = ctrl.Request{NamespacedName: client.ObjectKeyFromObject(&subs.Items[i])}
	}
	return requests
}

// Reconcile brings the dispatcher and the status of one Subscription up to date.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var sub v1alpha1.Subscription
	if err := r.client.Get(ctx, request.NamespacedName, &sub); apierrors.IsNotFound(err) {
		return ctrl.Result{}, r.forget(ctx, request.NamespacedName, "")
	} else if err != nil {
		return ctrl.Result{}, fmt.Errorf("read subscription %s: %w", request, err)
	}
	// One of this name may have gone and come again meanwhile.
	if err := r.forget(ctx, request.NamespacedName, sub.UID); err != nil {
		return ctrl.Result{}, err
	}
	if !sub.DeletionTimestamp.IsZero() { // kept by somebody's finalizer
		if err := r.remove(ctx, request.NamespacedName, sub.UID); err != nil {
			return ctrl.Result{}, err
		}
		return ctrl.Result{}, r.release(ctx, &sub)
	}
	if err := r.release(ctx, &sub); err != nil {
		return ctrl.Result{}, err
	}
	r.remember(request.NamespacedName, sub.UID)

	before := sub.DeepCopy()
	result, err := r.dispatch(ctx, &sub)
	r.count(ctx, &sub)
	if result.RequeueAfter == 0 && (sub.Status.Pending > 0 || lends(&sub)) {
		result.RequeueAfter = refresh
	}
	reconcile.Summarize(&sub, v1alpha1.ConditionSubscribed, v1alpha1.ConditionSinkReady, v1alpha1.ConditionDelivering)
	return result, errors.Join(err, r.writeStatus(ctx, before, &sub))
}

// writeStatus writes the whole status the first time, so that counters of zero
// are there to be seen, and then what changed.
func (r *Reconciler) writeStatus(ctx context.Context, before, sub *v1alpha1.Subscription) error {
	if before.Status.ObservedGeneration > 0 {
		return reconcile.PatchStatus(ctx, r.client, before, sub)
	}
	if err := r.client.Status().Update(ctx, sub); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status of subscription %s/%s: %w", sub.Namespace, sub.Name, err)
	}
	return nil
}

func (r *Reconciler) remember(name types.NamespacedName, uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uids[name] = uid
}

// forget removes the consumer of the Subscription that had the name, unless that is
// the one that has it now.
func (r *Reconciler) forget(ctx context.Context, name types.NamespacedName, now types.UID) error {
	r.mu.Lock()
	uid, known := r.uids[name]
	r.mu.Unlock()
	if !known || uid == now {
		return nil
	}
	return r.remove(ctx, name, uid)
}

// remove deletes a consumer, and with it the backlog.
func (r *Reconciler) remove(ctx context.Context, name types.NamespacedName, uid types.UID) error {
	if err := r.dispatcher.Remove(ctx, string(uid)); err != nil {
		return fmt.Errorf("delete the consumer of subscription %s: %w", name, err)
	}
	r.bases.forget(uid)
	r.auths.Forget(string(uid) + sinkOfEvents)
	r.auths.Forget(string(uid) + sinkOfDeadLetters)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.uids[name] == uid {
		delete(r.uids, name)
	}
	return nil
}

// release takes away what an older version kept the Subscription with.
func (r *Reconciler) release(ctx context.Context, sub *v1alpha1.Subscription) error {
	before := sub.DeepCopy()
	if !controllerutil.RemoveFinalizer(sub, finalizer) {
		return nil
	}
	if err := r.client.Patch(ctx, sub, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return client.IgnoreNotFound(fmt.Errorf("release subscription %s/%s: %w", sub.Namespace, sub.Name, err))
	}
	return nil
}

// dispatch tells the dispatcher what to push, and sets the conditions.
func (r *Reconciler) dispatch(ctx context.Context, sub *v1alpha1.Subscription) (ctrl.Result, error) {
	wanted, err := r.wanted(ctx, sub)
	if err != nil {
		return ctrl.Result{}, r.refused(ctx, sub, &wanted, err)
	}
	if err := r.sinks(ctx, sub, &wanted); err != nil {
		return ctrl.Result{}, err
	}
	if err := r.dispatcher.Set(ctx, wanted); err != nil {
		if errors.Is(err, broker.ErrUnavailable) {
			reconcile.False(sub, v1alpha1.ConditionSubscribed, ReasonBrokerUnavailable, "the broker is not available; trying again")
			notDelivering(sub, ReasonBrokerUnavailable, "the broker is not available; trying again")
			return ctrl.Result{RequeueAfter: brokerRetry}, nil
		}
		return ctrl.Result{}, err
	}
	reconcile.True(sub, v1alpha1.ConditionSubscribed, ReasonSubscribed, "events that are accepted from now on are kept for this subscription")
	if wanted.Hold {
		return ctrl.Result{RequeueAfter: refresh}, nil // its backlog grows unseen
	}
	return ctrl.Result{}, nil
}

// wanted is what the dispatcher takes of a Subscription, without its sink. It fails
// with a [*refusal] when that is not to be dispatched, and returns the rest.
func (r *Reconciler) wanted(ctx context.Context, sub *v1alpha1.Subscription) (dispatch.Subscription, error) {
	wanted, invalid := compile(sub)
	namespace := sub.Namespace
	wanted.Permit = func(ctx context.Context, source string) (bool, error) {
		return permitted(r.mayRead(ctx, namespace, source))
	}
	// First what it may read: that it is invalid does not hold what it may not.
	origins, err := r.origins(ctx, sub.Namespace, sub.Spec.Source)
	if err == nil {
		err = invalid
	}
	if err == nil {
		wanted.Selectors, err = selectors(origins, sub.Spec.Types)
	}
	return wanted, err
}

// sinks resolves the sinks and decides whether to dispatch.
func (r *Reconciler) sinks(ctx context.Context, sub *v1alpha1.Subscription, wanted *dispatch.Subscription) error {
	sink, err := r.authorized(ctx, sub, sinkOfEvents, sub.Spec.Sink)
	if err == nil && sub.Spec.Delivery.DeadLetter != nil {
		var dead dispatch.Sink
		dead, err = r.authorized(ctx, sub, sinkOfDeadLetters, sub.Spec.Delivery.DeadLetter.Sink)
		if err == nil {
			wanted.DeadLetter = &dead
		}
		if refused, ok := errors.AsType[*refusal](err); ok {
			err = refuse(refused.reason, "delivery.deadLetter: %s", refused.message)
		}
	}
	refused, isRefusal := errors.AsType[*refusal](err)
	switch {
	case isRefusal:
		wanted.Hold = true
		reconcile.False(sub, v1alpha1.ConditionSinkReady, refused.reason, refused.message)
		notDelivering(sub, ReasonNotDispatched, "events wait until the sink is ready")
		return nil
	case err != nil:
		return err
	}
	wanted.Sink = sink
	reconcile.True(sub, v1alpha1.ConditionSinkReady, ReasonResolved, "events are pushed to "+sink.URL)
	switch {
	case sub.Spec.Paused:
		wanted.Hold = true
		reconcile.False(sub, v1alpha1.ConditionDelivering, ReasonPaused, "spec.paused is true; events wait")
	case gone(sub):
		wanted.Hold = true
	}
	return nil
}

// refused dispatches nothing and says why. The backlog stays: what the
// subscription was permitted before it was changed is still its own. What it is
// not permitted is left out event by event, when it is its turn.
func (r *Reconciler) refused(ctx context.Context, sub *v1alpha1.Subscription, wanted *dispatch.Subscription, err error) error {
	why, ok := errors.AsType[*refusal](err)
	if !ok {
		return err
	}
	reconcile.False(sub, v1alpha1.ConditionSubscribed, why.reason, why.message)
	text := "the subscription is refused: " + why.message
	reconcile.False(sub, v1alpha1.ConditionSinkReady, ReasonNotDispatched, text)
	notDelivering(sub, ReasonNotDispatched, text)
	return r.dispatcher.Hold(ctx, *wanted)
}

// count writes the counters and, where dispatching decides it, Delivering.
func (r *Reconciler) count(ctx context.Context, sub *v1alpha1.Subscription) {
	stats, ok := r.dispatcher.Stats(string(sub.UID))
	if !ok {
		return
	}
	base := r.bases.of(sub)
	status := &sub.Status
	status.Delivered = base.Delivered + stats.Delivered
	status.Redelivered = base.Redelivered + stats.Redelivered
	status.DeadLettered = base.DeadLettered + stats.DeadLettered
	if stats.LastError != "" {
		status.LastError = stats.LastError
	}
	status.OldestPending = nil
	if !stats.Oldest.IsZero() {
		oldest := metav1.NewTime(stats.Oldest)
		status.OldestPending = &oldest
	}
	if c := meta.FindStatusCondition(sub.Status.Conditions, v1alpha1.ConditionSubscribed); c != nil && c.Reason == v1alpha1.ReasonNotPermitted {
		// How much there is would tell what happens at a source that it may not read.
		status.Pending, status.InFlight, status.OldestPending = 0, 0, nil
		return
	}
	// A broker that is away has its own condition; the last figures stay.
	if info, err := r.dispatcher.Info(ctx, string(sub.UID)); err == nil {
		status.Pending, status.InFlight = int64(info.Pending), int64(info.Unacknowledged)
	}
	if held(sub) {
		return
	}
	if stats.Gone {
		reconcile.False(sub, v1alpha1.ConditionDelivering, ReasonGone, goneMessage)
		return
	}
	if stats.HeldBack {
		reconcile.False(sub, v1alpha1.ConditionDelivering, ReasonSinkUnreachable, stats.LastError+"; events are held back until it is reachable, and use up no attempts")
		return
	}
	if stats.Failing {
		reconcile.False(sub, v1alpha1.ConditionDelivering, ReasonPushFailing, stats.LastError)
		return
	}
	reconcile.True(sub, v1alpha1.ConditionDelivering, ReasonDelivering, "")
}

// held reports whether this generation's conditions say that nothing is
// dispatched.
func held(sub *v1alpha1.Subscription) bool {
	for _, c := range sub.Status.Conditions {
		if c.Status == metav1.ConditionTrue {
			continue
		}
		if c.Type == v1alpha1.ConditionSubscribed || c.Type == v1alpha1.ConditionSinkReady {
			return true
		}
	}
	return sub.Spec.Paused || gone(sub)
}

// notDelivering says why nothing is delivered. That the sink is gone is remembered
// there, and stays until the spec is changed.
func notDelivering(sub *v1alpha1.Subscription, reason, message string) {
	if !gone(sub) {
		reconcile.False(sub, v1alpha1.ConditionDelivering, reason, message)
	}
}

// goneMessage says how to go on.
const goneMessage = "the sink answered 410 Gone: nothing is sent to it any more, and events wait; change spec.sink, or anything else in spec, to try again"

// gone reports whether the sink of this generation said that it is gone for good.
func gone(sub *v1alpha1.Subscription) bool {
	c := meta.FindStatusCondition(sub.Status.Conditions, v1alpha1.ConditionDelivering)
	return c != nil && c.Reason == ReasonGone && c.ObservedGeneration == sub.Generation
}
