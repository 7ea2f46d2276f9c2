package build_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func TestGoSourcesOfSeveralFilesAndAModuleOfTheirOwn(t *testing.T) {
	skipWithout(t, "go")
	t.Setenv("GOPROXY", "off") // the module cache has go-cmp: this module requires it too
	t.Setenv("GOSUMDB", "off")
	const main = `package orders

import (
	"context"

	"example.com/orders/tax"
	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

func Main(ctx context.Context, event *lambda.Event) (any, error) { return tax.Of(helper()), nil }
`
	files := func(goMod string) map[string]string {
		return map[string]string{
			"helper.go": "package orders\n\nfunc helper() int { return 1 }\n", "go.mod": goMod,
			"tax/tax.go": "package tax\n\nimport \"github.com/google/go-cmp/cmp\"\n\nfunc Of(n int) bool { return cmp.Equal(n, 2) }\n",
		}
	}
	const good = "module example.com/orders\n\ngo 1.24\n\nrequire github.com/google/go-cmp v0.7.0\n"
	for name, test := range map[string]struct{ goMod, dependencies, want string }{
		"as it is":            {good, "", ""},
		"a version replaces":  {good + "\nreplace github.com/google/go-cmp => github.com/google/go-cmp v0.7.0\n", "", ""},
		"a directory does":    {good + "\nreplace github.com/google/go-cmp => /etc\n", "", "go.mod:7: replace github.com/google/go-cmp: a directory is not taken; require a version, or put the package into this module"},
		"a mistake in it":     {"module example.com/orders\n\nrequires x\n", "", "go.mod:3: unknown directive: requires"},
		"said twice":          {good, "github.com/google/go-cmp v0.7.0", "dependencies: there is a go.mod among the files; write the modules there"},
		"a module is missing": {"module example.com/orders\n\ngo 1.24\n", "", "tax/tax.go:3:8: no dependency has package github.com/google/go-cmp/cmp; add its module and version to source.inline.dependencies"},
	} {
		t.Run(name, func(t *testing.T) {
			pipeline, _ := newPipeline(t, build.ToolchainConfig{})
			lambda := newLambda(v1alpha1.RuntimeGo, main)
			lambda.Spec.Source.Inline.Files, lambda.Spec.Source.Inline.Dependencies = files(test.goMod), test.dependencies
			_, err := pipeline.Build(t.Context(), lambda)
			if test.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, test.want)
		})
	}
}
