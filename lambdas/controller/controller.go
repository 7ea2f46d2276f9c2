package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	ctrlsource "sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/reconcile"
)

const fieldManager = v1alpha1.ManagedBy + "-lambdas"

// Reasons of the Deployed condition.
const (
	ReasonDeployed     = "Deployed"
	ReasonProgressing  = "Progressing"
	ReasonNameTaken    = "NameTaken"
	ReasonSourceFailed = "SourceNotReady"
	reasonBuilding     = "Building"
)

// Builder makes a lambda's source runnable. What the user can put right is a
// [*source.Error]; any other error, and what may pass, is tried again.
type Builder interface {
	Build(ctx context.Context, lambda *v1alpha1.Lambda) (build.Artifact, error)
}

// Config configures the controller.
type Config struct {
	Builder Builder
	Deploy  deploy.Options
	// Concurrency is how many lambdas are reconciled at once; default 2.
	Concurrency int
	// Builds is how many lambdas are built at once; default 2.
	Builds int
	Log    *slog.Logger
}

// Validate tells what is missing.
func (c Config) Validate() error {
	if c.Builder == nil {
		return errors.New("lambda controller: Builder is missing")
	}
	return nil
}

// Add adds the controller to the manager, whose cache options should have been
// through [ConfigureCache].
func Add(mgr ctrl.Manager, config Config) error {
	if err := config.Validate(); err != nil {
		return err
	}
	if config.Concurrency == 0 {
		config.Concurrency = 2
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	pods, err := newPods(mgr)
	if err != nil {
		return err
	}
	built := make(chan event.TypedGenericEvent[types.NamespacedName])
	builds := build.NewQueue(build.QueueConfig{Workers: config.Builds, Done: func(ctx context.Context, key types.NamespacedName) {
		select {
		case built <- event.TypedGenericEvent[types.NamespacedName]{Object: key}:
		case <-ctx.Done():
		}
	}})
	if err := mgr.Add(manager.RunnableFunc(builds.Run)); err != nil {
		return fmt.Errorf("add the lambda builds: %w", err)
	}
	p := &policies{config: config, client: mgr.GetClient(), reader: mgr.GetAPIReader()}
	r := &reconciler{config: config, client: mgr.GetClient(), reader: mgr.GetAPIReader(), pods: pods, policies: p, builds: builds}
	err = ctrl.NewControllerManagedBy(mgr).
		Named("lambda").
		For(&v1alpha1.Lambda{}, builder.WithPredicates(predicate.Or(
			predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}, // bindings pick by labels
		))).
		Owns(&appsv1.Deployment{}).
		Owns(&corev1.Service{}).
		Owns(&corev1.ServiceAccount{}).
		Owns(&corev1.ConfigMap{}).
		Watches(&v1alpha1.ApplicationBinding{}, handler.EnqueueRequestsFromMapFunc(r.lambdasBeside)).
		WatchesRawSource(ctrlsource.Kind(pods, &corev1.Pod{}, handler.TypedEnqueueRequestsFromMapFunc(lambdaOfPod), podChanges())).
		WatchesRawSource(ctrlsource.TypedChannel(built, handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, key types.NamespacedName) []ctrl.Request {
			return []ctrl.Request{{NamespacedName: key}}
		}))).
		WithOptions(controller.Options{MaxConcurrentReconciles: config.Concurrency, SkipNameValidation: new(true)}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("add the lambda controller: %w", err)
	}
	return addPolicies(mgr, p)
}

