package build

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
)

// pythonCheck compiles every file of a directory and tells the first mistake.
const pythonCheck = `import os, sys
root = sys.argv[1]
for folder, folders, names in os.walk(root):
    folders.sort()
    for name in sorted(names):
        path = os.path.join(folder, name)
        if not name.endswith(".py"):
            continue
        shown = os.path.relpath(path, root)
        with open(path, "rb") as file:
            code = file.read()
        try:
            compile(code, shown, "exec", dont_inherit=True)
        except SyntaxError as error:
            print(f"{shown}:{error.lineno}:{error.offset}: {type(error).__name__}: {error.msg}")
            sys.exit(1)
        except ValueError as error:
            print(f"{shown}: {error}")
            sys.exit(1)
`

// buildPython lays the files out and, where Python is installed, checks and
// compiles them. Elsewhere a mistake shows when a replica loads it.
func (t *Toolchain) buildPython(ctx context.Context, w work, input Input) error {
	if input.Tree.First(source.PythonFile) == "" {
		return source.Failed("there is no %s in the source's directory; it holds the handler", source.PythonFile)
	}
	laid := filepath.Join(w.product, sourceFolder)
	if err := input.Tree.Write(laid); err != nil {
		return err
	}
	if err := t.addPackages(ctx, w, input); err != nil {
		return err
	}
	tool, err := t.tool(ctx, input.Runtime)
	if source.ReasonOf(err) == source.ReasonRuntimeMissing {
		return nil
	} else if err != nil {
		return err
	}
	output, err := run(ctx, w.dir, tool.path, toolEnv(), "-I", "-B", "-c", pythonCheck, laid)
	switch {
	case ctx.Err() != nil:
		return ended(ctx, "the Python syntax check")
	case err != nil:
		return source.Failed("%s", strings.TrimSpace(output))
	}
	// Compiled once here instead of at the first start, which would change a
	// finished product. Where it fails, starting is only slower.
	_, _ = run(ctx, w.dir, tool.path, toolEnv(), "-I", "-m", "compileall", "-q", w.product)
	return nil
}
