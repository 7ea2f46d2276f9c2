package source

import (
	"maps"
	"slices"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// The names of inline code and its dependencies in the tree.
const (
	NodeJSFile         = "main.js"
	NodeJSDependencies = "package.json"
	PythonFile         = "main.py"
	PythonDependencies = "requirements.txt"
	GoFile             = "main.go"
	GoDependencies     = "go.requires"
)

// MaxInline bounds the bytes of an inline source, all its files together.
const MaxInline = 512 << 10

// Inline is the tree of source that is written into the Lambda.
func Inline(runtime v1alpha1.Runtime, inline *v1alpha1.InlineSource) (Tree, error) {
	names := map[v1alpha1.Runtime][2]string{
		v1alpha1.RuntimeNodeJS: {NodeJSFile, NodeJSDependencies},
		v1alpha1.RuntimePython: {PythonFile, PythonDependencies},
		v1alpha1.RuntimeGo:     {GoFile, GoDependencies},
	}
	known, supported := names[runtime]
	if !supported {
		return Tree{}, NotSupported("runtime %q is not supported by this version; use go, nodejs or python", runtime)
	}
	tree := Tree{Files: map[string][]byte{}}
	if inline.Code != "" {
		tree.Files[known[0]] = []byte(inline.Code)
	}
	size := len(inline.Code) + len(inline.Dependencies)
	if strings.TrimSpace(inline.Dependencies) != "" {
		tree.Files[known[1]] = []byte(inline.Dependencies)
	}
	for _, name := range slices.Sorted(maps.Keys(inline.Files)) {
		if err := checkPath(name); err != nil {
			return Tree{}, err
		}
		if _, twice := tree.Files[name]; twice {
			return Tree{}, Failed("source.inline.files: %s is there twice: it is the name of source.inline.code or source.inline.dependencies; give the file another one", name)
		}
		size += len(name) + len(inline.Files[name])
		tree.Files[name] = []byte(inline.Files[name])
	}
	if size > MaxInline {
		return Tree{}, Failed("the source is %d bytes long and %d may be written into a Lambda; put it into a git repository and use source.git", size, MaxInline)
	}
	return tree, checkTree(tree)
}
