package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever the bus answers 202 to, a subscription gets: also an event that has
// all that it may have, before the bus adds the trace of the request.
func TestAnEventThatWasAcceptedWithEverythingIsDelivered(t *testing.T) {
	m := shared(t)
	const ns = "hostile-bus-full"
	got := make(chan http.Header, 100)
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header }))
	t.Cleanup(sink.Close)
	m.apply(t, bound(ns)+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: all, namespace: %[1]s}
spec: {source: %[1]s, types: ["**"], sink: {uri: "%[2]s/"}}
`, ns, sink.URL))
	m.waitFor(t, ns, "subscription/all", "Subscribed")

	publish := func(id string, extensions, length int) int {
		header := []string{
			"ce-specversion", "1.0", "ce-id", id, "ce-source", ns, "ce-type", "t",
			"traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate", "a=1",
		}
		for i := range extensions {
			header = append(header, fmt.Sprint("ce-x", i), strings.Repeat("x", length))
		}
		return post(t, m.EventBus+"/publish", "application/json", `{}`, header...).status
	}
	for id, tt := range map[string]struct{ extensions, length int }{
		"most":         {64, 1},
		"longest":      {64, 500},
		"one too many": {65, 1},
		"too long":     {64, 520},
	} {
		status := publish(id, tt.extensions, tt.length)
		if status == http.StatusBadRequest {
			continue // refused and told so
		}
		require.Equal(t, http.StatusAccepted, status, id)
		select {
		case header := <-got:
			require.Equal(t, id, header.Get("Ce-Id"))
		case <-time.After(time.Minute):
			t.Fatalf("%q was accepted and is lost", id)
		}
	}
	require.Equal(t, http.StatusAccepted, publish("ordinary", 1, 1))
	require.Equal(t, "ordinary", (<-got).Get("Ce-Id"))
}

type deadLetters struct {
	Items []struct {
		Subscription, Reason, LastError string
		Attempts                        int
		Event                           struct{ ID string }
	}
}

// What waits longer than maxAge is not forgotten, although nobody pushes it.
func TestEventsOfAPausedSubscriptionBecomeDeadLetters(t *testing.T) {
	m := shared(t)
	const ns = "hostile-bus-paused"
	got := make(chan string, 100)
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Ce-Id") }))
	t.Cleanup(sink.Close)
	subscription := func(paused bool, maxAge string) string {
		return fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: paused, namespace: %[1]s}
spec: {source: %[1]s, types: ["**"], paused: %[2]v, sink: {uri: "%[3]s/"}, delivery: {retry: {maxAge: %[4]s}}}
`, ns, paused, sink.URL, maxAge)
	}
	m.apply(t, bound(ns)+subscription(true, "2s"))
	m.waitFor(t, ns, "subscription/paused", "Subscribed")
	for i := range 3 {
		publishOne(t, m, ns, fmt.Sprint("old-", i))
	}
	eventually(t, time.Minute, func() error {
		resp, err := http.Get(m.EventBusAdmin + "/admin/v1/dead-letters?subscription=" + ns + "/paused")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var page deadLetters
		if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
			return err
		}
		if len(page.Items) != 3 {
			return errorf("%d dead letters", len(page.Items))
		}
		for i, letter := range page.Items {
			require.Equal(t, "Expired", letter.Reason)
			require.Zero(t, letter.Attempts)
			require.Equal(t, fmt.Sprint("old-", i), letter.Event.ID)
			require.Contains(t, letter.LastError, "2s")
		}
		return nil
	})
	eventually(t, time.Minute, func() error {
		if n := m.mustKubectl(t, "", "get", "subscription", "-n", ns, "paused", "-o", "jsonpath={.status.deadLettered}"); n != "3" {
			return errorf("status.deadLettered is %s", n)
		}
		return nil
	})

	m.mustKubectl(t, subscription(true, "1h"), "apply", "-f", "-")
	publishOne(t, m, ns, "young")
	m.mustKubectl(t, subscription(false, "1h"), "apply", "-f", "-")
	select {
	case id := <-got:
		require.Equal(t, "young", id, "what is a dead letter is not delivered later")
	case <-time.After(time.Minute):
		t.Fatal("what waited was not delivered when the subscription went on")
	}
}

