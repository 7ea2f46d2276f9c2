package proxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
)

// oneRoute sends everything to the cluster backend with more fields.
func oneRoute(fields string) string {
	return "- name: all\n  domains: ['*']\n  routes: [{match: {prefix: /}, route: {cluster: backend, " + fields + "}}]"
}

func TestBodiesStreamBothWays(t *testing.T) {
	for name, h2 := range map[string]bool{"http1": false, "http2": true} {
		t.Run(name, func(t *testing.T) {
			_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).EnableFullDuplex()
				w.WriteHeader(200)
				_ = http.NewResponseController(w).Flush()
				line := bufio.NewReader(r.Body)
				for {
					text, err := line.ReadString('\n')
					_, _ = io.WriteString(w, "echo "+text)
					_ = http.NewResponseController(w).Flush()
					if err != nil {
						return
					}
				}
			})}})
			protocols := new(http.Protocols)
			protocols.SetHTTP1(!h2)
			protocols.SetUnencryptedHTTP2(h2)
			client := &http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: time.Minute}
			defer client.CloseIdleConnections()
			pr, pw := io.Pipe()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+gateway+"/", pr)
			require.NoError(t, err)
			resp, err := client.Do(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			lines := bufio.NewReader(resp.Body)
			for i := range 3 {
				_, err = fmt.Fprintf(pw, "%d\n", i)
				require.NoError(t, err)
				text, err := lines.ReadString('\n')
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("echo %d\n", i), text, "before the next line is sent")
			}
			pw.Close()
			rest, err := io.ReadAll(lines)
			require.NoError(t, err)
			require.Equal(t, "echo ", string(rest))
		})
	}
}

func TestTrailersPass(t *testing.T) {
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-Sum", "got "+r.Trailer.Get("X-Client-Sum"))
	})}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+gateway+"/", io.NopCloser(strings.NewReader("abc")))
	require.NoError(t, err)
	req.Trailer = http.Header{"X-Client-Sum": {"7"}}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "got 7", resp.Trailer.Get("X-Sum"))
}

func TestTrailersDoNotTellWhoAsks(t *testing.T) {
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%v", r.Trailer)
	})}})
	for name, announced := range map[string]string{"announced": "Trailer: X-Lambdamesh-Claims, x-api-client, X-Sum\r\n", "not announced": "Trailer: X-Sum\r\n", "none announced": ""} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", gateway)
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
			_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: a\r\n"+announced+"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"+
				"1\r\na\r\n0\r\nX-Lambdamesh-Claims: forged\r\nx-api-client: forged\r\nX-Forwarded-Client-Cert: forged\r\nX-Sum: 7\r\n\r\n")
			require.NoError(t, err)
			text, err := io.ReadAll(conn)
			require.NoError(t, err)
			got := string(text)
			require.Contains(t, got, "200 OK")
			require.NotContains(t, got, "forged")
			require.Equal(t, announced != "", strings.Contains(got, "X-Sum:[7]"), got)
		})
	}
}

func TestACanceledRequestIsCanceledUpstream(t *testing.T) {
	arrived, gone := make(chan struct{}), make(chan struct{})
	_, n, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(gone)
	})}})
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+gateway+"/", nil)
	require.NoError(t, err)
	go func() { <-arrived; require.Equal(t, 1, n.ActiveRequests()); cancel() }()
	_, err = http.DefaultClient.Do(req)
	require.ErrorIs(t, err, context.Canceled)
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Fatal("the upstream still works")
	}
}

