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
		`{"sql":1}`: "must be a CloudEvents SQL expression",
		`{"sql":"` + strings.Repeat("x", 5000) + `"}`:                                 "longer than",
		strings.Repeat(`{"not":`, 9) + `{"exact":{"a":"b"}}` + strings.Repeat("}", 9): "nested deeper",
	} {
		t.Run(filter[:min(len(filter), 40)], func(t *testing.T) {
			_, err := dispatch.CompileFilters([]json.RawMessage{json.RawMessage(filter)})
			require.ErrorContains(t, err, want)
		})
	}
}
