package httpserver_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// framingServer echoes bodies and returns its address.
func framingServer(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := httpserver.New(httpserver.Config{Name: "framing", Listener: l, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})})
	group := component.NewGroup("test", component.GroupConfig{}, s)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- group.Run(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-done) })
	<-group.Ready()
	return l.Addr().String()
}

func TestAmbiguousFramingIsRefusedAndTheConnectionClosed(t *testing.T) {
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	tests := map[string]string{
		"a length and a coding":     "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
		"a coding besides chunked":  "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + smuggled,
		"lines that end in bare LF": "GET / HTTP/1.1\nHost: x\n\n" + smuggled,
		"one line that ends in LF":  "GET / HTTP/1.1\r\nHost: x\nX: y\r\n\r\n" + smuggled,
		"a folded line":             "GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n z\r\n\r\n" + smuggled,
		"two lengths that differ":   "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab" + smuggled,
		"two hosts":                 "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + smuggled,
		"the second request of two": "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
	}
	for name, raw := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", framingServer(t))
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
			_, err = io.WriteString(c, raw)
			require.NoError(t, err)
			all, err := io.ReadAll(c)
			require.NoError(t, err, "the server closes")
			answers := string(all)
			require.Contains(t, answers, "HTTP/1.1 400 ")
			require.LessOrEqual(t, strings.Count(answers, "HTTP/1.1 200 "), strings.Count(raw, "HTTP/1.1")-2, "what was smuggled is not served: %s", answers)
		})
	}
}

func TestOrdinaryRequestsShareAConnection(t *testing.T) {
	c, err := net.Dial("tcp", framingServer(t))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	r := bufio.NewReader(c)
	for _, raw := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na\n b\r\n c\n",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		_, err = io.WriteString(c, raw)
		require.NoError(t, err)
		resp, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode)
	}
}

func TestAHeaderThatArrivesInPiecesIsOneHeader(t *testing.T) {
	c, err := net.Dial("tcp", framingServer(t))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	// The second request has begun when the first is served.
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\nPOST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Enc")
	require.NoError(t, err)
	r := bufio.NewReader(c)
	first, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, first.StatusCode)
	_, err = io.WriteString(c, "oding: chunked\r\n\r\n0\r\n\r\n")
	require.NoError(t, err)
	second, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, second.StatusCode)
}

// No connection of a server of HTTP/1 becomes one whose framing and headers
// nobody looks at.
func TestThePrefaceOfHTTP2SwitchesNothingOff(t *testing.T) {
	const ambiguous = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
	many := "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 500) + "\r\n"
	for name, first := range map[string]string{
		"its first line, as a request": "PRI * HTTP/2.0\r\nHost: x\r\nX: y\r\n\r\n",
		"all of it":                    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"after an empty line":          "\r\nPRI * HTTP/2.0\r\nHost: x\r\n\r\n",
		"after a request with a body":  "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhiPRI * HTTP/2.0\r\nHost: x\r\nX: y\r\n\r\n",
	} {
		for _, second := range []string{ambiguous, many} {
			for _, apart := range []bool{false, true} {
				t.Run(name, func(t *testing.T) {
					c, err := net.Dial("tcp", framingServer(t))
					require.NoError(t, err)
					defer c.Close()
					require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
					r := bufio.NewReader(c)
					_, err = io.WriteString(c, first)
					require.NoError(t, err)
					if apart {
						_, err = r.Peek(1)
						require.NoError(t, err)
					}
					_, _ = io.WriteString(c, second) // it may have closed
					all, _ := io.ReadAll(r)          // or reset, once it had refused
					answers := string(all)
					require.LessOrEqual(t, strings.Count(answers, "HTTP/1.1 2"), strings.Count(first, " HTTP/"), answers)
					if !strings.Contains(answers, "HTTP/1.1 4") && !strings.Contains(answers, "HTTP/1.1 5") {
						require.NotContains(t, answers, "HTTP/1.1 200 ", "served, and not refused")
					}
				})
			}
		}
	}
}