func TestABrokenAnswerIsNotPassedAsWhole(t *testing.T) {
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})}})
	resp, err := http.Get("http://" + gateway + "/")
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestTimeouts(t *testing.T) {
	slow := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/body" {
			_, _ = io.WriteString(w, "start")
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute):
		}
	}
	addr := backend(t, slow)
	t.Run("of the route", func(t *testing.T) {
		_, _, gateway := serve(t, config{hosts: oneRoute("timeout: 0.1s"), clusters: map[string]string{"backend": addr}})
		got := get(t, gateway, "/")
		require.Equal(t, 504, got.code)
		require.Equal(t, "upstream request timeout", got.body)
		eventually(t, "an answer that begins in time", func() bool {
			resp, err := http.Get("http://" + gateway + "/body")
			require.NoError(t, err)
			defer resp.Body.Close()
			if resp.StatusCode == 504 {
				return false
			}
			_, err = io.ReadAll(resp.Body)
			require.Error(t, err, "and does not end is cut off")
			return true
		})
	})
	t.Run("of idling", func(t *testing.T) {
		_, _, gateway := serve(t, config{hosts: oneRoute("timeout: 0s, idle_timeout: 0.1s"), clusters: map[string]string{"backend": addr}})
		require.Equal(t, 408, get(t, gateway, "/").code)
	})
	t.Run("does not run while the request arrives", func(t *testing.T) {
		_, _, gateway := serve(t, config{hosts: oneRoute("timeout: 0.2s"), clusters: map[string]string{"backend": backend(t, echo)}})
		eventually(t, "an answer in time, however long the request took", func() bool {
			pr, pw := io.Pipe()
			go func() {
				// Longer in all than the timeout that must not run meanwhile.
				for ticker, sent := time.NewTicker(100*time.Millisecond), 0; sent < 4; sent++ {
					<-ticker.C
					_, _ = io.WriteString(pw, "x")
				}
				pw.Close()
			}()
			resp, err := http.Post("http://"+gateway+"/", "text/plain", pr)
			require.NoError(t, err)
			defer resp.Body.Close()
			return resp.StatusCode == 200
		})
	})
}

func TestRetries(t *testing.T) {
	// flaky fails as often as the path says.
	flaky := func(count *atomic.Int32, fail func(http.ResponseWriter)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if count.Add(1) <= 2 {
				fail(w)
				return
			}
			_, _ = w.Write(body)
		}
	}
	status := func(code int) func(http.ResponseWriter) { return func(w http.ResponseWriter) { w.WriteHeader(code) } }
	reset := func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	large := strings.Repeat("x", 100<<10)
	for name, test := range map[string]struct {
		policy string
		fail   func(http.ResponseWriter)
		body   string
		code   int
		calls  int32
	}{
		"5xx":                         {"retry_on: 5xx, num_retries: 2", status(500), "small", 200, 3},
		"not often enough":            {"retry_on: 5xx, num_retries: 1", status(500), "small", 500, 2},
		"once by default":             {"retry_on: 5xx", status(500), "small", 500, 2},
		"gateway-error":               {"retry_on: gateway-error, num_retries: 2", status(502), "small", 200, 3},
		"gateway-error is not 500":    {"retry_on: gateway-error, num_retries: 2", status(500), "small", 500, 1},
		"retriable-4xx":               {"retry_on: retriable-4xx, num_retries: 2", status(409), "small", 200, 3},
		"status codes":                {"retry_on: retriable-status-codes, retriable_status_codes: [418], num_retries: 2", status(418), "small", 200, 3},
		"reset":                       {"retry_on: reset, num_retries: 2", reset, "small", 200, 3},
		"connect-failure is no reset": {"retry_on: connect-failure, num_retries: 2", reset, "small", 503, 1},
		"large body":                  {"retry_on: 5xx, num_retries: 2", status(500), large, 500, 1},
		"attempts 0":                  {"retry_on: 5xx, num_retries: 0", status(500), "small", 500, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			_, _, gateway := serve(t, config{hosts: oneRoute("retry_policy: {retry_back_off: {base_interval: 0.001s}, " + test.policy + "}"), clusters: map[string]string{"backend": backend(t, flaky(&calls, test.fail))}})
			resp, err := http.Post("http://"+gateway+"/", "text/plain", strings.NewReader(test.body))
			require.NoError(t, err)
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, test.code, resp.StatusCode)
			require.Equal(t, test.calls, calls.Load())
			if test.code == 200 {
				require.Equal(t, test.body, string(body))
			}
		})
	}
	t.Run("the upstream is told which attempt it sees", func(t *testing.T) {
		seen := make(chan string, 9)
		hosts := oneRoute("retry_policy: {retry_back_off: {base_interval: 0.001s}, retry_on: 5xx, num_retries: 2}") + "\n  include_request_attempt_count: true"
		_, _, gateway := serve(t, config{hosts: hosts, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, r *http.Request) {
			seen <- strings.Join(r.Header.Values("X-Envoy-Attempt-Count"), ",")
			w.WriteHeader(http.StatusInternalServerError)
		})}})
		require.Equal(t, 500, get(t, gateway, "/", func(r *http.Request) { r.Header.Set("X-Envoy-Attempt-Count", "99") }).code)
		require.Len(t, seen, 3)
		for _, want := range []string{"1", "2", "3"} {
			require.Equal(t, want, <-seen)
		}
	})
	t.Run("per try timeout", func(t *testing.T) {
		var calls atomic.Int32
		_, _, gateway := serve(t, config{hosts: oneRoute("retry_policy: {retry_on: 5xx, num_retries: 2, per_try_timeout: 0.2s}"), clusters: map[string]string{"backend": backend(t, func(_ http.ResponseWriter, r *http.Request) {
			if calls.Add(1) <= 2 {
				<-r.Context().Done()
			}
		})}})
		require.Equal(t, 200, get(t, gateway, "/").code)
		require.EqualValues(t, 3, calls.Load())
	})
}

