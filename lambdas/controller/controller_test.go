package controller_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/controller"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// fakeBuilder gives what a test says, by namespace.
type fakeBuilder struct {
	mu      sync.Mutex
	results map[string]func(*v1alpha1.Lambda) (build.Artifact, error)
	calls   map[string]int
}

func (b *fakeBuilder) Build(_ context.Context, lambda *v1alpha1.Lambda) (build.Artifact, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls[lambda.Namespace]++
	return b.results[lambda.Namespace](lambda)
}

func (b *fakeBuilder) set(namespace string, result func(*v1alpha1.Lambda) (build.Artifact, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.results[namespace] = result
}

func (b *fakeBuilder) count(namespace string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[namespace]
}

func builds(image string) func(*v1alpha1.Lambda) (build.Artifact, error) {
	return func(*v1alpha1.Lambda) (build.Artifact, error) {
		return build.Artifact{Image: image, SourceHash: "1"}, nil
	}
}

func TestController(t *testing.T) {
	config := testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	log, err := telemetry.Logger(t.Output(), telemetry.LogConfig{})
	require.NoError(t, err)
	var caches cache.Options
	controller.ConfigureCache(&caches)
	refuses := &refusal{namespaces: map[string]bool{}}
	mgr, err := ctrl.NewManager(config, ctrl.Options{Scheme: scheme, Cache: caches, NewClient: refuses.newClient, Metrics: server.Options{BindAddress: "0"}, Logger: telemetry.Logr(log)})
	require.NoError(t, err)
	builder := &fakeBuilder{results: map[string]func(*v1alpha1.Lambda) (build.Artifact, error){}, calls: map[string]int{}}
	require.NoError(t, controller.Add(mgr, controller.Config{Builder: builder, Log: log}))
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-stopped)
	})
	w := &world{client: c}

	t.Run("an artifact is deployed, and the status follows the Deployment's", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		lambda := w.create(t, ns, func(l *v1alpha1.Lambda) { l.Spec.Scale.Concurrency = new(int32(7)) })
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, controller.ReasonProgressing, "0 of 1 replicas")
		w.rollOut(t, ns)
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "")
		require.Equal(t, "registry.example/a:1", lambda.Status.Image)
		require.Equal(t, int32(1), lambda.Status.ReadyReplicas)
		require.Equal(t, lambda.Generation, lambda.Status.ObservedGeneration)
		deployed := meta.FindStatusCondition(lambda.Status.Conditions, v1alpha1.ConditionDeployed)
		require.Contains(t, deployed.Message, "does not scale up to scale.max", "what this version leaves out is told")
	})

	t.Run("replicas are left to who scales them, between min and max", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		lambda := w.create(t, ns, nil)
		w.rollOut(t, ns)
		scale := func(replicas int) {
			deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "sample"}}
			patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas))
			require.NoError(t, w.client.Patch(t.Context(), deployment, patch, client.FieldOwner("autoscaler")))
		}
		change := func(change func(*v1alpha1.Lambda)) {
			testkit.Eventually(t, time.Minute, func() error {
				if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(lambda), lambda); err != nil {
					return err
				}
				change(lambda)
				return w.client.Update(t.Context(), lambda)
			}, "the lambda is changed")
		}
		has := func(replicas int32, concurrency string) {
			t.Helper()
			testkit.Eventually(t, time.Minute, func() error {
				deployment := w.deployment(t, ns)
				told := deployment.Annotations[v1alpha1.AnnotationScale]
				if *deployment.Spec.Replicas != replicas || !strings.Contains(told, concurrency) {
					return fmt.Errorf("%d replicas, scale %s", *deployment.Spec.Replicas, told)
				}
				return nil
			}, "the replicas are as wanted")
		}
		scale(3)
		change(func(l *v1alpha1.Lambda) { l.Spec.Scale.Concurrency = new(int32(7)) })
		has(3, `"concurrency":7`)
		scale(9)
		has(5, `"concurrency":7`)
		change(func(l *v1alpha1.Lambda) { l.Spec.Scale.Min, l.Spec.Scale.Max = new(int32(2)), new(int32(2)) })
		has(2, `"max":2`)
		change(func(l *v1alpha1.Lambda) { l.Spec.Scale.Max = new(int32(6)) })
		has(2, `"max":6`)
		change(func(l *v1alpha1.Lambda) { l.Spec.Scale.Min = new(int32(4)) })
		has(4, `"min":4`)
		change(func(l *v1alpha1.Lambda) { l.Spec.Scale.Min = new(int32(1)) })
		has(1, `"min":1`)
	})

	t.Run("a failed build keeps the last good version and is not tried again before the source changes", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		lambda := w.create(t, ns, nil)
		w.rollOut(t, ns)
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "")

		builder.set(ns, func(*v1alpha1.Lambda) (build.Artifact, error) {
			return build.Artifact{}, &source.Error{Reason: source.ReasonBuildFailed, Message: "main.go:7:2: undefined: x"}
		})
		w.change(t, lambda, func(l *v1alpha1.Lambda) { l.Spec.Source.Inline.Code = "broken" })
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, source.ReasonBuildFailed, "main.go:7:2: undefined: x")
		w.wait(t, lambda, v1alpha1.ConditionDeployed, metav1.ConditionFalse, controller.ReasonSourceFailed, "the last version that built keeps running")
		require.Equal(t, "registry.example/a:1", lambda.Status.Image)
		require.Equal(t, int32(1), lambda.Status.ReadyReplicas)

		before := builder.count(ns)
		w.touchDeployment(t, ns)
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, source.ReasonBuildFailed, "")
		require.Equal(t, before, builder.count(ns))

		builder.set(ns, builds("registry.example/a:2"))
		w.change(t, lambda, func(l *v1alpha1.Lambda) { l.Spec.Source.Inline.Code = "fixed" })
		testkit.Eventually(t, time.Minute, func() error {
			if image := w.deployment(t, ns).Spec.Template.Spec.Containers[0].Image; image != "registry.example/a:2" {
				return errors.New(image)
			}
			return nil
		}, "the new image is deployed")
	})

	t.Run("a build that cannot be done for another reason is tried again", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, func(*v1alpha1.Lambda) (build.Artifact, error) { return build.Artifact{}, errors.New("disk full") })
		lambda := w.create(t, ns, nil)
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, source.ReasonBuildFailed, "disk full")
		builder.set(ns, builds("registry.example/a:1"))
		w.wait(t, lambda, v1alpha1.ConditionSourceReady, metav1.ConditionTrue, source.ReasonBuilt, "")
	})

	t.Run("a missing language is told with what to install", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, func(*v1alpha1.Lambda) (build.Artifact, error) {
			return build.Artifact{}, &source.Error{Reason: source.ReasonRuntimeMissing, Message: "Node.js is not installed"}
		})
		lambda := w.create(t, ns, nil)
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, source.ReasonRuntimeMissing, "Node.js is not installed")
		w.wait(t, lambda, v1alpha1.ConditionDeployed, metav1.ConditionFalse, controller.ReasonSourceFailed, "nothing is deployed until the source builds")
	})

	t.Run("what this version does not implement is refused, not ignored", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		lambda := w.create(t, ns, func(l *v1alpha1.Lambda) { l.Spec.Scale.Min = new(int32(0)) })
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotSupported, "scale.min: 0")
		err := c.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "sample"}, &appsv1.Deployment{})
		require.True(t, apierrors.IsNotFound(err), "%v", err)
	})

	t.Run("what the API server refuses is told with the field", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		lambda := w.create(t, ns, func(l *v1alpha1.Lambda) {
			l.Spec.Resources = &v1alpha1.LambdaResources{
				Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("2Gi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")},
			}
		})
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonInvalid, "")
		deployed := meta.FindStatusCondition(lambda.Status.Conditions, v1alpha1.ConditionDeployed)
		require.Contains(t, deployed.Message, "must be less than or equal to memory limit")
	})

	t.Run("a mounted source has a ConfigMap, and that of an older version goes when the newer runs", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		source := func(hash string) func(*v1alpha1.Lambda) (build.Artifact, error) {
			return func(*v1alpha1.Lambda) (build.Artifact, error) {
				return build.Artifact{Image: "registry.example/nodejs:v1", SourceHash: hash, Mounts: []build.Mount{{Name: "source", Dir: build.SourceDir, Files: map[string][]byte{"main.mjs": []byte(hash)}}}}, nil
			}
		}
		builder.set(ns, source("1"))
		lambda := w.create(t, ns, nil)
		w.rollOut(t, ns)
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "")
		require.Equal(t, []string{"sample-source-1"}, w.configMaps(t, ns))
		builder.set(ns, source("2"))
		w.change(t, lambda, func(l *v1alpha1.Lambda) { l.Spec.Source.Inline.Code = "newer" })
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, controller.ReasonProgressing, "")
		require.Equal(t, []string{"sample-source-1", "sample-source-2"}, w.configMaps(t, ns))
		w.rollOut(t, ns)
		testkit.Eventually(t, time.Minute, func() error {
			if left := w.configMaps(t, ns); len(left) != 1 || left[0] != "sample-source-2" {
				return fmt.Errorf("%v", left)
			}
			return nil
		}, "the older source is gone")
	})

	for kind, theirs := range map[string]client.Object{
		"ConfigMap":      &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "sample-source-1"}, Data: map[string]string{"theirs": "yes"}},
		"ServiceAccount": &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "sample"}},
		"NetworkPolicy":  &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "lambda-sample"}},
	} {
		t.Run("what somebody else made stays theirs, although the cache does not hold it: "+kind, func(t *testing.T) {
			ns := testkit.Namespace(t, config)
			builder.set(ns, func(*v1alpha1.Lambda) (build.Artifact, error) {
				return build.Artifact{Image: "registry.example/nodejs:v1", SourceHash: "1", Mounts: []build.Mount{{Name: "source", Dir: build.SourceDir, Files: map[string][]byte{"main.mjs": []byte("1")}}}}, nil
			})
			theirs.SetNamespace(ns)
			require.NoError(t, c.Create(t.Context(), theirs))
			version := theirs.GetResourceVersion()
			require.True(t, apierrors.IsNotFound(mgr.GetClient().Get(t.Context(), client.ObjectKeyFromObject(theirs), theirs)), "it is in the cache")
			lambda := w.create(t, ns, nil)
			w.wait(t, lambda, v1alpha1.ConditionDeployed, metav1.ConditionFalse, controller.ReasonNameTaken, "a "+kind)
			require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(theirs), theirs))
			require.Equal(t, version, theirs.GetResourceVersion())
		})
	}

	t.Run("a lambda's network policy lets in what names it", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, func(*v1alpha1.Lambda) (build.Artifact, error) {
			return build.Artifact{}, &source.Error{Reason: source.ReasonBuildFailed, Message: "it does not wait for a build"}
		})
		testPolicies(t, w, ns)
	})

	t.Run("no Deployment is there before its network policy", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		refuses.set(ns, true)
		lambda := w.create(t, ns, nil)
		w.wait(t, lambda, v1alpha1.ConditionDeployed, metav1.ConditionFalse, v1alpha1.ReasonPending, "no pod starts without its NetworkPolicy: apply NetworkPolicy "+ns+"/lambda-sample: admission says no")
		require.True(t, apierrors.IsNotFound(c.Get(t.Context(), client.ObjectKeyFromObject(lambda), &appsv1.Deployment{})))

		refuses.set(ns, false)
		deployment := w.deployment(t, ns)
		policy := w.letsIn(t, lambda)
		require.False(t, deployment.CreationTimestamp.Before(&policy.CreationTimestamp))
		w.rollOut(t, ns)
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "")
	})

	t.Run("what is wrong with a pod is in the lambda's conditions", func(t *testing.T) { testPods(t, config, w, builder) })

	t.Run("what a replica's crash says reaches the lambda", func(t *testing.T) {
		ns := testkit.Namespace(t, config)
		builder.set(ns, builds("registry.example/a:1"))
		lambda := w.create(t, ns, nil)
		deployment := w.deployment(t, ns)
		deployment.Status.ObservedGeneration = deployment.Generation
		deployment.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "CrashLoopBackOff", Message: "boom"}}
		require.NoError(t, c.Status().Update(t.Context(), deployment))
		w.wait(t, lambda, v1alpha1.ConditionReady, metav1.ConditionFalse, "CrashLoopBackOff", "boom")
	})
}

