package event_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	sdk "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	sdkhttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// header makes one of name, value pairs.
func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i+1 < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

// binary are the required headers, and more.
func binary(more ...string) http.Header {
	h := header("ce-specversion", "1.0", "ce-id", "1", "ce-source", "commerce", "ce-type", "order.created")
	for i := 0; i+1 < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	return h
}

// The examples of the CloudEvents specification 1.0.2: JSON format section 3,
// HTTP binding sections 3.1.4, 3.2.4 and 3.3.4.
func TestSpecificationExamples(t *testing.T) {
	at := time.Date(2018, 4, 5, 17, 31, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		header http.Header
		body   string
		want   []event.Event
	}{
		"binary": {
			header: header("ce-specversion", "1.0", "ce-type", "com.example.someevent", "ce-time", "2018-04-05T03:56:24Z", "ce-id", "1234-1234-1234",
				"ce-source", "/mycontext/subcontext", "Content-Type", "application/json; charset=utf-8"),
			body: `{"a":1}`,
			want: []event.Event{{
				ID: "1234-1234-1234", Source: "/mycontext/subcontext", Type: "com.example.someevent", Time: time.Date(2018, 4, 5, 3, 56, 24, 0, time.UTC),
				DataContentType: "application/json; charset=utf-8", Data: []byte(`{"a":1}`),
			}},
		},
		"structured with XML data": {
			header: header("Content-Type", "application/cloudevents+json; charset=utf-8"),
			body: `{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","id":"A234-1234-1234","time":"2018-04-05T17:31:00Z",
				"comexampleextension1":"value","comexampleothervalue":5,"datacontenttype":"text/xml","data":"<much wow=\"xml\"/>"}`,
			want: []event.Event{{
				ID: "A234-1234-1234", Source: "/mycontext", Type: "com.example.someevent", Time: at, DataContentType: "text/xml",
				Extensions: map[string]string{"comexampleextension1": "value", "comexampleothervalue": "5"}, Data: []byte(`<much wow="xml"/>`),
			}},
		},
		"structured with binary data and a null attribute": {
			header: header("Content-Type", "application/cloudevents+json"),
			body: `{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","id":"B234-1234-1234","time":"2018-04-05T17:31:00Z",
				"comexampleextension1":"value","unsetextension":null,"datacontenttype":"application/vnd.apache.thrift.binary","data_base64":"AAEC/w=="}`,
			want: []event.Event{{
				ID: "B234-1234-1234", Source: "/mycontext", Type: "com.example.someevent", Time: at, DataContentType: "application/vnd.apache.thrift.binary",
				Extensions: map[string]string{"comexampleextension1": "value"}, Data: []byte{0, 1, 2, 255},
			}},
		},
		"structured with an object": {
			header: header("Content-Type", "application/cloudevents+json"),
			body: `{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","subject":null,"id":"C234-1234-1234","time":"2018-04-05T17:31:00Z",
				"datacontenttype":"application/json","data":{"appinfoA":"abc","appinfoB":123,"appinfoC":true}}`,
			want: []event.Event{{
				ID: "C234-1234-1234", Source: "/mycontext", Type: "com.example.someevent", Time: at, DataContentType: "application/json",
				Data: []byte(`{"appinfoA":"abc","appinfoB":123,"appinfoC":true}`),
			}},
		},
		"structured with a literal and no content type": {
			header: header("Content-Type", "application/cloudevents+json"),
			body:   `{"specversion":"1.0","type":"t","source":"/mycontext","id":"1","data":"I'm just a string"}`,
			want: []event.Event{{
				ID: "1", Source: "/mycontext", Type: "t", DataContentType: "application/json", Data: []byte(`"I'm just a string"`),
			}},
		},
		"batch": {
			header: header("Content-Type", "application/cloudevents-batch+json"),
			body:   `[{"specversion":"1.0","type":"t","source":"/a","id":"1"},{"specversion":"1.0","type":"t","source":"/a","id":"2","data":[1]}]`,
			want: []event.Event{
				{ID: "1", Source: "/a", Type: "t"},
				{ID: "2", Source: "/a", Type: "t", DataContentType: "application/json", Data: []byte(`[1]`)},
			},
		},
		"empty batch": {header: header("Content-Type", "application/cloudevents-batch+json"), body: `[]`, want: []event.Event{}},
		"percent-encoded, quoted and bare values": {
			header: binary("ce-source", "/gro%C3%9F/€", "ce-subject", `"a \"quoted\" value"`, "ce-euro", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
			want: []event.Event{{
				ID: "1", Source: "/groß/€", Type: "order.created", Subject: `a "quoted" value`, Extensions: map[string]string{"euro": "Euro € 😀"},
			}},
		},
		"not JSON": {
			header: binary("Content-Type", "image/png"), body: "\x89PNG\r\n",
			want: []event.Event{{ID: "1", Source: "commerce", Type: "order.created", DataContentType: "image/png", Data: []byte("\x89PNG\r\n")}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := event.ParseHTTP(tt.header, []byte(tt.body), "")
			require.NoError(t, err)
			require.Empty(t, cmp.Diff(tt.want, got))

			for _, e := range got {
				// What we write is what we read.
				again := http.Header{}
				e.WriteBinary(again)
				parsed, err := event.ParseHTTP(again, e.Data, "")
				require.NoError(t, err)
				require.Empty(t, cmp.Diff(e, parsed[0]))
				text, err := json.Marshal(&e)
				require.NoError(t, err)
				var back event.Event
				require.NoError(t, json.Unmarshal(text, &back))
				require.Empty(t, cmp.Diff(e, back))
				// And what the official SDK reads.
				var other sdk.Event
				require.NoError(t, json.Unmarshal(text, &other), string(text))
				require.NoError(t, other.Validate())
				require.Equal(t, e.ID, other.ID())
				source, err := url.PathUnescape(other.Source()) // the SDK escapes what is no ASCII
				require.NoError(t, err)
				require.Equal(t, e.Source, source)
				require.Equal(t, string(e.Data), string(other.Data()))
			}
		})
	}
}

func TestReadsWhatTheOfficialSDKWrites(t *testing.T) {
	e := sdk.NewEvent()
	e.SetID("4711")
	e.SetSource("/shop/cart")
	e.SetType("com.example.order")
	e.SetSubject("größe")
	e.SetTime(time.Date(2020, 1, 2, 3, 4, 5, 600, time.UTC))
	e.SetDataSchema("https://example.com/schema")
	e.SetExtension("flag", true)
	e.SetExtension("count", 7)
	require.NoError(t, e.SetData("application/json", map[string]int{"a": 1}))
	want := event.Event{
		ID: "4711", Source: "/shop/cart", Type: "com.example.order", Subject: "größe", Time: e.Time(), DataSchema: "https://example.com/schema",
		DataContentType: "application/json", Extensions: map[string]string{"flag": "true", "count": "7"}, Data: []byte(`{"a":1}`),
	}
	for name, encode := range map[string]bool{"binary": false, "structured": true} {
		t.Run(name, func(t *testing.T) {
			ctx := binding.WithForceBinary(t.Context())
			if encode {
				ctx = binding.WithForceStructured(t.Context())
			}
			request := httptest.NewRequest(http.MethodPost, "/", nil)
			require.NoError(t, sdkhttp.WriteRequest(ctx, binding.ToMessage(&e), request))
			body, err := io.ReadAll(request.Body)
			require.NoError(t, err)
			got, err := event.ParseHTTP(request.Header, body, "")
			require.NoError(t, err)
			require.Empty(t, cmp.Diff([]event.Event{want}, got))
		})
	}
}

func TestEveryWrongFieldIsNamed(t *testing.T) {
	structured := header("Content-Type", "application/cloudevents+json")
	long := strings.Repeat("x", 5000)
	for name, tt := range map[string]struct {
		header http.Header
		body   string
		want   []string
	}{
		"nothing at all":      {header: header(), want: []string{"id", "source", "specversion", "type"}},
		"wrong version":       {header: binary("ce-specversion", "0.3"), want: []string{"specversion"}},
		"many at once":        {header: header("ce-specversion", "1.0", "ce-id", "", "ce-time", "yesterday", "ce-type", "t", "ce-dataschema", "x"), want: []string{"dataschema", "id", "source", "time"}},
		"duplicate header":    {header: func() http.Header { h := binary(); h.Add("ce-id", "2"); return h }(), want: []string{"id"}},
		"duplicate extension": {header: func() http.Header { h := binary("ce-a", "1"); h.Add("ce-a", "1"); return h }(), want: []string{"a"}},
		"duplicate content type": {header: func() http.Header {
			h := binary()
			h.Add("Content-Type", "a/b")
			h.Add("Content-Type", "c/d")
			return h
		}(), want: []string{"datacontenttype"}},
		"encoded line break":       {header: binary("ce-subject", "a%0d%0aNats-Rollup: all"), want: []string{"subject"}},
		"encoded NUL":              {header: binary("ce-x", "%00"), want: []string{"x"}},
		"bad percent-encoding":     {header: binary("ce-x", "100%"), want: []string{"x"}},
		"half a percent-encoding":  {header: binary("ce-x", "%4"), want: []string{"x"}},
		"encoded invalid UTF-8":    {header: binary("ce-x", "%ff"), want: []string{"x"}},
		"raw invalid UTF-8":        {header: binary("ce-x", "\xff"), want: []string{"x"}},
		"extension name":           {header: binary("ce-my-ext", "1"), want: []string{"my-ext"}},
		"data as an extension":     {header: binary("ce-data", "1"), want: []string{"data"}},
		"content type as ce-":      {header: binary("ce-datacontenttype", "a/b"), want: []string{"datacontenttype"}},
		"bad content type":         {header: binary("Content-Type", "///"), want: []string{"datacontenttype"}},
		"space in the source":      {header: binary("ce-source", "a%20b"), want: []string{"source"}},
		"no URI":                   {header: binary("ce-source", "http://[::1"), want: []string{"source"}},
		"too long":                 {header: binary("ce-id", long, "ce-source", long, "ce-type", long, "ce-subject", long, "ce-x", long), want: []string{"id", "source", "subject", "type", "x"}},
		"no object":                {header: structured, body: `[]`, want: []string{"body"}},
		"no JSON":                  {header: structured, body: `{`, want: []string{"body"}},
		"something after":          {header: structured, body: `{} {}`, want: []string{"body"}},
		"not UTF-8":                {header: structured, body: "{\"id\":\"\xff\"}", want: []string{"body"}},
		"empty body":               {header: structured, want: []string{"body"}},
		"structured, all wrong":    {header: structured, body: `{"specversion":1,"id":7,"source":"","type":["t"],"time":"now","x":1.5,"y":{}}`, want: []string{"specversion", "id", "source", "type", "time", "x", "y"}},
		"structured, twice":        {header: structured, body: `{"specversion":"1.0","id":"1","source":"a","type":"t","id":"2"}`, want: []string{"id"}},
		"data and data_base64":     {header: structured, body: `{"specversion":"1.0","id":"1","source":"a","type":"t","data":1,"data_base64":""}`, want: []string{"data"}},
		"bad base64":               {header: structured, body: `{"specversion":"1.0","id":"1","source":"a","type":"t","data_base64":"?"}`, want: []string{"data_base64"}},
		"extension out of range":   {header: structured, body: `{"specversion":"1.0","id":"1","source":"a","type":"t","n":2147483648}`, want: []string{"n"}},
		"upper-case attribute":     {header: structured, body: `{"specversion":"1.0","id":"1","source":"a","type":"t","myExt":"x"}`, want: []string{"myExt"}},
		"batch names the position": {header: header("Content-Type", "application/cloudevents-batch+json"), body: `[{"specversion":"1.0","id":"1","source":"a","type":"t"},{"specversion":"1.0","id":"1","source":"a"},1]`, want: []string{"[1].type", "[2].body"}},
		"attributes too long together": {header: func() http.Header {
			h := binary()
			for _, c := range "abcdefghi" {
				h.Set("ce-"+string(c), long[:4096])
			}
			return h
		}(), want: []string{"extensions"}},
		"batch is no array": {header: header("Content-Type", "application/cloudevents-batch+json"), body: `{}`, want: []string{"body"}},
		"huge batch":        {header: header("Content-Type", "application/cloudevents-batch+json"), body: "[" + strings.Repeat("1,", 1000) + "1]", want: []string{"body"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := event.ParseHTTP(tt.header, []byte(tt.body), "")
			var invalid *event.InvalidError
			require.ErrorAs(t, err, &invalid)
			var fields []string
			for _, f := range invalid.Fields {
				if len(fields) == 0 || fields[len(fields)-1] != f.Field {
					fields = append(fields, f.Field)
				}
			}
			require.ElementsMatch(t, tt.want, fields, err)
		})
	}
}

func TestUnsupportedMediaTypes(t *testing.T) {
	for name, h := range map[string]http.Header{
		"another format": header("Content-Type", "application/cloudevents+avro"),
		"a charset":      header("Content-Type", "application/cloudevents+json; charset=utf-16"),
		"compressed":     binary("Content-Encoding", "gzip"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := event.ParseHTTP(h, nil, "")
			require.ErrorIs(t, err, event.ErrUnsupportedMediaType)
		})
	}
}

