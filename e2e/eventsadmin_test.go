package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/stretchr/testify/require"
)

// What became of one order is told by the command line, and put right by it.
func TestEventsAreExplainedAndRepaired(t *testing.T) {
	m := shared(t)
	var mu sync.Mutex
	mended := false
	r := newReceiver(t, func(e cloudevents.Event) error {
		mu.Lock()
		defer mu.Unlock()
		if e.ID() == "repair-poison" && !mended {
			return cloudevents.NewHTTPResult(http.StatusUnprocessableEntity, "no")
		}
		return nil
	})
	const ns = "repairs"
	m.apply(t, bound(ns)+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: orders, namespace: %[1]s}
spec:
  source: %[1]s
  types: ["**"]
  sink: {uri: "%[2]s/"}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: others, namespace: %[1]s}
spec:
  source: %[1]s
  types: [nothing.of.the.kind]
  sink: {uri: "%[2]s/"}
`, ns, r.url))
	m.waitFor(t, ns, "subscription/orders", "Subscribed")
	m.waitFor(t, ns, "subscription/others", "Subscribed")
	publishOne(t, m, ns, "repair-fine")
	require.Equal(t, "repair-fine", r.next(t).ID())
	publishOne(t, m, ns, "repair-poison")
	require.Equal(t, "repair-poison", r.next(t).ID())

	run := func(args ...string) string {
		t.Helper()
		out, code := m.cli(t, append(args, "-n", ns)...)
		require.Zero(t, code, out)
		return out
	}
	documents := func(into any, args ...string) {
		t.Helper()
		out := run(append(args, "-o", "json")...)
		require.NoError(t, json.Unmarshal([]byte(out), into), out)
	}
	type explained struct {
		Items []struct {
			Subscriptions []struct {
				Subscription, State, Detail string
				Attempts                    []struct{ Status int }
			}
		}
	}
	states := func(id string) map[string]string {
		var e explained
		documents(&e, "events", "explain", id)
		states := map[string]string{}
		for _, s := range e.Items[0].Subscriptions {
			states[s.Subscription] = fmt.Sprint(s.State, " ", len(s.Attempts))
		}
		return states
	}
	eventually(t, 30*time.Second, func() error {
		fine, poison := states("repair-fine"), states("repair-poison")
		if fine[ns+"/orders"] != "Delivered 1" || fine[ns+"/others"] != "NotSelected 0" || poison[ns+"/orders"] != "DeadLetter 1" {
			return errorf("explained: %v, %v", fine, poison)
		}
		return nil
	})
	table := run("events", "explain", "repair-poison")
	for _, want := range []string{"SUBSCRIPTION", "STATE", "ANSWER", "422", "dead: Rejected", "spec.types does not select"} {
		require.Contains(t, table, want)
	}
	require.Contains(t, run("events", "list"), "repair-fine")
	tail := strings.Split(strings.TrimSpace(run("events", "tail", "--tail", "1")), "\n")
	require.Len(t, tail, 1)
	require.Contains(t, tail[0], "repair-poison")

	var letters struct {
		Items []struct {
			ID    uint64
			Event struct{ ID string }
		}
	}
	documents(&letters, "dead-letters", "list", "--subscription", "orders")
	require.Len(t, letters.Items, 1)
	id := fmt.Sprint(letters.Items[0].ID)
	require.Contains(t, run("dead-letters", "show", id), "reason: Rejected")
	_, code := m.cli(t, "dead-letters", "redrive", "-n", ns)
	require.Equal(t, 2, code, "which ones is not said")
	out, code := m.cli(t, "dead-letters", "show", id, "-n", "default")
	require.Equal(t, 1, code, "another namespace's: %s", out)

	mu.Lock()
	mended = true
	mu.Unlock()
	require.Contains(t, run("dead-letters", "redrive", id), "1 dead letters delivered again")
	again := r.next(t)
	require.Equal(t, "repair-poison", again.ID())
	require.Equal(t, "redrive-"+id, again.Extensions()["replay"])
	documents(&letters, "dead-letters", "list")
	require.Empty(t, letters.Items)

	require.Contains(t, run("events", "replay", "--subscription", "orders", "--from", "1h", "--dry-run"), "2 events would be delivered again")
	require.Contains(t, run("events", "replay", "--subscription", "orders", "--from", "1h", "--filter", `{"exact":{"id":"repair-fine"}}`), "1 events are delivered again")
	require.Equal(t, "repair-fine", r.next(t).ID())
	require.Contains(t, run("dead-letters", "purge", "--all"), "0 dead letters deleted")
}
