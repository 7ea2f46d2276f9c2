package eventbus_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

func TestStopUnderLoadLosesNoAcceptedEvent(t *testing.T) {
	dir := t.TempDir()
	b := startBus(t, dir, nil)
	url, got := receiver(t, nil)
	sub := subscription("u1", url)
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))

	var mu sync.Mutex
	accepted := map[string]bool{}
	var publishers sync.WaitGroup
	for p := range 16 {
		publishers.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", p, i)
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/publish", strings.NewReader("{}"))
				if err != nil {
					return
				}
				r.Header = http.Header{"Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {"commerce"}, "Ce-Type": {"order.created.v1"}}
				response, err := http.DefaultClient.Do(r)
				if err != nil {
					return // the port is closed
				}
				response.Body.Close()
				if response.StatusCode != http.StatusAccepted {
					t.Errorf("a request in flight was answered %d", response.StatusCode)
					return
				}
				mu.Lock()
				accepted[id] = true
				mu.Unlock()
			}
		})
	}
	pushed := map[string]int{}
	for range 200 {
		pushed[next(t, got).header.Get("Ce-Id")]++
	}
	begin := time.Now()
	b.stop()
	require.Less(t, time.Since(begin), time.Minute)
	publishers.Wait()

	b = startBus(t, dir, nil)
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	for deadline := time.After(30 * time.Second); len(pushed) < len(accepted); {
		select {
		case r := <-got:
			pushed[r.header.Get("Ce-Id")]++
		case <-deadline:
			t.Fatalf("%d of %d accepted events were pushed", len(pushed), len(accepted))
		}
	}
	for id := range accepted {
		require.NotZero(t, pushed[id], id)
	}
}

func TestNATSComingBackWithoutItsDataHeals(t *testing.T) {
	nats := natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}
	server, err := natsserver.New(nats)
	require.NoError(t, err)
	stop := run(t, server)
	nats.Listen = server.Address()
	url, got := receiver(t, nil)
	sub := subscription("u1", url)
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) {
		c.JetStream = jetstream.Config{URL: server.URL()}
	})
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	publish(t, b, "1")
	next(t, got)

	stop()
	require.Eventually(t, func() bool { return get(t, b.admin+"/readyz", nil) == http.StatusServiceUnavailable }, time.Minute, 20*time.Millisecond)
	nats.Dir = t.TempDir()
	server, err = natsserver.New(nats)
	require.NoError(t, err)
	run(t, server)
	require.Eventually(t, func() bool { return b.Dispatcher().Set(t.Context(), sub) == nil }, time.Minute, 50*time.Millisecond)
	require.Eventually(t, func() bool { return tryPublish(t, b, "2") == http.StatusAccepted }, time.Minute, 20*time.Millisecond)
	require.Equal(t, "2", next(t, got).header.Get("Ce-Id"))
}

func TestPushesGoOnSoonAfterNATSWasRestarted(t *testing.T) {
	nats := natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}
	server, err := natsserver.New(nats)
	require.NoError(t, err)
	stop := run(t, server)
	nats.Listen = server.Address()
	url, got := receiver(t, nil)
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) { c.JetStream = jetstream.Config{URL: server.URL()} })
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u1", url)))
	publish(t, b, "1")
	next(t, got)
	stop()
	server, err = natsserver.New(nats)
	require.NoError(t, err)
	run(t, server)
	require.Eventually(t, func() bool { return tryPublish(t, b, "2") == http.StatusAccepted }, time.Minute, 20*time.Millisecond)
	begin := time.Now()
	require.Equal(t, "2", next(t, got).header.Get("Ce-Id"))
	require.Less(t, time.Since(begin), 20*time.Second)
}

