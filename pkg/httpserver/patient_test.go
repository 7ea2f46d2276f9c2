package httpserver_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

func TestWhoNeverReadsAnswersKeepsNoPlace(t *testing.T) {
	for name, useTLS := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			config := httpserver.Config{MaxConns: 2, SendTimeout: 200 * time.Millisecond}
			over := func(c *client) *client { return c }
			if useTLS {
				over = secured(t, &config)
			}
			s := startCrowd(t, config)
			for range 2 {
				c := over(dialHere(t, s.url))
				c.send(t, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
				<-s.held
			}
			s.metric(t, `lambdamesh_http_connections{server="test"} 0`)
		})
	}
}

// A request that came along with the one before it is served like any other.
func TestAPipelinedRequestKeepsItsPlaceWhileItIsServed(t *testing.T) {
	s := startCrowd(t, httpserver.Config{MaxConns: 1})
	c := dialHere(t, s.url)
	c.send(t, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /held HTTP/1.1\r\nHost: x\r\n\r\n")
	<-s.held
	status, _ := dialHere(t, s.url).answer(t)
	require.Equal(t, http.StatusServiceUnavailable, status)
	s.free <- struct{}{}
	for range 2 {
		status, _ := c.answer(t)
		require.Equal(t, http.StatusOK, status)
	}
}
