package eventbus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// bus is a running bus on an embedded server, without an API server.
type bus struct {
	*eventbus.Bus
	url, admin string
	stop       func()
}

func startBus(t testing.TB, dir string, change func(*eventbus.Config)) *bus {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	nats, err := natsserver.New(natsserver.Config{Dir: dir, Logger: quiet})
	require.NoError(t, err)
	policy, err := targets.New(targets.Config{Allow: []string{"127.0.0.0/8"}})
	require.NoError(t, err)
	config := eventbus.Config{
		JetStream:     jetstream.Config{InProcess: nats, PublishTimeout: time.Minute},
		OpenListener:  listen(t),
		AdminListener: listen(t),
		AdminOpen:     true,
		Targets:       policy,
		DrainTimeout:  2 * time.Second,
		Log:           quiet,
	}
	if change != nil {
		change(&config)
	}
	b := &bus{url: "http://" + config.OpenListener.Addr().String(), admin: "http://" + config.AdminListener.Addr().String()}
	b.Bus, err = eventbus.New(config)
	require.NoError(t, err)
	b.stop = run(t, component.NewGroup("test", component.GroupConfig{}, nats, b.Bus))
	return b
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

// run runs a component until stop is called or the test ends.
func run(t testing.TB, c component.Component) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(t, <-done)
		}
	}
	t.Cleanup(stop)
	select {
	case <-c.Ready():
	case err := <-done:
		stopped = true
		t.Fatalf("%s ended: %v", c.Name(), err)
	case <-time.After(time.Minute):
		t.Fatalf("%s is not ready", c.Name())
	}
	return stop
}

func subscription(uid, url string) dispatch.Subscription {
	return dispatch.Subscription{
		UID: uid, Namespace: "shop", Name: uid, Created: time.Now(),
		Selectors: []broker.Selector{{Source: "commerce", Type: "**"}}, Sink: dispatch.Sink{URL: url},
		Format: dispatch.Binary, Timeout: 5 * time.Second, MaxInFlight: 10,
		Retry: dispatch.Retry{MaxAttempts: 3, MinBackoff: 20 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, MaxAge: time.Hour},
	}
}

type received struct {
	header http.Header
	body   string
}

// receiver is a sink that answers its nth request, from 1, with what answer
// says, 200 by default.
func receiver(t testing.TB, answer func(n int) int) (url string, got chan received) {
	t.Helper()
	got = make(chan received, 10_000)
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- received{r.Header, string(body)}
		nth := int(n.Add(1))
		if answer != nil {
			w.WriteHeader(answer(nth))
		}
	}))
	t.Cleanup(server.Close)
	return server.URL, got
}

func next(t testing.TB, got chan received) received {
	t.Helper()
	select {
	case r := <-got:
		return r
	case <-time.After(time.Minute):
		t.Fatal("nothing was pushed")
		return received{}
	}
}

const legacyEvent = `{"source-id":"commerce","event-type":"order.created","event-type-version":"v1","event-time":"2018-11-02T22:08:41+00:00","data":{"orderCode":"4caad296-e0c5-491e-98ac-0ed118f9474e"}}`

func TestLegacyEventIsPushedAsCloudEvent(t *testing.T) {
	b := startBus(t, t.TempDir(), nil)
	url, got := receiver(t, nil)
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u1", url)))

	response, err := http.Post(b.url+"/v1/events", "application/json", strings.NewReader(legacyEvent))
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	var accepted struct {
		ID string `json:"event-id"`
	}
	require.NoError(t, json.NewDecoder(response.Body).Decode(&accepted))

	r := next(t, got)
	require.Equal(t, accepted.ID, r.header.Get("Ce-Id"))
	require.Equal(t, "commerce", r.header.Get("Ce-Source"))
	require.Equal(t, "order.created.v1", r.header.Get("Ce-Type"))
	require.Equal(t, `{"orderCode":"4caad296-e0c5-491e-98ac-0ed118f9474e"}`, r.body)
}

func TestOfficialSDKPublishesAndReceives(t *testing.T) {
	for _, format := range []dispatch.Format{dispatch.Binary, dispatch.Structured} {
		t.Run(string(format), func(t *testing.T) {
			b := startBus(t, t.TempDir(), nil)
			l := listen(t)
			protocol, err := cloudevents.NewHTTP(cloudevents.WithListener(l))
			require.NoError(t, err)
			receiver, err := cloudevents.NewClient(protocol)
			require.NoError(t, err)
			got := make(chan cloudevents.Event, 10)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { _ = receiver.StartReceiver(ctx, func(e cloudevents.Event) { got <- e }) }()

			sub := subscription("u1", "http://"+l.Addr().String())
			sub.Format = format
			require.NoError(t, b.Dispatcher().Set(t.Context(), sub))

			sender, err := cloudevents.NewClientHTTP(cloudevents.WithTarget(b.url + "/publish"))
			require.NoError(t, err)
			for i, encode := range []func(context.Context) context.Context{cloudevents.WithEncodingBinary, cloudevents.WithEncodingStructured} {
				e := cloudevents.NewEvent()
				e.SetID(fmt.Sprint(i))
				e.SetSource("commerce")
				e.SetType("com.example.order.created")
				e.SetSubject("orders/1")
				e.SetTime(time.Date(2018, 4, 5, 17, 31, 0, 0, time.UTC))
				e.SetExtension("comexampleextension1", "value")
				require.NoError(t, e.SetData(cloudevents.ApplicationJSON, map[string]string{"orderCode": "4711"}))
				result := sender.Send(encode(t.Context()), e)
				require.True(t, cloudevents.IsACK(result), "%v", result)
				select {
				case back := <-got:
					require.Equal(t, e.Context.AsV1(), back.Context.AsV1())
					require.JSONEq(t, string(e.Data()), string(back.Data()))
				case <-time.After(time.Minute):
					t.Fatal("nothing was received")
				}
			}
		})
	}
}

