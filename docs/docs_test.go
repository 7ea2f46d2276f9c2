package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The threat model says what shows each of its claims: `file_test.go: TestName`.
func TestTheThreatModelsTestsExist(t *testing.T) {
	page, err := os.ReadFile("security.md")
	require.NoError(t, err)
	named := regexp.MustCompile("`([a-z0-9_/]+_test\\.go): ([^`]+)`").FindAllStringSubmatch(string(page), -1)
	require.Greater(t, len(named), 20, "the page names its tests")
	for _, claim := range named {
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", filepath.FromSlash(claim[1])), nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		tests := map[string]bool{}
		for _, declaration := range file.Decls {
			if function, ok := declaration.(*ast.FuncDecl); ok && function.Recv == nil {
				tests[function.Name.Name] = true
			}
		}
		for name := range strings.SplitSeq(claim[2], ", ") {
			require.True(t, tests[name], "%s has no %s", claim[1], name)
		}
	}
}

// Every row of a threat ends with what shows it.
func TestEveryClaimOfTheThreatModelIsShown(t *testing.T) {
	page, err := os.ReadFile("security.md")
	require.NoError(t, err)
	_, threats, found := strings.Cut(string(page), "\n## A stranger")
	require.True(t, found)
	threats, _, found = strings.Cut(threats, "\n## Not protected")
	require.True(t, found)
	rows := 0
	for line := range strings.Lines(threats) {
		if !strings.HasPrefix(line, "|") || strings.HasPrefix(line, "| ---") || strings.HasPrefix(line, "| tries") {
			continue
		}
		rows++
		require.Regexp(t, "_test\\.go: Test[^`]+` [|]\n$", line)
	}
	require.Greater(t, rows, 20)
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	var pages []string
	for _, pattern := range []string{"*.md", "design/*.md", "../*.md", "../examples/*/*.md", "../lambdas/runtimes/*.md"} {
		found, err := filepath.Glob(pattern)
		require.NoError(t, err)
		pages = append(pages, found...)
	}
	require.Greater(t, len(pages), 10)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, found := range link.FindAllStringSubmatch(string(text), -1) {
			_, err := os.Stat(filepath.Join(filepath.Dir(page), filepath.FromSlash(found[1])))
			require.NoError(t, err, "%s links to it", page)
		}
	}
}