func TestMissingSourceIsFilledIn(t *testing.T) {
	h := binary()
	h.Del("ce-source")
	got, err := event.ParseHTTP(h, nil, "/shop/cart")
	require.NoError(t, err)
	require.Equal(t, "/shop/cart", got[0].Source)
	got, err = event.ParseHTTP(header("Content-Type", "application/cloudevents+json"), []byte(`{"specversion":"1.0","id":"1","type":"t"}`), "/shop/cart")
	require.NoError(t, err)
	require.Equal(t, "/shop/cart", got[0].Source)
}

func FuzzParseHTTP(f *testing.F) {
	f.Add("1", "commerce", "order.created", "x", []byte(`{"specversion":"1.0","id":"1","source":"a","type":"t","data":{"a":[1,2]}}`))
	f.Add("%0d%0a", "a b", "*.>", "\x00", []byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, id, source, eventType, extension string, body []byte) {
		for _, h := range []http.Header{
			binary("ce-id", id, "ce-source", source, "ce-type", eventType, "ce-x", extension),
			header("Content-Type", "application/cloudevents+json"),
			header("Content-Type", "application/cloudevents-batch+json"),
		} {
			events, err := event.ParseHTTP(h, body, "")
			if err != nil {
				continue
			}
			for _, e := range events {
				require.NoError(t, e.Validate())
				again := http.Header{}
				e.WriteBinary(again)
				for name, values := range again {
					require.Len(t, values, 1)
					require.NotContains(t, values[0], "\n", name)
				}
				back, err := event.ParseHTTP(again, e.Data, "")
				require.NoError(t, err)
				require.Equal(t, e.Key(), back[0].Key())
			}
		}
	})
}