// whatNoneHasSeen is the retry policy of every host.
const whatNoneHasSeen = "retry_policy: {retry_on: 'connect-failure,refused-stream', num_retries: 2, retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}"

// TestRequestsThatNoEndpointHasSeenAreSentToAnother: what the control plane says of
// every host, also for what may not be done twice, and for bodies of any size.
func TestRequestsThatNoEndpointHasSeenAreSentToAnother(t *testing.T) {
	var calls atomic.Int32
	alive := backend(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n)
	})
	dead, _ := nobody(t)
	gone, _ := nobody(t)
	_, _, gateway := serveEndpoints(t, strings.TrimSpace(toBackend)+"\n  "+whatNoneHasSeen, "", alive, dead, gone)
	for _, size := range []int{0, 10, 1 << 20} {
		for range 20 {
			resp, err := http.Post("http://"+gateway+"/", "text/plain", strings.NewReader(strings.Repeat("x", size)))
			require.NoError(t, err)
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
			require.Equal(t, fmt.Sprint(size), string(body))
		}
	}
	require.EqualValues(t, 60, calls.Load(), "nothing is done twice")
}

// TestRequestsThatAnEndpointHasSeenAreSentToNoOther, also when its connection was a
// kept one and it takes no others any more.
func TestRequestsThatAnEndpointHasSeenAreSentToNoOther(t *testing.T) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		t.Run(method, func(t *testing.T) {
			var seen atomic.Int32
			var addresses []string
			warm := map[string]bool{}
			for i := range 3 {
				var server *httptest.Server
				server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/dies" {
						seen.Add(1)
						require.Equal(t, "1", r.Header.Get("Idempotency-Key"))
						server.Config.Close() // the listener before the connections
						return
					}
					_, _ = fmt.Fprint(w, i)
				}))
				t.Cleanup(server.Close)
				addresses = append(addresses, server.Listener.Addr().String())
			}
			_, _, gateway := serveEndpoints(t, strings.TrimSpace(toBackend)+"\n  "+whatNoneHasSeen, "", addresses...)
			for range 6 {
				warm[get(t, gateway, "/").body] = true
			}
			require.Len(t, warm, 3, "all have a kept connection")
			got := get(t, gateway, "/dies", func(r *http.Request) {
				r.Method = method
				r.Header.Set("Idempotency-Key", "1")
			})
			require.Equal(t, http.StatusServiceUnavailable, got.code)
			require.Contains(t, got.body, "connection termination")
			require.EqualValues(t, 1, seen.Load())
		})
	}
}

