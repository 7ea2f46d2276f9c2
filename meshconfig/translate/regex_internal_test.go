package translate

import (
	"math/rand/v2"
	"regexp/syntax"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The price of an expression is no less than what it compiles to, and not many
// times that.
func TestTheSizeOfARegexIsThatOfItsProgram(t *testing.T) {
	parts := []string{"a", "abc", ".", "[a-z]", "[^/]", `\d`, `\pL`, "(?i)k", "()", "^", "$", `\b`, "|"}
	repeats := []string{"", "", "*", "+", "?", "*?", "{0}", "{1}", "{3}", "{0,7}", "{2,}", "{0,}", "{2,5}"}
	r := rand.New(rand.NewPCG(3, 4))
	for range 20000 {
		text := ""
		for range 1 + r.IntN(4) {
			text += parts[r.IntN(len(parts))]
			if r.IntN(2) == 0 {
				text = "(?:" + text + ")" + repeats[r.IntN(len(repeats))]
			}
			if r.IntN(6) == 0 {
				text = "(" + text + ")"
			}
		}
		whole, err := syntax.Parse(`\A(?:`+text+`)\z`, syntax.Perl)
		if err != nil {
			continue
		}
		program, err := syntax.Compile(whole.Simplify())
		require.NoError(t, err)
		require.GreaterOrEqual(t, regexSize(text), len(program.Inst), text)
		require.LessOrEqual(t, regexSize(text), 4*len(program.Inst)+100*strings.Count(text, `\pL`), text)
	}
}

func TestTheSizesOfRegexes(t *testing.T) {
	for text, atMost := range map[string]int{
		"":                                 5,
		"a|b":                              10,
		"^v[0-9]+$":                        12,
		`https://[a-z0-9-]+\.example\.com`: 40,
		"[A-Za-z0-9._~-]{1,256}":           520,
		`\pL{1,64}`:                        250,
		strings.Repeat("x", 256):           260,
		"(":                                1,
	} {
		require.LessOrEqual(t, regexSize(text), atMost, text)
	}
	for _, text := range []string{
		"(?:i)?" + strings.Repeat(".{0,1000}", 27) + "Z", ".{0,1000}", "(?:(?:a{10}){10}){10}", strings.Repeat(`\pL`, 85), "(?:a|bc|d*){200}",
	} {
		require.Greater(t, regexSize(text), maxRegexSize, text)
	}
}

func BenchmarkRegexSize(b *testing.B) {
	for name, text := range map[string]string{
		"ordinary": `https://[a-z0-9-]+\.example\.com`, "repeats": "(?:i)?" + strings.Repeat(".{0,1000}", 27) + "Z",
		"classes": "(?i)" + strings.Repeat(`\pL`, 84), "negated": "(?i)" + strings.Repeat(`[^\pL]`, 42), "nested": strings.Repeat("(", 127) + strings.Repeat(")*", 64),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				regexSize(text)
			}
		})
	}
}
