package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/lambdamesh/lambdamesh/connector/catalog"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	status "github.com/lambdamesh/lambdamesh/pkg/reconcile"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Config of the reconcilers.
type Config struct {
	// Targets that may be called.
	Targets *targets.Policy
	// Probe asks a target whether it is there.
	Probe ProbeFunc
	// Token makes a token for a TokenRequest, and what its Secret holds; nil: there
	// is no port to use it at.
	Token func(of types.NamespacedName) (token string, secret map[string][]byte, err error)
	// Webhooks tells whether there is a port for them.
	Webhooks bool
	// Log of what was done.
	Log *slog.Logger
}

// Setup adds the reconcilers to the manager. Its cache must hold the Secrets and
// EventTypes of the system namespace, and have the fields of [catalog.Index].
func Setup(mgr ctrl.Manager, config Config) error {
	c, live := mgr.GetClient(), mgr.GetAPIReader()
	probes := newProbes(config.Probe)
	// A status of others is no reason to look again. One's own is: what was decided
	// before the cache had it, was decided by an older one.
	changed := builder.WithPredicates(predicate.GenerationChangedPredicate{})
	touched := builder.WithPredicates(predicate.Funcs{CreateFunc: func(event.CreateEvent) bool { return false }})
	return errors.Join(
		mgr.Add(probes),
		ctrl.NewControllerManagedBy(mgr).Named("application").
			For(&v1alpha1.Application{}).
			Watches(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(applicationsWithSecret(c))).
			Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(rivals(c)), changed).
			Watches(&v1alpha1.ApplicationService{}, soon(applicationOfService)).
			Owns(&v1alpha1.EventType{}, touched).
			WatchesRawSource(source.Channel(probes.applications, &handler.EnqueueRequestForObject{})).
			Complete(reconcile.AsReconciler(c, &applications{client: c, live: live, targets: config.Targets, probes: probes, webhooks: config.Webhooks, now: time.Now})),
		ctrl.NewControllerManagedBy(mgr).Named("applicationservice").
			For(&v1alpha1.ApplicationService{}).
			Watches(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(servicesWithSecret(c))).
			Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(servicesOfApplication(c)), changed).
			Owns(&v1alpha1.EventType{}, touched).
			WatchesRawSource(source.Channel(probes.services, &handler.EnqueueRequestForObject{})).
			Complete(&services{client: c, live: live, targets: config.Targets, probes: probes}),
		ctrl.NewControllerManagedBy(mgr).Named("applicationbinding").
			For(&v1alpha1.ApplicationBinding{}).
			Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(bindingsOfApplication(c)), changed).
			Watches(&v1alpha1.ApplicationService{}, handler.EnqueueRequestsFromMapFunc(bindingsOfService(c)), changed).
			Complete(reconcile.AsReconciler(c, &bindings{client: c})),
		ctrl.NewControllerManagedBy(mgr).Named("tokenrequest").
			For(&v1alpha1.TokenRequest{}).
			Watches(&v1alpha1.Application{}, handler.EnqueueRequestsFromMapFunc(tokenRequestsOf(c)), changed).
			Complete(reconcile.AsReconciler(c, &tokenRequests{client: c, live: mgr.GetAPIReader(), token: config.Token, now: time.Now, log: config.Log})),
	)
}

// settle is how long an application waits for more of its services to change: a
// catalog is often written at once.
const settle = 500 * time.Millisecond

func soon(of func(client.Object) string) handler.EventHandler {
	enqueue := func(obj client.Object, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) {
		queue.AddAfter(reconcile.Request{NamespacedName: client.ObjectKey{Name: of(obj)}}, settle)
	}
	type queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	return handler.Funcs{
		CreateFunc: func(_ context.Context, e event.CreateEvent, q queue) { enqueue(e.Object, q) },
		UpdateFunc: func(_ context.Context, e event.UpdateEvent, q queue) { enqueue(e.ObjectNew, q) },
		DeleteFunc: func(_ context.Context, e event.DeleteEvent, q queue) { enqueue(e.Object, q) },
	}
}

func applicationOfService(obj client.Object) string {
	application, _, _ := v1alpha1.SplitServiceObjectName(obj.GetName())
	return application
}

// ReasonSourceConflict: another application speaks for a source.
const ReasonSourceConflict = "SourceConflict"

// problem is why an object is not ready.
type problem struct{ reason, message string }

