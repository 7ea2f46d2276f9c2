package project

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// File names the file of a project that holds its Lambda.
const File = "lambda.yaml"

// maxFiles is what source.inline.files takes.
const maxFiles = 256

// Project is a directory as it was read.
type Project struct {
	// Lambda has the directory's files as its source.
	Lambda *v1alpha1.Lambda
	// Objects are those of lambda.yaml in their order, the Lambda with its source
	// among them.
	Objects []*unstructured.Unstructured
	// Dirs are the directories whose files count.
	Dirs []string
}

// Is tells whether a directory is a project.
func Is(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, File))
	return err == nil && info.Mode().IsRegular()
}

// Read reads the project in a directory. Without a lambda.yaml the lambda is
// named like the directory, and its files tell the runtime. What the user can
// put right is a [*source.Error].
func Read(dir string) (*Project, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dir, err)
	}
	files, dirs, err := filesOf(dir)
	if err != nil {
		return nil, err
	}
	p := &Project{Dirs: dirs}
	var lambda *unstructured.Unstructured
	content, err := os.ReadFile(filepath.Join(dir, File))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if lambda, err = guess(dir, files); err != nil {
			return nil, err
		}
		p.Objects = append(p.Objects, lambda)
	case err != nil:
		return nil, fmt.Errorf("read the project: %w", err)
	default:
		if p.Objects, err = Objects(content); err != nil {
			return nil, source.Failed("%s: %v", filepath.Join(dir, File), err)
		}
		for _, u := range p.Objects {
			switch {
			case !isLambda(u):
			case lambda != nil:
				return nil, source.Failed("%s has more than one Lambda; give each a directory of its own", filepath.Join(dir, File))
			default:
				lambda = u
			}
		}
		if lambda == nil {
			return nil, source.Failed("%s has no Lambda; write one, without spec.source: its files are the source", filepath.Join(dir, File))
		}
	}
	if _, has, _ := unstructured.NestedFieldNoCopy(lambda.Object, "spec", "source"); !has {
		if len(files) == 0 {
			return nil, source.Failed("%s has no files; write the handler", dir)
		}
		if err := unstructured.SetNestedStringMap(lambda.Object, files, "spec", "source", "inline", "files"); err != nil {
			return nil, source.Failed("%s: spec is not an object", filepath.Join(dir, File))
		}
	}
	if p.Lambda, err = typed(lambda); err != nil {
		return nil, source.Failed("%s: %v", filepath.Join(dir, File), err)
	}
	if inline := p.Lambda.Spec.Source.Inline; inline != nil {
		if _, err := source.Inline(p.Lambda.Spec.Runtime, inline); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Objects reads the documents of a YAML file.
func Objects(content []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
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

func isLambda(u *unstructured.Unstructured) bool {
	return u.GetKind() == "Lambda" && u.GetAPIVersion() == v1alpha1.GroupVersion().String()
}

func typed(u *unstructured.Unstructured) (*v1alpha1.Lambda, error) {
	text, err := yaml.Marshal(u.Object)
	if err != nil {
		return nil, err
	}
	lambda := &v1alpha1.Lambda{}
	return lambda, yaml.UnmarshalStrict(text, lambda)
}

// guess makes the Lambda of a directory that says nothing of itself.
func guess(dir string, files map[string]string) (*unstructured.Unstructured, error) {
	runtimes := map[v1alpha1.Runtime][]string{
		v1alpha1.RuntimeNodeJS: {source.NodeJSDependencies, "main.ts", "main.js", "main.mjs", "index.ts", "index.js"},
		v1alpha1.RuntimePython: {source.PythonFile, source.PythonDependencies},
		v1alpha1.RuntimeGo:     {"go.mod", source.GoFile},
	}
	var found []string
	for runtime, names := range runtimes {
		if slices.ContainsFunc(names, func(name string) bool { _, has := files[name]; return has }) {
			found = append(found, string(runtime))
		}
	}
	if len(found) != 1 {
		return nil, source.Failed("%s has no %s, and its files tell no runtime: see `lambdamesh lambda init --help`", dir, File)
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": v1alpha1.GroupVersion().String(), "kind": "Lambda",
		"metadata": map[string]any{"name": nameOf(dir)},
		"spec":     map[string]any{"runtime": found[0]},
	}}, nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// nameOf makes a lambda's name of a directory's.
func nameOf(dir string) string {
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(filepath.Base(dir)), "-"), "-0123456789")
	return cmp.Or(name[:min(len(name), maxName)], "lambda")
}

// filesOf are the files of a project by path, and the directories they are in.
// Left out is what is the machine's and not the source's: links, installed
// packages, and every name that begins with a dot, where secrets are kept.
func filesOf(dir string) (files map[string]string, dirs []string, err error) {
	files, size := map[string]string{}, 0
	root := os.DirFS(dir)
	err = fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != ".":
			return nil // an editor's file that is gone again
		case err != nil:
			return err
		case entry.IsDir() && name != "." && leftOut(path.Base(name)):
			return fs.SkipDir
		case entry.IsDir():
			dirs = append(dirs, filepath.Join(dir, filepath.FromSlash(name)))
			return nil
		case !entry.Type().IsRegular() || leftOut(path.Base(name)) || name == File:
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil //nolint:nilerr // gone again
		}
		if size += int(info.Size()); size > source.MaxInline || len(files) == maxFiles {
			return source.Failed("%s has more than %d files or %d KiB; put it into a git repository and use source.git", dir, maxFiles, source.MaxInline>>10)
		}
		content, err := fs.ReadFile(root, name)
		if err != nil {
			return fmt.Errorf("read the project: %w", err)
		}
		if !utf8.Valid(content) {
			return source.Failed("%s is not text; put the project into a git repository and use source.git, or begin the file's name with a dot to leave it out", filepath.Join(dir, filepath.FromSlash(name)))
		}
		files[name] = string(content)
		return nil
	})
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		return nil, nil, source.Failed("there is no directory %s", dir)
	}
	return files, dirs, err
}

func leftOut(name string) bool {
	switch name {
	case "node_modules", "__pycache__", "venv":
		return true
	}
	return strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".pyc") || strings.HasSuffix(name, "~")
}
