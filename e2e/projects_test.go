package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// newProject is what `lambda init` makes.
func newProject(t testing.TB, runtime string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "greet-"+runtime)
	out, err := exec.CommandContext(t.Context(), binary(t, "lambdamesh"), "lambda", "init", dir, "--runtime", runtime).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), filepath.Join(dir, "lambda.yaml"))
	return dir
}

// edit replaces text in a file of a project.
func edit(t testing.TB, file, old, text string) {
	t.Helper()
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(content), old)
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(string(content), old, text)), 0o600))
}

// projects tells of each runtime's project how its handler's file is called, how
// its test is run, and what is nothing in its language.
var projects = map[string]struct { //nolint:gochecknoglobals // a table
	file, broken string
	test         []string
}{
	"nodejs": {"main.js", "main.js:2:6: ", []string{"node", "--test"}},
	"python": {"main.py", "main.py:2:", []string{"python3", "-m", "unittest"}},
	"go":     {"main.go", "main.go:2:1: ", []string{"go", "test", "./..."}},
}

func TestANewProjectPassesItsTestAndRunsAlone(t *testing.T) {
	for runtime, language := range projects {
		t.Run(runtime, func(t *testing.T) {
			t.Parallel()
			needs(t, language.test[0])
			dir := newProject(t, runtime)
			file := filepath.Join(dir, language.file)

			test := exec.CommandContext(t.Context(), language.test[0], language.test[1:]...)
			test.Dir, test.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOPROXY=off")
			out, err := test.CombinedOutput()
			require.NoError(t, err, string(out))

			again := exec.CommandContext(t.Context(), binary(t, "lambdamesh"), "lambda", "init", dir, "--runtime", runtime)
			out, err = again.CombinedOutput()
			require.Error(t, err)
			require.Contains(t, string(out), "is not empty")

			alone, output := runAlone(t, dir)
			invoke := func(args ...string) (string, error) {
				cmd := exec.CommandContext(t.Context(), binary(t, "lambdamesh"), append([]string{"lambda", "invoke", "greet", "--url", alone}, args...)...)
				var told bytes.Buffer
				cmd.Stderr = &told
				out, err := cmd.Output()
				if err != nil {
					err = fmt.Errorf("%w: %s", err, told.String())
				}
				return string(out), err
			}
			answers := func(want string, args ...string) {
				t.Helper()
				eventually(t, 2*time.Minute, func() error {
					got, err := invoke(args...)
					if err == nil && strings.TrimSpace(got) != want {
						err = errorf("it answers %s\n%s", got, output)
					}
					return err
				})
			}
			answers(`{"hello":"Ada"}`, "--path", "/?name=Ada")
			answers(`{"hello":"Ada"}`, "--event", filepath.Join(dir, "event.json"))

			// The version before answers as long as there is no better one.
			before, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file, []byte("\nthis is no program\n"), 0o600))
			eventually(t, time.Minute, func() error {
				if !strings.Contains(output.String(), language.broken) {
					return errorf("it says %s", output)
				}
				return nil
			})
			answers(`{"hello":"Ada"}`, "--path", "/?name=Ada")
			require.NoError(t, os.WriteFile(file, bytes.ReplaceAll(before, []byte("hello"), []byte("ciao")), 0o600))
			answers(`{"ciao":"Ada"}`, "--path", "/?name=Ada")

			// A web page gets nothing.
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, alone, nil)
			require.NoError(t, err)
			request.Host = "rebound.example"
			answer, err := do(http.DefaultClient, request)
			require.NoError(t, err)
			require.Equal(t, http.StatusMisdirectedRequest, answer.status)
		})
	}
}

// runAlone is `lambda run` and where it serves.
func runAlone(t *testing.T, dir string) (url string, output *buffer) {
	t.Helper()
	output = &buffer{}
	cmd := exec.Command(binary(t, "lambdamesh"), "lambda", "run", dir)
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+t.TempDir())
	if cache, err := exec.CommandContext(t.Context(), "go", "env", "GOCACHE").Output(); err == nil {
		cmd.Env = append(cmd.Env, "GOCACHE="+strings.TrimSpace(string(cache))) // not that of an empty machine
	}
	cmd.Stdout, cmd.Stderr = output, output
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("lambda run ended with %v:\n%s", err, output)
			}
		case <-time.After(stopTimeout):
			_ = cmd.Process.Kill()
			t.Errorf("lambda run did not stop:\n%s", output)
		}
	})
	eventually(t, time.Minute, func() error {
		_, after, found := strings.Cut(output.String(), " at http://")
		line, _, ended := strings.Cut(after, "\n")
		if !found || !ended {
			return errorf("it says %s", output)
		}
		url = "http://" + line
		return nil
	})
	return url, output
}