func TestEventsPublishedWhileTheSinkIsDownArriveInTheEnd(t *testing.T) {
	b := startBus(t, t.TempDir(), nil)
	url, got := receiver(t, func(n int) int {
		if n < 3 {
			return 503
		}
		return 200
	})
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("u1", url)))
	publish(t, b, "1")
	for range 3 {
		require.Equal(t, "1", next(t, got).header.Get("Ce-Id"))
	}
	require.Eventually(t, func() bool {
		stats, _ := b.Dispatcher().Stats("u1")
		return stats.Delivered == 1 && stats.Redelivered == 2
	}, time.Minute, 10*time.Millisecond)
}

func TestPoisonEventBecomesADeadLetterThatTheAdminPortShows(t *testing.T) {
	b := startBus(t, t.TempDir(), nil)
	url, got := receiver(t, func(int) int { return 500 })
	require.NoError(t, b.Dispatcher().Set(t.Context(), subscription("poisoned", url)))
	publish(t, b, "poison")
	for range 3 {
		next(t, got)
	}
	var page struct {
		Items []broker.DeadLetter `json:"items"`
	}
	require.Eventually(t, func() bool {
		get(t, b.admin+"/admin/v1/dead-letters?subscription=shop/poisoned", &page)
		return len(page.Items) == 1
	}, time.Minute, 10*time.Millisecond)
	require.Equal(t, 3, page.Items[0].Attempts)
	require.Equal(t, 500, page.Items[0].LastStatus)
	require.Equal(t, "poison", page.Items[0].Event.ID)
	get(t, b.admin+"/admin/v1/dead-letters?subscription=shop/other", &page)
	require.Empty(t, page.Items)
	require.Empty(t, got, "exactly three attempts")
}

func TestAcceptedEventsArePushedAfterARestart(t *testing.T) {
	dir := t.TempDir()
	b := startBus(t, dir, nil)
	url, got := receiver(t, nil)
	sub := subscription("u1", url)
	sub.Hold = true
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	publish(t, b, "1")
	b.stop()

	b = startBus(t, dir, nil)
	sub.Hold = false
	require.NoError(t, b.Dispatcher().Set(t.Context(), sub))
	require.Equal(t, "1", next(t, got).header.Get("Ce-Id"))
}

func TestAdminPort(t *testing.T) {
	b := startBus(t, t.TempDir(), nil)
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 200, "/nowhere": 404,
		"/admin/v1/dead-letters": 200, "/admin/v1/dead-letters?limit=x&after=-1&subscription=a": 400,
	} {
		require.Equal(t, want, get(t, b.admin+path, nil), path)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.admin+"/admin/v1/dead-letters", nil)
	require.NoError(t, err)
	request.Host = "attacker.example"
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusMisdirectedRequest, response.StatusCode)
}

func TestConfigIsChecked(t *testing.T) {
	l := listen(t)
	defer l.Close()
	_, err := eventbus.New(eventbus.Config{TokenListener: l, AdminListener: l, MeshProxyURL: "nowhere"})
	for _, part := range []string{"no NATS server", "tokens can only be checked", "admin port can only be guarded", "mesh proxy URL"} {
		require.ErrorContains(t, err, part)
	}
	_, err = eventbus.New(eventbus.Config{})
	require.ErrorContains(t, err, "no listener")
	_, err = eventbus.New(eventbus.Config{OpenListener: l, MaxConnections: -1})
	require.ErrorContains(t, err, "max connections -1")
	_, err = eventbus.New(eventbus.Config{OpenListener: l, MaxConnections: 10, MaxConnectionsPerRemote: 11})
	require.ErrorContains(t, err, "max connections per remote 11")
}

func TestConnectionsOfPublishersAreBounded(t *testing.T) {
	b := startBus(t, t.TempDir(), func(c *eventbus.Config) { c.MaxConnections, c.MaxConnectionsPerRemote = 3, 2 })
	address := strings.TrimPrefix(b.url, "http://")
	var flood []net.Conn
	for range 3 {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}).DialContext(t.Context(), "tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		flood = append(flood, c)
	}
	require.NoError(t, flood[0].SetReadDeadline(time.Now().Add(time.Minute)))
	_, err := flood[0].Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the oldest made room")
	publish(t, b, "1")
	response, err := http.Get(b.admin + "/metrics")
	require.NoError(t, err)
	defer response.Body.Close()
	metrics, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Contains(t, string(metrics), `lambdamesh_http_connections_evicted_total{server="eventbus-open"} 2`)
}

func publish(t testing.TB, b *bus, id string) {
	t.Helper()
	require.Equal(t, http.StatusAccepted, tryPublish(t, b, id))
}

// tryPublish returns the status a publisher gets.
func tryPublish(t testing.TB, b *bus, id string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/publish", strings.NewReader(`{"n":1}`))
	require.NoError(t, err)
	request.Header = http.Header{
		"Ce-Specversion": {"1.0"}, "Ce-Id": {id}, "Ce-Source": {"commerce"}, "Ce-Type": {"order.created.v1"}, "Content-Type": {"application/json"},
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body) // else the connection is not used again
	require.NoError(t, err)
	return response.StatusCode
}

func get(t testing.TB, url string, into any) int {
	t.Helper()
	response, err := http.Get(url)
	require.NoError(t, err)
	defer response.Body.Close()
	if into != nil {
		require.NoError(t, json.NewDecoder(response.Body).Decode(into))
	}
	return response.StatusCode
}
