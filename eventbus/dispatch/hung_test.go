package dispatch_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

func TestBytesInFlightToSinksThatHangAreBounded(t *testing.T) {
	const large = 1 << 20
	var mu sync.Mutex
	var now, most int64
	fast := map[string]int{}
	s := sink(func(r *http.Request) (*http.Response, error) {
		if !strings.HasPrefix(r.URL.Host, "hung") {
			mu.Lock()
			defer mu.Unlock()
			fast[r.URL.Host]++
			return answer(200), nil
		}
		mu.Lock()
		now += r.ContentLength
		most = max(most, now)
		mu.Unlock()
		<-r.Context().Done()
		mu.Lock()
		defer mu.Unlock()
		now -= r.ContentLength
		return nil, r.Context().Err()
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		const budget = 100 << 20
		d := dispatch.New(dispatch.Config{Source: b, DeadLetters: b, Mesh: s, Direct: s, MaxBytesInFlight: budget})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		for i := range uint64(40) {
			b.put(delivery{seq: i + 1, stored: time.Now(), e: event.Event{ID: "x", Source: "commerce", Type: "order.created.v1", Data: make([]byte, large)}})
		}
		for i := range 50 {
			sub := subscription(fmt.Sprint("hung", i))
			sub.MaxInFlight, sub.Sink.URL = 100, fmt.Sprintf("http://hung%d/", i)
			require.NoError(t, d.Set(t.Context(), sub))
		}
		synctest.Wait()
		mu.Lock()
		require.LessOrEqual(t, most, int64(budget))
		require.Greater(t, now, int64(budget/3), "and it is used")
		mu.Unlock()
		// Neither a neighbor in the same namespace nor another tenant waits for a
		// sink that hangs, with large events or small ones.
		for _, namespace := range []string{"shop", "other"} {
			sub := subscription("fast-" + namespace)
			sub.Namespace, sub.Sink.URL = namespace, "http://fast-"+namespace+"/"
			require.NoError(t, d.Set(t.Context(), sub))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, map[string]int{"fast-shop": 40, "fast-other": 40}, fast)
		mu.Unlock()
		for i := range uint64(100) {
			b.add(1000+i, "small")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		require.Equal(t, map[string]int{"fast-shop": 140, "fast-other": 140}, fast)
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		mu.Lock()
		require.LessOrEqual(t, most, int64(budget), "also after retries")
		mu.Unlock()
		cancel()
		require.NoError(t, <-done)
	})
}