// report writes Ready: True when there is no problem, else with the reason of
// the first and the messages of all.
func report[T status.Object](ctx context.Context, c client.Client, before, obj T, problems []problem) error {
	obj.SetObservedGeneration(obj.GetGeneration())
	if len(problems) == 0 {
		status.True(obj, v1alpha1.ConditionReady, v1alpha1.ReasonReady, "")
	} else {
		status.False(obj, v1alpha1.ConditionReady, problems[0].reason, messages(problems))
	}
	return status.PatchStatus(ctx, c, before, obj)
}

func messages(problems []problem) string {
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.message
	}
	return strings.Join(texts, "; ")
}

type applications struct {
	client  client.Client
	live    client.Reader
	targets *targets.Policy
	probes  *probes
	// webhooks tells whether they are served.
	webhooks bool
	now      func() time.Time
}

// Reconcile checks each service as the outbound gateway will, so that status and
// calls cannot disagree, and counts them.
func (r *applications) Reconcile(ctx context.Context, app *v1alpha1.Application) (ctrl.Result, error) {
	if err := r.prune(ctx, app); err != nil {
		return ctrl.Result{}, err
	}
	before := app.DeepCopy()
	problems, notReady, err := r.check(ctx, app)
	if err != nil {
		return ctrl.Result{}, err
	}
	taken, err := r.taken(ctx, app)
	if err != nil {
		return ctrl.Result{}, err
	}
	problems = append(problems, taken...)
	objects, err := r.count(ctx, app)
	if err != nil {
		return ctrl.Result{}, err
	}
	own := app.Status.EventTypes - app.Status.EventTypesOfServices
	judge := judge{client: r.client, live: r.live}
	judged, err := judge.application(ctx, app, &own)
	if err != nil {
		return ctrl.Result{}, err
	}
	problems = append(problems, judged...)
	app.Status.Services = int32(len(app.Spec.Services)) + objects.services
	app.Status.ServicesNotReady = notReady + objects.notReady
	app.Status.EventTypes, app.Status.EventTypesOfServices = own+objects.types, objects.types
	unusable, err := r.unusableWebhooks(ctx, app)
	if err != nil {
		return ctrl.Result{}, err
	}
	problems = append(problems, unusable...)
	again := r.paired(app)
	if err := report(ctx, r.client, before, app, problems); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: again}, nil
}

// check finds what keeps services from being called that are written in the
// application.
func (r *applications) check(ctx context.Context, app *v1alpha1.Application) (problems []problem, notReady int32, err error) {
	names := map[string]bool{}
	result := probeResult{}
	for i := range app.Spec.Services {
		service := &app.Spec.Services[i]
		names[service.Name] = true
		if service.API == nil {
			continue
		}
		unusable, err := resolve(ctx, r.client, service.API, r.targets)
		if err != nil {
			return nil, 0, err
		}
		if unusable != nil {
			notReady++
			problems = append(problems, problem{unusable.reason, fmt.Sprintf("service %s: %s", service.Name, unusable.message)})
		}
		key := probeKey{object: app.Name, inline: service.Name}
		r.probes.set(key, service.API, app.Generation)
		result = result.with(service.Name, r.probes.result(key))
	}
	r.probes.keep(app.Name, names)
	reportProbe(app, result)
	return problems, notReady, nil
}

type counted struct{ services, notReady, types int32 }

// count counts the services that are objects of their own.
func (r *applications) count(ctx context.Context, app *v1alpha1.Application) (n counted, err error) {
	var list v1alpha1.ApplicationServiceList
	if err := r.client.List(ctx, &list, client.MatchingFields{catalog.ByApplication: app.Name}, client.UnsafeDisableDeepCopy); err != nil {
		return n, fmt.Errorf("listing the services of Application %s: %w", app.Name, err)
	}
	for i := range list.Items {
		service := &list.Items[i]
		if !service.DeletionTimestamp.IsZero() {
			continue
		}
		n.services++
		n.types += service.Status.EventTypes
		if c := meta.FindStatusCondition(service.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Status == metav1.ConditionFalse {
			n.notReady++
		}
	}
	return n, nil
}

// taken names the sources of an application that belong to an older one.
func (r *applications) taken(ctx context.Context, app *v1alpha1.Application) (problems []problem, err error) {
	if len(app.Spec.Sources) == 0 {
		return nil, nil
	}
	var all v1alpha1.ApplicationList
	if err := r.client.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("listing Applications: %w", err)
	}
	for _, source := range app.Spec.Sources {
		if owner, ok := v1alpha1.SourceOwner(all.Items, source); ok && owner.Name != app.Name {
			problems = append(problems, problem{ReasonSourceConflict, fmt.Sprintf(
				"the source %s belongs to the older Application %s: remove it from the spec.sources of one", source, owner.Name)})
		}
	}
	return problems, nil
}

