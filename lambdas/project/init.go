package project

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/lambdamesh/lambdamesh/lambdas/runtimes"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

//go:embed all:templates
var templates embed.FS

// templateSuffix keeps tools from taking templates for sources of this
// repository.
const templateSuffix = ".tmpl"

// sdkDir is where a project in Go has the SDK for editors and tests; a build
// takes its own copy.
const sdkDir = ".sdk/lambdamesh"

// maxName is what a Service's name takes.
const maxName = 63

var name = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)

// Runtimes are those that Init knows.
func Runtimes() []v1alpha1.Runtime {
	return []v1alpha1.Runtime{v1alpha1.RuntimeNodeJS, v1alpha1.RuntimePython, v1alpha1.RuntimeGo}
}

// Init writes a new project into a directory, which must not be there or be
// empty: a handler, a test, and types for editors. It returns the files.
func Init(dir, lambda string, runtime v1alpha1.Runtime) ([]string, error) {
	if !name.MatchString(lambda) || len(lambda) > maxName {
		return nil, source.Failed("%q is no name for a lambda: use at most %d of a-z, 0-9 and '-', beginning with a letter and not ending with '-'", lambda, maxName)
	}
	template, err := fs.Sub(templates, "templates/"+string(runtime))
	if err != nil {
		return nil, fmt.Errorf("read the template: %w", err)
	}
	entries, err := fs.ReadDir(template, ".")
	if err != nil {
		return nil, source.NotSupported("runtime %q is not supported by this version; use go, nodejs or python", runtime)
	}
	there, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look into %s: %w", dir, err)
	}
	if len(there) > 0 {
		return nil, source.Failed("%s is not empty; name a new directory", dir)
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the project: %w", err)
	}
	var written []string
	for _, entry := range entries {
		content, err := fs.ReadFile(template, entry.Name())
		if err != nil {
			return nil, fmt.Errorf("read the template: %w", err)
		}
		file := filepath.Join(dir, strings.TrimSuffix(entry.Name(), templateSuffix))
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(content), "LAMBDA", lambda)), 0o600); err != nil {
			return nil, fmt.Errorf("make the project: %w", err)
		}
		written = append(written, file)
	}
	if runtime == v1alpha1.RuntimeGo {
		sdk, err := runtimes.GoSDK()
		if err != nil {
			return nil, err
		}
		if err := os.CopyFS(filepath.Join(dir, filepath.FromSlash(sdkDir)), sdk); err != nil {
			return nil, fmt.Errorf("write the SDK: %w", err)
		}
	}
	return written, nil
}