// TestKeptConnectionsThatTheEndpointCloses: a GET is sent to it again, since such
// connections are closed at any time, and nothing that may not be done twice.
func TestKeptConnectionsThatTheEndpointCloses(t *testing.T) {
	var seen atomic.Int32
	type first struct{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		seen.Add(1)
		if !r.Context().Value(first{}).(*atomic.Bool).CompareAndSwap(false, true) { //nolint:errcheck // of each connection
			panic(http.ErrAbortHandler)
		}
	}))
	server.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, first{}, new(atomic.Bool))
	}
	server.Start()
	t.Cleanup(server.Close)
	_, _, gateway := serveEndpoints(t, toBackend, "", server.Listener.Addr().String())
	for _, test := range []struct {
		method, key string
		code        int
		seen        int32
	}{
		{http.MethodGet, "", 200, 1},
		{http.MethodGet, "", 200, 3},
		{http.MethodPost, "", 503, 4},
		{http.MethodPost, "", 200, 5},
		{http.MethodPost, "Idempotency-Key", 503, 6},
		{http.MethodPost, "", 200, 7},
		{http.MethodDelete, "X-Idempotency-Key", 503, 8},
	} {
		got := get(t, gateway, "/", func(r *http.Request) {
			if r.Method = test.method; test.key != "" {
				r.Header.Set(test.key, "1")
			}
		})
		require.Equal(t, test.code, got.code, "%+v", test)
		require.Equal(t, test.seen, seen.Load(), "%+v", test)
	}
}

func TestEndpointsThatTakeNoConnectionsAreLeftAlone(t *testing.T) {
	const ejection = "outlier_detection: {split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, max_ejection_percent: 50, base_ejection_time: %s}"
	dead, _ := nobody(t)
	gone, _ := nobody(t)
	failed := func(t *testing.T, gateway string) int {
		n := 0
		for range 40 {
			if get(t, gateway, "/").code != http.StatusOK {
				n++
			}
		}
		return n
	}
	t.Run("while it lasts", func(t *testing.T) {
		_, _, gateway := serveEndpoints(t, toBackend, fmt.Sprintf(ejection, "3600s"), dead, backend(t, echo), backend(t, echo))
		require.Equal(t, 2, failed(t, gateway))
	})
	t.Run("no more than may be", func(t *testing.T) {
		_, _, gateway := serveEndpoints(t, toBackend, fmt.Sprintf(ejection, "3600s"), dead, gone)
		require.Equal(t, 40, failed(t, gateway))
		_, _, gateway = serveEndpoints(t, toBackend, fmt.Sprintf(ejection, "3600s"), dead)
		got := get(t, gateway, "/")
		require.Contains(t, got.body, "remote connection failure", "the only one is asked all the same")
	})
	t.Run("and asked again", func(t *testing.T) {
		back, listen := nobody(t)
		_, _, gateway := serveEndpoints(t, toBackend, fmt.Sprintf(ejection, "0.01s"), back, backend(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the other") }))
		require.NotZero(t, failed(t, gateway))
		listener := listen()
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "back") }), ReadHeaderTimeout: time.Minute}
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(func() { server.Close() })
		eventually(t, "an answer of the one that is back", func() bool { return get(t, gateway, "/").body == "back" })
	})
	t.Run("not for what they answer", func(t *testing.T) {
		_, _, gateway := serveEndpoints(t, toBackend, fmt.Sprintf(ejection, "3600s"), backend(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }), backend(t, echo))
		require.Equal(t, 20, failed(t, gateway))
	})
}

// TestEndpointsThatDoNotSayThatTheyTakeNoConnections, as those of a node without
// power: the cluster waits longer for a connection than the route for an answer.
func TestEndpointsThatDoNotSayThatTheyTakeNoConnections(t *testing.T) {
	const cluster = "connect_timeout: 600s, outlier_detection: {split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, max_ejection_percent: 50, base_ejection_time: 3600s}"
	silent, alive, other := deaf(t), backend(t, echo), backend(t, echo)
	for name, test := range map[string]struct {
		route  string
		failed int
	}{
		"another one is asked in time":  {"timeout: 3s, " + whatNoneHasSeen, 0},
		"they are left alone":           {"timeout: 2s", 2},
		"also for the timeout of a try": {"timeout: 0s, retry_policy: {retry_on: retriable-4xx, per_try_timeout: 2s}", 2},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, gateway := serveEndpoints(t, oneRoute(test.route), strings.ReplaceAll(cluster, ", outlier", "\n  outlier"), silent, alive, other)
			failed := 0
			for range 20 {
				if get(t, gateway, "/").code != http.StatusOK {
					failed++
				}
			}
			require.Equal(t, test.failed, failed)
		})
	}
}

