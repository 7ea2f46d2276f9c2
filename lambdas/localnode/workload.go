package localnode

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// fieldManager of what the node writes into a Deployment's spec.
const fieldManager = v1alpha1.ManagedBy + "-localnode"

// workload keeps one Deployment running. One goroutine owns its replicas; it
// wakes up when the Deployment or a replica changed.
type workload struct {
	node *Node
	key  types.NamespacedName
	uid  types.UID

	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	desired *appsv1.Deployment
	known   []*replica // as the goroutine left them
}

func newWorkload(ctx context.Context, node *Node, deployment *appsv1.Deployment) *workload {
	// It outlives the reconciliation that makes it, and the node's context:
	// replicas still drain when the node stops.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &workload{
		node: node, key: client.ObjectKeyFromObject(deployment), uid: deployment.UID,
		wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{}),
		desired: deployment.DeepCopy(),
	}
	go w.run(ctx)
	return w
}

// update hands over the newest state of the Deployment.
func (w *workload) update(deployment *appsv1.Deployment) {
	w.mu.Lock()
	w.desired = deployment.DeepCopy()
	w.mu.Unlock()
	w.changed()
}

// stop begins to stop all replicas; done is closed when they have.
func (w *workload) stop() { w.cancel() }

// socket is that of a process which answers, the newest there is, or "".
func (w *workload) socket() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range slices.Backward(w.known) {
		if state := r.observe(); state.ready && !state.stopping {
			return state.socket
		}
	}
	return ""
}

func (w *workload) changed() {
	select {
	case w.wake <- struct{}{}:
	default: // a wake-up is pending and will see this change too
	}
}

func (w *workload) run(ctx context.Context) {
	defer close(w.done)
	var replicas []*replica
	var scaler scaler
	ticker := time.NewTicker(scaleInterval)
	defer ticker.Stop()
	var written *appsv1.DeploymentStatus
	for {
		select {
		case <-ctx.Done():
			for _, r := range replicas {
				r.stop()
			}
			for _, r := range replicas {
				<-r.done
			}
			return
		case <-w.wake:
		case <-ticker.C:
			w.mu.Lock()
			desired := w.desired
			w.mu.Unlock()
			scale, scaled := deploy.ScaleOf(desired)
			if before := scaler.target; !scaled || !scale.Moves() || scaler.decide(time.Now(), scale, inFlight(replicas)) == before {
				continue
			}
		}
		w.mu.Lock()
		desired := w.desired
		w.mu.Unlock()
		wanted := wantedReplicas(desired)
		scale, scaled := deploy.ScaleOf(desired)
		if scaled && scale.Moves() {
			wanted = scaler.decide(time.Now(), scale, inFlight(replicas))
		}
		replicas = w.converge(ctx, desired, wanted, replicas)
		w.mu.Lock()
		w.known = slices.Clone(replicas)
		w.mu.Unlock()
		if scaled && scale.Moves() {
			// Those that sleep are places in the mesh without a process.
			awake := wanted
			if wanted == 1 && slices.ContainsFunc(replicas, func(r *replica) bool { s := r.observe(); return s.asleep && !s.stopping }) {
				awake = 0
			}
			if err := w.writeReplicas(ctx, desired, awake); err != nil {
				w.node.config.Log.Warn("cannot write a Deployment's scale; will try again", "deployment", w.key, "error", err)
				time.AfterFunc(time.Second, w.changed)
				continue
			}
		}
		status := statusOf(desired, replicas)
		if written == nil || !equality.Semantic.DeepEqual(*written, status) {
			if err := w.writeStatus(ctx, status); err != nil {
				w.node.config.Log.Warn("cannot write a Deployment's status; will try again", "deployment", w.key, "error", err)
				time.AfterFunc(time.Second, w.changed)
				continue
			}
			written = &status
		}
	}
}

// converge starts and stops replicas so that, in the end, those of the newest
// pod template are as many as wanted, and never fewer ready ones on the way
// than there need to be.
func (w *workload) converge(ctx context.Context, desired *appsv1.Deployment, wanted int, replicas []*replica) []*replica {
	revision := revisionOf(desired)
	replicas = slices.DeleteFunc(replicas, func(r *replica) bool { return isClosed(r.done) })

	var current, outdated []*replica
	ready := 0
	for _, r := range replicas {
		state := r.observe()
		switch {
		case state.stopping:
			continue
		case r.revision == revision:
			current = append(current, r)
		default:
			outdated = append(outdated, r)
		}
		if state.ready {
			ready++
		}
	}
	for len(current) < wanted {
		r := newReplica(ctx, w, desired, revision)
		current = append(current, r)
		replicas = append(replicas, r)
		w.node.config.Log.Info("starting a replica", "lambda", w.key.String(), "replica", r.name)
	}
	// Those that serve nothing go at once, ready ones when they are not needed.
	excess := append(outdated, current[wanted:]...)
	slices.SortStableFunc(excess, func(a, b *replica) int { return rank(a) - rank(b) })
	for _, r := range excess {
		if r.observe().ready {
			if ready <= wanted {
				continue
			}
			ready--
		}
		w.node.config.Log.Info("stopping a replica", "lambda", w.key.String(), "replica", r.name)
		r.stop()
	}
	return replicas
}

