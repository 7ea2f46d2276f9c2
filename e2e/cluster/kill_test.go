package cluster

import (
	"context"
	"fmt"
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

// known is what the cluster may take, once the API server says that a node is
// away, until every proxy has heard of it. Under Istio an agent that was told by the
// istiod of that node notices first, by its keepalive, that nobody tells it anything.
func (c *cluster) known() time.Duration {
	if c.mesh == "istio" {
		return 45 * time.Second
	}
	return 10 * time.Second
}

// testKill ends a node as a power cut would, the one with the event store, while
// events are published and lambdas are called; and brings it back. No event that
// was accepted may be missing afterwards, and no request may fail but those that
// were on the dead node's own connections: a client's to the gateway there, or a
// gateway's to the lambda there, before the cluster knew.
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
	c.apply(t, c.members("kill")+
		c.sink("kill", "recorder", "  nodeSelector: {kubernetes.io/hostname: "+survivor+"}\n")+
		lambda("kill", "steady", "nodejs", hello, "  scale: {min: 2, max: 2}\n")+open("kill", "steady")+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: publisher, namespace: kill}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: apart, namespace: kill}
spec:
  hosts: [apart]
  rules: [{path: "/*", service: {name: recorder, port: 80}, noAuth: true}]
---
# Of a node's gateways only.
apiVersion: v1
kind: Service
metadata: {name: gateway-of-node, namespace: lambdamesh-system}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app.kubernetes.io/name: gateway}
  ports: [{name: https, port: 443, targetPort: https}]
`+subscription("kill", "recorder", "/kill/publisher"))
	t.Cleanup(func() { c.mustKubectl(t, "", "delete", "service", "-n", system, "gateway-of-node") })
	for _, object := range []string{"lambda/steady", "apirule/steady", "apirule/apart", "subscription/recorder"} {
		c.waitFor(t, "kill", object, "Ready")
	}
	token := c.token(t, nil, "kill", "publisher", v1alpha1.EventBusTokenAudience)
	bus := c.publisher(t, survivor)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	events := newTally()
	// All that apart needs is on the node that stays; across takes every gateway and
	// every replica.
	apart := c.newCaller(t, c.nodePort(t, "gateway-of-node", "https", survivor), "apart")
	across := c.newCaller(t, c.nodePort(t, "gateway", "https", survivor), "steady")
	var load sync.WaitGroup
	for n := range 4 {
		load.Go(func() {
			each(ctx, pace, func(i int) {
				id := fmt.Sprintf("%d-%d", n, i)
				resp, err := bus.publish(context.WithoutCancel(ctx), token, "/kill/publisher", id)
				events.note(id, resp.status, http.StatusAccepted, err)
			})
		})
		load.Go(func() { across.run(ctx) })
	}
	load.Go(func() { apart.run(ctx) })
	eventually(t, patience, func() error { return events.atLeast(200) })

	killed := time.Now()
	c.nodes(t, "node", "kill", victim)
	eventually(t, patience, func() error { return c.nodeReady(t, victim, false) })
	t.Logf("the API server knows that %s is away after %s", victim, since(killed))
	settled := time.Now().Add(c.known())
	eventually(t, patience, func() error { return across.atLeast(200, settled) })
	t.Logf("a lambda on the other node answered 200 requests since, %s after the kill", since(killed))

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
		return missing(accepted, seen)
	})
	repeated := 0
	for _, times := range seen {
		repeated += times - 1
	}
	t.Logf("events: %d accepted, 0 lost, %d delivered again; answers %s", len(accepted), repeated, events)

	t.Logf("requests that touch the other node only: %s", apart)
	require.Empty(t, apart.failed(), "nothing of theirs was on the dead node")
	t.Logf("requests to all gateways and replicas: %s", across)
	var clients, gateways int
	var others []attempt
	for _, a := range across.failed() {
		switch {
		case a.err != nil && a.sent.Add(a.took).After(killed) && a.dialed.Before(settled):
			clients++
		case a.status >= http.StatusBadGateway && a.sent.Add(a.took).After(killed) && a.sent.Before(settled):
			gateways++
		default:
			others = append(others, a)
		}
	}
	t.Logf("failed: %d on clients' connections to the dead node, %d on gateways' connections to it, %d others", clients, gateways, len(others))
	require.Empty(t, others, "killed at %s, settled at %s, back at %s", killed, settled, back)
}

// missing tells which of the accepted events did not come.
func missing(accepted []string, seen map[string]int) error {
	lost := slices.DeleteFunc(slices.Clone(accepted), func(id string) bool { return seen[id] > 0 })
	if len(lost) > 0 {
		return fmt.Errorf("%d of %d accepted events are missing, %s and others", len(lost), len(accepted), lost[0])
	}
	return nil
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
