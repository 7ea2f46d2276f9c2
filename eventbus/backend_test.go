package eventbus_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan/stantest"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// onNATSStreaming makes startBus use a server of NATS Streaming.
func onNATSStreaming(server stantest.Server) func(*eventbus.Config) {
	return func(c *eventbus.Config) {
		c.Backend = eventbus.NATSStreaming
		c.Stan = stan.Config{URL: server.URL, ClusterID: stantest.ClusterID}
	}
}

func TestNATSStreamingCarriesEventsThroughFailuresToTheDeadLetters(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	b := startBus(t, t.TempDir(), onNATSStreaming(server))
	require.Equal(t, http.StatusOK, get(t, b.admin+"/readyz", nil))
	url, got := receiver(t, func(n int) int {
		if n < 3 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u1", url)))
	publish(t, b, "1")
	publish(t, b, "1")
	for range 3 {
		require.Equal(t, "1", next(t, got).header.Get("Ce-Id"))
	}
	require.Eventually(t, func() bool {
		stats, _ := b.Dispatcher().Stats("u1")
		return stats.Delivered == 1 && stats.Redelivered == 2
	}, time.Minute, 10*time.Millisecond)
	require.Empty(t, got, "the same event is pushed once")

	bad, tried := receiver(t, func(int) int { return http.StatusInternalServerError })
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("poisoned", bad)))
	publish(t, b, "poison")
	for range 3 {
		next(t, tried)
	}
	var page struct {
		Items []broker.DeadLetter `json:"items"`
	}
	require.Eventually(t, func() bool {
		get(t, b.admin+"/admin/v1/dead-letters?subscription=shop/poisoned", &page)
		return len(page.Items) == 1
	}, time.Minute, 10*time.Millisecond)
	require.Equal(t, 3, page.Items[0].Attempts)
	require.Equal(t, "poison", page.Items[0].Event.ID)
}

func TestNATSStreamingKeepsPositionsAndOrderOverARestart(t *testing.T) {
	server := stantest.Start(t, stantest.Options{Dir: t.TempDir()})
	url, got := receiver(t, func(n int) int {
		if n%3 == 0 {
			return http.StatusServiceUnavailable
		}
		return http.StatusOK
	})
	sub := subscription("u1", url)
	sub.OrderBy, sub.Retry.MaxAttempts = "source", 20
	publishAll := func(b *bus, from, to int) {
		var events []event.Event
		for n := from; n < to; n++ {
			events = append(events, event.Event{ID: fmt.Sprint(n), Source: "commerce", Type: "t"})
		}
		_, err := b.Store().Publish(t.Context(), events)
		require.NoError(t, err)
	}
	b := startBus(t, t.TempDir(), onNATSStreaming(server))
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	publishAll(b, 0, 30)
	require.Eventually(t, func() bool { return len(got) > 10 }, time.Minute, time.Millisecond)
	b.stop()
	b = startBus(t, t.TempDir(), onNATSStreaming(server))
	publishAll(b, 30, 40)
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))

	// What was in flight at the stop may come twice; nothing is left out or
	// overtaken.
	require.Eventually(t, func() bool {
		info, err := b.Dispatcher().Info(t.Context(), "u1")
		stats, _ := b.Dispatcher().Stats("u1")
		return err == nil && info == broker.ConsumerInfo{} && stats.Delivered > 0 && stats.InFlight == 0
	}, time.Minute, 20*time.Millisecond)
	last := -1
	for len(got) > 0 {
		var n int
		_, err := fmt.Sscan(next(t, got).header.Get("Ce-Id"), &n)
		require.NoError(t, err)
		require.LessOrEqual(t, n, last+1, "nothing is overtaken")
		last = max(last, n)
	}
	require.Equal(t, 39, last)
}

func TestNATSStreamingThatComesBackGoesOn(t *testing.T) {
	options := stantest.Options{Dir: t.TempDir()}
	server := stantest.Start(t, options)
	options.Port = server.Port
	b := startBus(t, t.TempDir(), onNATSStreaming(server))
	url, got := receiver(t, nil)
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u1", url)))
	publish(t, b, "1")
	next(t, got)

	server.Stop()
	require.Equal(t, http.StatusServiceUnavailable, tryPublish(t, b, "2"))
	require.Equal(t, http.StatusServiceUnavailable, get(t, b.admin+"/readyz", nil))
	stantest.Start(t, options)
	require.Eventually(t, func() bool { return tryPublish(t, b, "2") == http.StatusAccepted }, time.Minute, 20*time.Millisecond)
	require.Equal(t, "2", next(t, got).header.Get("Ce-Id"))
	require.Equal(t, http.StatusOK, get(t, b.admin+"/readyz", nil))
}

func TestBackendIsChecked(t *testing.T) {
	l := listen(t)
	defer l.Close()
	_, err := eventbus.New(eventbus.Config{OpenListener: l, Backend: "kafka"})
	require.ErrorContains(t, err, `backend "kafka": must be jetstream or stan`)
	_, err = eventbus.New(eventbus.Config{OpenListener: l, Backend: eventbus.NATSStreaming})
	require.ErrorContains(t, err, "cluster ID")
	require.NotContains(t, err.Error(), "event stream", "the settings of the other backend do not count")
}
