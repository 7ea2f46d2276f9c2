package ingress_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/ingress"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
)

// memory is a store that knows ids for long.
type memory struct{ once []string }

func (m *memory) PublishOnce(_ context.Context, e *event.Event) (broker.Receipt, error) {
	m.once = append(m.once, e.Source+"/"+e.ID)
	return broker.Receipt{ID: e.ID, Sequence: 7, Duplicate: true}, nil
}

// The space for ids that are known for long is everybody's: only the connector may
// ask for it, and nobody else fails for asking.
func TestOnlyTheConnectorHasIDsKnownForLong(t *testing.T) {
	connector := ingress.Caller{Name: "connector", Applications: true}
	for name, c := range map[string]struct {
		caller ingress.Caller
		header map[string]string
		body   string
		once   bool
	}{
		"the connector":               {connector, ce(headers.DedupWindow, "168h"), "{}", true},
		"the connector, not asking":   {connector, ce(), "{}", false},
		"the connector, with a batch": {connector, map[string]string{headers.DedupWindow: "168h", "Content-Type": event.ContentTypeBatch}, `[{"specversion":"1.0","id":"1","source":"commerce","type":"a"},{"specversion":"1.0","id":"2","source":"commerce","type":"a"}]`, false},
		"a publisher":                 {ingress.Caller{Name: "w", PublishesFor: func(string) bool { return true }}, ce(headers.DedupWindow, "168h"), "{}", false},
		"anybody on an open port":     {ingress.Caller{Name: "anybody", Everything: true}, ce(headers.DedupWindow, "168h"), "{}", false},
	} {
		t.Run(name, func(t *testing.T) {
			s, m := &store{}, &memory{}
			h := ingress.New(ingress.Config{Publisher: s, Rememberer: m, Authorizer: caller{Caller: c.caller}, Log: slog.New(slog.DiscardHandler)})
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/commerce/events", strings.NewReader(c.body))
			for name, value := range c.header {
				r.Header.Set(name, value)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, http.StatusAccepted, w.Code, w.Body)
			if c.once {
				require.Equal(t, []string{"commerce/1"}, m.once)
				require.JSONEq(t, `{"events":[{"id":"1","sequence":7}]}`, w.Body.String())
				require.Empty(t, s.events)
				return
			}
			require.Empty(t, m.once)
			require.NotEmpty(t, s.events)
		})
	}
}
