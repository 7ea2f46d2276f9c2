package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/client"
	"github.com/stretchr/testify/require"
)

func errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// post sends an event to the bus.
func post(t testing.TB, url, contentType, body string, header ...string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := do(http.DefaultClient, req)
	require.NoError(t, err)
	return resp
}

type stored struct {
	Events []struct {
		ID       string
		Sequence uint64
	}
}

// publishOne publishes source+id and returns the sequence it is stored under.
func publishOne(t testing.TB, m *mesh, source, id string) uint64 {
	t.Helper()
	resp := post(t, m.EventBus+"/publish", "application/json", `{}`,
		"ce-specversion", "1.0", "ce-id", id, "ce-source", source, "ce-type", "test.happened.v1")
	require.Equal(t, http.StatusAccepted, resp.status, resp.body)
	var answer stored
	require.NoError(t, json.Unmarshal([]byte(resp.body), &answer))
	require.Len(t, answer.Events, 1)
	require.Equal(t, id, answer.Events[0].ID)
	return answer.Events[0].Sequence
}

// The examples of the CloudEvents specification (HTTP binding 1.0.2, sections
// 3.1.4, 3.2.4, 3.3.4; core, section 1).
func TestTheBusTakesWhatTheSpecificationShows(t *testing.T) {
	m := shared(t)
	tests := map[string]struct {
		contentType, body string
		header            []string
		events            int
	}{
		"binary JSON": {
			contentType: "application/json; charset=utf-8", body: `{"much":"wow"}`, events: 1,
			header: []string{"ce-specversion", "1.0", "ce-type", "com.example.someevent", "ce-time", "2018-04-05T03:56:24Z", "ce-id", "1234-1234-1234", "ce-source", "/mycontext/subcontext"},
		},
		"binary XML with an extension": {
			contentType: "text/xml", body: `<much wow="xml"/>`, events: 1,
			header: []string{"ce-specversion", "1.0", "ce-type", "com.example.someevent", "ce-id", "B234-1234-1234", "ce-source", "/mycontext", "ce-comexampleextension1", "value", "ce-comexampleothervalue", "5"},
		},
		"structured": {
			contentType: "application/cloudevents+json; charset=UTF-8", events: 1,
			body: `{"specversion":"1.0","type":"com.github.pull_request.opened","source":"https://github.com/cloudevents/spec/pull","subject":"123","id":"A234-1234-1234","time":"2018-04-05T17:31:00Z","comexampleextension1":"value","comexampleothervalue":5,"datacontenttype":"text/xml","data":"<much wow=\"xml\"/>"}`,
		},
		"structured with binary data": {
			contentType: "application/cloudevents+json", events: 1,
			body: `{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","id":"D234-1234-1234","datacontenttype":"application/octet-stream","data_base64":"AAECAw=="}`,
		},
		"a unicode source": {
			contentType: "application/cloudevents+json", events: 1,
			body: `{"specversion":"1.0","type":"com.example.someevent","source":"/größe/価格","id":"u1","data":{}}`,
		},
		"a batch": {
			contentType: "application/cloudevents-batch+json", events: 2,
			body: `[{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext/4","id":"B1","data":"text"},{"specversion":"1.0","type":"com.example.someotherevent","source":"/mycontext/9","id":"C1","data":{"appinfoA":"abc"}}]`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			resp := post(t, m.EventBus+"/publish", tt.contentType, tt.body, tt.header...)
			require.Equal(t, http.StatusAccepted, resp.status, resp.body)
			var answer stored
			require.NoError(t, json.Unmarshal([]byte(resp.body), &answer))
			require.Len(t, answer.Events, tt.events)
			for _, e := range answer.Events {
				require.NotZero(t, e.Sequence)
			}
		})
	}
}