type reconciler struct {
	config Config
	client client.Client
	reader client.Reader // past the cache, for what was just applied
	pods   client.Reader // those of lambdas, see newPods

	policies *policies
	builds   *build.Queue
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (result ctrl.Result, err error) {
	lambda := &v1alpha1.Lambda{}
	if err := r.client.Get(ctx, request.NamespacedName, lambda); err != nil {
		r.builds.Forget(request.NamespacedName)
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !lambda.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil // what it owns goes with it
	}
	before := lambda.DeepCopy()
	defer func() {
		reconcile.Summarize(lambda, v1alpha1.ConditionSourceReady, v1alpha1.ConditionDeployed)
		err = errors.Join(err, reconcile.PatchStatus(ctx, r.client, before, lambda))
	}()

	lambda.Status.Address = "http://" + lambda.Name + "." + lambda.Namespace + ".svc"
	artifact, err, built := r.build(lambda)
	switch {
	case !built:
		return ctrl.Result{}, r.observeReplicas(ctx, lambda) // the queue wakes it up
	case err != nil:
		return ctrl.Result{}, r.sourceFailed(ctx, lambda, err)
	}
	if reason, message := deploy.Check(lambda, r.config.Deploy); reason != "" {
		reconcile.False(lambda, v1alpha1.ConditionDeployed, reason, message)
		return ctrl.Result{}, r.observeReplicas(ctx, lambda)
	}
	options := r.config.Deploy
	if options.Applications, err = r.applications(ctx, lambda); err != nil {
		return ctrl.Result{}, err
	}
	objects := deploy.New(lambda, artifact, options)
	if taken, err := r.taken(ctx, lambda, objects); err != nil || taken != "" {
		reconcile.False(lambda, v1alpha1.ConditionDeployed, ReasonNameTaken, taken)
		return ctrl.Result{}, err
	}
	// No pod starts unprotected: the policy comes before the Deployment.
	if err := r.policies.ensure(ctx, lambda); err != nil {
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return ctrl.Result{}, nil
		}
		reconcile.False(lambda, v1alpha1.ConditionDeployed, v1alpha1.ReasonPending, "no pod starts without its NetworkPolicy: "+err.Error())
		return ctrl.Result{}, err
	}
	existing, err := r.deployment(ctx, lambda)
	if err == nil {
		err = r.keepInBounds(ctx, lambda, existing)
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	for _, object := range objects.All() {
		err := kube.Apply(ctx, r.client, fieldManager, object)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return ctrl.Result{}, nil // the lambda is about to be deleted too
		}
		if apierrors.IsInvalid(err) {
			reconcile.False(lambda, v1alpha1.ConditionDeployed, v1alpha1.ReasonInvalid, err.Error())
			return ctrl.Result{}, r.observeReplicas(ctx, lambda) // it stays invalid until the lambda changes
		}
		if err != nil {
			reconcile.False(lambda, v1alpha1.ConditionDeployed, v1alpha1.ReasonPending, err.Error())
			return ctrl.Result{}, err
		}
	}
	if existing == nil { // a new one has 1
		if existing, err = r.deployment(ctx, lambda); err == nil {
			err = r.keepInBounds(ctx, lambda, existing)
		}
		if err != nil {
			return ctrl.Result{}, err
		}
	}
	if err := r.observe(ctx, lambda); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.prune(ctx, lambda, objects)
}

// build returns what the queue has built of the lambda's source; known is false
// as long as it has not, and the lambda tells that it does: a first build can
// take a minute.
func (r *reconciler) build(lambda *v1alpha1.Lambda) (artifact build.Artifact, err error, known bool) { //nolint:revive,staticcheck // as build.Queue.Result
	inputs, err := inputsOf(lambda)
	if err != nil {
		return build.Artifact{}, err, true
	}
	snapshot := lambda.DeepCopy()
	artifact, err, known = r.builds.Result(client.ObjectKeyFromObject(lambda), inputs, func(ctx context.Context) (build.Artifact, error) {
		return r.config.Builder.Build(ctx, snapshot)
	})
	switch {
	case known && err == nil:
		reconcile.True(lambda, v1alpha1.ConditionSourceReady, source.ReasonBuilt, artifact.Note)
	case !known && lambda.Status.ObservedGeneration != lambda.Generation:
		reconcile.Set(lambda, v1alpha1.ConditionSourceReady, metav1.ConditionUnknown, reasonBuilding, "the source is being built")
	}
	return artifact, err, known
}

// inputsOf is the same as long as building would give the same.
func inputsOf(lambda *v1alpha1.Lambda) (string, error) {
	text, err := json.Marshal([]any{lambda.UID, lambda.Spec.Runtime, lambda.Spec.Version, lambda.Spec.Handler, lambda.Spec.Source})
	if err != nil {
		return "", fmt.Errorf("encode the source of lambda %s: %w", client.ObjectKeyFromObject(lambda), err)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), nil
}

// sourceFailed reports a failed build; what was deployed stays as it is. The
// queue tries again what may pass.
func (r *reconciler) sourceFailed(ctx context.Context, lambda *v1alpha1.Lambda, cause error) error {
	reconcile.False(lambda, v1alpha1.ConditionSourceReady, source.ReasonOf(cause), cause.Error())
	message := "nothing is deployed until the source builds"
	deployment := &appsv1.Deployment{}
	if r.reader.Get(ctx, client.ObjectKeyFromObject(lambda), deployment) == nil && metav1.IsControlledBy(deployment, lambda) {
		message = "the last version that built keeps running"
	}
	reconcile.False(lambda, v1alpha1.ConditionDeployed, ReasonSourceFailed, message)
	return r.observeReplicas(ctx, lambda)
}

// taken tells which object of the lambda's name is not the lambda's. It is left
// alone.
func (r *reconciler) taken(ctx context.Context, lambda *v1alpha1.Lambda, objects deploy.Objects) (string, error) {
	policy := deploy.NetworkPolicy(lambda, deploy.Callers{}, r.config.Deploy)
	for _, object := range append(objects.All(), policy) {
		existing, ok := object.DeepCopyObject().(client.Object)
		if !ok {
			continue
		}
		err := r.client.Get(ctx, client.ObjectKeyFromObject(object), existing)
		if apierrors.IsNotFound(err) { // the cache may hold only what is ours
			err = r.reader.Get(ctx, client.ObjectKeyFromObject(object), existing)
		}
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return "", err
		case !metav1.IsControlledBy(existing, lambda):
			kind, _ := r.client.GroupVersionKindFor(object)
			return fmt.Sprintf("a %s %s exists and is not this lambda's; delete it or rename the lambda", kind.Kind, object.GetName()), nil
		}
	}
	return "", nil
}

