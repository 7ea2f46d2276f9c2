package cluster

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// pace is what each of the callers takes between two requests at least.
const pace = 20 * time.Millisecond

// testKill ends a node as a power cut would, the one with the event store, while
// events are published and a lambda is called; and brings it back. No event that
// was accepted may be missing afterwards.
func testKill(t *testing.T, c *cluster) {
	if c.name == "" {
		t.Skip("LEFT OUT: a node killed under load: it takes a cluster of `make cluster`")
	}
	victim := c.nodeOf(t, client.MatchingLabels{"app.kubernetes.io/name": "nats"})
	survivor := ""
	for name := range c.nodeAddresses(t) {
		if name != victim {
			survivor = name
		}
	}
	require.NotEmpty(t, survivor, "it takes two nodes")
	c.apply(t, namespaces("kill")+
		c.sink("kill", "recorder", "  nodeSelector: {kubernetes.io/hostname: "+survivor+"}\n")+
		lambda("kill", "steady", "nodejs", hello, "  scale: {min: 2, max: 2}\n")+open("kill", "steady")+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: publisher, namespace: kill}
`+subscription("kill", "recorder", "/kill/publisher"))
	for _, object := range []string{"lambda/steady", "apirule/steady", "subscription/recorder"} {
		c.waitFor(t, "kill", object, "Ready")
	}
	token := c.token(t, nil, "kill", "publisher", v1alpha1.EventBusTokenAudience)
	bus, gateway := c.publisher(t, survivor), c.nodePort(t, "gateway", "https", survivor)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	events, requests := newTally(), newTally()
	var load sync.WaitGroup
	for n := range 4 {
		load.Go(func() {
			ticker := time.NewTicker(pace)
			defer ticker.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				<-ticker.C
				id := fmt.Sprintf("%d-%d", n, i)
				resp, err := bus.publish(context.WithoutCancel(ctx), token, "/kill/publisher", id)
				events.note(id, resp.status, http.StatusAccepted, err)
			}
		})
		load.Go(func() {
			ticker := time.NewTicker(pace)
			defer ticker.Stop()
			for ctx.Err() == nil {
				<-ticker.C
				resp, err := c.ask(context.WithoutCancel(ctx), gateway, http.MethodGet, "steady", "/", "")
				requests.note("", resp.status, http.StatusOK, err)
			}
		})
	}
	eventually(t, patience, func() error { return events.atLeast(200) })

	began := time.Now()
	c.nodes(t, "node", "kill", victim)
	eventually(t, patience, func() error { return c.nodeReady(t, victim, false) })
	t.Logf("the API server knows that %s is away after %s", victim, since(began))
	requests.mark()
	eventually(t, patience, func() error { return requests.atLeast(200) })
	t.Logf("a lambda on the other node answered 200 requests since, %s after the kill", since(began))

	back := time.Now()
	c.nodes(t, "node", "start", victim)
	eventually(t, patience, func() error { return c.nodeReady(t, victim, true) })
	c.awaitInstalled(t)
	events.mark()
	eventually(t, patience, func() error { return events.atLeast(100) })
	t.Logf("publishing goes on %s after the node's start", since(back))
	c.waitFor(t, "kill", "lambda/steady", "Ready")
	stop()
	load.Wait()

	accepted := events.accepted()
	var seen map[string]int
	eventually(t, 2*patience, func() error {
		var err error
		if seen, err = c.seen(t, "kill", "recorder"); err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(accepted), func(id string) bool { return seen[id] > 0 })
		if len(missing) > 0 {
			return fmt.Errorf("%d of %d accepted events are missing, %s and others", len(missing), len(accepted), missing[0])
		}
		return nil
	})
	repeated := 0
	for _, times := range seen {
		repeated += times - 1
	}
	t.Logf("events: %d accepted, 0 lost, %d delivered again; answers %s", len(accepted), repeated, events)
	t.Logf("requests: %s", requests)
	require.Empty(t, requests.unexpected(http.StatusOK, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusBadGateway), "%s", requests)
}

func (c *cluster) nodeOf(t *testing.T, labels client.MatchingLabels) string {
	t.Helper()
	var pods corev1.PodList
	require.NoError(t, c.client.List(t.Context(), &pods, client.InNamespace(system), labels))
	require.NotEmpty(t, pods.Items)
	return pods.Items[0].Spec.NodeName
}

func (c *cluster) nodeReady(t *testing.T, name string, want bool) error {
	t.Helper()
	var node corev1.Node
	if err := c.client.Get(t.Context(), client.ObjectKey{Name: name}, &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && (condition.Status == corev1.ConditionTrue) == want {
			return nil
		}
	}
	return fmt.Errorf("%s: %+v", name, node.Status.Conditions)
}

// tally counts answers while load goes on.
type tally struct {
	mu       sync.Mutex
	ids      []string
	statuses map[int]int
	failed   int
	good     int // since mark
	gap      time.Duration
	last     time.Time
}

func newTally() *tally { return &tally{statuses: map[int]int{}, last: time.Now()} }

func (y *tally) note(id string, status, want int, err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if err != nil {
		y.failed++
		return
	}
	y.statuses[status]++
	if status != want {
		return
	}
	y.ids, y.good = append(y.ids, id), y.good+1
	y.gap, y.last = max(y.gap, time.Since(y.last)), time.Now()
}

func (y *tally) mark() {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.good = 0
}

func (y *tally) atLeast(n int) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.good < n {
		return fmt.Errorf("%d of %d: %v, %d failed", y.good, n, y.statuses, y.failed)
	}
	return nil
}

func (y *tally) accepted() []string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.Clone(y.ids)
}

func (y *tally) unexpected(fine ...int) []int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return slices.DeleteFunc(slices.Collect(maps.Keys(y.statuses)), func(status int) bool { return slices.Contains(fine, status) })
}

func (y *tally) String() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return fmt.Sprintf("by status %v, %d without an answer; the longest time without a good one %s", y.statuses, y.failed, y.gap.Round(100*time.Millisecond))
}
