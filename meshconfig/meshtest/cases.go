package meshtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/filesource"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Case is a folder of testdata.
type Case struct {
	Name string
	Dir  string
}

// Path of a file of the case.
func (c Case) Path(file string) string { return filepath.Join(c.Dir, file) }

// Cases lists all cases, sorted by name.
func Cases(t testing.TB) []Case {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testdata(t), "*", "in.yaml"))
	require.NoError(t, err)
	var all []Case
	for _, f := range files {
		dir := filepath.Dir(f)
		all = append(all, Case{Name: filepath.Base(dir), Dir: dir})
	}
	require.NotEmpty(t, all, "meshconfig/testdata has no cases")
	return all
}

// testdata is meshconfig/testdata, seen from whatever package's folder a test
// runs in. Where this file was compiled says nothing: with -trimpath it is no path.
func testdata(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs(".")
	require.NoError(t, err)
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "meshconfig", "testdata")
		}
		require.NotEqual(t, filepath.Dir(dir), dir, "no go.mod above the test's folder")
		dir = filepath.Dir(dir)
	}
}

// Snapshot reads in.yaml and jwks.yaml.
func (c Case) Snapshot(t testing.TB) translate.Snapshot {
	t.Helper()
	s, _, err := filesource.Load(c.Path("in.yaml"))
	require.NoError(t, err)
	// Where the cases' hand-made endpoints are.
	s.Settings.Targets, err = targets.New(targets.Config{Allow: []string{"127.0.0.0/8", "10.0.1.0/24"}})
	require.NoError(t, err)
	s.JWKS = map[string]translate.KeySetResult{}
	text, err := os.ReadFile(c.Path("jwks.yaml"))
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(text, &s.JWKS))
	return s
}

// Mesh reads ir.yaml, the golden of translate.
func (c Case) Mesh(t testing.TB) *ir.Mesh {
	t.Helper()
	text, err := os.ReadFile(c.Path("ir.yaml"))
	require.NoError(t, err, "the golden of translate comes first")
	var m ir.Mesh
	require.NoError(t, yaml.UnmarshalStrict(text, &m))
	require.NoError(t, m.Validate())
	return &m
}