// deployment reads the lambda's, past the cache; nil when there is none.
func (r *reconciler) deployment(ctx context.Context, lambda *v1alpha1.Lambda) (*appsv1.Deployment, error) {
	deployment := &appsv1.Deployment{}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(lambda), deployment)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the Deployment of lambda %s: %w", client.ObjectKeyFromObject(lambda), err)
	}
	return deployment, nil
}

// observe reports what the Deployment runs.
func (r *reconciler) observe(ctx context.Context, lambda *v1alpha1.Lambda) error {
	deployment := &appsv1.Deployment{}
	if err := r.reader.Get(ctx, client.ObjectKeyFromObject(lambda), deployment); err != nil {
		return fmt.Errorf("read the Deployment of lambda %s: %w", client.ObjectKeyFromObject(lambda), err)
	}
	fillReplicas(lambda, deployment)
	wanted, status := int32(1), deployment.Status
	if deployment.Spec.Replicas != nil {
		wanted = *deployment.Spec.Replicas
	}
	for _, condition := range status.Conditions {
		if condition.Type == appsv1.DeploymentReplicaFailure && condition.Status == corev1.ConditionTrue && status.ObservedGeneration == deployment.Generation {
			reconcile.False(lambda, v1alpha1.ConditionDeployed, condition.Reason, condition.Message)
			return nil
		}
	}
	pods, err := r.podsOf(ctx, lambda)
	if err != nil {
		return err
	}
	trouble := troubleOf(pods)
	if status.ObservedGeneration != deployment.Generation || status.UpdatedReplicas != wanted || status.AvailableReplicas != wanted || status.Replicas != wanted {
		if scaling(lambda, deployment) {
			return nil
		}
		progress := fmt.Sprintf("%d of %d replicas of this version are ready", min(status.UpdatedReplicas, status.ReadyReplicas), wanted)
		if trouble.reason != "" && trouble.reason != reasonRestarted {
			reconcile.False(lambda, v1alpha1.ConditionDeployed, trouble.reason, progress+"; "+trouble.message)
			return nil
		}
		reconcile.False(lambda, v1alpha1.ConditionDeployed, ReasonProgressing, progress)
		return nil
	}
	notes := []string{r.leftToOthers(deployment, wanted), trouble.message}
	for _, condition := range status.Conditions {
		if condition.Type == deploy.ConditionRestarted && condition.Status == corev1.ConditionTrue {
			notes = append(notes, condition.Message)
		}
	}
	notes = slices.DeleteFunc(notes, func(note string) bool { return note == "" })
	reconcile.True(lambda, v1alpha1.ConditionDeployed, ReasonDeployed, strings.Join(notes, "; "))
	return nil
}

// observeReplicas fills the counts alone, when a condition is set already.
func (r *reconciler) observeReplicas(ctx context.Context, lambda *v1alpha1.Lambda) error {
	deployment := &appsv1.Deployment{}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(lambda), deployment)
	if err == nil && metav1.IsControlledBy(deployment, lambda) {
		fillReplicas(lambda, deployment)
	}
	return client.IgnoreNotFound(err)
}

func fillReplicas(lambda *v1alpha1.Lambda, deployment *appsv1.Deployment) {
	lambda.Status.Replicas, lambda.Status.ReadyReplicas = deployment.Status.Replicas, deployment.Status.ReadyReplicas
	lambda.Status.Image = ""
	if containers := deployment.Spec.Template.Spec.Containers; len(containers) > 0 {
		lambda.Status.Image = containers[0].Image
	}
}

// prune deletes the mounted sources of versions that no longer run.
func (r *reconciler) prune(ctx context.Context, lambda *v1alpha1.Lambda, objects deploy.Objects) error {
	deployed := false
	for _, condition := range lambda.Status.Conditions {
		deployed = deployed || condition.Type == v1alpha1.ConditionDeployed && condition.Status == metav1.ConditionTrue
	}
	if !deployed {
		return nil
	}
	var sources corev1.ConfigMapList
	if err := r.client.List(ctx, &sources, client.InNamespace(lambda.Namespace), client.MatchingLabels{v1alpha1.LabelLambda: lambda.Name, v1alpha1.LabelManagedBy: v1alpha1.ManagedBy}); err != nil {
		return err
	}
	for i := range sources.Items {
		source := &sources.Items[i]
		if !metav1.IsControlledBy(source, lambda) || objects.ConfigMap != nil && objects.ConfigMap.Name == source.Name {
			continue
		}
		if err := r.client.Delete(ctx, source); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}
