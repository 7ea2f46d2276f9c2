package controller_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/lambdamesh/lambdamesh/lambdas/controller"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// testPods writes the statuses that kubelets and the scheduler would.
func testPods(t *testing.T, config *rest.Config, w *world, builder *fakeBuilder) {
	waiting := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	ended := func(code int32, reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message}}
	}
	lambda := func(state, last corev1.ContainerState, restarts int32) corev1.PodStatus {
		return corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{
			{Name: "lambda", Image: "i", State: state, LastTerminationState: last, RestartCount: restarts},
		}}
	}
	sidecar := lambda(waiting("PodInitializing", ""), corev1.ContainerState{}, 0)
	sidecar.InitContainerStatuses = []corev1.ContainerStatus{
		{Name: "mesh-proxy", Image: "i", State: waiting("ErrImagePull", "no such image: proxy:1"), LastTerminationState: corev1.ContainerState{}},
	}
	for name, test := range map[string]struct {
		status          corev1.PodStatus
		reason, message string
	}{
		"the image cannot be pulled": {
			lambda(waiting("ImagePullBackOff", `Back-off pulling image "a:1": not found`), corev1.ContainerState{}, 0),
			"ImagePullBackOff", `0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: Back-off pulling image "a:1": not found`,
		},
		"it ends again and again": {
			lambda(waiting("CrashLoopBackOff", "back-off 5m0s restarting failed container"), ended(1, "Error", "main.mjs:3\nReferenceError: x is not defined\n"), 4),
			"CrashLoopBackOff", "0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: ended with exit code 1 (restarted 4 times): main.mjs:3\nReferenceError: x is not defined",
		},
		"its runtime tells why, in its own format": {
			lambda(waiting("CrashLoopBackOff", "back-off"), ended(1, "Error", "started\n"+`{"level":"error","message":"cannot load the handler","error":"x is not defined","stack":"at main.mjs:3"}`+"\n"), 4),
			"CrashLoopBackOff", "0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: ended with exit code 1 (restarted 4 times): cannot load the handler: x is not defined",
		},
		"it ended": {
			lambda(ended(7, "Error", "boom"), corev1.ContainerState{}, 0),
			"Error", "0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: ended with exit code 7: boom",
		},
		"it takes too much memory": {
			lambda(waiting("CrashLoopBackOff", "back-off"), ended(137, "OOMKilled", ""), 2),
			"OOMKilled", "0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: was killed because it took more memory than its limit (restarted 2 times)",
		},
		"no node has room": {
			corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{
				Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/2 nodes are available: 2 Insufficient memory.",
			}}},
			"Unschedulable", "0 of 1 replicas of this version are ready; pod sample-7d-a: 0/2 nodes are available: 2 Insufficient memory.",
		},
		"a Secret is missing": {
			lambda(waiting("CreateContainerConfigError", `secret "keys" not found`), corev1.ContainerState{}, 0),
			"CreateContainerConfigError", `0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: secret "keys" not found`,
		},
		"the sidecar does not start": {sidecar, "ErrImagePull", "0 of 1 replicas of this version are ready; pod sample-7d-a, container mesh-proxy: no such image: proxy:1"},
		"a reason that no condition takes": {
			lambda(waiting("no reason!", "of a runtime"), corev1.ContainerState{}, 0),
			"PodFailed", "0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: of a runtime",
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns := testkit.Namespace(t, config)
			builder.set(ns, builds("registry.example/a:1"))
			l := w.create(t, ns, nil)
			w.wait(t, l, v1alpha1.ConditionDeployed, metav1.ConditionFalse, controller.ReasonProgressing, "0 of 1 replicas")
			pod := w.pod(t, ns, "sample-7d-a", "sample-7d")
			w.report(t, pod, test.status)
			w.wait(t, l, v1alpha1.ConditionReady, metav1.ConditionFalse, test.reason, test.message)

			w.report(t, pod, lambda(waiting("ContainerCreating", ""), corev1.ContainerState{}, 0))
			w.wait(t, l, v1alpha1.ConditionDeployed, metav1.ConditionFalse, controller.ReasonProgressing, "0 of 1 replicas")
		})
	}

	t.Run("a pod that only has the label says nothing about the lambda", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		l := w.create(t, ns, nil)
		w.wait(t, l, v1alpha1.ConditionDeployed, metav1.ConditionFalse, controller.ReasonProgressing, "0 of 1 replicas")
		theirs := w.pod(t, ns, "theirs", "other-7d")
		w.report(t, theirs, lambda(waiting("ImagePullBackOff", "theirs"), corev1.ContainerState{}, 0))
		ours := w.pod(t, ns, "sample-7d-a", "sample-7d")
		w.report(t, ours, lambda(waiting("ErrImagePull", "ours"), corev1.ContainerState{}, 0))
		w.wait(t, l, v1alpha1.ConditionDeployed, metav1.ConditionFalse, "ErrImagePull", "0 of 1 replicas of this version are ready; pod sample-7d-a, container lambda: ours")
	})

	t.Run("restarts of a replica that serves are told beside what runs", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		l := w.create(t, ns, nil)
		w.rollOut(t, ns)
		w.wait(t, l, v1alpha1.ConditionDeployed, metav1.ConditionTrue, controller.ReasonDeployed, "")
		status := lambda(corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(time.Now())}}, ended(137, "OOMKilled", ""), 3)
		status.Phase, status.Conditions = corev1.PodRunning, []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		w.report(t, w.pod(t, ns, "sample-7d-a", "sample-7d"), status)
		w.wait(t, l, v1alpha1.ConditionDeployed, metav1.ConditionTrue, controller.ReasonDeployed,
			"1 replicas: this version does not scale up to scale.max by itself in a cluster, an autoscaler on the Deployment may; pod sample-7d-a, container lambda: was killed because it took more memory than its limit (restarted 3 times)")
	})
}

// pod makes a pod of the lambda sample in the name of a ReplicaSet.
func (w *world) pod(t *testing.T, namespace, name, owner string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: namespace, Labels: map[string]string{v1alpha1.LabelLambda: "sample", "pod-template-hash": "7d"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: "1", Controller: new(true)}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "lambda", Image: "registry.example/a:1"}}},
	}
	require.NoError(t, w.client.Create(t.Context(), pod))
	return pod
}

func (w *world) report(t *testing.T, pod *corev1.Pod, status corev1.PodStatus) {
	t.Helper()
	pod.Status = status
	require.NoError(t, w.client.Status().Update(t.Context(), pod))
}