// A subscription whose sink is refused keeps its events no longer than one that
// is paused.
func TestEventsOfASubscriptionWhoseSinkIsNotThereBecomeDeadLetters(t *testing.T) {
	m := shared(t)
	const ns = "hostile-bus-nosink"
	m.apply(t, bound(ns)+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: waits, namespace: %[1]s}
spec: {source: %[1]s, types: ["**"], sink: {lambda: not-there}, delivery: {retry: {maxAge: 1s}}}
`, ns))
	m.waitFor(t, ns, "subscription/waits", "Subscribed")
	publishOne(t, m, ns, "1")
	eventually(t, time.Minute, func() error {
		resp, err := http.Get(m.EventBusAdmin + "/admin/v1/dead-letters?subscription=" + ns + "/waits")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var page deadLetters
		if err := json.NewDecoder(resp.Body).Decode(&page); err != nil {
			return err
		}
		if len(page.Items) != 1 {
			return errorf("%d dead letters", len(page.Items))
		}
		return nil
	})
}

// A tenant whose grant is taken away gets nothing more: not as a dead letter, and
// not when it is granted again what it could not read meanwhile.
func TestARevokedGrantDeliversNothing(t *testing.T) {
	m := shared(t)
	const owner, reader = "hostile-bus-owner", "hostile-bus-reader"
	got := make(chan string, 100)
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.URL.Path + " " + r.Header.Get("Ce-Id") }))
	t.Cleanup(sink.Close)
	// expect waits for a push and lets those to the clock pass.
	expect := func(want string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for {
			select {
			case p := <-got:
				if p != want && strings.HasPrefix(p, "/clock ") {
					continue
				}
				require.Equal(t, want, p)
				return
			case <-deadline:
				t.Fatalf("not pushed: %s", want)
			}
		}
	}
	grant := fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: EventGrant
metadata: {name: carts, namespace: %s}
spec: {namespaces: [%s], lambdas: [cart]}
`, owner, reader)
	m.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Namespace
metadata: {name: %[2]s}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: carts, namespace: %[2]s}
spec:
  source: /%[1]s/cart
  types: ["**"]
  sink: {uri: "%[3]s/sink"}
  delivery: {retry: {maxAge: 3s}, deadLetter: {sink: {uri: "%[3]s/dead"}}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: clock, namespace: %[1]s}
spec:
  source: /%[1]s/cart
  types: ["**"]
  paused: true
  sink: {uri: "%[3]s/"}
  delivery: {retry: {maxAge: 6s}, deadLetter: {sink: {uri: "%[3]s/clock"}}}
