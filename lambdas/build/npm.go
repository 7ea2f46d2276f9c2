package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
)

const npmLock = "package-lock.json"

// npmInstall returns a directory with the packages that a source declares, in
// node_modules: installed once for the same declaration and lock. No script of
// a package runs, and packages come from registries alone.
func (t *Toolchain) npmInstall(ctx context.Context, tree source.Tree, manifest manifest) (string, error) {
	declared, err := npmManifest(manifest)
	if err != nil {
		return "", err
	}
	lock, locked := tree.Files[npmLock]
	if locked {
		if err := checkNPMLock(lock); err != nil {
			return "", err
		}
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "1 %d:%s%d:%s", len(declared), declared, len(lock), lock)
	return t.cached(ctx, "npm", hex.EncodeToString(sum.Sum(nil))[:20], func(ctx context.Context, dir string) error {
		npm, err := t.config.LookPath("npm")
		if err != nil {
			return &source.Error{Reason: source.ReasonRuntimeMissing, Passing: true, Message: "npm is not installed where lambdas are built: `npm` is not on PATH; it installs the packages of package.json; install it with Node.js from https://nodejs.org"}
		}
		command := "install"
		err = os.WriteFile(filepath.Join(dir, "package.json"), declared, 0o600)
		if locked {
			command = "ci"
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, npmLock), lock, 0o600))
		}
		if err != nil {
			return fmt.Errorf("write package.json: %w", err)
		}
		output, err := runBounded(ctx, dir, npm, npmEnv(), command, "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--no-progress",
			"--loglevel=error", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=10000", "--git=/dev/null", "--install-links=true", "--workspaces=false", "--package-lock=true")
		if err != nil {
			return npmFailed(ctx, err, output)
		}
		written, err := os.ReadFile(filepath.Join(dir, npmLock))
		if err != nil {
			return fmt.Errorf("read what npm resolved: %w", err)
		}
		return checkNPMLock(written)
	})
}

// npmManifest is the package.json that npm gets: what to install, and nothing
// that it would run or look for elsewhere.
func npmManifest(m manifest) ([]byte, error) {
	if len(m.Overrides) > 0 {
		return nil, source.NotSupported("package.json: overrides are not supported by this version; name the version among the dependencies")
	}
	for _, set := range []map[string]string{m.Dependencies, m.DevDependencies, m.OptionalDependencies} {
		for _, name := range slices.Sorted(maps.Keys(set)) {
			if !npmName.MatchString(name) {
				return nil, source.Failed("package.json: %q is no name of a package", name)
			}
			if !npmVersion.MatchString(set[name]) {
				return nil, source.Failed("package.json: %s: %q is not taken; write a version of a package in a registry, such as ^1.2.3 (no files, git or other URLs)", name, set[name])
			}
		}
	}
	text, err := json.MarshalIndent(map[string]any{
		"name": "lambda", "version": "0.0.0", "private": true,
		"dependencies": m.Dependencies, "devDependencies": m.DevDependencies, "optionalDependencies": m.OptionalDependencies,
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write package.json: %w", err)
	}
	return text, nil
}

var (
	npmName = regexp.MustCompile(`^(@[a-z0-9~][a-z0-9._~-]*/)?[A-Za-z0-9~_][A-Za-z0-9._~-]*$`)
	// A range, a tag or an alias of those; everything else has a colon or a slash.
	npmVersion = regexp.MustCompile(`^(npm:(@[a-z0-9~][a-z0-9._~-]*/)?[A-Za-z0-9._~-]+@)?[A-Za-z0-9 .*^~<>=|+-]*$`)
)

// checkNPMLock refuses a lock that names anything but packages of registries.
func checkNPMLock(text []byte) error {
	var lock struct {
		Version  int `json:"lockfileVersion"`
		Packages map[string]struct {
			Resolved string
			Link     bool
		}
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		return source.Failed("package-lock.json: %v", err)
	}
	if lock.Version < 2 {
		return source.Failed("package-lock.json: lockfileVersion %d is not taken; write it again with npm 7 or later", lock.Version)
	}
	for _, name := range slices.Sorted(maps.Keys(lock.Packages)) {
		entry := lock.Packages[name]
		web := strings.HasPrefix(entry.Resolved, "https://") || strings.HasPrefix(entry.Resolved, "http://")
		if entry.Link || entry.Resolved != "" && !web || name != "" && !strings.HasPrefix(name, "node_modules/") {
			return source.Failed("package-lock.json: %s comes from %q; packages are taken from registries alone", name, entry.Resolved)
		}
	}
	return nil
}

func npmEnv() []string {
	env := append(toolEnv(), "NO_COLOR=1", "CI=1")
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(strings.ToLower(name), "npm_config_") || name == "NODE_EXTRA_CA_CERTS" {
			env = append(env, variable)
		}
	}
	return env
}

// npmFailed tells what npm said last. What only a change of the source mends is
// told apart from what a registry may answer otherwise a minute later.
func npmFailed(ctx context.Context, err error, output string) error {
	switch {
	case errors.Is(err, errTooLarge):
		return source.Failed("package.json: the packages take more than %d MiB or %d files on disk; use fewer", maxDependencyBytes>>20, maxDependencyFiles)
	case ctx.Err() != nil:
		return ended(ctx, "npm")
	}
	var lines []string
	code := ""
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		said, ours := strings.CutPrefix(line, "npm error ")
		if !ours {
			said, ours = strings.CutPrefix(line, "npm ERR! ")
		}
		if word, found := strings.CutPrefix(said, "code "); ours && found {
			code = word
			continue
		}
		if said = strings.TrimSpace(said); ours && said != "" && !strings.Contains(said, "complete log of this run") && !strings.Contains(said, "_logs") {
			lines = append(lines, said)
		}
	}
	if len(lines) == 0 {
		lines = strings.Split(strings.TrimSpace(output), "\n")
	}
	message := "package.json: npm: " + strings.TrimSpace(code+" "+strings.Join(lastLines(lines, 8), "\n"))
	if slices.Contains([]string{"E404", "ETARGET", "ERESOLVE", "EUSAGE", "EINVALIDPACKAGENAME", "EINTEGRITY", "ENOVERSIONS", "EBADPLATFORM"}, code) {
		return source.Failed("%s", message)
	}
	return source.FailedForNow("%s", message)
}

func lastLines(lines []string, most int) []string { return lines[max(0, len(lines)-most):] }
