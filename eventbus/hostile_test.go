package eventbus_test

import (
	"fmt"
	"net/http"
	"strings"
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

func TestEventWithAllExtensionsAndATraceIsDelivered(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	b := startBus(t, t.TempDir(), nil)
	url, got := receiver(t, nil)
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u1", url)))
	header := http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {"1"}, "Ce-Source": {"commerce"}, "Ce-Type": {"order.created.v1"},
		"Traceparent": {parent}, "Tracestate": {strings.Repeat("s=1,", 100)},
	}
	publishing := func(id string) int {
		header.Set("Ce-Id", id)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/publish", nil)
		require.NoError(t, err)
		r.Header = header
		response, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer response.Body.Close()
		return response.StatusCode
	}
	for i := range 64 {
		header.Set(fmt.Sprint("Ce-Extension", i), "x")
	}
	require.Equal(t, http.StatusAccepted, publishing("all"))
	r := next(t, got)
	require.Equal(t, "all", r.header.Get("Ce-Id"))
	require.Equal(t, parent, r.header.Get("Traceparent"))
	require.Equal(t, "x", r.header.Get("Ce-Extension63"))

	// As long as attributes may be together: the event goes without the trace.
	for i := range 64 {
		header.Set(fmt.Sprint("Ce-Extension", i), strings.Repeat("x", 500))
	}
	require.Equal(t, http.StatusAccepted, publishing("longest"))
	r = next(t, got)
	require.Equal(t, "longest", r.header.Get("Ce-Id"))
	require.Empty(t, r.header.Get("Traceparent"))

	header.Set("Ce-Onemore", "x")
	require.Equal(t, http.StatusBadRequest, publishing("too many"))
}

func TestWhatIsStoredIsDeliveredOrShownAsADeadLetter(t *testing.T) {
	server, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	require.NoError(t, err)
	run(t, server)
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) { c.JetStream = jetstream.Config{URL: server.URL()} })
	url, got := receiver(t, nil)
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u1", url)))
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u2", url)))
	nc, err := nats.Connect(server.URL())
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	require.NoError(t, err)
	write := func(change func(nats.Header), data []byte) {
		msg := nats.NewMsg("lambdamesh.events." + broker.SubjectOf("commerce", "order.created.v1"))
		msg.Data = data
		msg.Header = nats.Header{"ce-specversion": {"1.0"}, "ce-id": {"1"}, "ce-source": {"commerce"}, "ce-type": {"order.created.v1"}}
		change(msg.Header)
		_, err := js.PublishMsg(t.Context(), msg)
		require.NoError(t, err)
	}

	write(func(h nats.Header) { // what the rules of today refuse
		for i := range 70 {
			h[fmt.Sprint("ce-extension", i)] = []string{"x"}
		}
		h["ce-datacontenttype"] = []string{"no%20media%20type"}
	}, []byte("data"))
	for range 2 {
		r := next(t, got)
		require.Equal(t, "data", r.body)
		require.Equal(t, "x", r.header.Get("Ce-Extension69"))
	}

	large := make([]byte, 1<<20)
	write(func(h nats.Header) { h["ce-time"] = []string{"yesterday"}; h["x-other"] = []string{"kept"} }, []byte("raw"))
	write(func(h nats.Header) { h["ce-specversion"] = []string{"9.0"} }, large)
	var page struct {
		Items []broker.DeadLetter `json:"items"`
	}
	require.Eventually(t, func() bool {
		get(t, b.admin+"/admin/v1/dead-letters", &page)
		return len(page.Items) == 4
	}, time.Minute, 20*time.Millisecond)
	get(t, b.admin+"/admin/v1/dead-letters?subscription=shop/u2", &page)
	require.Len(t, page.Items, 2, "one for each subscription that would have got it")
	first, second := page.Items[0], page.Items[1]
	require.Equal(t, broker.ReasonUnreadable, first.Reason)
	require.Contains(t, first.LastError, "ce-time")
	require.Equal(t, "1", first.Event.ID)
	require.Equal(t, "raw", string(first.Raw.Data))
	require.Equal(t, []string{"kept"}, first.Raw.Header["x-other"])
	require.Contains(t, second.LastError, "specversion")
	require.Less(t, len(second.Raw.Data), 128<<10, "a list shows the beginning")
	require.Greater(t, second.Raw.Bytes, len(large))
	require.Empty(t, got)
}

func TestFullBusIsNotReadyAndRecovers(t *testing.T) {
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) {
		c.JetStream.MaxBytes, c.JetStream.DedupWindow = 512<<10, 100*time.Millisecond
	})
	url, got := receiver(t, nil)
	sub := subscription("u1", url)
	sub.Hold = true
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	require.Equal(t, http.StatusOK, get(t, b.admin+"/readyz", nil))
	accepted := 0
	for {
		_, err := b.Store().Publish(t.Context(), []event.Event{{ID: fmt.Sprint(accepted), Source: "commerce", Type: "t", Data: make([]byte, 16<<10)}})
		if err != nil {
			require.ErrorIs(t, err, broker.ErrFull)
			break
		}
		accepted++
	}
	require.Eventually(t, func() bool { return get(t, b.admin+"/readyz", nil) == http.StatusServiceUnavailable }, time.Minute, 20*time.Millisecond)
	sub.Hold = false
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	for range accepted {
		next(t, got)
	}
	require.Eventually(t, func() bool { return get(t, b.admin+"/readyz", nil) == http.StatusOK }, time.Minute, 20*time.Millisecond)
	publish(t, b, "after")
	require.Equal(t, "after", next(t, got).header.Get("Ce-Id"))
}
