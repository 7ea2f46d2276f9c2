package dispatch_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/dispatch"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

func TestFilters(t *testing.T) {
	e := event.Event{
		ID: "1", Source: "commerce", Type: "order.created.v1", Subject: "orders/4711",
		Extensions: map[string]string{"region": "eu", "amount": "120"},
	}
	for filter, want := range map[string]bool{
		`{"exact":{"type":"order.created.v1"}}`:                        true,
		`{"exact":{"type":"order.created.v1","region":"us"}}`:          false,
		`{"exact":{"missing":"x"}}`:                                    false,
		`{"prefix":{"subject":"orders/"}}`:                             true,
		`{"prefix":{"subject":"invoices/"}}`:                           false,
		`{"suffix":{"type":".v1","source":"merce"}}`:                   true,
		`{"suffix":{"type":".v2"}}`:                                    false,
		`{"all":[{"exact":{"id":"1"}},{"prefix":{"type":"order"}}]}`:   true,
		`{"all":[{"exact":{"id":"1"}},{"prefix":{"type":"invoice"}}]}`: false,
		`{"any":[{"exact":{"id":"2"}},{"prefix":{"type":"order"}}]}`:   true,
		`{"any":[{"exact":{"id":"2"}}]}`:                               false,
		`{"not":{"exact":{"id":"2"}}}`:                                 true,
		`{"not":{"any":[{"exact":{"id":"1"}}]}}`:                       false,
		`{"sql":"source = 'commerce' AND amount > 100"}`:               true,
		`{"sql":"amount > 1000"}`:                                      false,
		`{"sql":"EXISTS region AND type LIKE 'order.%'"}`:              true,
		`{"sql":"missing = 'x'"}`:                                      false,
		`{"sql":"'text'"}`:                                             false,
		`{"sql":"subject + 1 > 3"}`:                                    false,
	} {
		t.Run(filter, func(t *testing.T) {
			f, err := dispatch.CompileFilters([]json.RawMessage{json.RawMessage(filter)})
			require.NoError(t, err)
			require.Equal(t, want, f(&e))
		})
	}
	f, err := dispatch.CompileFilters(nil)
	require.NoError(t, err)
	require.Nil(t, f)
}

func TestBadFiltersAreNamed(t *testing.T) {
	for filter, want := range map[string]string{
		`{}`:                     "filters[0] must be an object with one of",
		`[]`:                     "filters[0] must be an object",
		`{"exact":{},"not":{}}`:  "must be an object with one of",
		`{"exact":{}}`:           "filters[0].exact must name attributes",
		`{"exact":{"a":1}}`:      "filters[0].exact must name attributes",
		`{"exact":{"Type":"x"}}`: `attribute "Type"`,
		`{"regex":{"a":"b"}}`:    "no such dialect",
		`{"all":[]}`:             "filters[0].all must not be empty",
		`{"any":{}}`:             "filters[0].any must be a list",
		`{"all":[{"exact":{"id":"1"}},{"sql":"=="}]}`: "filters[0].all[1].sql",
		`{"sql":1}`:                   "must be a CloudEvents SQL expression",
		`{"data":{}}`:                 "must be a list of conditions",
		`{"data":[]}`:                 "must be a list of conditions",
		`{"data":[{"exact":1}]}`:      "filters[0].data[0] must have a pointer",
		`{"data":[{"pointer":"/a"}]}`: "filters[0].data[0] needs one of",
		`{"data":[{"pointer":"a","exists":true}]}`:                                                             "RFC 6901",
		`{"data":[{"pointer":"/~2","exists":true}]}`:                                                           "RFC 6901",
		`{"data":[{"pointer":"/a","gte":"x"}]}`:                                                                "numbers",
		`{"data":[{"pointer":"/a","exact":null}]}`:                                                             "exact must be a string, a number",
		`{"data":[{"pointer":"/a","exact":{}}]}`:                                                               "exact must be a string, a number",
		`{"data":[{"pointer":"/a","matches":"x"}]}`:                                                            "some of exact",
		`{"data":[{"pointer":"/a","exact":"` + strings.Repeat("x", 6000) + `"}]}`:                              "larger than",
		`{"data":[{"pointer":"` + strings.Repeat("/a", 17) + `","exists":true}]}`:                              "deeper than 16",
		`{"data":[` + strings.Repeat(`{"pointer":"/a","exists":true},`, 16) + `{"pointer":"","exists":true}]}`: "more than 16",
		`{"sql":"` + strings.Repeat("x", 5000) + `"}`:                                                          "longer than",
		strings.Repeat(`{"not":`, 9) + `{"exact":{"a":"b"}}` + strings.Repeat("}", 9):                          "nested deeper",
	} {
		t.Run(filter[:min(len(filter), 40)], func(t *testing.T) {
			_, err := dispatch.CompileFilters([]json.RawMessage{json.RawMessage(filter)})
			require.ErrorContains(t, err, want)
		})
	}
}

