package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
)

const (
	packagesFolder = "packages"
	pipLock        = "requirements.lock"
)

// addPackages puts the packages of requirements.txt into the product. They are
// wheels: nothing of theirs runs while they are installed.
func (t *Toolchain) addPackages(ctx context.Context, w work, input Input) error {
	requirements, err := pipRequirements(string(input.Tree.Files[source.PythonDependencies]))
	if err != nil || len(requirements) == 0 {
		return err
	}
	tool, err := t.tool(ctx, input.Runtime)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, r := range requirements {
		text.WriteString(r.text + "\n")
	}
	sum := sha256.Sum256([]byte("1 " + tool.version + "\n" + text.String()))
	cached, err := t.cached(ctx, "pip", hex.EncodeToString(sum[:])[:20], func(ctx context.Context, dir string) error {
		list, packages := filepath.Join(dir, source.PythonDependencies), filepath.Join(dir, packagesFolder)
		if err := os.WriteFile(list, []byte(text.String()), 0o600); err != nil {
			return fmt.Errorf("write requirements.txt: %w", err)
		}
		output, err := runBounded(ctx, dir, tool.path, pipEnv(), "-I", "-m", "pip", "install", "--target", packages, "--only-binary", ":all:", "--no-compile",
			"--no-input", "--disable-pip-version-check", "--no-color", "--quiet", "--progress-bar", "off", "-r", list)
		if err != nil {
			return pipFailed(ctx, err, output, requirements)
		}
		lock, err := run(ctx, dir, tool.path, pipEnv(), "-I", "-m", "pip", "list", "--path", packages, "--format", "freeze", "--disable-pip-version-check")
		if err != nil {
			return fmt.Errorf("list what pip installed: %w", err)
		}
		return errors.Join(os.WriteFile(filepath.Join(dir, pipLock), []byte(lock), 0o600), os.RemoveAll(filepath.Join(packages, "bin")))
	})
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.CopyFS(filepath.Join(w.product, packagesFolder), os.DirFS(filepath.Join(cached, packagesFolder))),
		copyFile(filepath.Join(cached, pipLock), filepath.Join(w.product, pipLock)),
	); err != nil {
		return fmt.Errorf("lay out the packages: %w", err)
	}
	return nil
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o600)
}

// pipPackage is a line of requirements.txt, with those that continue it.
type pipPackage struct {
	line int
	text string
}

// pipRequirement is a package of an index: no URL, no path, no option but the
// hashes of what may be installed.
var pipRequirement = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._, -]*\])?` + // name[extras]
	`\s*(\(?\s*(===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9.*+!_-]+(\s*,\s*(===|==|~=|!=|<=|>=|<|>)\s*[A-Za-z0-9.*+!_-]+)*\s*\)?)?` +
	`\s*(;[A-Za-z0-9_ .'"()<>=!~,-]*)?(\s+--hash=sha(256|384|512):[0-9a-fA-F]+)*$`)

func pipRequirements(text string) ([]pipPackage, error) {
	var found []pipPackage
	var pending string
	begun := 0
	for number, line := range strings.Split(text, "\n") {
		if i := strings.Index(" "+line, " #"); i >= 0 {
			line = line[:max(i-1, 0)]
		}
		line = strings.TrimSpace(line)
		if pending == "" {
			begun = number + 1
		}
		if before, continues := strings.CutSuffix(line, `\`); continues {
			pending += before + " "
			continue
		}
		line, pending = strings.TrimSpace(pending+line), ""
		switch {
		case line == "":
		case !pipRequirement.MatchString(line):
			return nil, source.Failed("requirements.txt:%d: want a package of an index and its version, such as requests==2.32.3, not %q", begun, line)
		default:
			found = append(found, pipPackage{begun, line})
		}
	}
	return found, nil
}

// pipEnv names indexes as the user's own pip has them, and nothing that would
// make pip run what it downloads.
func pipEnv() []string {
	env := toolEnv()
	for _, name := range []string{
		"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_TRUSTED_HOST", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT", "PIP_RETRIES", "PIP_CONFIG_FILE", "PIP_CACHE_DIR",
	} {
		if value, found := os.LookupEnv(name); found {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// pipFailed tells what pip said last, with the line that asked for it.
func pipFailed(ctx context.Context, err error, output string, requirements []pipPackage) error {
	switch {
	case errors.Is(err, errTooLarge):
		return source.Failed("requirements.txt: the packages take more than %d MiB or %d files on disk; use fewer", maxDependencyBytes>>20, maxDependencyFiles)
	case ctx.Err() != nil:
		return ended(ctx, "pip")
	case strings.Contains(output, "No module named pip"):
		return &source.Error{Reason: source.ReasonRuntimeMissing, Passing: true, Message: "pip is not installed where lambdas are built; it installs the packages of requirements.txt: python3 -m ensurepip, or the package python3-pip"}
	}
	var lines []string
	at := source.PythonDependencies
	for line := range strings.Lines(output) {
		said, isError := strings.CutPrefix(strings.TrimSpace(line), "ERROR: ")
		if !isError {
			continue
		}
		lines = append(lines, said)
		if wanted, found := strings.CutPrefix(said, "No matching distribution found for "); found {
			if i := slices.IndexFunc(requirements, func(r pipPackage) bool { return strings.HasPrefix(squeezed(r.text), squeezed(wanted)) }); i >= 0 {
				at = fmt.Sprintf("%s:%d", source.PythonDependencies, requirements[i].line)
			}
		}
	}
	if len(lines) == 0 {
		lines = strings.Split(strings.TrimSpace(output), "\n")
	}
	message := at + ": pip: " + strings.Join(lastLines(lines, 8), "\n")
	away := strings.Contains(output, "Retrying (") || strings.Contains(output, "connection broken")
	if !away && (strings.Contains(output, "No matching distribution") || strings.Contains(output, "ResolutionImpossible") || strings.Contains(output, "HASHES")) {
		return source.Failed("%s (packages are installed as wheels, never built from source)", message)
	}
	return source.FailedForNow("%s", message)
}

func squeezed(text string) string {
	return strings.ToLower(strings.NewReplacer(" ", "", "(", "", ")", "").Replace(text))
}
