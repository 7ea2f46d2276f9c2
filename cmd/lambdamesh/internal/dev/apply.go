package dev

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// object is one that a file holds, of whatever kind.
type object = *unstructured.Unstructured

// fieldOwner is the field manager of what --apply applies.
const fieldOwner = "lambdamesh-dev-apply"

const (
	readyPoll    = 250 * time.Millisecond
	readyTimeout = 2 * time.Minute
)

// readObjects reads the YAML files named, and those of directories named, not
// below them (an example may keep other files there), in the order of names.
func readObjects(paths []string) ([]object, error) {
	var all []object
	for _, path := range paths {
		files, err := yamlFiles(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			objects, err := readFile(file)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", file, err)
			}
			all = append(all, objects...)
		}
	}
	// What others live in or refer to comes first, whatever the files' names.
	slices.SortStableFunc(all, func(a, b object) int { return rank(a) - rank(b) })
	return all, nil
}

func rank(u object) int {
	switch u.GetKind() {
	case "CustomResourceDefinition":
		return 0
	case "Namespace":
		return 1
	case "Secret", "ConfigMap", "ServiceAccount":
		return 2
	case "Application":
		return 3
	case "ApplicationService":
		return 4
	case "ApplicationBinding":
		return 5
	default:
		return 6
	}
}

func yamlFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("--apply: %w", err)
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return nil, fmt.Errorf("--apply: %w", err)
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.Type()&fs.ModeType == 0 && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("--apply %s: there is no .yaml file in it", path)
	}
	return files, nil
}

func readFile(file string) ([]object, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var objects []object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(raw)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &u.Object); err != nil {
			return nil, err
		}
		if len(u.Object) == 0 {
			continue // only comments
		}
		if u.GetKind() == "" || u.GetAPIVersion() == "" || u.GetName() == "" {
			return nil, errors.New("every document needs apiVersion, kind and metadata.name")
		}
		objects = append(objects, u)
	}
}

// applyObjects applies all, and reports each that was refused; the others are
// applied all the same.
func applyObjects(ctx context.Context, c client.Client, objects []object, out io.Writer) []object {
	var applied []object
	for _, u := range objects {
		if u.GetNamespace() == "" {
			if namespaced, err := c.IsObjectNamespaced(u); err == nil && namespaced {
				u.SetNamespace("default")
			}
		}
		err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u.DeepCopy()), client.FieldOwner(fieldOwner), client.ForceOwnership)
		if err != nil {
			fmt.Fprintf(out, "  refused %s: %v\n", objectName(u), err)
			continue
		}
		applied = append(applied, u)
	}
	return applied
}

func objectName(u object) string {
	name := u.GetName()
	if ns := u.GetNamespace(); ns != "" {
		name = ns + "/" + name
	}
	return u.GetKind() + " " + name
}

// awaitReady prints a line as each of our objects becomes ready, and at the end
// one for each that has not, with what its condition says.
func awaitReady(ctx context.Context, c client.Client, objects []object, out io.Writer) {
	begin := time.Now()
	waiting := map[string]object{}
	for _, u := range objects {
		if strings.HasPrefix(u.GetAPIVersion(), v1alpha1.Group+"/") {
			waiting[objectName(u)] = u
		}
	}
	why := map[string]string{}
	ticker := time.NewTicker(readyPoll)
	defer ticker.Stop()
	for len(waiting) > 0 && time.Since(begin) < readyTimeout {
		for _, name := range sortedKeys(waiting) {
			ready, reason := readiness(ctx, c, waiting[name])
			if ready {
				fmt.Fprintf(out, "  ready   %-40s %5.1fs\n", name, time.Since(begin).Seconds())
				delete(waiting, name)
			}
			why[name] = reason
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
	for _, name := range sortedKeys(waiting) {
		fmt.Fprintf(out, "  waiting %-40s %s\n", name, why[name])
	}
}

func sortedKeys(m map[string]object) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// readiness reads an object's Ready condition; one of an older generation says
// nothing.
func readiness(ctx context.Context, c client.Client, u object) (ready bool, reason string) {
	current := &unstructured.Unstructured{}
	current.SetGroupVersionKind(u.GroupVersionKind())
	if err := c.Get(ctx, client.ObjectKeyFromObject(u), current); err != nil {
		return false, err.Error()
	}
	conditions, _, _ := unstructured.NestedSlice(current.Object, "status", "conditions")
	for _, item := range conditions {
		condition, _ := item.(map[string]any)
		if condition["type"] != v1alpha1.ConditionReady {
			continue
		}
		if observed, _ := condition["observedGeneration"].(int64); observed != current.GetGeneration() {
			break
		}
		return condition["status"] == "True", fmt.Sprintf("%v: %v", condition["reason"], condition["message"])
	}
	return false, "no controller has looked at it yet"
}