func TestTheBusRefusesWhatIsWrongAndNamesEveryField(t *testing.T) {
	m := shared(t)
	before := publishOne(t, m, "bad-input", "before")
	tests := map[string]struct {
		path, contentType, body string
		header                  []string
		status                  int
		want                    []string
	}{
		"no attributes at all":          {path: "/publish", contentType: "application/cloudevents+json", body: `{}`, status: 400, want: []string{"specversion", "id", "source", "type"}},
		"broken JSON":                   {path: "/publish", contentType: "application/cloudevents+json", body: `{`, status: 400},
		"a header injection":            {path: "/publish", contentType: "application/json", body: `{}`, status: 400, want: []string{"type"}, header: []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "s", "ce-type", "a%0d%0ab"}},
		"neither binary nor structured": {path: "/publish", contentType: "text/plain", body: `hello`, status: 400},
		"legacy without fields":         {path: "/v1/events", contentType: "application/json", body: `{}`, status: 400, want: []string{"event-type", "missing_field", "validation_violation"}},
		"too large":                     {path: "/publish", contentType: "application/json", body: strings.Repeat("x", 3<<20), status: 413, header: []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "s", "ce-type", "t"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			resp := post(t, m.EventBus+tt.path, tt.contentType, tt.body, tt.header...)
			require.Equal(t, tt.status, resp.status, resp.body)
			for _, want := range tt.want {
				require.Contains(t, resp.body, want)
			}
		})
	}
	require.Equal(t, before+1, publishOne(t, m, "bad-input", "after"), "nothing of it was stored")

	resp, err := http.Get(m.EventBus + "/publish")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	require.Equal(t, "POST", resp.Header.Get("Allow"))
}

func TestABrowserCannotPublish(t *testing.T) {
	m := shared(t)
	event := []string{"ce-specversion", "1.0", "ce-id", "b", "ce-source", "s", "ce-type", "t"}
	resp := post(t, m.EventBus+"/publish", "application/json", `{}`, append(event, "Origin", "https://evil.example")...)
	require.Equal(t, http.StatusForbidden, resp.status, resp.body)

	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.EventBus+"/publish", strings.NewReader(`{}`))
	require.NoError(t, err)
	req.Host = "rebound.evil.example"
	for i := 0; i < len(event); i += 2 {
		req.Header.Set(event[i], event[i+1])
	}
	resp, err = do(http.DefaultClient, req)
	require.NoError(t, err)
	require.Contains(t, []int{http.StatusForbidden, http.StatusMisdirectedRequest}, resp.status, resp.body)
}

func TestSourceAndIDAreStoredOnce(t *testing.T) {
	m := shared(t)
	first := publishOne(t, m, "dedup", "same")
	require.Equal(t, first, publishOne(t, m, "dedup", "same"))
	require.NotEqual(t, first, publishOne(t, m, "dedup-other", "same"), "an id belongs to its source")
}

// receiver is an official SDK's HTTP receiver on loopback, where the mesh was
// told that sinks may be.
type receiver struct {
	url    string
	events chan cloudevents.Event
}

func newReceiver(t testing.TB, answer func(cloudevents.Event) error) *receiver {
	t.Helper()
	r := &receiver{events: make(chan cloudevents.Event, 1000)}
	protocol, err := cloudevents.NewHTTP()
	require.NoError(t, err)
	handler, err := client.NewHTTPReceiveHandler(t.Context(), protocol, func(e cloudevents.Event) error {
		r.events <- e
		if answer == nil {
			return nil
		}
		return answer(e)
	})
	require.NoError(t, err)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) next(t testing.TB) cloudevents.Event {
	t.Helper()
	select {
	case e := <-r.events:
		return e
	case <-time.After(time.Minute):
		t.Fatal("no event was pushed within 30 s")
		return cloudevents.Event{}
	}
}

