package localnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	istionetworking "istio.io/client-go/pkg/apis/networking/v1"
	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/lambdas/place"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
)

// apiTimeout bounds calls to the API server that must not hold up a stop.
const apiTimeout = 5 * time.Second

// Node runs Deployments as processes. It is a component.Component.
type Node struct {
	config Config
	client client.Client // not cached
	cached client.Reader // Deployments of lambdas and the objects of replicas
	runDir string
	ready  chan struct{}

	mu        sync.Mutex
	workloads map[types.NamespacedName]*workload
}

// New returns a node; Run starts it.
func New(config Config) (*Node, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Node{config: config.withDefaults(), ready: make(chan struct{}), workloads: map[types.NamespacedName]*workload{}}, nil
}

// Name returns "local node".
func (n *Node) Name() string { return "local node" }

// Ready is closed when the node watches Deployments.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// StopTimeout is how long Run may take to return once its context ended: a
// drain, and the process's own time to stop.
func (n *Node) StopTimeout() time.Duration {
	return n.config.DrainDelay + n.config.MaxDrain + maxGrace + 4*apiTimeout
}

// Run runs Deployments until ctx ends, then takes every replica out of the mesh
// and stops it.
func (n *Node) Run(ctx context.Context) error {
	scheme, err := kube.Scheme()
	if err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	if n.client, err = client.New(n.config.REST, client.Options{Scheme: scheme}); err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	runDir := cmp.Or(n.config.RunDir, filepath.Join(n.config.DataDir, "run", "lambdas"))
	if n.runDir, err = place.SocketDir(runDir, filepath.Join(newID(), adminSocket)); err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	defer func() { _ = os.RemoveAll(n.runDir) }() // sockets only
	if err := n.removeStale(ctx); err != nil {
		return err
	}
	lambdas, err := labels.Parse(v1alpha1.LabelManagedBy + "=" + v1alpha1.ManagedBy + "," + v1alpha1.LabelLambda)
	if err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	replicas, err := labels.Parse(replicaSelector)
	if err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	mgr, err := ctrl.NewManager(n.config.REST, ctrl.Options{
		Scheme: scheme, Logger: telemetry.Logr(n.config.Log),
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&appsv1.Deployment{}:             {Label: lambdas},
			&istionetworking.WorkloadEntry{}: {Label: replicas},
			&istionetworking.Sidecar{}:       {Label: replicas},
		}},
		Metrics:    server.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	n.cached = mgr.GetClient()
	err = ctrl.NewControllerManagedBy(mgr).Named("localnode").For(&appsv1.Deployment{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
		Complete(reconcilerFunc(func(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
			return ctrl.Result{}, n.reconcile(ctx, request.NamespacedName)
		}))
	if err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	go func() {
		if mgr.GetCache().WaitForCacheSync(ctx) {
			close(n.ready)
		}
	}()
	err = mgr.Start(ctx)
	n.stopAll(context.WithoutCancel(ctx))
	if err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	return nil
}

type reconcilerFunc func(context.Context, ctrl.Request) (ctrl.Result, error)

func (f reconcilerFunc) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	return f(ctx, request)
}

// reconcile hands a Deployment's state to its workload.
func (n *Node) reconcile(ctx context.Context, key types.NamespacedName) error {
	deployment := &appsv1.Deployment{}
	err := n.cached.Get(ctx, key, deployment)
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("read Deployment %s: %w", key, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	current := n.workloads[key]
	gone := err != nil || !deployment.DeletionTimestamp.IsZero()
	if current != nil && (gone || current.uid != deployment.UID) {
		current.stop() // in the background: a deletion must not hold up others
		delete(n.workloads, key)
		current = nil
	}
	if gone {
		return nil
	}
	if current == nil {
		current = newWorkload(ctx, n, deployment)
		n.workloads[key] = current
	}
	current.update(deployment)
	return nil
}

func (n *Node) stopAll(ctx context.Context) {
	n.mu.Lock()
	workloads := n.workloads
	n.workloads = map[types.NamespacedName]*workload{}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, n.StopTimeout())
	defer cancel()
	for _, workload := range workloads {
		workload.stop()
	}
	for _, workload := range workloads {
		select {
		case <-workload.done:
		case <-ctx.Done():
			n.config.Log.Error("a lambda did not stop in time", "lambda", workload.key)
		}
	}
}

// replicaSelector selects the objects of our replicas, not those of system
// members.
const replicaSelector = v1alpha1.LabelManagedBy + "=" + v1alpha1.ManagedBy + "," + v1alpha1.LabelReplica + "," + v1alpha1.LabelOwnerName + ",!" + v1alpha1.LabelMember

// removeStale removes what an earlier run could not: it was killed, and the
// endpoints it left lead nowhere.
func (n *Node) removeStale(ctx context.Context) error {
	selector, err := labels.Parse(replicaSelector)
	if err != nil {
		return fmt.Errorf("local node: %w", err)
	}
	var entries istionetworking.WorkloadEntryList
	var sidecars istionetworking.SidecarList
	if err := errors.Join(
		n.client.List(ctx, &entries, client.MatchingLabelsSelector{Selector: selector}),
		n.client.List(ctx, &sidecars, client.MatchingLabelsSelector{Selector: selector}),
	); err != nil {
		return fmt.Errorf("local node: look for replicas of an earlier run: %w", err)
	}
	var problems []error
	for _, entry := range entries.Items {
		problems = append(problems, client.IgnoreNotFound(n.client.Delete(ctx, entry)))
	}
	for _, sidecar := range sidecars.Items {
		problems = append(problems, client.IgnoreNotFound(n.client.Delete(ctx, sidecar)))
	}
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("local node: remove replicas of an earlier run: %w", err)
	}
	if count := len(entries.Items); count > 0 {
		n.config.Log.Info("removed replicas of an earlier run", "count", count)
	}
	return nil
}

// statusOK tells whether an admin endpoint answers 200.
func statusOK(ctx context.Context, client *http.Client, path string) bool {
	status, _, err := ask(ctx, client, path)
	return err == nil && status == http.StatusOK
}

// health asks a process whether it should be replaced, and why.
func health(ctx context.Context, client *http.Client) (trouble string, err error) {
	status, text, err := ask(ctx, client, "/healthz")
	if err != nil || status == http.StatusOK {
		return "", err
	}
	return cmp.Or(strings.TrimSpace(text), fmt.Sprintf("it answers %d to /healthz", status)), nil
}

// ask asks an admin endpoint.
func ask(ctx context.Context, client *http.Client, path string) (status int, text string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin"+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 300))
	return response.StatusCode, string(body), err
}
