package members

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

type writer struct{ *httptest.ResponseRecorder }

func (writer) SetWriteDeadline(time.Time) error { return nil }

// Requests beyond a share wait for it, and not longer than the API server would.
func TestRequestsWaitForTheirPlacesAndNotForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Each keeps its places for a second.
		b := newBounds()
		handler := b.bounded(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) }))
		send := func(n int, remote string, bytes int) map[int]int {
			answers, statuses := make(chan int, n), map[int]int{}
			for range n {
				go func() {
					r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, WebhookPath, strings.NewReader(strings.Repeat("x", bytes)))
					r.RemoteAddr = remote
					w := writer{httptest.NewRecorder()}
					handler.ServeHTTP(w, r)
					answers <- w.Code
				}()
			}
			for range n {
				statuses[<-answers]++
			}
			return statuses
		}
		begun := time.Now()
		require.Equal(t, map[int]int{200: 48}, send(48, "192.0.2.1:1", 10))
		require.Equal(t, 3*time.Second, time.Since(begun), "sixteen at once")
		flood := make(chan map[int]int)
		go func() { flood <- send(200, "192.0.2.1:1", 10) }()
		synctest.Wait()
		begun = time.Now()
		require.Equal(t, map[int]int{200: 1}, send(1, "192.0.2.2:1", 10))
		require.Equal(t, time.Second, time.Since(begun), "it does not wait for others' requests")
		got := <-flood
		require.Equal(t, 200, got[200]+got[503])
		require.Less(t, got[200], 90)

		got = send(30, "192.0.2.1:1", smallReviewBytes+1)
		require.Equal(t, 30, got[200]+got[503])
		require.Less(t, got[200], 21, "four large ones at once")
		require.Equal(t, map[int]int{413: 1}, send(1, "192.0.2.1:1", maxReviewBytes+1))
		require.Empty(t, b.remotes, "who left is forgotten")
	})
}