func TestHeadersOfNATSNeverPass(t *testing.T) {
	nats1, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	run(t, nats1)
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) { c.JetStream = jetstream.Config{URL: nats1.URL()} })
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/publish", strings.NewReader("{}"))
	require.NoError(t, err)
	r.Header = http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"commerce"}, "Ce-Type": {"$JS.API.STREAM.DELETE.> *"},
		"Nats-Rollup": {"all"}, "Nats-Msg-Id": {"x"}, "Nats-Ttl": {"1s"}, "Nats-Expected-Stream": {"OTHER"},
	}
	response, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusAccepted, response.StatusCode)
	var answer struct{ Events []broker.Receipt }
	require.NoError(t, json.NewDecoder(response.Body).Decode(&answer))

	nc, err := nats.Connect(nats1.URL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	require.NoError(t, err)
	s, err := js.Stream(t.Context(), jetstream.EventStream)
	require.NoError(t, err)
	msg, err := s.GetMsg(t.Context(), answer.Events[0].Sequence)
	require.NoError(t, err)
	for _, name := range []string{"Nats-Rollup", "Nats-Ttl", "Nats-TTL"} {
		require.NotContains(t, msg.Header, name)
	}
	require.NotEqual(t, "x", msg.Header.Get("Nats-Msg-Id"))
	require.Equal(t, jetstream.EventStream, msg.Header.Get("Nats-Expected-Stream"))
	require.Equal(t, "lambdamesh.events._.commerce.%24JS.API.STREAM.DELETE.%3E%20%2A", msg.Subject)
}

func TestLargeEventsForManySubscriptionsArriveWithoutADisconnect(t *testing.T) {
	var log bytes.Buffer
	var mu sync.Mutex
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) {
		c.Log = slog.New(slog.NewTextHandler(locked{&mu, &log}, nil))
		c.JetStream.AckWait = time.Hour // there is one attempt
	})
	url, got := receiver(t, nil)
	subscribe := func(i int, hold bool) {
		sub := subscription(fmt.Sprint("u", i), url)
		sub.MaxInFlight, sub.Hold, sub.Retry.MaxAttempts, sub.Timeout = 100, hold, 1, time.Minute
		require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	}
	for i := range 3 {
		subscribe(i, true)
	}
	const n = 100
	for i := range n {
		_, err := b.Store().Publish(t.Context(), []event.Event{{ID: fmt.Sprint(i), Source: "commerce", Type: "large", Data: make([]byte, event.MaxEventBytes)}})
		require.NoError(t, err)
	}
	for i := range 3 {
		subscribe(i, false)
	}
	for range 3 * n {
		require.Len(t, next(t, got).body, event.MaxEventBytes)
	}
	mu.Lock()
	defer mu.Unlock()
	require.NotContains(t, log.String(), "disconnected")
	require.NotContains(t, log.String(), "WARN")
}

// locked lets several goroutines write.
type locked struct {
	*sync.Mutex
	w io.Writer
}

func (l locked) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	return l.w.Write(p)
}

func TestOrderOfAKeyHoldsThroughFailuresAndARestart(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	delivered := map[string][]int{} // by key
	requests := 0
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if requests++; requests%3 == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		key, number, _ := strings.Cut(r.Header.Get("Ce-Id"), "-")
		n, err := strconv.Atoi(number)
		if err == nil {
			delivered[key] = append(delivered[key], n)
		}
	}))
	t.Cleanup(sink.Close)
	count := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, numbers := range delivered {
			n += len(numbers)
		}
		return n
	}
	sub := subscription("ordered", sink.URL)
	sub.OrderBy, sub.Retry.MaxAttempts = "subject", 20
	publishAll := func(b *bus, from, to int) {
		var events []event.Event
		for n := from; n < to; n++ {
			for _, key := range []string{"a", "b", "c"} {
				events = append(events, event.Event{ID: fmt.Sprintf("%s-%d", key, n), Source: "commerce", Type: "t", Subject: key})
			}
		}
		_, err := b.Store().Publish(t.Context(), events)
		require.NoError(t, err)
	}

	b := startBus(t, dir, nil)
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	publishAll(b, 0, 30)
	require.Eventually(t, func() bool { return count() > 30 }, time.Minute, time.Millisecond)
	b.stop()
	b = startBus(t, dir, nil)
	publishAll(b, 30, 40)
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	// What was in flight at the restart may come twice: a count would not say
	// that the last ones came.
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, key := range []string{"a", "b", "c"} {
			if !slices.Contains(delivered[key], 39) {
				return false
			}
		}
		return true
	}, time.Minute, 10*time.Millisecond)

	mu.Lock()
	defer mu.Unlock()
	for key, numbers := range delivered {
		last := -1
		for _, n := range numbers {
			require.LessOrEqual(t, n, last+1, "%s: %d came after %d: %v", key, n, last, numbers)
			last = max(last, n)
		}
		require.Equal(t, 39, last, key)
	}
}
