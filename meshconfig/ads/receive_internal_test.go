package ads

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestFirstRequestsHavePlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		places := newFirstPlaces()
		enter := func(namespace string) bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return places.enter(ctx, namespace)
		}
		for range maxFirstPerNamespace {
			require.True(t, enter("one"))
		}
		require.False(t, enter("one"), "it has its share")
		for _, namespace := range []string{"two", "two", "three", "three", "four", "four"} {
			require.True(t, enter(namespace))
		}
		require.False(t, enter("five"), "all are taken")
		entered := make(chan bool)
		go func() { entered <- enter("one") }()
		synctest.Wait()
		places.leave("one")
		require.True(t, <-entered, "who waits is next")
		for _, namespace := range []string{"one", "one", "two", "two", "three", "three", "four", "four"} {
			places.leave(namespace)
		}
		require.Empty(t, places.namespaces)
	})
}
