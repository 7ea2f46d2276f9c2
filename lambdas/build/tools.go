package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// language is how a runtime's toolchain is found, asked and installed.
type language struct {
	program, title string
	major, minor   int // the oldest version that will do
	home           string
	// version are arguments that print the real executable's path (or nothing)
	// and the version, each on a line of its own.
	version []string
}

func languageOf(runtime v1alpha1.Runtime) language {
	switch runtime {
	case v1alpha1.RuntimeGo:
		return language{"go", "Go", 1, 24, "https://go.dev/dl", []string{"env", "GOVERSION"}}
	case v1alpha1.RuntimeNodeJS:
		return language{"node", "Node.js", 18, 0, "https://nodejs.org", []string{"-e", "console.log(process.execPath + '\\n' + process.versions.node)"}}
	default:
		return language{"python3", "Python", 3, 9, "https://www.python.org", []string{"-I", "-c", "import sys, platform\nprint(sys.executable)\nprint(platform.python_version())"}}
	}
}

// install says what to install.
func (l language) install() string {
	version := strings.TrimSuffix(fmt.Sprintf("%d.%d", l.major, l.minor), ".0")
	return fmt.Sprintf("install %s %s or later from %s", l.title, version, l.home)
}

// takes tells whether a version is new enough.
func (l language) takes(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && (major > l.major || major == l.major && minor >= l.minor)
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
	missing := func(why string, args ...any) error {
		return &source.Error{Reason: source.ReasonRuntimeMissing, Message: fmt.Sprintf(why, args...) + "; " + language.install(), Passing: true}
	}
	path, err := t.config.LookPath(language.program)
	if err != nil {
		return tool{}, missing("%s is not installed: `%s` is not on PATH", language.title, language.program)
	}
	// In a directory that belongs to nobody's project: a go.mod would be heard.
	output, err := run(ctx, string(filepath.Separator), path, toolEnv(), language.version...)
	if ctx.Err() != nil {
		return tool{}, ctx.Err()
	}
	lines := strings.Fields(output)
	if err != nil || len(lines) == 0 {
		return tool{}, missing("%s at %s does not run (%v)", language.title, path, err)
	}
	result := tool{path: path, version: strings.TrimPrefix(lines[len(lines)-1], "go")}
	if len(lines) > 1 && runtime != v1alpha1.RuntimeGo {
		result.path = lines[0]
	}
	if !language.takes(result.version) {
		return tool{}, missing("%s %s at %s is too old", language.title, result.version, path)
	}
	t.mu.Lock()
	t.tools[runtime] = result
	t.mu.Unlock()
	return result, nil
}

// versionNote tells when another version runs than the one asked for.
func versionNote(product Product, tool tool) string {
	want := product.Version
	if want == "" || want == tool.version || strings.HasPrefix(tool.version, want+".") {
		return ""
	}
	return fmt.Sprintf("runs on the installed %s %s, not on version %s", languageOf(product.Runtime).title, tool.version, want)
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
