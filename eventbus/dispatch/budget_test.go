package dispatch

import (
	"math"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

// mib is large enough for whole events.
const mib = 1 << 20

func TestBudgetIsAQuarterOfTheMemoryLimit(t *testing.T) {
	before := debug.SetMemoryLimit(400 * mib)
	defer debug.SetMemoryLimit(before)
	require.Equal(t, int64(100*mib), budgetOf(0))
	require.Equal(t, int64(64*mib), budgetOf(64*mib))
	require.Equal(t, int64(4*maxMessage), budgetOf(1), "room for some events")
	debug.SetMemoryLimit(math.MaxInt64)
	require.Equal(t, int64(defaultBudget), budgetOf(0))
}

// greedy takes as many events of 1 MiB as it gets.
func greedy(a *account) (n int) {
	for a.reserve(mib, mib) > 0 {
		n++
	}
	return n
}

func TestNobodyTakesTheWholeBudget(t *testing.T) {
	b := newBudget(128 * mib)
	account := func(namespace string) *account { return b.account(namespace, func() {}) }
	require.Equal(t, 32, greedy(account("hungry")), "one subscription gets a quarter")
	second := greedy(account("hungry"))
	require.Positive(t, second)
	for range 40 {
		require.Positive(t, greedy(account("hungry")), "every subscription gets one event, however many there are")
	}
	require.LessOrEqual(t, b.used, int64(128*mib))
	require.Greater(t, greedy(account("other")), 0)
}

func TestTenantsShareTheBudget(t *testing.T) {
	b := newBudget(128 * mib)
	hungry := map[string]int{}
	for _, namespace := range []string{"a", "b", "c"} {
		for range 5 {
			hungry[namespace] += greedy(b.account(namespace, func() {}))
		}
	}
	require.Less(t, hungry["a"], 64, "not more than half for one namespace")
	require.GreaterOrEqual(t, hungry["c"], 5)
}

func TestFirstEventsComeInTheOrderOfAsking(t *testing.T) {
	b := newBudget(10 * mib)
	woken := map[string]int{}
	account := func(name string) *account { return b.account(name, func() { woken[name]++ }) }
	all := account("all")
	all.charge(10 * mib)
	first, second, third := account("first"), account("second"), account("third")
	require.Zero(t, first.reserve(2*mib, 2*mib))
	require.Zero(t, second.reserve(mib, mib))
	require.Zero(t, third.reserve(mib, mib))
	all.release(mib)
	require.Empty(t, woken, "not enough for the first")
	require.Zero(t, third.reserve(mib, mib), "a smaller one does not overtake")
	first.withdraw()
	require.Equal(t, map[string]int{"second": 1}, woken)
	require.Equal(t, int64(mib), second.reserve(mib, mib))
	require.Zero(t, third.reserve(mib, mib))
	second.release(mib)
	require.Equal(t, 1, woken["third"])
	require.Equal(t, int64(mib), third.reserve(mib, mib))
	third.release(mib)
	all.release(9 * mib)
	require.Zero(t, b.used)
	require.Empty(t, b.byNS)
	require.Empty(t, b.waiting)
}
