package build

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/evanw/esbuild/pkg/api"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
)

// nodeVersion names what this file makes of a source; it changes with that.
const nodeVersion = "1"

// nodeTarget is the oldest Node.js that runs what is built.
const nodeTarget = "18"

// buildNodeJS bundles the source and its packages into one file, main.mjs or
// main.cjs, with a source map that leads to the user's lines. Nothing of
// Node.js is needed for it, and npm only where the source declares packages.
func (t *Toolchain) buildNodeJS(ctx context.Context, w work, input Input) error {
	manifest, err := readManifest(input.Tree)
	if err != nil {
		return err
	}
	tree, entry, err := nodeEntry(input.Tree, manifest)
	if err != nil {
		return err
	}
	dir := filepath.Join(w.dir, "src")
	// Without one of its own the next one up in the file system would be read.
	for _, name := range []string{"package.json", "tsconfig.json"} {
		if tree.First(name) == "" {
			tree = tree.With(name, []byte("{}"))
		}
	}
	if err := tree.Write(dir); err != nil {
		return err
	}
	if manifest.declares() {
		modules, err := t.npmInstall(ctx, tree, manifest)
		if err != nil {
			return err
		}
		if err := errors.Join(
			os.Symlink(filepath.Join(modules, "node_modules"), filepath.Join(dir, "node_modules")),
			copyFile(filepath.Join(modules, npmLock), filepath.Join(w.product, npmLock)),
		); err != nil {
			return fmt.Errorf("lay out the packages: %w", err)
		}
	}
	bundle, err := bundleNodeJS(ctx, dir, entry, api.FormatESModule)
	if err != nil {
		return err
	}
	if !bundle.isModule(entry, manifest) {
		// CommonJS is not strict, which an ES module always is.
		if bundle, err = bundleNodeJS(ctx, dir, entry, api.FormatCommonJS); err != nil {
			return err
		}
	} else if exported := bundle.exports; len(exported) > 0 && !slices.Contains(exported, input.Handler) && !slices.Contains(exported, "default") {
		return source.Failed("%s exports no function %s; export it: export async function %[2]s(event, context) {}", entry, input.Handler)
	}
	for name, content := range bundle.files {
		if err := os.WriteFile(filepath.Join(w.product, sourceFolder, name), content, 0o600); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
	}
	return nil
}

// manifest is what is read of a package.json.
type manifest struct {
	Type, Main           string
	Dependencies         map[string]string
	DevDependencies      map[string]string
	OptionalDependencies map[string]string
	Overrides            json.RawMessage
}

func (m manifest) declares() bool { return len(m.Dependencies)+len(m.OptionalDependencies) > 0 }

func readManifest(tree source.Tree) (manifest, error) {
	var m manifest
	content, has := tree.Files[source.NodeJSDependencies]
	if !has {
		return m, nil
	}
	err := json.Unmarshal(content, &m)
	syntax, mistyped := (*json.SyntaxError)(nil), (*json.UnmarshalTypeError)(nil)
	switch {
	case errors.As(err, &syntax):
		before := string(content[:min(int(syntax.Offset), len(content))])
		return m, source.Failed("package.json:%d: %v", 1+strings.Count(before, "\n"), err)
	case errors.As(err, &mistyped):
		return m, source.Failed("package.json: %s: want %s, not a %s", cmp.Or(mistyped.Field, "the file"), mistyped.Type, mistyped.Value)
	case err != nil:
		return m, source.Failed("package.json: %v", err)
	}
	return m, nil
}

// nodeEntry is the file that exports the handler. Plain code in TypeScript,
// which is what parses further as such, gets its name.
func nodeEntry(tree source.Tree, manifest manifest) (source.Tree, string, error) {
	var names []string
	if manifest.Main != "" {
		names = append(names, strings.TrimPrefix(filepath.ToSlash(filepath.Clean(manifest.Main)), "./"))
	}
	for _, stem := range []string{"main", "index", "src/main", "src/index"} {
		for _, extension := range []string{".ts", ".mts", ".cts", ".js", ".mjs", ".cjs"} {
			names = append(names, stem+extension)
		}
	}
	entry := tree.First(names...)
	if entry == "" {
		return tree, "", source.Failed("there is no main.js, main.ts, index.js or index.ts in the source's directory; write the handler into one, or name its file in package.json's main")
	}
	code := tree.Files[entry]
	if entry != source.NodeJSFile || parsedUntil(code, api.LoaderTS) <= parsedUntil(code, api.LoaderJS) {
		return tree, entry, nil
	}
	const named = "main.ts"
	return tree.Without(entry).With(named, code), named, nil
}

// parsedUntil is how far code makes sense, in lines and columns.
func parsedUntil(code []byte, loader api.Loader) int {
	errors := api.Transform(string(code), api.TransformOptions{Loader: loader, LogLevel: api.LogLevelSilent}).Errors
	if len(errors) == 0 || errors[0].Location == nil {
		return math.MaxInt
	}
	return errors[0].Location.Line<<20 + errors[0].Location.Column
}

