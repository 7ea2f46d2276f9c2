package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	reasonUnschedulable = corev1.PodReasonUnschedulable
	reasonOOMKilled     = "OOMKilled"
	reasonPodFailed     = "PodFailed"
	reasonRestarted     = "Restarted"

	// maxWords is how much of what a pod says becomes a condition's message.
	maxWords = 1 << 10
)

// newPods is a cache of the pods of lambdas that keeps no more of them than
// trouble reads. The manager's holds what the mesh wants of pods.
func newPods(mgr ctrl.Manager) (cache.Cache, error) {
	lambda, err := labels.NewRequirement(v1alpha1.LabelLambda, selection.Exists, nil)
	if err != nil {
		return nil, err
	}
	pods, err := cache.New(mgr.GetConfig(), cache.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
		ByObject: map[client.Object]cache.ByObject{&corev1.Pod{}: {
			Label: labels.NewSelector().Add(*lambda),
			Transform: func(object any) (any, error) {
				if pod, ok := object.(*corev1.Pod); ok {
					pod.ManagedFields, pod.Annotations, pod.Spec = nil, nil, corev1.PodSpec{}
				}
				return object, nil
			},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("make a cache of pods: %w", err)
	}
	return pods, mgr.Add(pods)
}

// trouble is why a pod does not serve, or did not a moment ago, in the words of
// who found out: the scheduler, the kubelet, or the program that ended.
type trouble struct{ reason, message string }

// podsOf are the lambda's, the youngest first. A label alone makes no pod a
// lambda's: it needs the ReplicaSet of its Deployment as an owner.
func (r *reconciler) podsOf(ctx context.Context, lambda *v1alpha1.Lambda) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := r.pods.List(ctx, &list, client.InNamespace(lambda.Namespace), client.MatchingLabels{v1alpha1.LabelLambda: lambda.Name}); err != nil {
		return nil, fmt.Errorf("list the pods of lambda %s: %w", client.ObjectKeyFromObject(lambda), err)
	}
	pods := slices.DeleteFunc(list.Items, func(pod corev1.Pod) bool {
		owner := metav1.GetControllerOf(&pod)
		return !pod.DeletionTimestamp.IsZero() || owner == nil || owner.Kind != "ReplicaSet" ||
			owner.Name != lambda.Name+"-"+pod.Labels["pod-template-hash"]
	})
	slices.SortFunc(pods, func(a, b corev1.Pod) int {
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	return pods, nil
}

// troubleOf the youngest pod that has any. What an older pod that failed for
// good said is old news once there is a younger one.
func troubleOf(pods []corev1.Pod) trouble {
	for i := range pods {
		if t := podTrouble(&pods[i]); t.reason != "" && (i == 0 || pods[i].Status.Phase != corev1.PodFailed) {
			return t
		}
	}
	return trouble{}
}

// podTrouble tells what is wrong with a pod, or nothing.
func podTrouble(pod *corev1.Pod) trouble {
	if pod.Status.Phase == corev1.PodFailed {
		return trouble{reasonOr(pod.Status.Reason, reasonPodFailed), words(pod.Name, "", pod.Status.Message)}
	}
	ready := false
	for _, condition := range pod.Status.Conditions {
		switch {
		case condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse:
			return trouble{reasonOr(condition.Reason, reasonUnschedulable), words(pod.Name, "", condition.Message)}
		case condition.Type == corev1.PodReady:
			ready = condition.Status == corev1.ConditionTrue
		}
	}
	// A sidecar comes before the lambda: without it the lambda does not start.
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if t := containerTrouble(pod.Name, status, ready); t.reason != "" {
			return t
		}
	}
	return trouble{}
}

func containerTrouble(pod string, status corev1.ContainerStatus, ready bool) trouble {
	ended := status.State.Terminated
	if ended == nil {
		ended = status.LastTerminationState.Terminated
	}
	if waiting := status.State.Waiting; waiting != nil {
		switch {
		case waiting.Reason == "" || waiting.Reason == "ContainerCreating" || waiting.Reason == "PodInitializing":
			return trouble{}
		case waiting.Reason != "CrashLoopBackOff" || ended == nil:
			return trouble{reasonOr(waiting.Reason, reasonPodFailed), words(pod, status.Name, waiting.Message)}
		case ended.Reason == reasonOOMKilled:
			return trouble{reasonOOMKilled, words(pod, status.Name, ending(status, ended))}
		default:
			return trouble{waiting.Reason, words(pod, status.Name, ending(status, ended))}
		}
	}
	switch {
	case ended == nil || status.State.Terminated != nil && ended.ExitCode == 0: // an init container that is through
		return trouble{}
	case status.State.Running != nil && ready:
		return trouble{reasonRestarted, words(pod, status.Name, ending(status, ended))}
	}
	return trouble{reasonOr(ended.Reason, reasonPodFailed), words(pod, status.Name, ending(status, ended))}
}

// ending tells how a container ended. Its message is the end of its log
// (FallbackToLogsOnError), which says most.
func ending(status corev1.ContainerStatus, ended *corev1.ContainerStateTerminated) string {
	how := fmt.Sprintf("ended with exit code %d", ended.ExitCode)
	if ended.Reason == reasonOOMKilled {
		how = "was killed because it took more memory than its limit"
	}
	if status.RestartCount > 0 {
		how += fmt.Sprintf(" (restarted %d times)", status.RestartCount)
	}
	if said := lastWords(ended.Message); said != "" {
		how += ": " + said
	}
	return how
}

// lastWords are what the runtimes' last line of log says, without its stack; of
// other programs, all.
func lastWords(log string) string {
	log = strings.TrimSpace(log)
	var line struct{ Message, Error string }
	if err := json.Unmarshal([]byte(log[strings.LastIndexByte(log, '\n')+1:]), &line); err != nil || line.Message == "" {
		return log
	}
	if line.Error == "" {
		return line.Message
	}
	return line.Message + ": " + line.Error
}

func words(pod, container, said string) string {
	who := "pod " + pod
	if container != "" {
		who += ", container " + container
	}
	if said = strings.ToValidUTF8(strings.TrimSpace(said), "?"); said == "" {
		return who
	}
	if len(said) > maxWords { // what comes last tells why
		said = "..." + strings.ToValidUTF8(said[len(said)-maxWords:], "")
	}
	return who + ": " + said
}

// reasonOr holds what others call a reason to what a condition takes.
func reasonOr(reason, otherwise string) string {
	if regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_,:]{0,254}[A-Za-z0-9_])?$`).MatchString(reason) {
		return reason
	}
	return otherwise
}

// podChanges lets through what changes a lambda's status: a pod's status changes
// far more often than its trouble.
func podChanges() predicate.TypedPredicate[*corev1.Pod] {
	return predicate.TypedFuncs[*corev1.Pod]{
		CreateFunc: func(e event.TypedCreateEvent[*corev1.Pod]) bool { return podTrouble(e.Object) != trouble{} },
		DeleteFunc: func(e event.TypedDeleteEvent[*corev1.Pod]) bool { return podTrouble(e.Object) != trouble{} },
		UpdateFunc: func(e event.TypedUpdateEvent[*corev1.Pod]) bool {
			return podTrouble(e.ObjectOld) != podTrouble(e.ObjectNew) ||
				e.ObjectOld.DeletionTimestamp.IsZero() != e.ObjectNew.DeletionTimestamp.IsZero()
		},
	}
}

func lambdaOfPod(_ context.Context, pod *corev1.Pod) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: pod.Labels[v1alpha1.LabelLambda]}}}
}
