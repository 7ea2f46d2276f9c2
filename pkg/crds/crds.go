package crds

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	"golang.org/x/sync/errgroup"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

const (
	// parallel is how many definitions are installed at once. The API server
	// builds a schema for each; more only queue up there.
	parallel = 16
	// pollInterval is short because a definition is usually served within
	// milliseconds and people wait for it.
	pollInterval = 20 * time.Millisecond
)

// Load reads every CustomResourceDefinition in the YAML files of the trees.
// Documents of other kinds are skipped.
func Load(trees ...fs.FS) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	for _, tree := range trees {
		err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || (path.Ext(name) != ".yaml" && path.Ext(name) != ".yml") {
				return err
			}
			data, err := fs.ReadFile(tree, name)
			if err != nil {
				return err
			}
			found, err := parse(data)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			all = append(all, found...)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("reading CustomResourceDefinitions: %w", err)
		}
	}
	return all, nil
}

func parse(data []byte) ([]*unstructured.Unstructured, error) {
	var found []*unstructured.Unstructured
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			return nil, err
		}
		if object.GetKind() == "CustomResourceDefinition" {
			found = append(found, object)
		}
	}
}

// Install applies the definitions server-side as fieldManager and waits until
// the API server serves every version of each. Definitions that are there
// already are brought up to date. It returns when all are served, one is
// refused, or ctx ends; the error names the definition.
func Install(ctx context.Context, config *rest.Config, fieldManager string, definitions []*unstructured.Unstructured) error {
	config = rest.CopyConfig(config)
	config.QPS = -1 // the server's priority and fairness is limit enough
	client, err := apiextensions.NewForConfig(config)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, definition := range definitions {
		group.Go(func() error {
			if err := install(ctx, client, fieldManager, definition); err != nil {
				return fmt.Errorf("installing CustomResourceDefinition %s: %w", definition.GetName(), err)
			}
			return nil
		})
	}
	return group.Wait()
}

func install(ctx context.Context, client apiextensions.ApiextensionsV1Interface, fieldManager string, definition *unstructured.Unstructured) error {
	body, err := definition.MarshalJSON()
	if err != nil {
		return err
	}
	force := true
	crd, err := client.CustomResourceDefinitions().Patch(ctx, definition.GetName(), types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: fieldManager, Force: &force})
	if err != nil {
		return err
	}
	for _, version := range crd.Spec.Versions {
		if !version.Served {
			continue
		}
		if err := waitServed(ctx, client, crd, version.Name); err != nil {
			return err
		}
	}
	return nil
}

// waitServed waits until the kind can be used: Established, and in the
// discovery that clients map kinds to paths with. Each is set by a controller
// of its own in the API server.
func waitServed(ctx context.Context, client apiextensions.ApiextensionsV1Interface, crd *apiextensionsv1.CustomResourceDefinition, version string) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		why, err := notServed(ctx, client, crd, version)
		if err == nil && why == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("version %s is not served: %s: %w", version, why, errors.Join(ctx.Err(), err))
		case <-ticker.C:
		}
	}
}

// notServed returns why a version is not usable yet, or "".
func notServed(ctx context.Context, client apiextensions.ApiextensionsV1Interface, crd *apiextensionsv1.CustomResourceDefinition, version string) (string, error) {
	why, err := notEstablished(ctx, client, crd.Name)
	if err != nil || why != "" {
		return why, err
	}
	why = "missing in discovery"
	raw, err := client.RESTClient().Get().AbsPath("/apis", crd.Spec.Group, version).Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return why, nil
	}
	if err != nil {
		return why, err
	}
	var resources metav1.APIResourceList
	if err := json.Unmarshal(raw, &resources); err != nil {
		return why, err
	}
	for _, resource := range resources.APIResources {
		if resource.Name == crd.Spec.Names.Plural {
			return "", nil
		}
	}
	return why, nil
}

// notEstablished returns why the definition is not established, or "".
func notEstablished(ctx context.Context, client apiextensions.ApiextensionsV1Interface, name string) (string, error) {
	crd, err := client.CustomResourceDefinitions().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "unknown", err
	}
	why := "no conditions yet"
	for _, condition := range crd.Status.Conditions {
		switch {
		case condition.Type == apiextensionsv1.Established && condition.Status == apiextensionsv1.ConditionTrue:
			return "", nil
		case condition.Type == apiextensionsv1.NamesAccepted && condition.Status == apiextensionsv1.ConditionFalse:
			return "names not accepted: " + condition.Message, nil
		case condition.Type == apiextensionsv1.Established:
			why = condition.Reason + ": " + condition.Message
		}
	}
	return why, nil
}
