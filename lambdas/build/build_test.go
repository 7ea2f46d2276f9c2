package build_test

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestMain(m *testing.M) {
	process.WatcherMain()
	os.Exit(m.Run())
}

func newLambda(runtime v1alpha1.Runtime, code string) *v1alpha1.Lambda {
	lambda := &v1alpha1.Lambda{}
	lambda.Name, lambda.Namespace = "last-order", "shop"
	lambda.Spec.Runtime = runtime
	lambda.Spec.Source.Inline = &v1alpha1.InlineSource{Code: code}
	return lambda
}

const goodGo = `package orders

import (
	"context"

	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

func Main(ctx context.Context, event *lambda.Event) (any, error) { return nil, nil }
`

func newPipeline(t *testing.T, config build.ToolchainConfig) (*build.Pipeline, build.Directory) {
	t.Helper()
	if config.Dir == "" {
		config.Dir = t.TempDir()
	}
	toolchain, err := build.NewToolchain(config)
	require.NoError(t, err)
	store := build.Directory{Toolchain: toolchain}
	return &build.Pipeline{Toolchain: toolchain, Store: store}, store
}

func must(pipeline *build.Pipeline, _ build.Directory) *build.Pipeline { return pipeline }

func found(program string) build.ToolchainConfig {
	return build.ToolchainConfig{LookPath: func(string) (string, error) { return program, nil }}
}

func skipWithout(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("NOT TESTED on this machine: %v", err)
	}
}

func TestMistakesInTheSourceNameTheLine(t *testing.T) {
	pipeline, _ := newPipeline(t, build.ToolchainConfig{})
	tests := map[string]struct {
		program string
		runtime v1alpha1.Runtime
		code    string
		want    string
	}{
		"go syntax":        {"go", v1alpha1.RuntimeGo, "package orders\n\nfunc Main() {\n\tx :=\n}\n", "main.go:5:1: expected operand, found '}'"},
		"go type error":    {"go", v1alpha1.RuntimeGo, goodGo + "\nvar x = undefined\n", "main.go:11:9: undefined: undefined"},
		"go no handler":    {"go", v1alpha1.RuntimeGo, "package orders\n", "main.go: there is no func Main; write func Main(ctx context.Context, event *lambda.Event) (any, error) or func Main(w http.ResponseWriter, r *http.Request)"},
		"go own main":      {"go", v1alpha1.RuntimeGo, "package main\n\nfunc main() {}\n", "main.go:3:1: leave func main out: the build writes it and it calls Main"},
		"go signature":     {"go", v1alpha1.RuntimeGo, "package orders\n\nfunc Main() {}\n", "main.go:3:1: Main has another signature; write func Main(ctx context.Context, event *lambda.Event) (any, error) or func Main(w http.ResponseWriter, r *http.Request)"},
		"nodejs CommonJS":  {"node", v1alpha1.RuntimeNodeJS, "exports.main = () => {\n  const x = ;\n};\n", "main.js:2:13: Unexpected \";\""},
		"nodejs ES module": {"node", v1alpha1.RuntimeNodeJS, "export function main() {\n  const x = ;\n}\n", "main.js:2:13: Unexpected \";\""},
		"nodejs handler":   {"node", v1alpha1.RuntimeNodeJS, "export function other() {}\n", "main.js exports no function main; export it: export async function main(event, context) {}"},
		"nodejs package":   {"node", v1alpha1.RuntimeNodeJS, "import x from 'left-pad'\nexport const main = x\n", `main.js:1:15: there is no "left-pad"; add the package to the dependencies (package.json)`},
		"TypeScript":       {"node", v1alpha1.RuntimeNodeJS, "export function main(event: { a: string }) {\n  const x: number = ;\n}\n", "main.ts:2:21: Unexpected \";\""},
		"python":           {"python3", v1alpha1.RuntimePython, "def main(event, context):\n    return (\n", "main.py:2:12: SyntaxError: '(' was never closed"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			skipWithout(t, test.program)
			_, err := pipeline.Build(t.Context(), newLambda(test.runtime, test.code))
			require.EqualError(t, err, test.want)
			require.Equal(t, source.ReasonBuildFailed, source.ReasonOf(err))
		})
	}
}

