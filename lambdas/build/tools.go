package build

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// language is how a runtime's toolchain is found, asked and installed.
type language struct {
	program, title, install string
	// version are arguments that print the real executable's path (or nothing)
	// and the version, each on a line of its own.
	version []string
}

func languageOf(runtime v1alpha1.Runtime) language {
	switch runtime {
	case v1alpha1.RuntimeGo:
		return language{"go", "Go", "Go 1.24 or later from https://go.dev/dl", []string{"env", "GOVERSION"}}
	case v1alpha1.RuntimeNodeJS:
		return language{"node", "Node.js", "Node.js 18 or later from https://nodejs.org", []string{"-e", "console.log(process.execPath + '\\n' + process.versions.node)"}}
	default:
		return language{"python3", "Python", "Python 3.9 or later from https://www.python.org", []string{"-I", "-c", "import sys, platform\nprint(sys.executable)\nprint(platform.python_version())"}}
	}
}

// tool finds a runtime's toolchain. What was found is remembered, what is
// missing is looked for again, so that installing it is enough.
func (t *Toolchain) tool(ctx context.Context, runtime v1alpha1.Runtime) (tool, error) {
	t.mu.Lock()
	known, found := t.tools[runtime]
	t.mu.Unlock()
	if found {
		if _, err := os.Stat(known.path); err == nil {
			return known, nil
		}
	}
	language := languageOf(runtime)
	missing := &Error{Reason: ReasonRuntimeMissing, Message: fmt.Sprintf("%s is not installed: `%s` is not on PATH; install %s", language.title, language.program, language.install)}
	path, err := t.config.LookPath(language.program)
	if err != nil {
		return tool{}, missing
	}
	output, err := run(ctx, os.TempDir(), path, toolEnv(), language.version...)
	if ctx.Err() != nil {
		return tool{}, ctx.Err()
	}
	lines := strings.Fields(output)
	if err != nil || len(lines) == 0 {
		missing.Message = fmt.Sprintf("%s at %s does not run (%v); install %s", language.title, path, err, language.install)
		return tool{}, missing
	}
	result := tool{path: path, version: strings.TrimPrefix(lines[len(lines)-1], "go")}
	if len(lines) > 1 && runtime != v1alpha1.RuntimeGo {
		result.path = lines[0]
	}
	t.mu.Lock()
	t.tools[runtime] = result
	t.mu.Unlock()
	return result, nil
}

// versionNote tells when another version runs than the one asked for.
func versionNote(lambda *v1alpha1.Lambda, tool tool) string {
	want := lambda.Spec.Version
	if want == "" || want == tool.version || strings.HasPrefix(tool.version, want+".") {
		return ""
	}
	return fmt.Sprintf("runs on the installed %s %s, not on version %s", languageOf(lambda.Spec.Runtime).title, tool.version, want)
}

// toolEnv is what toolchains need of this process's environment: where the
// user's caches, version managers and proxies are.
func toolEnv() []string {
	var env []string
	for _, name := range []string{
		"PATH", "HOME", "TMPDIR", "LANG", "USER", "PYENV_ROOT", "PYENV_VERSION", "NVM_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME",
		"GOROOT", "GOPATH", "GOMODCACHE", "GOCACHE", "GOENV", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
	} {
		if value, found := os.LookupEnv(name); found {
			env = append(env, name+"="+value)
		}
	}
	return env
}
