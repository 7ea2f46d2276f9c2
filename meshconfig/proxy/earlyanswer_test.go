package proxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A server that refuses a body without reading it and closes.
func TestAnAnswerThatComesBeforeTheBodyWasSentPasses(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				lines := bufio.NewReaderSize(c, 16)
				for {
					line, err := lines.ReadString('\n')
					if err != nil {
						return
					}
					if line == "\r\n" {
						_, _ = io.WriteString(c, "HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large")
						return
					}
				}
			}()
		}
	}()
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": listener.Addr().String()}})
	for range 40 {
		response, err := http.Post("http://"+gateway+"/", "text/plain", io.MultiReader(strings.NewReader(strings.Repeat("x", 4<<20))))
		require.NoError(t, err)
		body, err := io.ReadAll(response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode, string(body))
		require.Equal(t, "too large", string(body))
	}
}