// Beside a go.mod that somebody left in /tmp the go command warns, in a line of
// its own, which is no version.
func TestAModuleInTheTemporaryDirectoryIsNotAsked(t *testing.T) {
	skipWithout(t, "go")
	genuine, err := exec.LookPath("go")
	require.NoError(t, err)
	program := filepath.Join(t.TempDir(), "go")
	require.NoError(t, os.WriteFile(program, []byte(`#!/bin/sh
`+genuine+` "$@"
code=$?
[ "$PWD" != `+filepath.Clean(os.TempDir())+` ] || echo "go: warning: ignoring go.mod in system temp root $PWD" >&2
exit $code
`), 0o700)) //nolint:gosec // a program
	_, err = must(newPipeline(t, found(program))).Build(t.Context(), newLambda(v1alpha1.RuntimeGo, goodGo))
	require.NoError(t, err)
}

func TestSameSourceIsBuiltOnceAndAnotherHandlerIsAnotherArtifact(t *testing.T) {
	skipWithout(t, "go")
	dir := t.TempDir()
	pipeline, store := newPipeline(t, build.ToolchainConfig{Dir: dir})
	lambda := newLambda(v1alpha1.RuntimeGo, goodGo)
	first, err := pipeline.Build(t.Context(), lambda)
	require.NoError(t, err)
	require.Regexp(t, `^lambdamesh\.local/go:[0-9a-f]{20}$`, first.Image)
	command, err := store.Command(t.Context(), first.Image)
	require.NoError(t, err)
	before, err := os.Stat(command.Path)
	require.NoError(t, err)

	second, err := pipeline.Build(t.Context(), lambda)
	require.NoError(t, err)
	require.Equal(t, first, second)
	after, err := os.Stat(command.Path)
	require.NoError(t, err)
	require.Equal(t, before.ModTime(), after.ModTime())

	lambda.Spec.Source.Inline.Code += "\nfunc Other() {}\n"
	third, err := pipeline.Build(t.Context(), lambda)
	require.NoError(t, err)
	require.NotEqual(t, first.Image, third.Image)

	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	require.NoError(t, err)
	require.Empty(t, left, "builds leave nothing behind")
}

func TestAMissingLanguageSaysWhatToInstall(t *testing.T) {
	pipeline, _ := newPipeline(t, build.ToolchainConfig{LookPath: func(string) (string, error) { return "", exec.ErrNotFound }})
	_, err := pipeline.Build(t.Context(), newLambda(v1alpha1.RuntimeNodeJS, "exports.main = () => 1"))
	require.Equal(t, source.ReasonRuntimeMissing, source.ReasonOf(err))
	require.EqualError(t, err, "Node.js is not installed: `node` is not on PATH; install Node.js 18 or later from https://nodejs.org")
	failure := (*source.Error)(nil)
	require.ErrorAs(t, err, &failure)
	require.True(t, failure.Passing, "installing it is enough")
}

func TestALanguageThatIsTooOldSaysWhatToInstall(t *testing.T) {
	program := filepath.Join(t.TempDir(), "node")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho /usr/bin/node; echo 16.20.2\n"), 0o700)) //nolint:gosec // a program
	pipeline, _ := newPipeline(t, found(program))
	_, err := pipeline.Build(t.Context(), newLambda(v1alpha1.RuntimeNodeJS, "exports.main = () => 1"))
	require.EqualError(t, err, "Node.js 16.20.2 at "+program+" is too old; install Node.js 18 or later from https://nodejs.org")
	require.Equal(t, source.ReasonRuntimeMissing, source.ReasonOf(err))
}

func TestAnotherVersionThanAskedForIsTold(t *testing.T) {
	skipWithout(t, "python3")
	lambda := newLambda(v1alpha1.RuntimePython, "def main(event, context): pass\n")
	lambda.Spec.Version = "2.7"
	artifact, err := must(newPipeline(t, build.ToolchainConfig{})).Build(t.Context(), lambda)
	require.NoError(t, err)
	require.Regexp(t, `^runs on the installed Python 3\.[0-9.]+, not on version 2\.7$`, artifact.Note)
	lambda.Spec.Version = "3"
	artifact, err = must(newPipeline(t, build.ToolchainConfig{})).Build(t.Context(), lambda)
	require.NoError(t, err)
	require.Empty(t, artifact.Note)
}

