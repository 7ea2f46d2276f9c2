package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pushed is an event as a sink saw it.
type pushed struct {
	header http.Header
	body   string
}

// sink takes everything on loopback.
type sink struct {
	url    string
	events chan pushed
}

func newSink(t testing.TB) *sink {
	t.Helper()
	s := &sink{events: make(chan pushed, 1000)}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.events <- pushed{r.Header, string(body)}
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

func (s *sink) next(t testing.TB) pushed {
	t.Helper()
	select {
	case e := <-s.events:
		return e
	case <-time.After(time.Minute):
		t.Fatal("no event was pushed within 30 s")
		return pushed{}
	}
}

// eventLines are the headers of a binary event, in HTTP/1.1, but for those that
// are replaced; an empty replacement leaves one out.
func eventLines(replace map[string]string) string {
	attributes := map[string]string{"ce-specversion": "1.0", "ce-id": "1", "ce-source": "hostile-events", "ce-type": "test.happened.v1", "Content-Type": "application/json"}
	var b strings.Builder
	for name, value := range attributes {
		if with, ok := replace[name]; ok {
			value = with
		}
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	for name, value := range replace {
		if _, ok := attributes[name]; !ok {
			fmt.Fprintf(&b, "%s: %s\r\n", name, value)
		}
	}
	return b.String()
}

// Nothing of an event that is wrong is stored, and the answer names what is.
func TestHostileEvents(t *testing.T) {
	m, _ := hostile(t)
	addr := address(t, m.EventBus)
	before := publishOne(t, m, "hostile-events", "before")

	type binary struct {
		replace map[string]string
		field   string // that the answer names
	}
	with := func(name, value string) binary {
		return binary{map[string]string{name: value}, strings.TrimPrefix(name, "ce-")}
	}
	many := binary{map[string]string{}, "extensions"}
	for n := range 65 {
		many.replace["ce-x"+strconv.Itoa(n)] = "y"
	}
	long := binary{map[string]string{}, "extensions"}
	for n := range 12 {
		long.replace["ce-x"+strconv.Itoa(n)] = strings.Repeat("y", 3<<10)
	}
	each(t, map[string]binary{
		"no specversion is refused":     with("ce-specversion", ""),
		"no id":                         with("ce-id", ""),
		"no source":                     with("ce-source", ""),
		"no type":                       with("ce-type", ""),
		"another specversion":           with("ce-specversion", "0.3"),
		"a later one":                   with("ce-specversion", "2.0"),
		"a type given twice":            {map[string]string{"ce-type": "a\r\nce-type: b"}, "type"},
		"an id given twice":             {map[string]string{"ce-id": "1\r\nCE-ID: 2"}, "id"},
		"a content type given twice":    {map[string]string{"Content-Type": "application/json\r\nContent-Type: text/plain"}, "datacontenttype"},
		"a line in a type":              with("ce-type", "a%0d%0aNats-Rollup: all"),
		"a carriage return alone":       with("ce-type", "a%0db"),
		"a line feed in an id":          with("ce-id", "1%0a"),
		"a line in a source":            with("ce-source", "hostile-events%0d%0ax"),
		"a line in a subject":           with("ce-subject", "a%0D%0Ab"),
		"a line in an extension":        with("ce-tenant", "a%0d%0ab"),
		"NUL in a type":                 with("ce-type", "a%00b"),
		"DEL":                           with("ce-type", "a%7fb"),
		"a C1 control":                  with("ce-type", "a%c2%85b"),
		"a noncharacter":                with("ce-type", "a%ef%bf%bfb"),
		"overlong UTF-8":                with("ce-type", "a%c0%ae"),
		"half a character":              with("ce-type", "a%c3"),
		"Latin-1":                       with("ce-type", "gr\xf6\xdfe"),
		"a percent sign alone":          with("ce-type", "100%"),
		"a time that is none":           with("ce-time", "yesterday"),
		"a schema that is no URI":       with("ce-dataschema", "schema"),
		"a source with a blank":         with("ce-source", "a%20b"),
		"a source that is no URI":       with("ce-source", "http://[::1"),
		"a media type that is none":     {map[string]string{"Content-Type": "a b"}, "datacontenttype"},
		"an extension with a hyphen":    {map[string]string{"ce-nats-msg-id": "1"}, "nats-msg-id"},
		"an extension called data":      {map[string]string{"ce-data": "1"}, "data"},
		"a name of 65 characters":       {map[string]string{"ce-" + strings.Repeat("x", 65): "y"}, "names of attributes"},
		"an id of 513 bytes":            with("ce-id", strings.Repeat("x", 513)),
		"a type of 254 bytes":           with("ce-type", strings.Repeat("x", 254)),
		"a source of 1,025 bytes":       with("ce-source", strings.Repeat("x", 1025)),
		"a subject of 2,049 bytes":      with("ce-subject", strings.Repeat("x", 2049)),
		"65 extensions":                 many,
		"attributes of 36 KiB together": long,
	}, func(c binary) (answer, error) {
		return exchange(addr, "POST /publish HTTP/1.1\r\nHost: localhost\r\n"+eventLines(c.replace)+"Content-Length: 2\r\nConnection: close\r\n\r\n{}", false)
	}, func(t *testing.T, c binary, a answer) {
		require.Equal(t, http.StatusBadRequest, a.status(t), "%v", a)
		require.Contains(t, a.bodies[0], c.field)
	})

	const structured, batch, legacy = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"
	event := func(members string) string {
		return `{"specversion":"1.0","id":"1","source":"hostile-events","type":"t"` + members + `}`
	}
	type posted struct {
		path, contentType, body string
		want                    []int
	}
	bad := []int{http.StatusBadRequest}
	cases := map[string]posted{
		"a body that is no JSON":            {"/publish", structured, `{`, bad},
		"nothing":                           {"/publish", structured, ``, bad},
		"null":                              {"/publish", structured, `null`, bad},
		"a list":                            {"/publish", structured, `[` + event("") + `]`, bad},
		"text":                              {"/publish", structured, `"event"`, bad},
		"something behind the event":        {"/publish", structured, event("") + `{}`, bad},
		"a byte order mark":                 {"/publish", structured, "\ufeff" + event(""), bad},
		"UTF-16":                            {"/publish", structured, "{\x00\"\x00", bad},
		"a member given twice":              {"/publish", structured, event(`,"type":"u"`), bad},
		"it is given escaped":               {"/publish", structured, event(`,"\u0074ype":"u"`), bad},
		"a name in upper case":              {"/publish", structured, event(`,"Tenant":"x"`), bad},
		"a name with a hyphen":              {"/publish", structured, event(`,"nats-rollup":"all"`), bad},
		"a name with a line in it":          {"/publish", structured, event(`,"a\r\nb":"x"`), bad},
		"an empty name":                     {"/publish", structured, event(`,"":"x"`), bad},
		"a prototype":                       {"/publish", structured, event(`,"__proto__":{"admin":true}`), bad},
		"a number as the id":                {"/publish", structured, `{"specversion":"1.0","id":1,"source":"hostile-events","type":"t"}`, bad},
		"a list as the type":                {"/publish", structured, `{"specversion":"1.0","id":"1","source":"hostile-events","type":["t"]}`, bad},
		"an object as an extension":         {"/publish", structured, event(`,"tenant":{}`), bad},
		"a fraction as an extension":        {"/publish", structured, event(`,"tenant":1.5`), bad},
		"a number beyond 32 bits":           {"/publish", structured, event(`,"tenant":4294967296`), bad},
		"a line in a value":                 {"/publish", structured, event(`,"subject":"a\r\nb"`), bad},
		"NUL in a value":                    {"/publish", structured, event(`,"subject":"a\u0000b"`), bad},
		"both forms of data":                {"/publish", structured, event(`,"data":1,"data_base64":"AA=="`), bad},
		"base64 that is none":               {"/publish", structured, event(`,"data_base64":"*"`), bad},
		"data nested 100,000 deep":          {"/publish", structured, event(`,"data":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)), bad},
		"another charset":                   {"/publish", structured + "; charset=utf-16", event(""), []int{415}},
		"another CloudEvents format":        {"/publish", "application/cloudevents+avro", "x", []int{415}},
		"a batch of events that are none":   {"/publish", batch, `[1,2]`, bad},
		"a batch that is one event":         {"/publish", batch, event(""), bad},
		"a batch with one that is wrong":    {"/publish", batch, `[` + event("") + `,` + event(`,"time":"x"`) + `]`, bad},
		"a batch in a batch":                {"/publish", batch, `[[` + event("") + `]]`, bad},
		"a batch of 1,001":                  {"/publish", batch, `[` + strings.TrimSuffix(strings.Repeat(event("")+",", 1001), ",") + `]`, []int{400, 413}},
		"a batch of 17 MiB":                 {"/publish", batch, `[` + event(`,"data":"`+strings.Repeat("x", 17<<20)+`"`) + `]`, []int{413}},
		"an event of it that is too large":  {"/publish", batch, `[` + event("") + `,` + event(`,"data":"`+strings.Repeat("x", 1<<20)+`"`) + `]`, []int{413}},
		"a legacy event that is empty":      {"/v1/events", legacy, `{}`, bad},
		"with a type that holds a line":     {"/v1/events", legacy, `{"source-id":"a","event-type":"a\r\nb","event-type-version":"v1","event-time":"2018-11-02T22:08:41Z","data":1}`, bad},
		"with a version that holds a blank": {"/v1/events", legacy, `{"source-id":"a","event-type":"a","event-type-version":"v 1","event-time":"2018-11-02T22:08:41Z","data":1}`, bad},
		"with a time that is none":          {"/v1/events", legacy, `{"source-id":"a","event-type":"a","event-type-version":"v1","event-time":"now","data":1}`, bad},
		"without data":                      {"/v1/events", legacy, `{"source-id":"a","event-type":"a","event-type-version":"v1","event-time":"2018-11-02T22:08:41Z"}`, bad},
		"an application that is none":       {"/..%2fpublish/events", structured, event(""), []int{400, 404}},
		"a reserved name as one":            {"/webhooks/events", structured, event(""), []int{404}},
		"a name in upper case as one":       {"/Commerce/events", structured, event(""), []int{404}},
		"a path that leads elsewhere":       {"/commerce/../publish/../../v1/status", structured, event(""), []int{301, 307, 400, 404, 405}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a, err := exchange(addr, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
				c.path, c.contentType, len(c.body), c.body), false)
			require.NoError(t, err)
			require.Contains(t, c.want, a.status(t), "%v", a)
		})
	}
	for name, header := range map[string]string{
		"a compressed event is refused": "Content-Encoding: gzip", "by two codings too": "Content-Encoding: identity, br",
	} {
		t.Run(name, func(t *testing.T) {
			a, err := exchange(addr, "POST /publish HTTP/1.1\r\nHost: localhost\r\n"+header+"\r\n"+eventLines(nil)+"Content-Length: 2\r\nConnection: close\r\n\r\n{}", false)
			require.NoError(t, err)
			require.Equal(t, http.StatusUnsupportedMediaType, a.status(t), "%v", a)
		})
	}
	require.Equal(t, before+1, publishOne(t, m, "hostile-events", "after"), "nothing of it was stored")
}

// subscription of the namespace's own application, or of another source.
func subscription(namespace, name, source, types, uri string) string {
	return fmt.Sprintf(`
apiVersion: lambdamesh.dev/v1alpha1
kind: Subscription
metadata: {name: %[2]s, namespace: %[1]s}
spec: {source: %[3]q, types: [%[4]q], sink: {uri: "%[5]s/"}}
---
`, namespace, name, source, types, uri)
}

// Types and sources that mean something to a broker are names like any other:
// they match nothing but themselves, and arrive as they were sent.
func TestHostileNamesOfEvents(t *testing.T) {
	m, _ := hostile(t)
	const app = "hostile-names"
	all, one := newSink(t), newSink(t)
	m.apply(t, bound(app)+subscription(app, "all", app, "**", all.url)+subscription(app, "one", app, "order.created.v1", one.url))
	m.waitFor(t, app, "subscription/all", "Subscribed")
	m.waitFor(t, app, "subscription/one", "Subscribed")
	publish := func(source, kind, id string) response {
		body, err := json.Marshal(map[string]string{"specversion": "1.0", "id": id, "source": source, "type": kind})
		require.NoError(t, err)
		return post(t, m.EventBus+"/publish", "application/cloudevents+json", string(body))
	}
	var taken []string
	for n, kind := range []string{
		"*", ">", "**", "order.*.v1", "order.>", "order.created.v1.>", "order.created.v1 ", " order.created.v1", "order created v1", "order..v1", ".order.created.v1",
		"order.created.v1.", "ORDER.CREATED.V1", "$JS.API.STREAM.DELETE.events", "$JS.API.>", "$SYS.REQ.SERVER.PING", "_INBOX.x", "order/created/v1", `order\created`,
		"größe.價格", "order%2ecreated%2ev1", "{order}", "order.created.v1;x", "' OR 1=1", "$(id)", "../order.created.v1", strings.Repeat("a.", 120) + "a",
	} {
		resp := publish(app, kind, "type-"+strconv.Itoa(n))
		switch resp.status {
		case http.StatusAccepted:
			taken = append(taken, kind)
		case http.StatusBadRequest:
		default:
			t.Errorf("type %q is answered %d: %s", kind, resp.status, resp.body)
		}
	}
	for n, source := range []string{app + ".>", app + ".x", app + "/", "/" + app, strings.ToUpper(app), app + "*", "*", ">", "$JS.API", "events." + app} {
		resp := publish(source, "order.created.v1", "source-"+strconv.Itoa(n))
		require.Contains(t, []int{http.StatusAccepted, http.StatusBadRequest, http.StatusForbidden}, resp.status, "%s: %s", source, resp.body)
	}
	require.Equal(t, http.StatusAccepted, publish(app, "order.created.v1", "last").status)

	require.Greater(t, len(taken), 10)
	var arrived []string
	for {
		e := all.next(t)
		if e.header.Get("Ce-Id") == "last" {
			break
		}
		require.Equal(t, app, e.header.Get("Ce-Source"))
		arrived = append(arrived, e.header.Get("Ce-Type"))
	}
	for len(arrived) < len(taken) { // events are not in order
		arrived = append(arrived, all.next(t).header.Get("Ce-Type"))
	}
	var want []string
	for _, kind := range taken {
		want = append(want, encoded(kind))
	}
	slices.Sort(want)
	slices.Sort(arrived)
	require.Equal(t, want, arrived, "each arrives as it was sent, once")
	require.Equal(t, "last", one.next(t).header.Get("Ce-Id"), "the only one of the exact type and source")
	require.Empty(t, one.events)
}

// encoded is a value in a header (CloudEvents HTTP binding, section 3.1.3.2).
func encoded(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// NATS takes orders from headers. None of a publisher's is passed to it, nor is
// any of its own to a sink.
func TestHostileNatsHeaders(t *testing.T) {
	m, _ := hostile(t)
	const app = "hostile-nats"
	all := newSink(t)
	m.apply(t, bound(app)+subscription(app, "all", app, "**", all.url))
	m.waitFor(t, app, "subscription/all", "Subscribed")
	var sequences []uint64
	ids := []string{
		"Nats-Msg-Id: same", "Nats-Msg-Id: same", "Nats-Rollup: all", "Nats-Rollup: sub", "Nats-TTL: 1s", "Nats-TTL: 1", "Nats-Expected-Last-Sequence: 1",
		"Nats-Expected-Last-Subject-Sequence: 1", "Nats-Expected-Last-Msg-Id: none", "Nats-Expected-Stream: other", "Nats-Schedule: @at 2099-01-01T00:00:00Z",
		"Nats-Schedule-Target: events.x", "Nats-Trace-Dest: trace.x", "Nats-Trace-Only: true", "Nats-Batch-Id: b\r\nNats-Batch-Sequence: 7", "Nats-Incr: +1", "Nats-Marker-Reason: Purge",
		"Nats-Subject: x", "Status: 503", "Reply-To: $JS.API.STREAM.PURGE.events",
	}
	for n, header := range ids {
		a, err := exchange(address(t, m.EventBus), "POST /publish HTTP/1.1\r\nHost: localhost\r\n"+header+"\r\n"+
			eventLines(map[string]string{"ce-source": app, "ce-id": strconv.Itoa(n)})+"Content-Length: 2\r\nConnection: close\r\n\r\n{}", false)
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, a.status(t), "%s: %v", header, a)
		var answer stored
		require.NoError(t, json.Unmarshal([]byte(a.bodies[0]), &answer))
		sequences = append(sequences, answer.Events[0].Sequence)
	}
	for n := range sequences[1:] {
		require.Equal(t, sequences[n]+1, sequences[n+1], "%s: stored as one more event", ids[n+1])
	}
	var arrived []string
	for range ids {
		e := all.next(t)
		arrived = append(arrived, e.header.Get("Ce-Id"))
		for name := range e.header {
			require.False(t, strings.HasPrefix(strings.ToLower(name), "nats-"), "the sink sees %s", name)
		}
		require.Empty(t, e.header.Get("Status"))
		require.Empty(t, e.header.Get("Reply-To"))
	}
	slices.SortFunc(arrived, func(a, b string) int { x, _ := strconv.Atoi(a); y, _ := strconv.Atoi(b); return x - y })
	for n := range ids {
		require.Equal(t, strconv.Itoa(n), arrived[n], "each is delivered once")
	}
	// What a rollup would have taken away is still there to read from the start.
	again := newSink(t)
	m.apply(t, strings.Replace(subscription(app, "again", app, "**", again.url), "sink:", "start: {from: earliest}, sink:", 1))
	for range ids {
		require.NotEmpty(t, again.next(t).header.Get("Ce-Id"))
	}
}
