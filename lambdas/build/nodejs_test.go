package build_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// evaluate loads the product as the runtime does and prints what an expression of
// its exports gives.
func evaluate(t *testing.T, lambda *v1alpha1.Lambda, expression string) string {
	t.Helper()
	pipeline, store := newPipeline(t, build.ToolchainConfig{})
	artifact, err := pipeline.Build(t.Context(), lambda)
	require.NoError(t, err)
	command, err := store.Command(t.Context(), artifact.Image)
	require.NoError(t, err)
	script := `process.setSourceMapsEnabled(true);
const fs = await import('node:fs'), dir = process.argv[1];
const file = ['main.mjs', 'main.cjs'].find((name) => fs.existsSync(dir + '/' + name));
const module = await import('file://' + dir + '/' + file);
const main = module.main ?? module.default?.main ?? module.default;
console.log(` + expression + `);`
	output, err := exec.CommandContext(t.Context(), command.Path, "--input-type=module", "-e", script, command.SourceDir).CombinedOutput() //nolint:gosec // of this test
	require.NoError(t, err, "%s", output)
	return string(output)
}

func TestNodeJSSourcesBecomeOneFile(t *testing.T) {
	skipWithout(t, "node")
	tests := map[string]struct {
		source v1alpha1.InlineSource
		ask    string
		want   string
	}{
		"an ES module":                     {v1alpha1.InlineSource{Code: "export const main = () => 1"}, "main(), file", "1 main.mjs\n"},
		"CommonJS":                         {v1alpha1.InlineSource{Code: "exports.main = function () { return this === undefined }"}, "(0, main)(), file", "false main.cjs\n"},
		"CommonJS that exports a function": {v1alpha1.InlineSource{Code: "module.exports = () => typeof require('fs').readFileSync"}, "main(), file", "function main.cjs\n"},
		"TypeScript":                       {v1alpha1.InlineSource{Code: "interface A { a: number }\nexport function main(): number { const x: A = {a: 2}; return x.a satisfies number }"}, "main(), file", "2 main.mjs\n"},
		"files, with their endings or without": {v1alpha1.InlineSource{
			Code:  "import { tax } from './lib/tax';\nimport rates from './rates.json';\nimport { one } from './one.js'\nexport const main = () => tax(rates.zh) + one",
			Files: map[string]string{"lib/tax.ts": "export const tax = (n: number): number => n * 2", "rates.json": `{"zh": 4}`, "one.js": "exports.one = 1"},
		}, "main()", "9\n"},
		"__dirname of CommonJS in an ES module": {v1alpha1.InlineSource{
			Code: "import { at } from './at.cjs'\nexport const main = at", Files: map[string]string{"at.cjs": "exports.at = () => [typeof __dirname, typeof require, __filename.endsWith('main.mjs')].join()"},
		}, "main()", "string,function,true\n"},
		"names that ES modules make for themselves": {v1alpha1.InlineSource{
			Code: "import { createRequire } from 'node:module'\nimport { fileURLToPath } from 'node:url'\nconst require = createRequire(import.meta.url), __filename = fileURLToPath(import.meta.url), __dirname = 'mine'\nexport const main = () => [typeof require('fs'), __dirname, __filename.endsWith('mjs')].join()",
		}, "main()", "object,mine,true\n"},
		"import.meta of an ES module in CommonJS": {v1alpha1.InlineSource{
			Code: "const { at } = require('./at.mjs')\nexports.main = at", Files: map[string]string{"at.mjs": "export const at = () => import.meta.url.slice(0, 8)"},
		}, "main()", "file:///\n"},
		"a stack of the user's lines": {v1alpha1.InlineSource{
			Code:  "import { fail } from './lib/fail'\n\nexport function main() {\n  return fail()\n}",
			Files: map[string]string{"lib/fail.ts": "type A = string\nexport const fail = (): A => new Error('x').stack as A"},
		}, "main().split('\\n').slice(1, 3).map((line) => line.replace(/.*\\/source\\//, '')).join()", "lib/fail.ts:2:30),main.js:4:10)\n"},
		"main of package.json": {v1alpha1.InlineSource{
			Code: "export const main = () => 'other'", Dependencies: `{"main": "./src/start.ts"}`, Files: map[string]string{"src/start.ts": "export const main = (): string => 'start'"},
		}, "main()", "start\n"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			lambda := newLambda(v1alpha1.RuntimeNodeJS, "")
			lambda.Spec.Source.Inline = &test.source
			require.Equal(t, test.want, evaluate(t, lambda, test.ask))
		})
	}
}

func TestASourceReadsNoFilesOfTheMachineThatBuildsIt(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "secret.json"), []byte(`"secret"`), 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "node_modules", "theirs"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "node_modules", "theirs", "index.js"), []byte(`module.exports = 1`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "package.json"), []byte(`{"type": "module", "imports": {"#x": "./secret.json"}}`), 0o600))
	config := build.ToolchainConfig{Dir: filepath.Join(dir, "artifacts")}
	for name, code := range map[string]string{
		"an absolute path":            "import x from '" + dir + "/secret.json'\nexport const main = () => x",
		"a path that climbs":          "import x from '../../../../secret.json'\nexport const main = () => x",
		"a package of a folder above": "import x from 'theirs'\nexport const main = () => x",
		"an import of a folder above": "import x from '#x'\nexport const main = () => x",
		"a text":                      "import x from '../../../../secret.json' with { type: 'text' }\nexport const main = () => x",
	} {
		t.Run(name, func(t *testing.T) {
			pipeline, _ := newPipeline(t, config)
			_, err := pipeline.Build(t.Context(), newLambda(v1alpha1.RuntimeNodeJS, code))
			require.Equal(t, source.ReasonBuildFailed, source.ReasonOf(err))
			require.Error(t, err)
			require.NotContains(t, err.Error(), `"secret"`)
		})
	}
}

func TestFilesOfASourceStayInIt(t *testing.T) {
	for name, file := range map[string]string{
		"climbs": "../x.js", "is absolute": "/etc/x", "has no name": "", "is a package's": "node_modules/x/index.js", "is the code's": "main.js", "is git's": ".git/hooks/x", "has a backslash": `a\b`,
	} {
		t.Run(name, func(t *testing.T) {
			pipeline, _ := newPipeline(t, build.ToolchainConfig{})
			lambda := newLambda(v1alpha1.RuntimeNodeJS, "export const main = () => 1")
			lambda.Spec.Source.Inline.Files = map[string]string{file: ""}
			_, err := pipeline.Build(t.Context(), lambda)
			require.Equal(t, source.ReasonBuildFailed, source.ReasonOf(err))
			require.False(t, source.Passing(err))
		})
	}
}
