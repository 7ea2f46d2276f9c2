package legacy_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/event/legacy"
)

const created = `{"source-id":"commerce","event-type":"order.created","event-type-version":"v1","event-time":"2018-11-02T22:08:41+00:00","data":{"orderCode":"4caad296-e0c5-491e-98ac-0ed118f9474e"}}`

func newID() string { return "made" }

func TestEventBecomesACloudEvent(t *testing.T) {
	e, err := legacy.Parse([]byte(created), "", newID)
	require.NoError(t, err)
	require.True(t, e.Time.Equal(time.Date(2018, 11, 2, 22, 8, 41, 0, time.UTC)))
	e.Time = time.Time{}
	require.Empty(t, cmp.Diff(event.Event{
		ID: "made", Source: "commerce", Type: "order.created.v1", DataContentType: "application/json",
		Data: []byte(`{"orderCode":"4caad296-e0c5-491e-98ac-0ed118f9474e"}`),
	}, e))

	e, err = legacy.Parse([]byte(created), "erp", newID)
	require.NoError(t, err)
	require.Equal(t, "erp", e.Source)
}

func TestMistakesAreNamedWithTheirKind(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		want map[string]string
	}{
		"nothing": {`{}`, map[string]string{
			"source-id": "missing_field", "event-type": "missing_field", "event-type-version": "missing_field", "event-time": "missing_field", "data": "missing_field",
		}},
		"all wrong": {
			`{"source-id":1,"event-type":"1order","event-type-version":"v1.2","event-time":"now","event-id":"x","data":null}`,
			map[string]string{
				"source-id": "invalid_field", "event-type": "invalid_field", "event-type-version": "invalid_field",
				"event-time": "invalid_field", "event-id": "invalid_field", "data": "missing_field",
			},
		},
		"too long": {
			`{"source-id":"` + strings.Repeat("x", 254) + `","event-type":"` + strings.Repeat("x", 254) + `","event-type-version":"v0001","event-time":"2018-11-02T22:08:41Z","data":1}`,
			map[string]string{"source-id": "invalid_field_length", "event-type": "invalid_field_length", "event-type-version": "invalid_field_length"},
		},
		"empty data":            {strings.Replace(created, `{"orderCode":"4caad296-e0c5-491e-98ac-0ed118f9474e"}`, `""`, 1), map[string]string{"data": "missing_field"}},
		"wildcard":              {strings.Replace(created, "order.created", "order.*", 1), map[string]string{"event-type": "invalid_field"}},
		"control in id":         {strings.Replace(created, `"commerce"`, `"a\nb"`, 1), map[string]string{"source-id": "invalid_field"}},
		"a field twice":         {strings.Replace(created, `{"source-id"`, `{"event-type":"x","source-id"`, 1), map[string]string{"event-type": "invalid_field"}},
		"type with its version": {strings.Replace(created, "order.created", strings.Repeat("x", 253), 1), map[string]string{"event-type": "invalid_field"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := legacy.Parse([]byte(tt.body), "", newID)
			var invalid *event.InvalidError
			require.ErrorAs(t, err, &invalid)
			got := map[string]string{}
			for _, f := range invalid.Fields {
				got[f.Field] = legacy.DetailType(f.Kind)
			}
			require.Equal(t, tt.want, got)
		})
	}
	for _, body := range []string{"", "{", "[]", "x", `{"a":1}{}`} {
		_, err := legacy.Parse([]byte(body), "", newID)
		require.ErrorIs(t, err, legacy.ErrSyntax, body)
	}
}

func TestType(t *testing.T) {
	for eventType, want := range map[string][2]string{
		"order.created.v1":   {"order.created", "v1"},
		"order.created":      {"order.created", ""},
		"order":              {"order", ""},
		"order.created.v1-0": {"order.created.v1-0", ""},
		".v1":                {".v1", ""},
	} {
		name, version := legacy.Type(eventType)
		require.Equal(t, want, [2]string{name, version}, eventType)
	}
}
