package dev

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/lambdas/project"
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

// readObjects reads the YAML files named, those of directories named, and the
// lambdas' projects among these and right below, in the order of names: nothing
// else below, an example may keep other files there. It returns the directories
// whose files count too.
func readObjects(paths []string) (all []object, dirs []string, err error) {
	for _, path := range paths {
		files, projects, err := yamlFiles(path)
		if err != nil {
			return nil, nil, err
		}
		for _, file := range files {
			objects, err := readFile(file)
			if err != nil {
				return nil, nil, fmt.Errorf("read %s: %w", file, err)
			}
			all = append(all, objects...)
			dirs = append(dirs, filepath.Dir(file))
		}
		for _, dir := range projects {
			p, err := project.Read(dir)
			if err != nil {
				return nil, nil, err
			}
			all = append(all, p.Objects...)
			dirs = append(dirs, p.Dirs...)
		}
		dirs = append(dirs, below(path)...)
	}
	// What others live in or refer to comes first, whatever the files' names.
	slices.SortStableFunc(all, func(a, b object) int { return rank(a) - rank(b) })
	slices.Sort(dirs)
	return all, slices.Compact(dirs), nil
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

// below are a directory and those in it, where a project may come to be.
func below(path string) []string {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil // a file
	}
	dirs := []string{path}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			dirs = append(dirs, filepath.Join(path, e.Name()))
		}
	}
	return dirs
}

// yamlFiles are the files of objects that a path names, and the projects.
func yamlFiles(path string) (files, projects []string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("--apply: %w", err)
	}
	if !info.IsDir() {
		if filepath.Base(path) == project.File {
			return nil, []string{filepath.Dir(path)}, nil
		}
		return []string{path}, nil, nil
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		return nil, nil, fmt.Errorf("--apply: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(path, e.Name())
		ext := filepath.Ext(e.Name())
		switch {
		case e.Name() == project.File:
			projects = append(projects, path)
		case e.IsDir() && project.Is(name):
			projects = append(projects, name)
		case e.Type()&fs.ModeType == 0 && (ext == ".yaml" || ext == ".yml"):
			files = append(files, name)
		}
	}
	if len(files)+len(projects) == 0 {
		return nil, nil, fmt.Errorf("--apply %s: there is no .yaml file in it", path)
	}
	return files, projects, nil
}

func readFile(file string) ([]object, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return project.Objects(raw)
}

// applyObjects applies all, and reports each that was refused; the others are
// applied all the same.
func applyObjects(ctx context.Context, c client.Client, objects []object, out io.Writer) []object {
	var applied []object
	for _, u := range objects {
		withNamespace(c, u)
		err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(u.DeepCopy()), client.FieldOwner(fieldOwner), client.ForceOwnership)
		if err != nil {
			fmt.Fprintf(out, "  refused %s: %v\n", objectName(u), err)
			continue
		}
		applied = append(applied, u)
	}
	return applied
}

// withNamespace completes an object that names none.
func withNamespace(c client.Client, u object) {
	if u.GetNamespace() != "" {
		return
	}
	if namespaced, err := c.IsObjectNamespaced(u); err == nil && namespaced {
		u.SetNamespace("default")
	}
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