// deaf is an address where connections are not answered, because so many wait to be
// accepted as may.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	t.Cleanup(func() { syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 16 {
		conn, err := net.DialTimeout("tcp", address, time.Second/2)
		if err != nil {
			return address
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("there is always room for one more")
	return ""
}

// serveEndpoints is serve with a cluster of several endpoints, asked by turns.
func serveEndpoints(t *testing.T, hosts, fields string, addresses ...string) (*mesh, *node, string) {
	t.Helper()
	var endpoints []string
	for _, a := range addresses {
		endpoints = append(endpoints, "{endpoint: {address: "+endpointAddress(a)+"}}")
	}
	r := config{hosts: hosts}.resources(t)
	r[resource.ClusterType] = resources(t, "clusters:\n- name: backend\n  type: STATIC\n  load_assignment: {cluster_name: backend, endpoints: [{lb_endpoints: ["+strings.Join(endpoints, ", ")+"]}]}\n  "+fields+"\n")[resource.ClusterType]
	m := newMesh(t)
	n := m.node(gatewayNode)
	m.mustSet(target, r)
	n.waitReady(t)
	return m, n, n.addr("10.0.0.1:80")
}

// nobody is an address that nobody listens at, or can take meanwhile, until listen
// is called.
func nobody(t *testing.T) (address string, listen func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	socket := os.NewFile(uintptr(fd), "nobody")
	t.Cleanup(func() { socket.Close() })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	return fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port), func() net.Listener {
		require.NoError(t, syscall.Listen(fd, 16))
		listener, err := net.FileListener(socket)
		require.NoError(t, err)
		return listener
	}
}

func TestEndpointsAreChosenByHealthAndPriority(t *testing.T) {
	name := func(s string) string {
		return endpointAddress(backend(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }))
	}
	a, b, c, d := name("a"), name("b"), name("c"), name("d")
	m := newMesh(t)
	n := m.node(gatewayNode)
	eds := func(endpoints string) map[string]int {
		r := config{hosts: toBackend}.resources(t)
		for k, v := range resources(t, `
clusters: [{name: backend, type: EDS, eds_cluster_config: {eds_config: {ads: {}}}}]
endpoints: [{cluster_name: backend, endpoints: `+endpoints+`}]`) {
			r[k] = v
		}
		m.mustSet(target, r)
		n.waitReady(t)
		count := map[string]int{}
		for range 100 {
			got := get(t, n.addr("10.0.0.1:80"), "/")
			if got.code != 200 {
				count[fmt.Sprint(got.code, " ", got.body)]++
			} else {
				count[got.body]++
			}
		}
		return count
	}
	require.Equal(t, map[string]int{"a": 50, "b": 50}, eds(fmt.Sprintf(`[{lb_endpoints: [{endpoint: {address: %s}}, {endpoint: {address: %s}}]}]`, a, b)))
	require.Equal(t, map[string]int{"a": 75, "b": 25}, eds(fmt.Sprintf(`[{lb_endpoints: [{load_balancing_weight: 30, endpoint: {address: %s}}, {load_balancing_weight: 10, endpoint: {address: %s}}]}]`, a, b)))
	require.Equal(t, map[string]int{"c": 100}, eds(fmt.Sprintf(`[{lb_endpoints: [{health_status: UNHEALTHY, endpoint: {address: %s}}, {health_status: DRAINING, endpoint: {address: %s}}, {health_status: HEALTHY, endpoint: {address: %s}}]}, {priority: 1, lb_endpoints: [{endpoint: {address: %s}}]}]`, a, b, c, d)))
	require.Equal(t, map[string]int{"d": 100}, eds(fmt.Sprintf(`[{lb_endpoints: [{health_status: UNHEALTHY, endpoint: {address: %s}}]}, {priority: 1, lb_endpoints: [{endpoint: {address: %s}}]}]`, a, d)))
	require.Equal(t, map[string]int{"503 no healthy upstream": 100}, eds(`[]`))
}

