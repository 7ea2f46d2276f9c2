package members

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
)

const fieldManager = v1alpha1.ManagedBy + "-members"

// lookAgain is when a ConfigMap of somebody else's is looked at again: the cache may
// not tell that it went.
const lookAgain = time.Minute

//go:embed envoy.yaml xds-token.yaml
var files embed.FS //nolint:gochecknoglobals // what go:embed needs

// ConfigMaps says what the ConfigMap of a namespace holds, and where one is.
type ConfigMaps struct {
	// CA of the mesh, by whose roots members verify each other. Required by Add.
	CA *ca.CA
	// XDSAddress is the host:port of the ADS server for pods of any namespace;
	// its certificate must name the host. Required.
	XDSAddress string
	// SystemNamespace, which always has one. Required.
	SystemNamespace string
}

// Data of the ConfigMap.
func (c ConfigMaps) Data() (map[string]string, error) {
	host, port, err := net.SplitHostPort(c.XDSAddress)
	if err != nil || host == "" {
		return nil, fmt.Errorf("the control plane's address for sidecars %q: write host:port", c.XDSAddress)
	}
	replacer := strings.NewReplacer(
		"@ADMIN_PORT@", strconv.Itoa(sidecar.AdminPort), "@READY_PORT@", strconv.Itoa(sidecar.ReadyPort),
		"@XDS_HOST@", host, "@XDS_PORT@", port, "@DIR@", sidecar.MeshDir,
	)
	data := map[string]string{}
	if c.CA != nil {
		data[sidecar.CAFile] = string(c.CA.Root())
	}
	for _, name := range []string{sidecar.BootstrapFile, sidecar.SecretFile} {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read the embedded %s: %w", name, err)
		}
		data[name] = replacer.Replace(string(text))
	}
	return data, nil
}

// Add has the leader keep the ConfigMaps. The manager's cache holds pods, and the
// ConfigMaps that are ours.
func (c ConfigMaps) Add(mgr ctrl.Manager) error {
	if c.CA == nil || c.SystemNamespace == "" {
		return errors.New("configure the mesh's ConfigMaps: CA and SystemNamespace are required")
	}
	if _, err := c.Data(); err != nil {
		return fmt.Errorf("configure the mesh's ConfigMaps: %w", err)
	}
	r := &configMaps{client: mgr.GetClient(), reader: mgr.GetAPIReader(), events: mgr.GetEventRecorder(fieldManager), system: c.SystemNamespace, config: c}
	namespace := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: v1alpha1.ConfigMapMesh}}}
	})
	// Only that one comes and goes counts: how many there are does not.
	comesAndGoes := builder.WithPredicates(predicate.Funcs{UpdateFunc: func(event.UpdateEvent) bool { return false }})
	named := builder.WithPredicates(predicate.NewPredicateFuncs(func(o client.Object) bool { return o.GetName() == v1alpha1.ConfigMapMesh }))
	err := ctrl.NewControllerManagedBy(mgr).
		Named("mesh-configmap").
		For(&corev1.ConfigMap{}, named).
		Watches(&v1alpha1.Lambda{}, namespace, comesAndGoes).
		Watches(&corev1.Pod{}, namespace, comesAndGoes, builder.WithPredicates(predicate.NewPredicateFuncs(asks))).
		WatchesRawSource(whenChanged(c.CA, r.all)).
		WithOptions(controller.Options{SkipNameValidation: new(true)}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("add the controller of the mesh's ConfigMaps: %w", err)
	}
	return nil
}

type configMaps struct {
	client client.Client
	reader client.Reader
	events events.EventRecorder
	system string
	config ConfigMaps
}

// whenChanged asks for requests at the start and whenever other roots are in force.
func whenChanged(authority *ca.CA, requests func(context.Context) []reconcile.Request) source.Source {
	return source.Func(func(ctx context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
		go func() {
			for {
				changed := authority.Changed()
				for _, request := range requests(ctx) {
					queue.Add(request)
				}
				select {
				case <-changed:
				case <-ctx.Done():
					return
				}
			}
		}()
		return nil
	})
}