func TestWhatThisVersionLacksIsRefused(t *testing.T) {
	pipeline, _ := newPipeline(t, build.ToolchainConfig{})
	image := "registry.example/app@sha256:00"
	tests := map[string]func(*v1alpha1.Lambda){
		"rust":      func(l *v1alpha1.Lambda) { l.Spec.Runtime = v1alpha1.RuntimeRust },
		"container": func(l *v1alpha1.Lambda) { l.Spec.Runtime = v1alpha1.RuntimeContainer },
		"git":       func(l *v1alpha1.Lambda) { l.Spec.Source = v1alpha1.SourceSpec{Git: &v1alpha1.GitSource{}} },
		"image":     func(l *v1alpha1.Lambda) { l.Spec.Source = v1alpha1.SourceSpec{Image: &image} },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			lambda := newLambda(v1alpha1.RuntimeNodeJS, "exports.main = () => 1")
			change(lambda)
			_, err := pipeline.Build(t.Context(), lambda)
			require.Equal(t, v1alpha1.ReasonNotSupported, source.ReasonOf(err), "%v", err)
		})
	}
}

func TestGoDependenciesThatAreNoRequireLinesAreRefused(t *testing.T) {
	skipWithout(t, "go")
	lambda := newLambda(v1alpha1.RuntimeGo, goodGo)
	lambda.Spec.Source.Inline.Dependencies = "require (\n\tgithub.com/google/go-cmp v0.7.0\n)\nreplace x => /etc\n"
	_, err := must(newPipeline(t, build.ToolchainConfig{})).Build(t.Context(), lambda)
	require.EqualError(t, err, `dependencies:4: want a line such as github.com/owner/module v1.2.3, not "replace x => /etc"`)
}

func TestGoDependenciesAreFetchedByTheUsersOwnSettings(t *testing.T) {
	skipWithout(t, "go")
	// The module cache has it: this module requires it too.
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOSUMDB", "off")
	lambda := newLambda(v1alpha1.RuntimeGo, `package orders

import (
	"context"

	"github.com/google/go-cmp/cmp"
	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

func Main(ctx context.Context, event *lambda.Event) (any, error) { return cmp.Equal(1, 1), nil }
`)
	_, err := must(newPipeline(t, build.ToolchainConfig{})).Build(t.Context(), lambda)
	require.EqualError(t, err, "main.go:6:2: no dependency has package github.com/google/go-cmp/cmp; add its module and version to source.inline.dependencies")
	lambda.Spec.Source.Inline.Dependencies = "github.com/google/go-cmp v0.7.0"
	_, err = must(newPipeline(t, build.ToolchainConfig{})).Build(t.Context(), lambda)
	require.NoError(t, err)
}

func TestABuildThatIsEndedEndsItsCompiler(t *testing.T) {
	for name, test := range map[string]struct {
		timeout time.Duration // of the build; long enough that the compiler begins
		check   func(*testing.T, error)
	}{
		"canceled, it is nobody's fault": {time.Hour, func(t *testing.T, err error) {
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorAs(t, err, new(*source.Error), "it is not the source's fault, and tried again")
		}},
		"out of time, it may pass": {10 * time.Second, func(t *testing.T, err error) {
			require.Equal(t, source.ReasonBuildFailed, source.ReasonOf(err))
			require.EqualError(t, err, "the Python syntax check did not end in time")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// A compiler that never ends.
			dir := t.TempDir()
			program, begun := filepath.Join(dir, "python3"), filepath.Join(dir, "begun")
			script := "#!/bin/sh\ncase \"$*\" in *version*) echo \"$0\"; echo 3.11.0;; *) echo $$ >" + begun + ".new; mv " + begun + ".new " + begun + "; exec sleep 600;; esac\n"
			require.NoError(t, os.WriteFile(program, []byte(script), 0o700)) //nolint:gosec // a program
			config := found(program)
			config.Timeout = test.timeout
			pipeline, _ := newPipeline(t, config)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan error, 1)
			go func() {
				_, err := pipeline.Build(ctx, newLambda(v1alpha1.RuntimePython, "def main(event, context): pass\n"))
				result <- err
			}()
			var pid int
			testkit.Eventually(t, time.Minute, func() error {
				text, err := os.ReadFile(begun)
				if err == nil {
					pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
				}
				return err
			}, "the compiler runs")
			if test.timeout == time.Hour {
				cancel()
			}
			select {
			case err := <-result:
				test.check(t, err)
			case <-time.After(time.Minute):
				t.Fatal("the build goes on")
			}
			require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH, "the compiler has ended, too")
		})
	}
}