// rivals maps an application to the others that name one of its sources.
func rivals(c client.Client) handler.MapFunc {
	return func(ctx context.Context, obj client.Object) []reconcile.Request {
		app, ok := obj.(*v1alpha1.Application)
		var list v1alpha1.ApplicationList
		if !ok || c.List(ctx, &list) != nil {
			return nil
		}
		var requests []reconcile.Request
		for i := range list.Items {
			other := &list.Items[i]
			if other.Name != app.Name && slices.ContainsFunc(other.Spec.Sources, func(s string) bool { return slices.Contains(app.Spec.Sources, s) }) {
				requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(other)})
			}
		}
		return requests
	}
}

type bindings struct{ client client.Client }

// Reconcile checks that what the binding names exists. A lambda may come later:
// the binding is ready for it.
func (r *bindings) Reconcile(ctx context.Context, binding *v1alpha1.ApplicationBinding) (ctrl.Result, error) {
	var problems []problem
	if selection := binding.Spec.Lambdas; selection != nil {
		if _, err := metav1.LabelSelectorAsSelector(selection.Selector); err != nil {
			problems = append(problems, problem{v1alpha1.ReasonInvalid, "lambdas.selector: " + err.Error()})
		}
	}
	var app v1alpha1.Application
	err := r.client.Get(ctx, client.ObjectKey{Name: binding.Spec.Application}, &app)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return ctrl.Result{}, err
	case err != nil:
		problems = append(problems, problem{v1alpha1.ReasonNotFound, fmt.Sprintf("there is no Application %s", binding.Spec.Application)})
	default:
		for _, name := range binding.Spec.Services {
			has, err := r.has(ctx, &app, name)
			if err != nil {
				return ctrl.Result{}, err
			}
			if !has {
				problems = append(problems, problem{v1alpha1.ReasonNotFound, fmt.Sprintf("the Application %s has no service %s", app.Name, name)})
			}
		}
	}
	return ctrl.Result{}, report(ctx, r.client, binding.DeepCopy(), binding, problems)
}

func (r *bindings) has(ctx context.Context, app *v1alpha1.Application, service string) (bool, error) {
	if slices.ContainsFunc(app.Spec.Services, func(s v1alpha1.InlineService) bool { return s.Name == service }) {
		return true, nil
	}
	var object v1alpha1.ApplicationService
	err := r.client.Get(ctx, client.ObjectKey{Name: v1alpha1.ServiceObjectName(app.Name, service)}, &object, client.UnsafeDisableDeepCopy)
	return err == nil, client.IgnoreNotFound(err)
}

// applicationsWithSecret maps a Secret to the applications whose credentials it
// holds.
func applicationsWithSecret(c client.Client) handler.MapFunc {
	return func(ctx context.Context, secret client.Object) []reconcile.Request {
		var list v1alpha1.ApplicationList
		if secret.GetNamespace() != v1alpha1.SystemNamespace || c.List(ctx, &list) != nil {
			return nil
		}
		var requests []reconcile.Request
		for i := range list.Items {
			if refersTo(&list.Items[i], secret.GetName()) {
				requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
		return requests
	}
}

// refersTo reports whether a service or a webhook of the application refers to a
// Secret.
func refersTo(app *v1alpha1.Application, secret string) bool {
	return slices.ContainsFunc(app.Spec.Webhooks, func(h v1alpha1.Webhook) bool { return h.SecretName == secret }) || slices.ContainsFunc(app.Spec.Services, func(s v1alpha1.InlineService) bool {
		return slices.Contains(catalog.Secrets(s.API), secret)
	})
}

// bindingsOfApplication maps an application to the bindings that name it.
func bindingsOfApplication(c client.Client) handler.MapFunc {
	return func(ctx context.Context, app client.Object) []reconcile.Request {
		return bindingsOf(ctx, c, app.GetName())
	}
}

// bindingsOfService maps a service to the bindings that name its application.
func bindingsOfService(c client.Client) handler.MapFunc {
	return func(ctx context.Context, service client.Object) []reconcile.Request {
		return bindingsOf(ctx, c, applicationOfService(service))
	}
}

func bindingsOf(ctx context.Context, c client.Client, application string) []reconcile.Request {
	var list v1alpha1.ApplicationBindingList
	if c.List(ctx, &list) != nil {
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if list.Items[i].Spec.Application == application {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return requests
}
