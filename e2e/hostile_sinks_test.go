package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

// A URI into the Subscription's own namespace works as sink.service does, also
// for dead letters: the bus is let in where it is sent.
func TestAURIToAnOwnServiceGetsEvents(t *testing.T) {
	m := shared(t)
	const ns = "sink-uris"
	refusing := newReceiver(t, func(cloudevents.Event) error { return cloudevents.NewHTTPResult(http.StatusInternalServerError, "no") })
	subscription := `---
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: %s, namespace: ` + ns + `}
spec: {source: ` + ns + `, types: ["**"], sink: {uri: %q}, delivery: {retry: {maxAttempts: 1}%s}}
`
	m.apply(t, bound(ns)+echo(ns, "web", countCode)+`
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: web, namespace: sink-uris}
spec: {hosts: [sink-uris], rules: [{path: /, methods: [GET], lambda: web, noAuth: true}]}
`+fmt.Sprintf(subscription, "whole", "http://web."+ns+".svc.cluster.local/hook", "")+
		fmt.Sprintf(subscription, "short", "http://WEB."+ns+"/hook?x=1", "")+
		fmt.Sprintf(subscription, "dead", refusing.url+"/", `, deadLetter: {sink: {uri: "http://web.`+ns+`.svc/dead"}}`))
	for _, name := range []string{"whole", "short", "dead"} {
		m.waitFor(t, ns, "subscription/"+name, "Ready")
	}
	publishOne(t, m, ns, "1")
	eventually(t, time.Minute, func() error {
		got, err := m.get(t.Context(), "sink-uris.lambdas.localhost", "/")
		if err == nil && got.body != "got 3" {
			err = errorf("the sink answers %d %q", got.status, got.body)
		}
		return err
	})
	eventually(t, time.Minute, func() error {
		counters := m.mustKubectl(t, "", "get", "subscriptions", "-n", ns, "-o", "jsonpath={.items[*].status.delivered} {.items[*].status.deadLettered}")
		if counters != "0 1 1 1 0 0" { // dead, short, whole
			return errorf("delivered and deadLettered are %s", counters)
		}
		return nil
	})
}
