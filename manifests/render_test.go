package manifests_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/lambdas/deploy"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// kustomizations are what docs/cluster.md tells people to install.
func kustomizations() []string { return []string{"overlays/istio", "overlays/envoy"} }

// render returns the objects that `kubectl kustomize DIR` prints, as users see
// them.
func render(t *testing.T, dir string) []*unstructured.Unstructured {
	t.Helper()
	// go test's cache knows only of the files that the test itself opens.
	require.NoError(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			_, err = os.ReadFile(path)
		}
		return err
	}))

	kubectl := filepath.Join(testkit.KubernetesBinDir(t), "kubectl")
	cmd := exec.CommandContext(t.Context(), kubectl, "kustomize", dir)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	require.NoError(t, cmd.Run(), errOut.String())
	require.Empty(t, errOut.String(), "kustomize warns")

	return decode(t, &out)
}

func decode(t *testing.T, documents io.Reader) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	reader := utilyaml.NewYAMLReader(bufio.NewReader(documents))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		require.NoError(t, err)
		object := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal(document, &object.Object))
		if len(object.Object) > 0 { // else there are comments only
			objects = append(objects, object)
		}
	}
}

func name(object *unstructured.Unstructured) string {
	return object.GetKind() + " " + strings.TrimPrefix(object.GetNamespace()+"/"+object.GetName(), "/")
}

// into converts an object to its Go type.
func into[T any](t *testing.T, object *unstructured.Unstructured) T {
	t.Helper()
	var typed T
	require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &typed, true), name(object))
	return typed
}

// warnings collects what the API server warns about: among others pods that
// its pod security standard would not admit.
type warnings struct {
	mu   sync.Mutex
	text []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, text)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.text
	w.text = nil
	return text
}

func TestEveryInstallationIsTakenByTheAPIServer(t *testing.T) {
	config := testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)
	warned := &warnings{}
	config.WarningHandler = warned
	api, err := client.New(config, client.Options{})
	require.NoError(t, err)

	for _, dir := range kustomizations() {
		t.Run(dir, func(t *testing.T) {
			objects := render(t, dir)
			// A dry run makes no namespace for the objects in it, so that one is
			// made; with the labels that have pods held against "restricted".
			for _, object := range kinds(objects, "Namespace", "PriorityClass", "ServiceAccount") {
				require.NoError(t, apply(t.Context(), api, object))
			}
			for _, object := range objects {
				require.NoError(t, apply(t.Context(), api, object, client.DryRunAll), name(object))
				require.Empty(t, warned.take(), name(object))
			}
			admitted(t, api, objects)
		})
	}
}

func apply(ctx context.Context, api client.Client, object *unstructured.Unstructured, options ...client.ApplyOption) error {
	options = append(options, client.FieldOwner("manifests-test"), client.ForceOwnership)
	return client.WithFieldValidation(api, metav1.FieldValidationStrict).
		Apply(ctx, client.ApplyConfigurationFromUnstructured(object.DeepCopy()), options...)
}

func TestSystemNamespaceAdmitsOnlyRestrictedPods(t *testing.T) {
	for _, dir := range kustomizations() {
		t.Run(dir, func(t *testing.T) {
			namespaces := kinds(render(t, dir), "Namespace")
			require.Len(t, namespaces, 1)
			require.Equal(t, v1alpha1.SystemNamespace, namespaces[0].GetName())
			require.Equal(t, "restricted", namespaces[0].GetLabels()["pod-security.kubernetes.io/enforce"])
		})
	}
}

func kinds(objects []*unstructured.Unstructured, kind ...string) []*unstructured.Unstructured {
	var found []*unstructured.Unstructured
	for _, object := range objects {
		for _, k := range kind {
			if object.GetKind() == k {
				found = append(found, object)
			}
		}
	}
	return found
}

// workload is what Deployments and StatefulSets have in common.
type workload struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas int32                  `json:"replicas"`
		Selector metav1.LabelSelector   `json:"selector"`
		Template corev1.PodTemplateSpec `json:"template"`

		VolumeClaimTemplates []corev1.PersistentVolumeClaim `json:"volumeClaimTemplates"`
	} `json:"spec"`
}

func workloads(t *testing.T, objects []*unstructured.Unstructured) []workload {
	t.Helper()
	var found []workload
	for _, object := range kinds(objects, "Deployment", "StatefulSet") {
		raw, err := object.MarshalJSON()
		require.NoError(t, err)
		var typed workload
		require.NoError(t, yaml.Unmarshal(raw, &typed))
		found = append(found, typed)
	}
	return found
}

// A lambda's NetworkPolicy names the pods of the gateway and the event bus by
// namespace and labels, which are those that are installed.
func TestLambdasLetInThePodsThatAreInstalled(t *testing.T) {
	lambda := &v1alpha1.Lambda{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}}
	for _, overlay := range []string{"overlays/istio", "overlays/envoy"} {
		t.Run(overlay, func(t *testing.T) {
			all := workloads(t, render(t, overlay))
			for program, callers := range map[string]deploy.Callers{"gateway": {Gateway: true}, "eventbus": {EventBus: true}} {
				ingress := deploy.NetworkPolicy(lambda, callers, deploy.Options{}).Spec.Ingress
				from := ingress[len(ingress)-1].From
				require.Len(t, from, 1)
				matching := 0
				for _, w := range all {
					if w.Namespace != from[0].NamespaceSelector.MatchLabels[corev1.LabelMetadataName] {
						continue
					}
					selector, err := metav1.LabelSelectorAsSelector(from[0].PodSelector)
					require.NoError(t, err)
					if selector.Matches(labels.Set(w.Spec.Template.Labels)) {
						matching++
						require.Equal(t, program, w.Spec.Template.Spec.ServiceAccountName)
					}
				}
				require.Equal(t, 1, matching, program)
			}
		})
	}
}
