package eventbus_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

var payload = []byte(`{"data":"` + strings.Repeat("x", 1000) + `"}`) //nolint:gochecknoglobals // read only

// raw is a JetStream on the bus's own server, with a stream that is configured as
// the bus's own in everything but its name and subjects.
func raw(b *testing.B) (natsjs.JetStream, natsjs.Stream) {
	b.Helper()
	server, err := natsserver.New(natsserver.Config{Dir: b.TempDir()})
	require.NoError(b, err)
	run(b, server)
	store, err := jetstream.New(benchStream(server))
	require.NoError(b, err)
	run(b, store)()
	nc, err := nats.Connect("", nats.InProcessServer(server))
	require.NoError(b, err)
	b.Cleanup(nc.Close)
	js, err := natsjs.New(nc)
	require.NoError(b, err)
	ours, err := js.Stream(b.Context(), jetstream.EventStream)
	require.NoError(b, err)
	config := ours.CachedInfo().Config
	config.Name, config.Subjects = "RAW", []string{"raw.>"}
	s, err := js.CreateStream(b.Context(), config)
	require.NoError(b, err)
	return js, s
}

// benchStream are the settings of both.
func benchStream(server *natsserver.Server) jetstream.Config {
	return jetstream.Config{InProcess: server, MaxBytes: 4 << 30}
}

func benchBus(b *testing.B) *bus {
	return startBus(b, b.TempDir(), func(c *eventbus.Config) {
		server, ok := c.JetStream.InProcess.(*natsserver.Server)
		require.True(b, ok)
		c.JetStream = benchStream(server)
	})
}

// post publishes the payload. It reads the answer, without which a connection
// serves one request only.
func post(b *testing.B, client *http.Client, bus *bus, id string) error {
	r, err := http.NewRequestWithContext(b.Context(), http.MethodPost, bus.url+"/publish", bytes.NewReader(payload))
	if err != nil {
		return err
	}
	r.Header = http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {"commerce"},
		"Ce-Type": {"order.created.v1"}, "Content-Type": {"application/json"},
	}
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

// BenchmarkPublish compares accepted events per second of POST /publish with
// those of a JetStream publish by the same number of callers, 1 KiB each, synced
// to disk before the answer; and with POSTs to a handler that only reads them.
func BenchmarkPublish(b *testing.B) {
	for _, callers := range []int{1, 64, 256} {
		b.Run(fmt.Sprintf("http-%d", callers), func(b *testing.B) {
			bus := benchBus(b)
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
			var n atomic.Int64
			parallel(b, callers, func() error { return post(b, client, bus, fmt.Sprint(n.Add(1))) })
		})
		b.Run(fmt.Sprintf("handler-%d", callers), func(b *testing.B) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusAccepted)
			}))
			b.Cleanup(server.Close)
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
			var n atomic.Int64
			parallel(b, callers, func() error { return post(b, client, &bus{url: server.URL}, fmt.Sprint(n.Add(1))) })
		})
		b.Run(fmt.Sprintf("jetstream-%d", callers), func(b *testing.B) {
			js, _ := raw(b)
			var n atomic.Int64
			parallel(b, callers, func() error {
				_, err := js.Publish(b.Context(), "raw.commerce.order.created.v1", payload, natsjs.WithMsgID(fmt.Sprint(n.Add(1))))
				return err
			})
		})
	}
}

// parallel calls fn b.N times from so many goroutines.
func parallel(b *testing.B, callers int, fn func() error) {
	b.Helper()
	work := make(chan struct{})
	errs := make(chan error, callers)
	for range callers {
		go func() {
			var failed error
			for range work {
				if err := fn(); err != nil {
					failed = err
				}
			}
			errs <- failed
		}()
	}
	b.ResetTimer()
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	for range callers {
		require.NoError(b, <-errs)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkLatency compares the time from a publish to the push of its event
// with that from a JetStream publish to the callback of a consumer.
func BenchmarkLatency(b *testing.B) {
	b.Run("http-to-push", func(b *testing.B) {
		bus := benchBus(b)
		arrived := make(chan time.Time, 1)
		sink := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived <- time.Now() }))
		b.Cleanup(sink.Close)
		require.NoError(b, bus.Dispatcher().Set(b.Context(), subscription("u1", sink.URL)))
		n := 0
		latencies(b, arrived, func() {
			n++
			require.NoError(b, post(b, http.DefaultClient, bus, fmt.Sprint(n)))
		})
	})
	b.Run("jetstream-to-consumer", func(b *testing.B) {
		js, s := raw(b)
		c, err := s.CreateConsumer(b.Context(), natsjs.ConsumerConfig{Durable: "c", AckPolicy: natsjs.AckExplicitPolicy})
		require.NoError(b, err)
		arrived := make(chan time.Time, 1)
		consuming, err := c.Consume(func(m natsjs.Msg) {
			arrived <- time.Now()
			_ = m.Ack()
		})
		require.NoError(b, err)
		b.Cleanup(consuming.Stop)
		n := 0
		latencies(b, arrived, func() {
			n++
			_, err := js.Publish(b.Context(), "raw.commerce.order", payload, natsjs.WithMsgID(fmt.Sprint(n)))
			require.NoError(b, err)
		})
	})
}

func latencies(b *testing.B, arrived chan time.Time, publish func()) {
	b.Helper()
	var all []time.Duration
	b.ResetTimer()
	for range b.N {
		begin := time.Now()
		publish()
		all = append(all, (<-arrived).Sub(begin))
	}
	b.StopTimer()
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
}

// BenchmarkDrain is the rate at which a backlog is pushed to a sink that answers
// at once.
func BenchmarkDrain(b *testing.B) {
	bus := benchBus(b)
	done := make(chan struct{})
	var n atomic.Int64
	sink := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if n.Add(1) == int64(b.N) {
			close(done)
		}
	}))
	b.Cleanup(sink.Close)
	sub := subscription("u1", sink.URL)
	sub.Hold, sub.MaxInFlight = true, 100
	require.NoError(b, bus.Dispatcher().Set(b.Context(), sub))
	var id atomic.Int64
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	parallel(b, 64, func() error { return post(b, client, bus, fmt.Sprint(id.Add(1))) })
	b.ResetTimer()
	b.StartTimer()
	sub.Hold = false
	require.NoError(b, bus.Dispatcher().Set(b.Context(), sub))
	<-done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pushes/s")
}
