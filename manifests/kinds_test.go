package manifests_test

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/crds"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func definitions(t *testing.T) []apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	objects, err := crds.Load(manifests.CRDs)
	require.NoError(t, err)
	var typed []apiextensionsv1.CustomResourceDefinition
	for _, object := range objects {
		typed = append(typed, into[apiextensionsv1.CustomResourceDefinition](t, object))
	}
	return typed
}

func TestEveryKindOfTheSchemeHasADefinition(t *testing.T) {
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	var defined []string
	for _, d := range definitions(t) {
		require.Equal(t, v1alpha1.Group, d.Spec.Group)
		defined = append(defined, d.Spec.Names.Kind)
	}
	var known []string
	for kind := range scheme.KnownTypes(v1alpha1.GroupVersion()) {
		if _, ours := lookup(t, scheme, kind).(v1alpha1.Object); ours {
			known = append(known, kind)
		}
	}
	require.ElementsMatch(t, known, defined, "run make generate")
}

func lookup(t *testing.T, scheme *runtime.Scheme, kind string) runtime.Object {
	t.Helper()
	object, err := scheme.New(v1alpha1.GroupVersion().WithKind(kind))
	require.NoError(t, err)
	return object
}

func TestEveryKindIsReadableWithKubectl(t *testing.T) {
	for _, d := range definitions(t) {
		t.Run(d.Spec.Names.Kind, func(t *testing.T) {
			require.NotEmpty(t, d.Spec.Names.ShortNames, "no short name")
			require.Contains(t, d.Spec.Names.Categories, "lambdamesh", "kubectl get lambdamesh")
			for _, version := range d.Spec.Versions {
				require.NotNil(t, version.Subresources.Status, "no status subresource")
				var columns []string
				for _, column := range version.AdditionalPrinterColumns {
					columns = append(columns, column.Name)
				}
				require.Subset(t, columns, []string{"Ready", "Age"})
				status := version.Schema.OpenAPIV3Schema.Properties["status"]
				require.Contains(t, status.Properties, "observedGeneration")
				require.Contains(t, status.Properties, "conditions")
			}
		})
	}
}

func TestEveryFieldIsExplainedAndMergeable(t *testing.T) {
	for _, d := range definitions(t) {
		t.Run(d.Spec.Names.Kind, func(t *testing.T) {
			for _, version := range d.Spec.Versions {
				schema := version.Schema.OpenAPIV3Schema
				require.NotEmpty(t, schema.Description)
				for _, part := range []string{"spec", "status"} {
					walk(t, part, schema.Properties[part])
				}
			}
		})
	}
}

// walk checks the properties of a schema: kubectl explain has something to say
// on each, and server-side apply knows how to merge each list.
func walk(t *testing.T, path string, schema apiextensionsv1.JSONSchemaProps) {
	t.Helper()
	for field, property := range schema.Properties {
		at := path + "." + field
		if property.Description == "" {
			t.Errorf("%s has no description: comment the field in pkg/apis", at)
		}
		if property.Type == "array" {
			if property.XListType == nil {
				t.Errorf("%s has no list type: add +listType=map, set or atomic", at)
			}
			walk(t, at+"[]", *property.Items.Schema)
		}
		walk(t, at, property)
	}
}

// The files in testdata/admission hold objects, each under a line that says what
// the API server does with it: "# taken" or "# refused: part of the message".
func TestObjectsAreTakenOrRefusedAtAdmission(t *testing.T) {
	config := testkit.KubeAPI(t, manifests.CRDs)
	api, err := client.New(config, client.Options{})
	require.NoError(t, err)
	namespace := testkit.Namespace(t, config)

	files, err := filepath.Glob("testdata/admission/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		raw, err := os.ReadFile(file)
		require.NoError(t, err)
		reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(raw)))
		for {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			head, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(string(document), "---")), "\n")
			verdict, message, _ := strings.Cut(strings.TrimPrefix(head, "# "), ": ")
			require.Contains(t, []string{"taken", "refused"}, verdict, "%s: the first line of an object is \"# taken\" or \"# refused: message\", not %q", file, head)

			t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml")+"/"+strings.TrimPrefix(head, "# "), func(t *testing.T) {
				object := &unstructured.Unstructured{}
				require.NoError(t, yaml.Unmarshal(document, &object.Object))
				if object.GetKind() != "Application" {
					object.SetNamespace(namespace)
				}
				object.SetAPIVersion(v1alpha1.GroupVersion().String())
				err := client.WithFieldValidation(api, "Strict").Create(t.Context(), object, client.DryRunAll)
				if verdict == "taken" {
					require.NoError(t, err)
					return
				}
				require.ErrorContains(t, err, message)
			})
		}
	}
}