func TestFiltersOnData(t *testing.T) {
	const order = ` {"order": {"total": 120.50, "id": 9007199254740993, "state": "paid", "a/b": {"m~n": true}, "none": null, "esc\u0061ped": "x",
		"lines": [{"sku": "A-1", "text": "}],\"{"}, {"sku": "B-22"}], "empty": {}, "twice": 1, "twice": 2}} `
	for filter, want := range map[string]bool{
		`[{"pointer":"/order/total","gte":100}]`:                                        true,
		`[{"pointer":"/order/total","gt":120.5}]`:                                       false,
		`[{"pointer":"/order/total","gte":120.5,"lte":1.205e2}]`:                        true,
		`[{"pointer":"/order/total","gte":100,"lt":120}]`:                               false,
		`[{"pointer":"/order/total","exact":120.5}]`:                                    true,
		`[{"pointer":"/order/total","exact":"120.50"}]`:                                 false,
		`[{"pointer":"/order/id","exact":9007199254740992}]`:                            false,
		`[{"pointer":"/order/id","gt":9007199254740992}]`:                               true,
		`[{"pointer":"/order/state","exact":"paid"},{"pointer":"/order/total","lt":1}]`: false,
		`[{"pointer":"/order/state","exact":"p\u0061id","prefix":"pa","suffix":"id"}]`:  true,
		`[{"pointer":"/order/state","suffix":"x"}]`:                                     false,
		`[{"pointer":"/order/state","gte":0}]`:                                          false,
		`[{"pointer":"/order/a~1b/m~0n","exact":true}]`:                                 true,
		`[{"pointer":"/order/none","exists":true}]`:                                     true,
		`[{"pointer":"/order/escaped","exact":"x"}]`:                                    true,
		`[{"pointer":"/order/lines/1/sku","prefix":"B-"}]`:                              true,
		`[{"pointer":"/order/lines/0/text","suffix":"{"}]`:                              true,
		`[{"pointer":"/order/lines/2","exists":false}]`:                                 true,
		`[{"pointer":"/order/lines/01","exists":true}]`:                                 false,
		`[{"pointer":"/order/lines/-","exists":true}]`:                                  false,
		`[{"pointer":"/order/empty/x","exists":false}]`:                                 true,
		`[{"pointer":"/order/twice","exact":2}]`:                                        true,
		`[{"pointer":"/order/lines","exists":true}]`:                                    true,
		`[{"pointer":"","exists":true}]`:                                                true,
		`[{"pointer":"/","exists":true}]`:                                               false,
	} {
		t.Run(filter, func(t *testing.T) {
			f, err := dispatch.CompileFilters([]json.RawMessage{json.RawMessage(`{"data":` + filter + `}`)})
			require.NoError(t, err)
			require.Equal(t, want, f(&event.Event{DataContentType: "application/json; charset=utf-8", Data: []byte(order)}))
			require.Equal(t, want, f(&event.Event{DataContentType: "application/vnd.shop+json", Data: []byte(order)}))
			require.False(t, f(&event.Event{DataContentType: "text/plain", Data: []byte(order)}), "data that is no JSON")
			require.False(t, f(&event.Event{Data: []byte(order[1 : len(order)-2])}), "broken JSON")
			require.False(t, f(&event.Event{}))
		})
	}
	not, err := dispatch.CompileFilters([]json.RawMessage{json.RawMessage(`{"not":{"data":[{"pointer":"/a","exact":1}]}}`)})
	require.NoError(t, err)
	require.True(t, not(&event.Event{Data: []byte(`{"a":2}`)}))
	require.False(t, not(&event.Event{Data: []byte(`{"a":1}`)}))
}

// A filter on data reads it in place: data that a tree of would be large takes no
// memory worth the name, however many events are looked at.
func TestDataIsNotUnfolded(t *testing.T) {
	f, err := dispatch.CompileFilters([]json.RawMessage{json.RawMessage(`{"data":[{"pointer":"/last/0","exact":1}]}`)})
	require.NoError(t, err)
	e := event.Event{Data: []byte(`{"first":[` + strings.Repeat("[],", 300_000) + `[]],"last":[1]}`)}
	require.True(t, f(&e))
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f(&e)
		}
	})
	require.Less(t, result.AllocedBytesPerOp(), int64(64<<10))
}

func FuzzDataFilter(f *testing.F) {
	filter, err := dispatch.CompileFilters([]json.RawMessage{json.RawMessage(`{"data":[{"pointer":"/a/0/b","exact":"x"}]}`)})
	require.NoError(f, err)
	for _, seed := range []string{`{"a":[{"b":"x"}]}`, `{"a":{"0":{"b":"x"}}}`, `[]`, `1`, `"`, ` {"\u0061" : [ {"b" : "x"} , 1 ] } `, `{"a":[{"b":"\\"}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var tree any
		want := false
		if json.Unmarshal(data, &tree) == nil {
			object, _ := tree.(map[string]any)
			first := object["a"]
			if list, ok := first.([]any); ok && len(list) > 0 {
				first = list[0]
			} else if inner, ok := first.(map[string]any); ok {
				first = inner["0"]
			} else {
				first = nil
			}
			inner, _ := first.(map[string]any)
			want = inner["b"] == "x"
		}
		if got := filter(&event.Event{Data: data}); got != want {
			t.Fatalf("%q: got %t, want %t", data, got, want)
		}
	})
}