// all ConfigMaps that there are, and that of the system.
func (r *configMaps) all(ctx context.Context) []reconcile.Request {
	requests := []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: r.system, Name: v1alpha1.ConfigMapMesh}}}
	var list corev1.ConfigMapList
	if err := r.client.List(ctx, &list); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "listing the mesh's ConfigMaps failed")
	}
	for i := range list.Items {
		if list.Items[i].Name == v1alpha1.ConfigMapMesh {
			requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return requests
}

// Reconcile implements reconcile.Reconciler.
func (r *configMaps) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	data, err := r.config.Data()
	if err != nil {
		return reconcile.Result{}, err
	}
	object := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{
			Name: v1alpha1.ConfigMapMesh, Namespace: request.Namespace,
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		},
		Data: data,
	}
	wanted, err := r.wanted(ctx, request.Namespace)
	if err != nil {
		return reconcile.Result{}, err
	}
	existing, err := r.existing(ctx, request)
	if err != nil {
		return reconcile.Result{}, err
	}
	if existing != nil && !ours(existing) {
		if !wanted {
			return reconcile.Result{}, nil
		}
		r.events.Eventf(existing, nil, corev1.EventTypeWarning, "NotOurs", "Keep",
			"sidecars in this namespace read the mesh's CA from a ConfigMap of this name, and somebody else made this one: delete it, or label it %s=%s to have it overwritten",
			v1alpha1.LabelManagedBy, v1alpha1.ManagedBy)
		return reconcile.Result{RequeueAfter: lookAgain}, nil
	}
	if wanted {
		err := kube.Apply(ctx, r.client, fieldManager, object)
		if apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return reconcile.Result{}, nil // the namespace is going
		}
		return reconcile.Result{}, err
	}
	if existing == nil {
		return reconcile.Result{}, nil
	}
	if err := client.IgnoreNotFound(r.client.Delete(ctx, existing, client.Preconditions{UID: &existing.UID})); err != nil {
		return reconcile.Result{}, fmt.Errorf("delete ConfigMap %s: %w", client.ObjectKeyFromObject(object), err)
	}
	return reconcile.Result{}, nil
}

// existing is the ConfigMap that is there, or nil.
func (r *configMaps) existing(ctx context.Context, request reconcile.Request) (*corev1.ConfigMap, error) {
	found := &corev1.ConfigMap{}
	err := r.client.Get(ctx, request.NamespacedName, found)
	if apierrors.IsNotFound(err) || err == nil && !ours(found) {
		// The cache need not hold what others made, nor who did.
		err = r.reader.Get(ctx, request.NamespacedName, found)
	}
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none, which is no error
	}
	if err != nil {
		return nil, fmt.Errorf("look for ConfigMap %s: %w", request, err)
	}
	return found, nil
}

// wanted where there is a lambda or a pod with a sidecar, and in the system's own
// namespace.
func (r *configMaps) wanted(ctx context.Context, namespace string) (bool, error) {
	if namespace == r.system {
		return true, nil
	}
	var lambdas v1alpha1.LambdaList
	var pods corev1.PodList
	if err := r.client.List(ctx, &lambdas, client.InNamespace(namespace), client.Limit(1)); err != nil {
		return false, fmt.Errorf("look for Lambdas in namespace %s: %w", namespace, err)
	}
	if err := r.client.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelSidecar: "true"}, client.Limit(1)); err != nil {
		return false, fmt.Errorf("look for pods with sidecars in namespace %s: %w", namespace, err)
	}
	return len(lambdas.Items) > 0 || len(pods.Items) > 0, nil
}

// asks for a sidecar, or has one.
func asks(pod client.Object) bool { return pod.GetLabels()[v1alpha1.LabelSidecar] == "true" }

// ours is a ConfigMap that we made, or that somebody has labeled to be: a label that
// was taken away makes it nobody else's.
func ours(existing *corev1.ConfigMap) bool {
	return existing.Labels[v1alpha1.LabelManagedBy] == v1alpha1.ManagedBy ||
		slices.ContainsFunc(existing.ManagedFields, func(m metav1.ManagedFieldsEntry) bool {
			return m.Manager == fieldManager && m.Operation == metav1.ManagedFieldsOperationApply
		})
}
