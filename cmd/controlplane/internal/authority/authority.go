package authority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// lookAgain is how long nothing is looked at when nothing changes.
const lookAgain = 12 * time.Hour

// Config of what keeps a CA.
type Config struct {
	// Namespace of the Secret. Required.
	Namespace string
	// CA to keep. Required.
	CA *ca.CA
	// Overlap is how long each step of a replacement lasts. Required; see
	// [ca.Roots.Advance].
	Overlap time.Duration
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Log; default slog.Default.
	Log *slog.Logger
}

// Validate names every wrong setting.
func (c Config) Validate() error {
	var errs []error
	if c.Namespace == "" || c.CA == nil {
		errs = append(errs, errors.New("authority: Namespace and CA are required"))
	}
	if c.Overlap <= 0 {
		errs = append(errs, errors.New("authority: Overlap must be more than nothing: what somebody does not trust yet would sign"))
	}
	return errors.Join(errs...)
}

type keeper struct {
	config   Config
	client   client.Client
	reader   client.Reader // past the cache, which holds no content of Secrets
	recorder events.EventRecorder
	elected  <-chan struct{}
	last     ca.Roots // in force
}

// Add has manager keep the CA.
func Add(manager ctrl.Manager, config Config) error {
	if err := config.Validate(); err != nil {
		return err
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.Default()
	}
	k := &keeper{
		config: config, client: manager.GetClient(), reader: manager.GetAPIReader(),
		recorder: manager.GetEventRecorder("lambdamesh-authority"), elected: manager.Elected(),
	}
	request := reconcile.Request{NamespacedName: client.ObjectKey{Namespace: config.Namespace, Name: ca.SecretName}}
	err := builder.ControllerManagedBy(manager).Named("authority").
		// Every replica signs.
		WithOptions(controller.Options{NeedLeaderElection: new(false), SkipNameValidation: new(true)}).
		WatchesMetadata(&corev1.Secret{}, &handler.EnqueueRequestForObject{}, builder.WithPredicates(predicate.NewPredicateFuncs(func(object client.Object) bool {
			return client.ObjectKeyFromObject(object) == request.NamespacedName
		}))).
		WatchesRawSource(source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			queue.Add(request)
			go func() {
				select {
				case <-k.elected:
					queue.Add(request) // a step may be due
				case <-ctx.Done():
				}
			}()
			return nil
		})).
		Complete(k)
	if err != nil {
		return fmt.Errorf("authority: %w", err)
	}
	return nil
}

// Reconcile implements reconcile.Reconciler.
func (k *keeper) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	secret := &corev1.Secret{}
	err := k.reader.Get(ctx, request.NamespacedName, secret)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, k.restore(ctx)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("read the mesh CA: %w", err)
	}
	roots := ca.FromSecret(secret)
	if err := k.config.CA.Set(roots); err != nil {
		k.refuse(secret, err)
		return reconcile.Result{}, nil
	}
	k.last = roots
	if !k.leads() {
		return reconcile.Result{}, nil
	}
	_, asked := secret.Annotations[v1alpha1.AnnotationRotate]
	next, step, wait, err := roots.Advance(k.config.Now(), asked, k.config.Overlap)
	if err != nil {
		k.refuse(secret, err)
		return reconcile.Result{RequeueAfter: lookAgain}, nil // it may become valid
	}
	if step != "" || asked {
		next.Into(secret)
		delete(secret.Annotations, v1alpha1.AnnotationRotate)
		// In the version that was read: somebody else's change comes first.
		if err := k.client.Update(ctx, secret); apierrors.IsConflict(err) {
			return reconcile.Result{RequeueAfter: time.Second}, nil
		} else if err != nil {
			return reconcile.Result{}, fmt.Errorf("replace the mesh CA: %w", err)
		}
		if err := k.config.CA.Set(next); err != nil {
			return reconcile.Result{}, err
		}
		k.last = next
		k.say(secret, step, wait)
	}
	return reconcile.Result{RequeueAfter: min(max(wait, time.Second), lookAgain)}, nil
}

// restore writes a Secret again that somebody has deleted: everything in the mesh
// verifies by it.
func (k *keeper) restore(ctx context.Context) error {
	if !k.leads() || len(k.last.Issuer.CertPEM) == 0 {
		return nil
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: k.config.Namespace, Name: ca.SecretName}, Type: corev1.SecretTypeTLS}
	k.last.Into(secret)
	if err := k.client.Create(ctx, secret); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("write the mesh CA again: %w", err)
	}
	k.config.Log.Warn("the mesh's CA was deleted, and is written again: all of the mesh verifies by it", "secret", ca.SecretName)
	return nil
}

func (k *keeper) leads() bool {
	select {
	case <-k.elected:
		return true
	default:
		return false
	}
}

func (k *keeper) say(secret *corev1.Secret, step ca.Step, wait time.Duration) {
	message := map[ca.Step]string{
		"":           "the root is being replaced already",
		ca.StepTrust: "everybody is told to trust the next root, which signs in " + wait.String(),
		ca.StepSign:  "the next root signs, the last one is trusted for another " + wait.String(),
		ca.StepDone:  "the last root is forgotten",
	}[step]
	k.config.Log.Info("replacing the mesh's CA: "+message, "step", step)
	k.recorder.Eventf(secret, nil, corev1.EventTypeNormal, "Rotation"+string(step), "Rotate", "%s", message)
}

func (k *keeper) refuse(secret *corev1.Secret, err error) {
	k.config.Log.Error("the mesh's CA cannot be used as its Secret has it; the last one stays in force", "error", err)
	k.recorder.Eventf(secret, nil, corev1.EventTypeWarning, "BadAuthority", "Rotate", "%v; the last one stays in force", err)
}
