package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
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
		case <-time.After(30 * time.Second):
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
	eventually(t, 30*time.Second, func() error {
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
	case <-time.After(30 * time.Second):
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