type world struct{ client client.Client }

func (w *world) create(t *testing.T, namespace string, change func(*v1alpha1.Lambda)) *v1alpha1.Lambda {
	t.Helper()
	lambda := &v1alpha1.Lambda{}
	lambda.Namespace, lambda.Name = namespace, "sample"
	lambda.Spec.Runtime = v1alpha1.RuntimeNodeJS
	lambda.Spec.Source.Inline = &v1alpha1.InlineSource{Code: "exports.main = () => 1"}
	if change != nil {
		change(lambda)
	}
	require.NoError(t, w.client.Create(t.Context(), lambda))
	return lambda
}

func (w *world) change(t *testing.T, lambda *v1alpha1.Lambda, change func(*v1alpha1.Lambda)) {
	t.Helper()
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(lambda), lambda))
	before := lambda.DeepCopy()
	change(lambda)
	require.NoError(t, w.client.Patch(t.Context(), lambda, client.MergeFrom(before)))
}

func (w *world) wait(t *testing.T, lambda *v1alpha1.Lambda, conditionType string, status metav1.ConditionStatus, reason, message string) {
	t.Helper()
	testkit.Eventually(t, time.Minute, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(lambda), lambda); err != nil {
			return err
		}
		got := meta.FindStatusCondition(lambda.Status.Conditions, conditionType)
		if got == nil || got.ObservedGeneration != lambda.Generation || got.Status != status || got.Reason != reason || len(got.Message) < len(message) || got.Message[:len(message)] != message {
			return fmt.Errorf("generation %d: %+v", lambda.Generation, got)
		}
		return nil
	}, conditionType+" is "+string(status)+" "+reason)
}