func TestCircuitBreakerAnswersOverflow(t *testing.T) {
	release := make(chan struct{})
	arrived := make(chan struct{}, 10)
	addr := backend(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	r := config{hosts: toBackend}.resources(t)
	r[resource.ClusterType] = append(r[resource.ClusterType], staticCluster(t, "backend", addr, "circuit_breakers: {thresholds: [{max_requests: 2}]}"))
	m := newMesh(t)
	n := m.node(gatewayNode)
	m.mustSet(target, r)
	n.waitReady(t)
	done := make(chan int, 2)
	for range 2 {
		go func() {
			resp, err := http.Get("http://" + n.addr("10.0.0.1:80") + "/")
			if err == nil {
				resp.Body.Close()
				done <- resp.StatusCode
			}
		}()
	}
	<-arrived
	<-arrived
	got := get(t, n.addr("10.0.0.1:80"), "/")
	require.Equal(t, 503, got.code)
	require.Equal(t, "true", got.header.Get("X-Envoy-Overloaded"))
	close(release)
	require.Equal(t, 200, <-done)
	require.Equal(t, 200, <-done)
}

func TestWebsocketUpgrade(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		line, _ := buf.ReadString('\n')
		_, _ = io.WriteString(c, "echo "+line)
	})
	upgrade := func(gateway string) (*bufio.Reader, net.Conn, *http.Response) {
		c, err := net.Dial("tcp", gateway)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		require.NoError(t, err)
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		return r, c, resp
	}
	_, n, gateway := serve(t, config{hcm: "upgrade_configs: [{upgrade_type: websocket}]", hosts: toBackend, clusters: map[string]string{"backend": addr}})
	r, c, resp := upgrade(gateway)
	require.Equal(t, 101, resp.StatusCode)
	_, err := io.WriteString(c, "hello\n")
	require.NoError(t, err)
	text, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "echo hello\n", text)

	_, c, resp = upgrade(gateway)
	require.Equal(t, 101, resp.StatusCode)
	n.stop()
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "open tunnels end with the proxy")

	_, _, gateway = serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": addr}})
	_, _, resp = upgrade(gateway)
	require.Equal(t, 403, resp.StatusCode, "upgrades must be configured")
}

func TestUnreachableUpstream(t *testing.T) {
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": "127.0.0.1:1"}})
	got := get(t, gateway, "/")
	require.Equal(t, 503, got.code)
	require.Contains(t, got.body, "upstream connect error")
}

func TestHTTP2ConnectionsAreReused(t *testing.T) {
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	defer client.CloseIdleConnections()
	// A body that looks like a bad HTTP/1.1 header is nobody's business here.
	body := "x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
	for range 5 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+gateway+"/", strings.NewReader(body))
		require.NoError(t, err)
		got := do(t, client, req)
		require.Equal(t, 200, got.code)
		require.Equal(t, body, got.body)
	}
}

func TestBodiesAreNotTakenForHeaders(t *testing.T) {
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}})
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	body := strings.Repeat("x\nContent-Length: 1\nTransfer-Encoding: chunked\n\n", 5000)
	for range 5 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+gateway+"/", strings.NewReader(body))
		require.NoError(t, err)
		got := do(t, client, req)
		require.Equal(t, 200, got.code)
		require.Equal(t, body, got.body)
	}
}

func TestEarlyHintsPass(t *testing.T) {
	_, _, gateway := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "page")
	})}})
	codes, _ := raw(t, gateway, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	require.Equal(t, []int{103, 200}, codes)
}