---`, owner, reader, sink.URL)+grant)
	m.waitFor(t, owner, "subscription/clock", "Subscribed")
	m.waitFor(t, reader, "subscription/carts", "Subscribed")
	publishOne(t, m, "/"+owner+"/cart", "granted")
	expect("/sink granted")

	m.mustKubectl(t, "", "delete", "eventgrant", "-n", owner, "carts")
	m.mustKubectl(t, "", "wait", "-n", reader, "subscription/carts", "--for=condition=Subscribed=false", "--timeout=60s")
	publishOne(t, m, "/"+owner+"/cart", "revoked")
	expect("/clock revoked") // later than it would be a dead letter of the other one

	m.apply(t, grant)
	m.waitFor(t, reader, "subscription/carts", "Subscribed")
	publishOne(t, m, "/"+owner+"/cart", "granted-again")
	expect("/sink granted-again")
	answer, err := http.Get(m.EventBusAdmin + "/admin/v1/dead-letters?subscription=" + reader + "/carts")
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusOK, answer.StatusCode)
	var page deadLetters
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&page))
	require.Empty(t, page.Items)
}

// A flood of batches, each with an event that is stored already, is nothing that
// other sources notice: their events are stored meanwhile.
func TestAFloodOfDuplicatesStopsNobodyElse(t *testing.T) {
	const source, other, batches = "hostile-flood", "hostile-flood-other", 60
	m := shared(t)
	publishOne(t, m, source, "dup")
	body := func(n int) string {
		var b strings.Builder
		b.WriteString(`[{"specversion":"1.0","id":"dup","source":"` + source + `","type":"t"}`)
		for i := range 999 {
			fmt.Fprintf(&b, `,{"specversion":"1.0","id":"%d-%d","source":%q,"type":"t"}`, n, i, source)
		}
		return b.String() + "]"
	}
	send := func(n int) (response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.EventBus+"/publish", strings.NewReader(body(n)))
		if err != nil {
			return response{}, err
		}
		req.Header.Set("Content-Type", "application/cloudevents-batch+json")
		return do(http.DefaultClient, req)
	}
	answers := make([]response, batches)
	errs := make([]error, batches)
	var flood sync.WaitGroup
	for n := range batches {
		flood.Go(func() { answers[n], errs[n] = send(n) })
	}
	over := make(chan struct{})
	go func() { flood.Wait(); close(over) }()
	for n, ended := 0, false; !ended; n++ {
		select {
		case <-over:
			ended = true // and once more
		default:
		}
		publishOne(t, m, other, fmt.Sprint(n))
	}
	refused := -1
	for n, a := range answers {
		require.NoError(t, errs[n])
		if a.status != http.StatusAccepted {
			require.Equal(t, http.StatusTooManyRequests, a.status, a.body)
			refused = n
		}
	}
	if refused >= 0 { // nothing waits any more
		again, err := send(refused)
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, again.status, again.body)
	}
}

// dialAs connects to the bus from another address of this machine, which is
// another client to it.
func dialAs(t *testing.T, m *mesh, from string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.DialContext(t.Context(), "tcp", address(t, m.EventBus))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(2*time.Minute)))
	return c
}

// needOtherAddresses leaves a test out where loopback has one address.
func needOtherAddresses(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8")
	}
}

// However many idle connections a client opens, it has its share of them at most,
// and the others publish.
func TestIdleConnectionsOfOneClientStopNobody(t *testing.T) {
	needOtherAddresses(t)
	const connections, share = 2200, 2048
	m := shared(t)
	var oldest net.Conn
	for i := range connections {
		c := dialAs(t, m, "127.0.0.2")
		_, err := io.WriteString(c, "GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n")
		require.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err, i)
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		require.Equal(t, http.StatusNotFound, resp.StatusCode, i)
		if oldest == nil {
			oldest = c
		}
	}
	require.NoError(t, oldest.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err := oldest.Read(make([]byte, 1))
	var waited net.Error
	require.False(t, errors.As(err, &waited) && waited.Timeout(), "the oldest makes room, one client keeps %d at most", share)
	publishOne(t, m, "hostile-idle", "after-the-flood")
	require.Regexp(t, `lambdamesh_http_connections_evicted_total\{server="eventbus-open"\} \d+`, busMetrics(t, m))
}

func busMetrics(t *testing.T, m *mesh) string {
	t.Helper()
	resp, err := http.Get(m.EventBusAdmin + "/metrics")
	require.NoError(t, err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(raw)
}

// Headers cost memory before anybody knows whose they are: a client that sends as
// many as it can has a quarter as many connections.
func TestLargeHeadersOfOneClientTakeLittleMemory(t *testing.T) {
	needOtherAddresses(t)
	const connections, most = 1500, 2048 / 4
	m := shared(t)
	before := endedConnections(t, m)
	unfinished := "POST /publish HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 61<<10)
	var flood sync.WaitGroup
	for range connections {
		c := dialAs(t, m, "127.0.0.3")
		flood.Go(func() { _, _ = io.WriteString(c, unfinished) }) // fails when it is ended
	}
	flood.Wait()
	publishOne(t, m, "hostile-headers", "meanwhile")
	eventually(t, time.Minute, func() error {
		// On a slow machine the first ones have ended by themselves, after 5 s.
		if n := endedConnections(t, m) - before; n < (connections-most)/4 {
			return errorf("%d of %d connections were ended", n, connections)
		}
		return nil
	})
}

// endedConnections is how many connections of publishers were refused or made
// room for others so far.
func endedConnections(t *testing.T, m *mesh) (n int) {
	t.Helper()
	line := regexp.MustCompile(`lambdamesh_http_connections_(?:refused|evicted)_total\{.*server="eventbus-open"\} (\d+)`)
	for _, found := range line.FindAllStringSubmatch(busMetrics(t, m), -1) {
		count, err := strconv.Atoi(found[1])
		require.NoError(t, err)
		n += count
	}
	return n
}

// What an event may have fits into headers, and what is beyond it is told.
func TestHeadersBeyondTheBoundAreRefusedWithAReason(t *testing.T) {
	m := shared(t)
	event := []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "hostile-large", "ce-type", "t"}
	full := event[:len(event):len(event)]
	for i := range 64 {
		full = append(full, fmt.Sprint("ce-x", i), strings.Repeat("x", 490))
	}
	require.Equal(t, http.StatusAccepted, post(t, m.EventBus+"/publish", "application/json", `{}`, full...).status)
	many := event[:len(event):len(event)]
	for i := range 200 {
		many = append(many, fmt.Sprint("x-", i), "x")
	}
	for name, headers := range map[string][]string{
		"large": append(event[:len(event):len(event)], "x-large", strings.Repeat("x", 80<<10)),
		"many":  many,
	} {
		resp := post(t, m.EventBus+"/publish", "application/json", `{}`, headers...)
		require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, resp.status, name)
		require.Equal(t, "application/problem+json", resp.header.Get("Content-Type"), name)
		require.Contains(t, resp.body, "header", name)
	}
	publishOne(t, m, "hostile-large", "2")
}

// A slip in spec.source is refused; it must not cost the events that wait.
func TestHostileSlipInASourceLosesNothing(t *testing.T) {
	m := shared(t)
	const namespace = "hostile-bus-slip"
	got := make(chan string, 100)
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Ce-Id") }))
	t.Cleanup(sink.Close)
	set := func(source string, paused bool) {
		t.Helper()
		m.apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: carts, namespace: %[1]s}
spec:
  source: %[2]s
  types: ["**"]
  paused: %[3]t
  sink: {uri: "%[4]s"}
`, namespace, source, paused, sink.URL))
	}
	const right = "/" + namespace + "/cart"
	set(right, true)
	m.waitFor(t, namespace, "subscription/carts", "Subscribed")
	want := map[string]bool{}
	for i := range 3 {
		id := fmt.Sprintf("before-%d", i)
		want[id] = true
		publishOne(t, m, right, id)
	}
	set("/hostile-bus-slipp/cart", true)
	m.mustKubectl(t, "", "wait", "-n", namespace, "subscription/carts", "--for=condition=Subscribed=false", "--timeout=60s")
	// While it is refused and not paused, too: nothing holds the events back then
	// but the refusal.
	set("/hostile-bus-slipp/cart", false)
	m.mustKubectl(t, "", "wait", "-n", namespace, "subscription/carts", "--for=jsonpath={.status.observedGeneration}=3", "--timeout=60s")
	want["meanwhile"] = true
	publishOne(t, m, right, "meanwhile")
	set(right, false)
	deadline := time.After(time.Minute)
	for len(want) > 0 {
		select {
		case id := <-got:
			delete(want, id)
		case <-deadline:
			t.Fatalf("not delivered: %v", want)
		}
	}
}
