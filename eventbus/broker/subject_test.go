package broker_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

func TestSubjects(t *testing.T) {
	for _, tt := range [][3]string{
		{"commerce", "order.created.v1", "_.commerce.order.created.v1"},
		{"/shop/last-order", "order.created", "shop.%2Fshop%2Flast-order.order.created"},
		{"/shop/a/b", "t", "_.%2Fshop%2Fa%2Fb.t"},
		{"urn:größe", "t", "_.urn%3Agr%C3%B6%C3%9Fe.t"},
		{"a", "order.*", "_.a.order.%2A"},
		{"a", "$JS.API.>", "_.a.%24JS.API.%3E"},
		{"a", "a..b", "_.a.a.%-.b"},
		{"a", "a b", "_.a.a%20b"},
		{"a%2Fb", "t", "_.a%252Fb.t"},
	} {
		require.Equal(t, tt[2], broker.SubjectOf(tt[0], tt[1]), "%s %s", tt[0], tt[1])
	}
}

func TestSubjectsAreBoundedSafeAndInjective(t *testing.T) {
	safe := regexp.MustCompile(`^[A-Za-z0-9_%~-]+(\.[A-Za-z0-9_%~-]+)+$`)
	seen := map[string]string{}
	alphabet := []rune("ab./%-~*> \u00e9\U0001F600_0F")
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		for range 1 + random.IntN(4) {
			b.WriteRune(alphabet[random.IntN(len(alphabet))])
		}
		return b.String()
	}
	for range 50_000 {
		source, eventType := text(), text()
		subject := broker.SubjectOf(source, eventType)
		require.Regexp(t, safe, subject)
		pair := fmt.Sprintf("%q %q", source, eventType)
		if other, ok := seen[subject]; ok {
			require.Equal(t, other, pair, subject)
		}
		seen[subject] = pair
	}
	for _, long := range []string{strings.Repeat("é", 500), strings.Repeat("x.", 500)} {
		require.Less(t, len(broker.SubjectOf(long, long[:253])), 1500)
		require.NotEqual(t, broker.SubjectOf(long, "t"), broker.SubjectOf(long+"x", "t"))
	}
	require.NotEqual(t, broker.SubjectOf("a", strings.Repeat("x.", 120)+"y"), broker.SubjectOf("a", strings.Repeat("x.", 120)+"z"))
}

func TestKeyTellsSourceAndIDApart(t *testing.T) {
	a, b := event.Event{Source: "ab", ID: "c"}, event.Event{Source: "a", ID: "bc"}
	require.NotEqual(t, a.Key(), b.Key())
}

func TestTypePatterns(t *testing.T) {
	for _, good := range []string{"order.created.v1", "*", "**", "order.*", "order.**", "*.created.*", "größe"} {
		require.NoError(t, broker.CheckTypePattern(good), good)
	}
	for _, bad := range []string{"", "**.x", "order*", "a.***", "a\nb", strings.Repeat("x", 254), strings.Repeat("a.", 65)} {
		require.Error(t, broker.CheckTypePattern(bad), bad)
	}
}

func TestSelectors(t *testing.T) {
	for _, tt := range []struct {
		selector broker.Selector
		source   string
		typ      string
		want     bool
	}{
		{broker.Selector{Source: "commerce", Type: "order.created.v1"}, "commerce", "order.created.v1", true},
		{broker.Selector{Source: "commerce", Type: "order.created.v1"}, "erp", "order.created.v1", false},
		{broker.Selector{Source: "commerce", Type: "order.*.v1"}, "commerce", "order.paid.v1", true},
		{broker.Selector{Source: "commerce", Type: "order.*"}, "commerce", "order.paid.v1", false},
		{broker.Selector{Source: "commerce", Type: "order.**"}, "commerce", "order.paid.v1", true},
		{broker.Selector{Source: "commerce", Type: "order.**"}, "commerce", "order", false},
		{broker.Selector{Source: "commerce", Type: "**"}, "commerce", "order", true},
		{broker.Selector{Owner: "shop", Type: "**"}, "/shop/cart", "x", true},
		{broker.Selector{Owner: "shop", Type: "**"}, "/other/cart", "x", false},
		{broker.Selector{Owner: "shop", Type: "**"}, "shop", "x", false},
		{broker.Selector{Owner: "shop", Type: "**"}, "/shop/a/b", "x", false},
	} {
		require.Equal(t, tt.want, broker.Selects([]broker.Selector{tt.selector}, tt.source, tt.typ), "%+v %s %s", tt.selector, tt.source, tt.typ)
	}
}

func TestOverlappingSelectorsAreMerged(t *testing.T) {
	types := func(patterns ...string) []broker.Selector {
		var s []broker.Selector
		for _, p := range patterns {
			s = append(s, broker.Selector{Source: "c", Type: p})
		}
		return s
	}
	for name, tt := range map[string]struct {
		selectors []broker.Selector
		want      []string
	}{
		"disjoint":      {types("a.b", "a.c"), []string{"_.c.a.b", "_.c.a.c"}},
		"same":          {types("a.b", "a.b"), []string{"_.c.a.b"}},
		"contained":     {types("a.b", "a.*", "a.**"), []string{"_.c.a.>"}},
		"partly":        {types("a.*", "*.b"), []string{"_.c.*.*"}},
		"partly, open":  {types("a.**", "*.b.c"), []string{"_.c.*.>"}},
		"in a chain":    {types("x.y", "a.*", "*.b"), []string{"_.c.*.*"}},
		"owner, source": {[]broker.Selector{{Owner: "shop", Type: "a"}, {Source: "/shop/x", Type: "a"}}, []string{"shop.*.a"}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tt.want, broker.Filters(tt.selectors)) })
	}
}
