package build

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

const (
	nodeESM      = "main.mjs"
	nodeCommonJS = "main.cjs"
	nodeShown    = "main.js" // what messages call the user's file
	pythonFile   = "main.py"
)

var esmStatement = regexp.MustCompile(`(?m)^\s*(import\s*[\w${*"']|export\s+(default|const|let|var|function|async|class)\b|export\s*[{*])`)

// nodeFile guesses the module system from the source's import and export
// statements.
func nodeFile(code string) string {
	if esmStatement.MatchString(code) {
		return nodeESM
	}
	return nodeCommonJS
}

func (t *Toolchain) buildNodeJS(ctx context.Context, dir string, source *v1alpha1.InlineSource, server fs.FS, tool tool) error {
	// What Node takes decides, CommonJS first as Node itself does: import and
	// export statements do not parse there. The message is that of the system
	// that the source looks like.
	looksLike := nodeFile(source.Code)
	var message string
	for _, name := range []string{nodeCommonJS, nodeESM} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(source.Code), 0o600); err != nil {
			return fmt.Errorf("check the source: %w", err)
		}
		output, err := run(ctx, dir, tool.path, toolEnv(), "--check", file)
		if ctx.Err() != nil {
			return ended(ctx, "node --check")
		}
		if err == nil {
			return writeArtifact(dir, server, name, source.Code)
		}
		if name == looksLike {
			message = nodeMessage(output, file)
		}
	}
	return failed("%s", message)
}

// nodeMessage turns Node's report, "<file>:<line>" first and the SyntaxError
// after an excerpt, into one line.
func nodeMessage(output, file string) string {
	position, problem := nodeShown, ""
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		// Node reports an ES module's file as a URL.
		if _, number, found := strings.Cut(line, filepath.Base(file)+":"); found && position == nodeShown && strings.Contains(line, filepath.Dir(file)) {
			position += ":" + number
		}
		if name, _, found := strings.Cut(line, ":"); found && strings.HasSuffix(name, "Error") {
			problem = line
			break
		}
	}
	if problem == "" {
		problem = strings.ReplaceAll(strings.TrimSpace(output), file, nodeShown)
	}
	return position + ": " + problem
}

const pythonCheck = `import sys
with open(sys.argv[1], "rb") as file:
    code = file.read()
try:
    compile(code, "main.py", "exec", dont_inherit=True)
except SyntaxError as error:
    print(f"main.py:{error.lineno}:{error.offset}: {type(error).__name__}: {error.msg}")
    sys.exit(1)
except ValueError as error:
    print(f"main.py: {error}")
    sys.exit(1)
`

func (t *Toolchain) buildPython(ctx context.Context, dir string, source *v1alpha1.InlineSource, server fs.FS, tool tool) error {
	file := filepath.Join(dir, pythonFile)
	if err := os.WriteFile(file, []byte(source.Code), 0o600); err != nil {
		return fmt.Errorf("check the source: %w", err)
	}
	output, err := run(ctx, dir, tool.path, toolEnv(), "-I", "-B", "-c", pythonCheck, file)
	switch {
	case ctx.Err() != nil:
		return ended(ctx, "the Python syntax check")
	case err != nil:
		return failed("%s", strings.TrimSpace(output))
	}
	if err := writeArtifact(dir, server, pythonFile, source.Code); err != nil {
		return err
	}
	// Compiled once here instead of at the first start, which would change a
	// finished artifact. Where it fails, starting is only slower.
	_, _ = run(ctx, dir, tool.path, toolEnv(), "-I", "-m", "compileall", "-q", filepath.Join(dir, "artifact"))
	return nil
}
