package jetstream

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
)

// requests makes n requests of so many messages each.
func requests(n, messages, size int) []*request {
	all := make([]*request, n)
	for i := range all {
		all[i] = &request{msgs: make([]*nats.Msg, messages), size: size, done: make(chan outcome, 1)}
	}
	return all
}

func addAll(t *testing.T, q *queue, source string, all []*request) {
	t.Helper()
	for _, r := range all {
		require.NoError(t, q.add(source, r))
	}
}

func TestABacklogIsNotWhatOtherSourcesWaitFor(t *testing.T) {
	q := newQueue()
	flood, other, third := requests(5, maxBatch, 1), requests(3, 1, 1), requests(1, 1, 1)
	addAll(t, q, "flood", flood)
	require.Equal(t, flood[:1], q.take())
	addAll(t, q, "other", other) // while the flood's first is being written
	require.Equal(t, other, q.take(), "in order, and one group")
	require.Equal(t, flood[1:2], q.take())
	addAll(t, q, "third", third)
	require.Equal(t, third, q.take())
	for _, r := range flood[2:] {
		require.Equal(t, []*request{r}, q.take(), "in order")
	}
	require.Nil(t, q.take())
	require.Empty(t, q.sources, "nothing is kept of a source without requests")
}

// However many come, and however small they are, a large one is next but one.
func TestNobodyWaitsForThoseThatKeepComing(t *testing.T) {
	q := newQueue()
	addAll(t, q, "first", requests(1, 1, 1))
	large := requests(2, maxBatch, 1)
	addAll(t, q, "large", large)
	waited := map[*request]int{}
	for round := range 10 {
		for i := range 3 {
			addAll(t, q, fmt.Sprint("new", round, i), requests(1, 1, 1))
		}
		for _, r := range q.take() {
			waited[r] = round
		}
	}
	require.Contains(t, waited, large[0])
	require.Contains(t, waited, large[1])
	require.LessOrEqual(t, waited[large[0]], 1)
	require.LessOrEqual(t, waited[large[1]]-waited[large[0]], 2)
}

func TestSourcesShareAGroupByTurns(t *testing.T) {
	q := newQueue()
	a, b := requests(3, 400, 1), requests(3, 400, 1)
	addAll(t, q, "a", a)
	addAll(t, q, "b", b)
	require.ElementsMatch(t, []*request{a[0], b[0]}, q.take())
	require.ElementsMatch(t, []*request{a[1], b[1]}, q.take())

	q = newQueue()
	heavy, light := requests(2, 1, maxBatchBytes+1), requests(2, 1, 1)
	addAll(t, q, "s", append(heavy, light...))
	require.Equal(t, heavy[:1], q.take(), "what is too large for a group goes alone")
	require.Equal(t, heavy[1:], q.take())
	require.Equal(t, light, q.take())
}

func TestABacklogIsBoundedPerSource(t *testing.T) {
	q := newQueue()
	addAll(t, q, "huge", requests(1, maxWaiting+1, 1)) // nothing waits before it
	addAll(t, q, "flood", requests(10, maxBatch, 1))
	err := q.add("flood", requests(1, 1, 1)[0])
	require.ErrorIs(t, err, broker.ErrBacklog)
	require.ErrorContains(t, err, `10000 of source "flood"`)
	addAll(t, q, "other", requests(1, 1, 1))
	for len(q.sources) > 1 {
		require.NotNil(t, q.take())
	}
	for q.take() != nil {
	}
	addAll(t, q, "flood", requests(10, maxBatch, 1))

	require.Len(t, q.close(), 10)
	require.ErrorIs(t, q.add("other", requests(1, 1, 1)[0]), broker.ErrUnavailable)
	require.Nil(t, q.take())
}