// bound is a namespace of the test's own in which the application of the same
// name is bound.
func bound(name string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: %[1]s}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: %[1]s, namespace: %[1]s}
spec: {application: %[1]s}
---
`, name)
}

func TestTheOfficialSDKPublishesAndReceives(t *testing.T) {
	m := shared(t)
	for _, format := range []string{"binary", "structured"} {
		t.Run(format, func(t *testing.T) {
			r := newReceiver(t, nil)
			shop := "sdk-" + format
			m.apply(t, bound(shop)+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: sdk, namespace: sdk-%[1]s}
spec:
  source: sdk-%[1]s
  types: ["order.created.v1", "order.*.v1"]
  filters: [{data: [{pointer: /orderCode, prefix: "47"}]}]
  sink: {uri: "%[2]s/"}
  delivery: {format: %[1]s}
`, format, r.url))
			m.waitFor(t, shop, "subscription/sdk", "Subscribed")

			other := post(t, m.EventBus+"/publish", "application/json", `{"orderCode":"1"}`, "ce-specversion", "1.0", "ce-id", "other", "ce-source", shop, "ce-type", "order.created.v1")
			require.Equal(t, http.StatusAccepted, other.status, other.body)
			c, err := cloudevents.NewClientHTTP(cloudevents.WithTarget(m.EventBus + "/publish"))
			require.NoError(t, err)
			sent := cloudevents.NewEvent()
			sent.SetID("sdk-" + format)
			sent.SetSource(shop)
			sent.SetType("order.created.v1")
			sent.SetSubject("価格/4711")
			sent.SetExtension("tenant", "x")
			require.NoError(t, sent.SetData(cloudevents.ApplicationJSON, map[string]string{"orderCode": "4711"}))
			ctx := t.Context()
			if format == "structured" {
				ctx = cloudevents.WithEncodingStructured(ctx)
			}
			require.False(t, cloudevents.IsUndelivered(c.Send(ctx, sent)))

			got := r.next(t)
			require.NoError(t, got.Validate())
			require.Equal(t, sent.ID(), got.ID())
			require.Equal(t, sent.Source(), got.Source())
			// The SDK does not decode headers (HTTP binding, section 3.1.3.2).
			subject, err := url.PathUnescape(got.Subject())
			require.NoError(t, err)
			require.Equal(t, sent.Subject(), subject)
			require.Equal(t, "x", got.Extensions()["tenant"])
			require.JSONEq(t, string(sent.Data()), string(got.Data()))
			select {
			case twice := <-r.events:
				t.Fatalf("overlapping types delivered it twice: %v", twice)
			case <-time.After(500 * time.Millisecond): // long after the first came
			}
		})
	}
}

func TestAnEventIsTriedAgainAndThenADeadLetter(t *testing.T) {
	m := shared(t)
	r := newReceiver(t, func(e cloudevents.Event) error {
		if e.ID() == "poison" {
			return cloudevents.NewHTTPResult(http.StatusInternalServerError, "no")
		}
		return nil
	})
	m.apply(t, bound("retries")+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: retried, namespace: retries}
spec:
  source: retries
  types: ["**"]
  sink: {uri: "%s/"}
  delivery: {retry: {maxAttempts: 3, minBackoff: 50ms, maxBackoff: 100ms}}
`, r.url))
	m.waitFor(t, "retries", "subscription/retried", "Subscribed")
	publishOne(t, m, "retries", "poison")
	for range 3 {
		require.Equal(t, "poison", r.next(t).ID())
	}
	publishOne(t, m, "retries", "fine")
	require.Equal(t, "fine", r.next(t).ID(), "after the last attempt the next event comes, not a fourth attempt")
	eventually(t, time.Minute, func() error {
		counters := m.mustKubectl(t, "", "get", "subscription", "-n", "retries", "retried", "-o",
			"jsonpath={.status.deadLettered} {.status.delivered} {.status.redelivered}")
		if counters != "1 1 2" {
			return errorf("deadLettered, delivered, redelivered are %s", counters)
		}
		return nil
	})
}

func TestASinkWhereNoneMayBeIsRefused(t *testing.T) {
	m := shared(t)
	for name, uri := range map[string]string{
		"metadata": "http://169.254.169.254/latest", "api-server": m.Kubernetes, "admin": m.EventBusAdmin, "ads": "https://" + m.XDS,
	} {
		t.Run(name, func(t *testing.T) {
			m.apply(t, bound("refused-"+name)+fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: refused, namespace: refused-%[1]s}
spec: {source: refused-%[1]s, types: ["**"], sink: {uri: %[2]q}}
`, name, uri))
			eventually(t, time.Minute, func() error {
				ready := m.mustKubectl(t, "", "get", "subscription", "-n", "refused-"+name, "refused", "-o",
					`jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].reason}`)
				if ready != "False TargetRefused" {
					return errorf("Ready is %q", ready)
				}
				return nil
			})
		})
	}
}