func (w *world) deployment(t *testing.T, namespace string) *appsv1.Deployment {
	t.Helper()
	deployment := &appsv1.Deployment{}
	testkit.Eventually(t, time.Minute, func() error {
		return w.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "sample"}, deployment)
	}, "the Deployment is there")
	return deployment
}

// rollOut writes the status that a deployment controller would, once the newest
// template is there.
func (w *world) rollOut(t *testing.T, namespace string) {
	t.Helper()
	deployment := w.deployment(t, namespace)
	replicas := *deployment.Spec.Replicas
	deployment.Status = appsv1.DeploymentStatus{
		ObservedGeneration: deployment.Generation, Replicas: replicas, UpdatedReplicas: replicas, ReadyReplicas: replicas, AvailableReplicas: replicas,
	}
	require.NoError(t, w.client.Status().Update(t.Context(), deployment))
}

// touchDeployment makes the controller look at the lambda again.
func (w *world) touchDeployment(t *testing.T, namespace string) {
	t.Helper()
	deployment := w.deployment(t, namespace)
	before := deployment.DeepCopy()
	deployment.Annotations = map[string]string{"touched": "yes"}
	require.NoError(t, w.client.Patch(t.Context(), deployment, client.MergeFrom(before)))
}

func (w *world) configMaps(t *testing.T, namespace string) []string {
	t.Helper()
	var list corev1.ConfigMapList
	require.NoError(t, w.client.List(t.Context(), &list, client.InNamespace(namespace), client.HasLabels{v1alpha1.LabelLambda}))
	var names []string
	for _, item := range list.Items {
		names = append(names, item.Name)
	}
	return names
}