func rank(r *replica) int {
	if r.observe().ready {
		return 1
	}
	return 0
}

func wantedReplicas(deployment *appsv1.Deployment) int {
	if deployment.Spec.Replicas == nil {
		return 1
	}
	return int(*deployment.Spec.Replicas)
}

// revisionOf is the same for the same pod template.
func revisionOf(deployment *appsv1.Deployment) string {
	text, err := json.Marshal(deployment.Spec.Template)
	if err != nil {
		return "unknown" // a struct of the API always encodes
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])[:10]
}

// statusOf is the Deployment's status as a deployment controller would report
// it.
func statusOf(desired *appsv1.Deployment, replicas []*replica) appsv1.DeploymentStatus {
	wanted := wantedReplicas(desired)
	revision := revisionOf(desired)
	status := appsv1.DeploymentStatus{ObservedGeneration: desired.Generation}
	updatedReady, crashReason, crash := 0, "", ""
	var restarts []string
	for _, r := range replicas {
		state := r.observe()
		if state.stopping || state.asleep {
			continue
		}
		status.Replicas++
		if state.ready {
			status.ReadyReplicas++
			status.AvailableReplicas++
		}
		if r.revision != revision {
			continue
		}
		status.UpdatedReplicas++
		if state.lastFailure != "" {
			restarts = append(restarts, state.lastFailure)
		}
		if state.ready {
			updatedReady++
		} else if state.failure != "" {
			crashReason, crash = state.failureReason, state.failure
		}
	}
	status.UnavailableReplicas = max(int32(wanted)-status.AvailableReplicas, 0) //nolint:gosec // at most 1000

	available := corev1.ConditionFalse
	if int(status.AvailableReplicas) >= wanted {
		available = corev1.ConditionTrue
	}
	status.Conditions = append(status.Conditions, appsv1.DeploymentCondition{
		Type: appsv1.DeploymentAvailable, Status: available, Reason: "MinimumReplicas", Message: fmt.Sprintf("%d of %d replicas are available", status.AvailableReplicas, wanted),
	})
	progressing := appsv1.DeploymentCondition{Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: "ReplicasUpdated", Message: fmt.Sprintf("%d of %d replicas of the newest template are ready", updatedReady, wanted)}
	if updatedReady == wanted && int(status.Replicas) == wanted {
		progressing.Reason = "NewReplicaSetAvailable" // what kubectl rollout status looks for
	}
	status.Conditions = append(status.Conditions, progressing)
	if crash != "" {
		status.Conditions = append(status.Conditions, appsv1.DeploymentCondition{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: crashReason, Message: crash})
	}
	if len(restarts) > 0 {
		slices.Sort(restarts)
		status.Conditions = append(status.Conditions, appsv1.DeploymentCondition{Type: deploy.ConditionRestarted, Status: corev1.ConditionTrue, Reason: "ProcessEnded", Message: strings.Join(restarts, "; ")})
	}
	return status
}

// inFlight counts the requests in all replicas that stay.
func inFlight(replicas []*replica) (n int) {
	for _, r := range replicas {
		if !r.observe().stopping {
			n += r.activeRequests()
		}
	}
	return n
}

// alone tells whether no other replica serves the lambda.
func (w *workload) alone(r *replica) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !slices.ContainsFunc(w.known, func(other *replica) bool { return other != r && !isClosed(other.done) })
}

// writeReplicas tells in the Deployment how many there are.
func (w *workload) writeReplicas(ctx context.Context, desired *appsv1.Deployment, replicas int) error {
	if wantedReplicas(desired) == replicas {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	target := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: w.key.Namespace, Name: w.key.Name}}
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"spec":{"replicas":%d}}`, w.uid, replicas)
	err := w.node.client.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch), client.FieldOwner(fieldManager))
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // gone, or another one of its name
		return fmt.Errorf("write the replicas of Deployment %s: %w", w.key, err)
	}
	return nil
}

// writeStatus replaces the status; times of conditions that did not change stay.
func (w *workload) writeStatus(ctx context.Context, status appsv1.DeploymentStatus) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	deployment := &appsv1.Deployment{}
	if err := w.node.client.Get(ctx, w.key, deployment); err != nil {
		return client.IgnoreNotFound(err)
	}
	if deployment.UID != w.uid {
		return nil
	}
	before := deployment.DeepCopy()
	now := metav1.Now()
	status = *status.DeepCopy()
	for i := range status.Conditions {
		condition := &status.Conditions[i]
		condition.LastUpdateTime, condition.LastTransitionTime = now, now
		for _, old := range before.Status.Conditions {
			if old.Type == condition.Type && old.Status == condition.Status {
				condition.LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	deployment.Status = status
	if err := w.node.client.Status().Patch(ctx, deployment, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of Deployment %s: %w", w.key, err)
	}
	return nil
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
