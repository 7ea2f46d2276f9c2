package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// A flood of batches, each with an event that is stored already, is nothing that
// other sources notice: their events are stored meanwhile.
func TestAFloodOfDuplicatesStopsNobodyElse(t *testing.T) {
	const source, other, batches = "hostile-flood", "hostile-flood-other", 60
	m := shared(t)
	publishOne(t, m, source, "dup")
	body := func(n int) string {
		var b strings.Builder
		b.WriteString(`[{"specversion":"1.0","id":"dup","source":"` + source + `","type":"t"}`)
		for i := range 999 {
			fmt.Fprintf(&b, `,{"specversion":"1.0","id":"%d-%d","source":%q,"type":"t"}`, n, i, source)
		}
		return b.String() + "]"
	}
	send := func(n int) (response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, m.EventBus+"/publish", strings.NewReader(body(n)))
		if err != nil {
			return response{}, err
		}
		req.Header.Set("Content-Type", "application/cloudevents-batch+json")
		return do(http.DefaultClient, req)
	}
	answers := make([]response, batches)
	errs := make([]error, batches)
	var flood sync.WaitGroup
	for n := range batches {
		flood.Go(func() { answers[n], errs[n] = send(n) })
	}
	over := make(chan struct{})
	go func() { flood.Wait(); close(over) }()
	for n, ended := 0, false; !ended; n++ {
		select {
		case <-over:
			ended = true // and once more
		default:
		}
		publishOne(t, m, other, fmt.Sprint(n))
	}
	refused := -1
	for n, a := range answers {
		require.NoError(t, errs[n])
		if a.status != http.StatusAccepted {
			require.Equal(t, http.StatusTooManyRequests, a.status, a.body)
			refused = n
		}
	}
	if refused >= 0 { // nothing waits any more
		again, err := send(refused)
		require.NoError(t, err)
		require.Equal(t, http.StatusAccepted, again.status, again.body)
	}
}
