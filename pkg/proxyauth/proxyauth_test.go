package proxyauth_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/proxyauth"
)

// serve is a proxy that answers what it is asked for, and counts.
func serve(t *testing.T) (proxy *url.URL, asked *atomic.Int64) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	secret := proxyauth.NewSecret()
	asked = &atomic.Int64{}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
	})}
	go func() { _ = server.Serve(proxyauth.Listen(inner, secret)) }()
	t.Cleanup(func() { _ = server.Close() })
	return secret.URL(inner.Addr()), asked
}

func send(t *testing.T, proxy *url.URL, body string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy), DisableKeepAlives: true}}
	response, err := client.Post("http://orders.shop.svc/x", "text/plain", strings.NewReader(body))
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(text)
}

func TestWhoKnowsTheSecretIsServed(t *testing.T) {
	proxy, asked := serve(t)
	status, text := send(t, proxy, "hello")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "POST http://orders.shop.svc/x hello", text)
	large := strings.Repeat("x", 1<<20)
	_, text = send(t, proxy, large)
	require.Equal(t, "POST http://orders.shop.svc/x "+large, text)
	require.EqualValues(t, 2, asked.Load())
}

func TestEverybodyElseIsAnswered407(t *testing.T) {
	proxy, asked := serve(t)
	password, _ := proxy.User.Password()
	for name, user := range map[string]*url.Userinfo{
		"nothing": nil, "another secret": url.UserPassword("lambdamesh", "x"), "no secret": url.User("lambdamesh"),
		"another user": url.UserPassword("root", password), "a part": url.UserPassword("lambdamesh", password[:len(password)-1]),
	} {
		t.Run(name, func(t *testing.T) {
			stranger := *proxy
			stranger.User = user
			status, text := send(t, &stranger, "hello")
			require.Equal(t, http.StatusProxyAuthRequired, status)
			require.NotContains(t, text, password)
		})
	}
	require.Zero(t, asked.Load(), "the proxy saw none of it")
}

func TestWhatIsNoRequestIsClosed(t *testing.T) {
	proxy, asked := serve(t)
	for name, text := range map[string]string{
		"HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "TLS": "\x16\x03\x01\x00\xa5\x01\x00", "a header without an end": "GET / HTTP/1.1\r\n" + strings.Repeat("X-A: "+strings.Repeat("a", 1000)+"\r\n", 80),
		"two secrets": "GET http://a/ HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic eDp5\r\nProxy-Authorization: Basic eDp5\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", proxy.Host)
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
			_, _ = io.WriteString(c, text)
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.CloseWrite()
			}
			answer, _ := io.ReadAll(c)
			require.NotContains(t, string(answer), "200 OK")
		})
	}
	require.Zero(t, asked.Load())
}

func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	proxy, asked := serve(t)
	var silent []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", proxy.Host)
		require.NoError(t, err)
		defer c.Close()
		silent = append(silent, c)
	}
	for range 10 {
		status, _ := send(t, proxy, "hello")
		require.Equal(t, http.StatusOK, status)
	}
	require.EqualValues(t, 10, asked.Load())
	require.NoError(t, silent[0].SetReadDeadline(time.Now().Add(time.Minute)))
	_, err := silent[0].Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "the oldest made room")
}

// What a client that has proven nothing may cost is no limit for one that has: a
// push or a stream may last.
func TestWhoKnowsTheSecretMayBeSilentForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
		secret := proxyauth.NewSecret()
		listener := proxyauth.Listen(inner, secret)
		defer listener.Close()
		client, server := net.Pipe()
		defer client.Close()
		inner.accepted <- server
		password, _ := secret.URL(&net.TCPAddr{}).User.Password()
		request, err := http.NewRequest(http.MethodGet, "http://orders.shop.svc/x", nil)
		require.NoError(t, err)
		request.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("lambdamesh:"+password)))
		require.NoError(t, request.WriteProxy(client))
		conn, err := listener.Accept()
		require.NoError(t, err)
		defer conn.Close()
		_, err = http.ReadRequest(bufio.NewReader(conn))
		require.NoError(t, err)

		go func() {
			time.Sleep(time.Hour)
			_, _ = io.WriteString(client, "x")
		}()
		_, err = conn.Read(make([]byte, 1))
		require.NoError(t, err)
		go func() {
			time.Sleep(time.Hour)
			_, _ = client.Read(make([]byte, 1))
		}()
		_, err = conn.Write([]byte("x"))
		require.NoError(t, err)
	})
}

// pipes is a listener of connections in memory.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accepted:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error { close(p.closed); return nil }

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestASecretDoesNotPrintItself(t *testing.T) {
	secret := proxyauth.NewSecret()
	password, _ := secret.URL(&net.TCPAddr{}).User.Password()
	require.GreaterOrEqual(t, len(password), 26)
	text := fmt.Sprintf("%v %s %+v %#v", secret, secret, struct{ S proxyauth.Secret }{secret}, secret)
	require.NotContains(t, text, password)
}

// Clients that people use take the secret from the URL.
func TestCommonClientsTakeTheSecretFromHTTPProxy(t *testing.T) {
	proxy, _ := serve(t)
	for name, command := range map[string][]string{
		"curl":          {"curl", "-sS", "http://orders.shop.svc/x"},
		"python urllib": {"python3", "-c", "import urllib.request as r; print(r.urlopen('http://orders.shop.svc/x').read().decode())"},
	} {
		t.Run(name, func(t *testing.T) {
			path, err := exec.LookPath(command[0])
			if err != nil {
				t.Skipf("NOT TESTED on this machine: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, path, command[1:]...)
			cmd.Env = []string{"http_proxy=" + proxy.String(), "PATH=/usr/bin:/bin"}
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, string(out))
			require.Contains(t, string(out), "GET http://orders.shop.svc/x")
		})
	}
}