// A header that came along with the body before it is judged as any other.
func TestAHeaderBehindABodyIsJudged(t *testing.T) {
	const length, ambiguous = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
	const chunks = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nhi\r\nA \r\n0123456789\r\n0\r\nT: x\r\n\r\n"
	for name, tt := range map[string]struct {
		first, begun, rest string
		want               int
	}{
		"a folded line":              {length, "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\nD", ": e\r\n\r\n", http.StatusBadRequest},
		"a length and a coding":      {length, "POST / HTTP/1.1\r\nHost: x\r\nContent-Len", "gth: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", http.StatusBadRequest},
		"all of it, behind chunks":   {chunks, "POST / HTTP/1.1\r\nHost: x\r\n" + ambiguous, "", http.StatusBadRequest},
		"many fields":                {length, "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", 400), "b: c\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"many fields, behind chunks": {chunks, "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a:\r\n", 400), "b: c\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"an ordinary one":            {length, "GET / HTTP/1.1\r\nHost: x\r\nA", ": b\r\n\r\n", http.StatusOK},
		"an ordinary one, chunks":    {chunks, "GET / HTTP/1.1\r\nHost: x\r\nA", ": b\r\n\r\n", http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", framingServer(t))
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
			r := bufio.NewReader(c)
			_, err = io.WriteString(c, tt.first+tt.begun)
			require.NoError(t, err)
			response, err := http.ReadResponse(r, nil)
			require.NoError(t, err)
			_, err = io.Copy(io.Discard, response.Body)
			require.NoError(t, err)
			if response.StatusCode == http.StatusOK {
				_, _ = io.WriteString(c, tt.rest)
				response, err = http.ReadResponse(r, nil)
				require.NoError(t, err)
				response.Body.Close()
			}
			require.Equal(t, tt.want, response.StatusCode, "the first may be refused along with what it brings")
		})
	}
}

// A coding that readers of HTTP/1.0 do not know would end for them elsewhere.
func TestChunksInHTTP10AreRefused(t *testing.T) {
	c, err := net.Dial("tcp", framingServer(t))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, err = io.WriteString(c, "POST / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
	require.NoError(t, err)
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, http.StatusBadRequest, response.StatusCode)
}

// Another coding than chunked is refused like all framing that two readers may
// take differently, not as a wish that is not fulfilled.
func TestOtherCodingsAreBadRequests(t *testing.T) {
	for _, lines := range []string{
		"Transfer-Encoding: gzip",
		"Transfer-Encoding:",
		"Transfer-Encoding: identity, chunked",
		"Transfer-Encoding: chunked\r\ntransfer-encoding: chunked",
		"Transfer-Encoding: chunked\r\n , gzip",
		"Content-Length: 3\r\nTransfer-Encoding: gzip",
		"Transfer-Encoding: " + strings.Repeat(" ", 100) + "chunked",
	} {
		t.Run(lines, func(t *testing.T) {
			c := dialHere(t, framingServer(t))
			require.Equal(t, http.StatusOK, c.ask(t, "/"))
			c.send(t, "POST / HTTP/1.1\r\nHost: x\r\n"+lines+"\r\n\r\n")
			status, _ := c.answer(t)
			require.Equal(t, http.StatusBadRequest, status)
		})
	}
}

// An answer is its handler's, be it a text of net/http's own.
func TestAnAnswerIsSentAsItIs(t *testing.T) {
	const text = "HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nUnsupported transfer encoding"
	url, _, _ := start(t, httpserver.Config{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		control := http.NewResponseController(w)
		_ = control.Flush()
		_, _ = io.WriteString(w, text)
		_ = control.Flush()
	})})
	for name, next := range map[string]string{
		"alone":                     "",
		"and a bad one behind it":   "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
		"and half a one behind it":  "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gz",
		"and no request behind it":  "\x00\x00",
		"and a bad body behind it":  "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nx",
		"and a good one behind it ": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dialHere(t, url)
			c.send(t, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n")
			line, err := c.r.ReadString('\n')
			require.NoError(t, err)
			require.Contains(t, line, " 100 ", "the handler reads")
			_, err = c.r.ReadString('\n')
			require.NoError(t, err)
			c.send(t, "abcdef"+next)
			status, body := c.answer(t)
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, text, body)
		})
	}
}
