package project_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/lambdas/project"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const lambdaYAML = "apiVersion: lambdamesh.dev/v1alpha1\nkind: Lambda\nmetadata: {name: greet, namespace: shop}\nspec: {runtime: nodejs}\n"

func write(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "Last Order 2")
	for name, content := range files {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	}
	return dir
}

func TestFilesAreTheSource(t *testing.T) {
	dir := write(t, map[string]string{
		project.File:  lambdaYAML + "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: greetings}\n",
		"src/main.ts": "code", "package.json": "{}", "lib/tax.ts": "more",
		".env": "PASSWORD=sesame", ".git/config": "x", "node_modules/left/pad.js": "x", "__pycache__/a.py": "x", "main.ts~": "x",
	})
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "passwd")))
	p, err := project.Read(dir)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"src/main.ts": "code", "package.json": "{}", "lib/tax.ts": "more"}, p.Lambda.Spec.Source.Inline.Files)
	require.Equal(t, "shop/greet", p.Lambda.Namespace+"/"+p.Lambda.Name)
	require.Len(t, p.Objects, 2)
	require.Equal(t, []string{dir, filepath.Join(dir, "lib"), filepath.Join(dir, "src")}, p.Dirs)
}

func TestAProjectMayHaveNoLambdaYAML(t *testing.T) {
	for file, runtime := range map[string]v1alpha1.Runtime{"main.py": "python", "index.ts": "nodejs", "go.mod": "go"} {
		p, err := project.Read(write(t, map[string]string{file: "x", "README.md": "x"}))
		require.NoError(t, err)
		require.Equal(t, runtime, p.Lambda.Spec.Runtime)
		require.Equal(t, "last-order", p.Lambda.Name)
	}
}

func TestWhatIsNoProjectSaysWhy(t *testing.T) {
	for want, files := range map[string]map[string]string{
		"its files tell no runtime":            {"README.md": "x"},
		"more than one Lambda":                 {project.File: lambdaYAML + "---\n" + lambdaYAML, "main.js": "x"},
		"has no Lambda":                        {project.File: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n", "main.js": "x"},
		"has no files":                         {project.File: lambdaYAML},
		"every document needs apiVersion":      {project.File: "hello: world\n"},
		`unknown field "timout"`:               {project.File: strings.Replace(lambdaYAML, "runtime", "timout: 1s, runtime", 1), "main.js": "x"},
		"logo.png is not text":                 {project.File: lambdaYAML, "main.js": "x", "logo.png": "\xff\xfe"},
		"more than 256 files or 512 KiB; put ": {project.File: lambdaYAML, "main.js": strings.Repeat("x", source.MaxInline+1)},
	} {
		_, err := project.Read(write(t, files))
		require.ErrorContains(t, err, want)
		told := (*source.Error)(nil)
		require.ErrorAs(t, err, &told)
	}
	_, err := project.Read(filepath.Join(t.TempDir(), "none"))
	require.ErrorContains(t, err, "there is no directory")
}

func TestInitRefusesWhatItWouldSpoil(t *testing.T) {
	_, err := project.Init(filepath.Join(t.TempDir(), "a"), "Greet", v1alpha1.RuntimeNodeJS)
	require.ErrorContains(t, err, "is no name for a lambda")
	_, err = project.Init(filepath.Join(t.TempDir(), "a"), "greet", v1alpha1.RuntimeRust)
	require.ErrorContains(t, err, `runtime "rust" is not supported`)
	_, err = project.Init(write(t, map[string]string{"mine": "x"}), "greet", v1alpha1.RuntimeGo)
	require.ErrorContains(t, err, "is not empty")
}

func TestAWatcherTellsOfASavedFile(t *testing.T) {
	dir := write(t, map[string]string{"main.js": "x"})
	watcher, err := project.NewWatcher()
	require.NoError(t, err)
	defer watcher.Close()
	news, err := watcher.Watch([]string{dir})
	require.NoError(t, err)
	require.True(t, news)
	for _, save := range []func() error{
		func() error { return os.WriteFile(filepath.Join(dir, "main.js"), []byte("y"), 0o600) },
		func() error { // as editors do
			return os.Rename(filepath.Join(dir, "main.js"), filepath.Join(dir, "index.js"))
		},
		func() error { return os.Mkdir(filepath.Join(dir, "lib"), 0o700) },
	} {
		require.NoError(t, save())
		require.NoError(t, watcher.Wait(t.Context()))
	}
	news, err = watcher.Watch([]string{dir, filepath.Join(dir, "lib")})
	require.NoError(t, err)
	require.True(t, news)
	news, err = watcher.Watch([]string{dir})
	require.NoError(t, err)
	require.False(t, news)
}
