package headers_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

func TestIdentity(t *testing.T) {
	for _, name := range append(headers.FromGateway(), headers.ClientCert) {
		require.True(t, headers.Identity(name), name)
		require.True(t, headers.Identity(strings.ToUpper(name)), name)
		require.True(t, headers.Identity(strings.ReplaceAll(name, "-", "_")), name)
	}
	require.True(t, headers.Identity("X-Lambdamesh-Anything"))
	for _, name := range []string{"", "x-lambdamesh", "x-api-clients", "authorization", "x-forwarded-for"} {
		require.False(t, headers.Identity(name), name)
	}
}

// A second place that names a header is one that the next header is forgotten
// in. Tests spell names out: they say what is on the wire. The runtimes are not
// part of this module.
func TestTheNamesStandInOnePlace(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	files := 0
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "testdata" || entry.Name() == "node_modules" || strings.HasPrefix(entry.Name(), ".") && path != root):
			return filepath.SkipDir
		case entry.IsDir() && (path == filepath.Join(root, "lambdas", "runtimes") || path == filepath.Join(root, "pkg", "apis", "headers")):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			literal, ok := n.(*ast.BasicLit)
			if !ok || literal.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(literal.Value)
			require.NoError(t, err)
			text = strings.ToLower(text)
			for _, name := range []string{headers.ClientCert, headers.MeshPrefix, headers.APIClient} {
				if strings.Contains(text, name) {
					t.Errorf("%s: %s names a header of pkg/apis/headers; use that package", set.Position(literal.Pos()), literal.Value)
				}
			}
			return true
		})
		return nil
	}))
	require.Greater(t, files, 200, "the walk found the tree")
}