func TestImagesOfAnotherStoreAreRefused(t *testing.T) {
	_, store := newPipeline(t, build.ToolchainConfig{})
	for _, image := range []string{"nginx:1", "lambdamesh.local/go", "lambdamesh.local/../etc:x", "lambdamesh.local/go:../../x", "lambdamesh.local/go:0123"} {
		_, err := store.Command(t.Context(), image)
		require.Error(t, err, image)
	}
}

func TestInAClusterTheSameProductIsMounted(t *testing.T) {
	local, _ := newPipeline(t, build.ToolchainConfig{})
	cluster := func(store build.Mounts, lambda *v1alpha1.Lambda) (build.Artifact, error) {
		return (&build.Pipeline{Toolchain: local.Toolchain, Store: store}).Build(t.Context(), lambda)
	}
	images := build.Mounts{Prefix: "registry.example/lambdamesh-", Tag: "v1"}
	node := newLambda(v1alpha1.RuntimeNodeJS, "import x from 'os';\nexport const main = () => x;\n")
	artifact, err := cluster(images, node)
	require.NoError(t, err)
	require.Equal(t, "registry.example/lambdamesh-nodejs:v1", artifact.Image)
	require.Len(t, artifact.Mounts, 2)
	require.Equal(t, "/lambda/source", artifact.Mounts[0].Dir)
	require.Contains(t, artifact.Mounts[0].Files, "main.mjs")
	require.Equal(t, "/lambda/runtime", artifact.Mounts[1].Dir)
	require.Contains(t, artifact.Mounts[1].Files, "server.mjs")
	require.Equal(t, []string{"node", "/lambda/runtime/server.mjs"}, artifact.Command)

	lambda := newLambda(v1alpha1.RuntimePython, "def main(event, context): pass\n")
	lambda.Spec.Version = "3.12"
	artifact, err = cluster(images, lambda)
	require.NoError(t, err)
	require.Equal(t, "registry.example/lambdamesh-python:3.12-v1", artifact.Image)
	require.Equal(t, []string{"main.py"}, slices.Sorted(maps.Keys(artifact.Mounts[0].Files)), "and nothing that the Python of this machine made")
	require.Contains(t, artifact.Mounts[1].Files, "lambdamesh_runtime/server.py")

	artifact, err = cluster(build.Mounts{}, lambda)
	require.NoError(t, err)
	require.Equal(t, "docker.io/library/python:3.12-slim", artifact.Image, "the official image without a prefix")

	_, err = cluster(images, newLambda(v1alpha1.RuntimeGo, goodGo))
	require.Equal(t, source.ReasonNeedsBuild, source.ReasonOf(err))
}

// The control plane's image has no languages in it.
func TestMistakesAreFoundWithoutTheLanguage(t *testing.T) {
	pipeline, _ := newPipeline(t, build.ToolchainConfig{LookPath: func(string) (string, error) { return "", exec.ErrNotFound }})
	pipeline.Store = build.Mounts{Prefix: "registry.example/lambdamesh-", Tag: "v1"}
	_, err := pipeline.Build(t.Context(), newLambda(v1alpha1.RuntimeNodeJS, "export const main = (\n"))
	require.EqualError(t, err, "main.js:2:1: Unexpected end of file")
	_, err = pipeline.Build(t.Context(), newLambda(v1alpha1.RuntimePython, "def main(event, context): pass\n"))
	require.NoError(t, err)
}