func TestADirectoryIsDeployedAndCalled(t *testing.T) {
	needs(t, "node")
	m := shared(t)
	const namespace = "deployed"
	m.applyObjects(t, namespaceObject(namespace))
	dir := newProject(t, "nodejs")
	main := filepath.Join(dir, "main.js")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "lib"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lib", "word.ts"), []byte("export const word: string = 'hello';\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".env"), []byte("PASSWORD=sesame\n"), 0o600))
	edit(t, main, "// @ts-check", "import { word } from './lib/word.ts';")
	edit(t, main, "{ hello: name }", "{ [word]: name, event: event.isEvent, caller: context.caller.kind }")
	deploy := func() (string, int) {
		return m.cli(t, "lambda", "deploy", dir, "-n", namespace)
	}
	invoke := func(args ...string) (string, int) {
		return m.cli(t, append([]string{"lambda", "invoke", "greet-nodejs", "-n", namespace}, args...)...)
	}
	out, code := deploy()
	require.Zero(t, code, out)
	require.Contains(t, out, "http://greet-nodejs.deployed.svc")
	require.NotContains(t, m.mustKubectl(t, "", "get", "lambda", "-n", namespace, "greet-nodejs", "-o", "yaml"), "sesame", "what begins with a dot is the machine's")

	out, code = invoke("--path", "/?name=Ada")
	require.Zero(t, code, out)
	require.Contains(t, out, `{"hello":"Ada","event":false,"caller":"gateway"}`)
	out, code = invoke("--event", filepath.Join(dir, "event.json"))
	require.Zero(t, code, out)
	require.Contains(t, out, `{"hello":"Ada","event":true,"caller":"eventbus"}`)
	out, code = m.cli(t, "lambda", "invoke", "nobody", "-n", namespace)
	require.Equal(t, 1, code)
	require.Contains(t, out, "404")

	t.Run("its log is followed", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		logs := exec.CommandContext(ctx, binary(t, "lambdamesh"), "logs", "greet-nodejs", "-n", namespace, "-f", "--data-dir", m.dataDir)
		stdout, err := logs.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, logs.Start())
		lines := bufio.NewScanner(stdout)
		_, code := invoke("--path", "/?name=Grace")
		require.Zero(t, code)
		for lines.Scan() && !strings.Contains(lines.Text(), `"name":"Grace"`) {
			continue
		}
		require.Contains(t, lines.Text(), `"invocation":`)
		cancel()
		_ = logs.Wait()
	})

	t.Run("the version before serves on when the new one does not build", func(t *testing.T) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "lib", "word.ts"), []byte("export const word: string = \n"), 0o600))
		out, code := deploy()
		require.Equal(t, 1, code, out)
		require.Contains(t, out, "lib/word.ts:2:1: Unexpected end of file")
		out, _ = invoke("--path", "/?name=Ada")
		require.Contains(t, out, `{"hello":"Ada"`)
	})

	t.Run("a file that is gone is gone there too", func(t *testing.T) {
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "lib")))
		out, code := deploy()
		require.Equal(t, 1, code, out)
		require.Contains(t, out, `there is no "./lib/word.ts"`)
		edit(t, main, "import { word } from './lib/word.ts';", "const word = 'ciao';")
		out, code = deploy()
		require.Zero(t, code, out)
		out, code = invoke("--path", "/?name=Ada")
		require.Zero(t, code, out)
		require.Contains(t, out, `{"ciao":"Ada"`)
	})

	t.Run("what is no project says what to do", func(t *testing.T) {
		out, code := m.cli(t, "lambda", "deploy", t.TempDir())
		require.Equal(t, 1, code)
		require.Contains(t, out, "lambda.yaml")
	})
}

// Files below --apply are saved while requests come: none fails, and every
// version goes live.
func TestSavedFilesAreLive(t *testing.T) {
	needs(t, "node", "python3")
	m := shared(t)
	const versions = 4
	for name, p := range map[string]struct{ runtime, file, code string }{
		"saved-js": {"nodejs", "main.js", "export const main = () => 'VERSION';\n"},
		"saved-ts": {"nodejs", "src/index.ts", "import { version } from './version';\nexport const main = (): string => version;\n"},
		"saved-py": {"python", "main.py", "def main(event, context):\n    return 'VERSION'\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(common.projects, name)
			require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(p.file)), 0o700))
			edited := filepath.Join(dir, p.file)
			code := p.code
			if !strings.Contains(code, "VERSION") {
				require.NoError(t, os.WriteFile(edited, []byte(code), 0o600))
				edited, code = filepath.Join(filepath.Dir(edited), "version.ts"), "export const version: string = 'VERSION';\n"
			}
			save := func(version string) {
				require.NoError(t, os.WriteFile(edited, []byte(strings.ReplaceAll(code, "VERSION", version)), 0o600))
			}
			save("v0")
			require.NoError(t, os.WriteFile(filepath.Join(dir, "lambda.yaml"), fmt.Appendf(nil, `apiVersion: lambdamesh.dev/v1alpha1
kind: Lambda
metadata: {name: %[1]s, namespace: projects}
spec: {runtime: %[2]s}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: %[1]s, namespace: projects}
spec: {hosts: [%[1]s], rules: [{path: /*, lambda: %[1]s, noAuth: true}]}
`, name, p.runtime), 0o600))
			eventually(t, 2*time.Minute, func() error { // the object is there once the file was noticed
				_, err := m.kubectl(t, "", "get", "-n", "projects", "lambda/"+name, "apirule/"+name)
				return err
			})
			m.awaitRoute(t, "projects", name)
			m.answers(t, name, "/", "v0")

			ctx, stop := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			for range 2 {
				clients.Go(func() {
					for ctx.Err() == nil {
						answer, err := m.get(t.Context(), name+".lambdas.localhost", "/")
						if err != nil || answer.status != http.StatusOK {
							t.Errorf("%v: %d %s", err, answer.status, answer.body)
							return
						}
					}
				})
			}
			var slowest time.Duration
			for version := range versions {
				begin := time.Now()
				save(fmt.Sprint("v", version+1))
				m.answers(t, name, "/", fmt.Sprint("v", version+1))
				slowest = max(slowest, time.Since(begin))
			}
			stop()
			clients.Wait()
			t.Logf("a saved file was live after %s at most", slowest)
		})
	}
}