// bundled is one file with its source map.
type bundled struct {
	files   map[string][]byte
	exports []string
	formats map[string]string // of inputs, by path
}

// isModule tells whether the entry is an ES module, as Node.js decides: by its
// name, by package.json, by its statements.
func (b bundled) isModule(entry string, manifest manifest) bool {
	switch filepath.Ext(entry) {
	case ".mjs", ".mts":
		return true
	case ".cjs", ".cts":
		return false
	}
	return manifest.Type == "module" || b.formats[entry] == "esm"
}

// What CommonJS has in every file and ES modules have not, for packages of the
// one kind in a bundle of the other.
const (
	bannerESM = `import { createRequire as __lambdamesh_createRequire } from 'node:module';
import { fileURLToPath as __lambdamesh_path } from 'node:url';
const require = __lambdamesh_createRequire(import.meta.url);
const __lambdamesh_filename = __lambdamesh_path(import.meta.url);
const __lambdamesh_dirname = __lambdamesh_path(new URL('.', import.meta.url));`
	bannerCommonJS = `const __lambdamesh_url = require('node:url').pathToFileURL(__filename).href;`
)

func bundleNodeJS(ctx context.Context, dir, entry string, format api.Format) (bundled, error) {
	name, banner, define := "main.mjs", bannerESM, map[string]string{"__filename": "__lambdamesh_filename", "__dirname": "__lambdamesh_dirname"}
	if format == api.FormatCommonJS {
		name, banner, define = "main.cjs", bannerCommonJS, map[string]string{"import.meta.url": "__lambdamesh_url"}
	}
	build, problem := api.Context(api.BuildOptions{
		AbsWorkingDir: dir, EntryPoints: []string{"./" + entry}, Outfile: name, AllowOverwrite: true,
		Bundle: true, Platform: api.PlatformNode, Format: format, Engines: []api.Engine{{Name: api.EngineNode, Version: nodeTarget}},
		PreserveSymlinks: true, // packages lie in a cache and belong to the source
		Sourcemap:        api.SourceMapLinked, SourcesContent: api.SourcesContentExclude,
		Banner: map[string]string{"js": banner}, Define: define,
		LegalComments: api.LegalCommentsNone, Charset: api.CharsetUTF8, LogLevel: api.LogLevelSilent, LogLimit: maxMessages, Metafile: true,
		Plugins: []api.Plugin{insideOnly(dir)},
	})
	if problem != nil {
		return bundled{}, fmt.Errorf("set up the bundler: %w", problem)
	}
	defer build.Dispose()
	defer context.AfterFunc(ctx, build.Cancel)()
	result := build.Rebuild()
	switch {
	case ctx.Err() != nil:
		return bundled{}, ended(ctx, "bundling")
	case len(result.Errors) > 0:
		return bundled{}, source.Failed("%s", bundlerMessage(result.Errors))
	}
	b := bundled{files: map[string][]byte{}, formats: map[string]string{}}
	for _, file := range result.OutputFiles {
		b.files[filepath.Base(file.Path)] = file.Contents
	}
	var meta struct {
		Inputs  map[string]struct{ Format string }
		Outputs map[string]struct{ Exports []string }
	}
	if err := json.Unmarshal([]byte(result.Metafile), &meta); err != nil {
		return bundled{}, fmt.Errorf("read what the bundler found: %w", err)
	}
	b.exports = meta.Outputs[name].Exports
	for path, input := range meta.Inputs {
		b.formats[path] = input.Format
	}
	return b, nil
}

// insideOnly keeps the bundler from reading files of this machine that are not
// the source's.
func insideOnly(dir string) api.Plugin {
	return api.Plugin{Name: "inside", Setup: func(build api.PluginBuild) {
		build.OnLoad(api.OnLoadOptions{Filter: ".*"}, func(file api.OnLoadArgs) (api.OnLoadResult, error) {
			if file.Namespace == "file" && !strings.HasPrefix(file.Path, dir+string(filepath.Separator)) {
				return api.OnLoadResult{}, fmt.Errorf("%s is not in the lambda's source; import what is, or add the package to the dependencies", filepath.Base(file.Path))
			}
			return api.OnLoadResult{}, nil
		})
	}}
}

// maxMessages is how many mistakes of a source are told at once.
const maxMessages = 5

func bundlerMessage(messages []api.Message) string {
	var lines []string
	for _, message := range messages[:min(len(messages), maxMessages)] {
		line := message.Text
		if missing, found := strings.CutPrefix(line, "Could not resolve "); found {
			line = "there is no " + missing
			if name := strings.Trim(missing, `"`); !strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "/") {
				line += "; add the package to the dependencies (package.json)"
			}
		}
		if strings.HasPrefix(line, "No loader is configured for \".node\"") {
			line = "native packages (.node files) cannot be bundled; use one in plain JavaScript or WebAssembly"
		}
		if at := message.Location; at != nil {
			line = fmt.Sprintf("%s:%d:%d: %s", at.File, at.Line, at.Column+1, line)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}
