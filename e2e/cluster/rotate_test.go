package cluster

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// testRotate replaces the mesh's CA and NATS's credentials while a lambda is called
// and events are published and pushed. Nobody may notice.
func testRotate(t *testing.T, c *cluster) {
	c.helm(t, append([]string{"upgrade", "lambdamesh", "manifests/charts/lambdamesh", "--set", "controlplane.args={--rotation-overlap=2m}"}, c.values(t)...)...)
	c.awaitInstalled(t)
	c.apply(t, c.members("rotate")+c.sink("rotate", "recorder", "")+
		lambda("rotate", "turning", "nodejs", hello, "  scale: {min: 2, max: 2}\n")+open("rotate", "turning")+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: publisher, namespace: rotate}
`+subscription("rotate", "recorder", "/rotate/publisher"))
	for _, object := range []string{"lambda/turning", "apirule/turning", "subscription/recorder"} {
		c.waitFor(t, "rotate", object, "Ready")
	}
	token := c.token(t, nil, "rotate", "publisher", v1alpha1.EventBusTokenAudience)
	authority, credentials := c.systemSecret(t, "lambdamesh-ca"), c.systemSecret(t, "nats")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	events, bus := newTally(), c.publisher(t, "")
	bus.client.Transport.(*http.Transport).DisableKeepAlives = true // each time it looks whom to trust
	requests := c.newCaller(t, c.nodePort(t, "gateway", "https", ""), "turning")
	var load sync.WaitGroup
	load.Go(func() {
		each(ctx, pace, func(i int) {
			id := fmt.Sprint(i)
			resp, err := bus.publish(context.WithoutCancel(ctx), token, "/rotate/publisher", id)
			events.note(id, resp.status, http.StatusAccepted, err)
		})
	})
	load.Go(func() { requests.run(ctx) })
	eventually(t, patience, func() error { return events.atLeast(50) })

	began := time.Now()
	for _, name := range []string{"lambdamesh-ca", "nats"} {
		c.mustKubectl(t, "", "-n", system, "annotate", "secret", name, v1alpha1.AnnotationRotate+"=now")
	}
	eventually(t, 3*patience, func() error {
		now := c.systemSecret(t, "lambdamesh-ca")
		if len(now.Data) != 2 || string(now.Data[corev1.TLSCertKey]) == string(authority.Data[corev1.TLSCertKey]) {
			return fmt.Errorf("the CA is not replaced: %v", now.Annotations)
		}
		nats := c.systemSecret(t, "nats")
		if len(nats.Data) != 3 || string(nats.Data["user"]) == string(credentials.Data["user"]) || strings.Contains(string(nats.Data["client.conf"]), string(credentials.Data["password"])) {
			return fmt.Errorf("the credentials are not replaced: %v", nats.Annotations)
		}
		return nil
	})
	t.Logf("both are replaced after %s", since(began))
	// Until what is mounted in pods has followed as well.
	settled := time.Now().Add(2 * time.Minute)
	eventually(t, patience, func() error { return requests.atLeast(50, settled) })
	stop()
	load.Wait()

	accepted := events.accepted()
	eventually(t, patience, func() error {
		seen, err := c.seen(t, "rotate", "recorder")
		if err != nil {
			return err
		}
		return missing(accepted, seen)
	})
	t.Logf("requests: %s; events: %d accepted, 0 lost, answers %s", requests, len(accepted), events)
	require.Empty(t, requests.failed())
	require.Equal(t, map[int]int{http.StatusAccepted: len(accepted)}, events.statuses)
	require.Zero(t, events.failed, "%s", events)
	c.noRestarts(t, system)
	t.Run("a new pod is a member", func(t *testing.T) {
		c.apply(t, lambda("rotate", "later", "nodejs", hello, "")+open("rotate", "later"))
		c.waitFor(t, "rotate", "lambda/later", "Ready")
		c.waitFor(t, "rotate", "apirule/later", "Ready")
	})
}

func (c *cluster) systemSecret(t *testing.T, name string) *corev1.Secret {
	t.Helper()
	secret := &corev1.Secret{}
	require.NoError(t, c.client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: name}, secret))
	return secret
}
