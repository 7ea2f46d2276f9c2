package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// doors are the ports of ours that speak HTTP, each with the host and a path
// that it serves.
func doors(m *mesh) map[string]struct{ url, host, path string } {
	return map[string]struct{ url, host, path string }{
		"gateway":              {m.Gateway, hostileHost, "/"},
		"gateway, TLS":         {m.GatewayTLS, hostileHost, "/"},
		"event bus":            {m.EventBus, "localhost", "/publish"},
		"event bus, admin":     {m.EventBusAdmin, "localhost", "/healthz"},
		"connector, in public": {m.Connector, "localhost", "/healthz"},
	}
}

// Two readers must not see different requests: what is ambiguous is answered
// once, with an error, and nothing behind it is read.
func TestHostileFraming(t *testing.T) {
	m, _ := hostile(t)
	const chunked = "Transfer-Encoding: chunked\r\n"
	type request struct {
		head, body string // between the request line and the empty line, and after it
		want       []int
	}
	refused := []int{http.StatusBadRequest}
	cases := map[string]request{
		"a length and chunks":            {"Content-Length: 4\r\n" + chunked, "0\r\n\r\n", refused},
		"chunks and a length":            {chunked + "Content-Length: 4\r\n", "0\r\n\r\n", refused},
		"a length of zero and chunks":    {"Content-Length: 0\r\n" + chunked, "0\r\n\r\n", refused},
		"chunked, identity":              {"Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n", refused},
		"identity, chunked":              {"Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n", refused},
		"gzip, chunked":                  {"Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n", refused},
		"chunked twice":                  {chunked + chunked, "0\r\n\r\n", refused},
		"xchunked":                       {"Transfer-Encoding: xchunked\r\n", "0\r\n\r\n", refused},
		"chunked after a tab and quotes": {"Transfer-Encoding:\t\"chunked\"\r\n", "0\r\n\r\n", refused},
		"a blank before the colon":       {"Transfer-Encoding : chunked\r\n", "0\r\n\r\n", refused},
		"a vertical tab":                 {"Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n", refused},
		"two lengths":                    {"Content-Length: 0\r\nContent-Length: 5\r\n", "", refused},
		"a list of lengths":              {"Content-Length: 0, 5\r\n", "", refused},
		"a negative length":              {"Content-Length: -1\r\n", "", refused},
		"a length with a sign":           {"Content-Length: +0\r\n", "", refused},
		"a length in hex":                {"Content-Length: 0x0\r\n", "", refused},
		"a length beyond 64 bits":        {"Content-Length: 18446744073709551616\r\n", "", refused},
		"an empty length":                {"Content-Length:\r\n", "", refused},
		"a bare line feed":               {"X: y\n", "", refused},
		"a bare carriage return":         {"X: y\rContent-Length: 4\r\n", "", refused},
		"a folded header":                {"X: y\r\n z\r\n", "", refused},
		"a header that begins folded":    {" X: y\r\n", "", refused},
		"a header without a name":        {": y\r\n", "", refused},
		"a header without a colon":       {"X\r\n", "", refused},
		"NUL in a header":                {"X: \x00\r\n", "", refused},
		"a letter outside ASCII in one":  {"Content-Längth: 4\r\n", "", refused},
	}
	for door, d := range doors(m) {
		t.Run(door, func(t *testing.T) {
			// A request of its own that must not be seen: where it is, the answers are
			// two.
			smuggled := "GET " + d.path + "?smuggled HTTP/1.1\r\nHost: " + d.host + "\r\n\r\n"
			each(t, cases, func(c request) (answer, error) {
				return exchange(address(t, d.url), "POST "+d.path+" HTTP/1.1\r\nHost: "+d.host+"\r\n"+c.head+"\r\n"+c.body+smuggled, strings.HasPrefix(d.url, "https"))
			}, func(t *testing.T, c request, a answer) {
				require.Contains(t, c.want, a.status(t), "%v", a)
				require.True(t, a.closed, "%v", a)
			})
			lines := map[string]string{
				"a line of a version that is none": "GET " + d.path + " HTTP/1.2.3\r\nHost: " + d.host + "\r\n\r\n" + smuggled,
				"a line in HTTP/0.9":               "GET " + d.path + "\r\n\r\n" + smuggled,
				"line feeds only":                  "GET " + d.path + " HTTP/1.1\nHost: " + d.host + "\n\n" + smuggled,
				"a method that is none":            "G(E)T " + d.path + " HTTP/1.1\r\nHost: " + d.host + "\r\n\r\n" + smuggled,
				"not HTTP at all":                  "SSH-2.0-OpenSSH_9.9\r\n\r\n",
				// What follows must be looked at as before.
				"a line that begins HTTP/2": "PRI * HTTP/2.0\r\nHost: " + d.host + "\r\nX: y\r\n\r\nGET " + d.path + " HTTP/1.1\nHost: " + d.host + "\n\n" + smuggled,
			}
			each(t, lines, func(text string) (answer, error) {
				return exchange(address(t, d.url), text, strings.HasPrefix(d.url, "https"))
			}, func(t *testing.T, _ string, a answer) {
				require.GreaterOrEqual(t, a.status(t), 400, "%v", a)
				require.True(t, a.closed, "%v", a)
			})
		})
	}
	// What begins in order and goes wrong inside of the body.
	bodies := map[string]string{
		"a chunk without a length":         "zz\r\n\r\n",
		"a chunk's length in C":            "0x1\r\na\r\n0\r\n\r\n",
		"a negative one":                   "-1\r\na\r\n0\r\n\r\n",
		"one beyond 64 bits":               "fffffffffffffffff\r\na\r\n0\r\n\r\n",
		"a chunk longer than it says":      "1\r\nabc\r\n0\r\n\r\n",
		"chunks that end with a line feed": "1\na\n0\n\n",
	}
	for door, path := range map[string]string{m.Gateway: "/", m.EventBus: "/publish"} {
		d := address(t, door)
		host := map[string]string{m.Gateway: hostileHost, m.EventBus: "localhost"}[door]
		smuggled := "GET " + path + "?smuggled HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
		t.Run("body at "+path, func(t *testing.T) {
			each(t, bodies, func(body string) (answer, error) {
				return exchange(d, "POST "+path+" HTTP/1.1\r\nHost: "+host+"\r\nContent-Type: application/cloudevents+json\r\n"+chunked+"\r\n"+body+smuggled, false)
			}, func(t *testing.T, _ string, a answer) {
				require.Equal(t, http.StatusBadRequest, a.status(t), "%v", a)
				require.True(t, a.closed, "%v", a)
			})
		})
	}
}

// What is larger than a door takes is refused as such, and soon.
func TestHostileSizes(t *testing.T) {
	m, _ := hostile(t)
	type request struct {
		text string
		want []int
	}
	for door, d := range doors(m) {
		secure := strings.HasPrefix(d.url, "https")
		t.Run(door, func(t *testing.T) {
			head := "GET " + d.path + " HTTP/1.1\r\nHost: " + d.host + "\r\nConnection: close\r\n"
			each(t, map[string]request{
				"headers beyond 64 KiB are 431": {head + "X: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", []int{431}},
				"many of them too":              {head + strings.Repeat("X-Many: "+strings.Repeat("y", 100)+"\r\n", 2000) + "\r\n", []int{431}},
				"a target beyond it is refused": {"GET " + d.path + "?" + strings.Repeat("x", 100<<10) + " HTTP/1.1\r\nHost: " + d.host + "\r\n\r\n", []int{414, 431}},
				"a length of exabytes is 413": {
					"POST " + d.path + " HTTP/1.1\r\nHost: " + d.host + "\r\nContent-Type: application/cloudevents+json\r\nContent-Length: 9223372036854775807\r\n\r\nx",
					[]int{413, 404, 405}, // where nothing is to be sent, it is that
				},
			}, func(c request) (answer, error) {
				return exchange(address(t, d.url), c.text, secure)
			}, func(t *testing.T, c request, a answer) {
				require.Contains(t, c.want, a.status(t), "%v", a)
			})
		})
	}
	big := strings.Repeat("x", 3<<20)
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(big), big)
	event := "Content-Type: application/json\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-source: s\r\nce-type: t\r\n"
	for name, c := range map[string]struct{ url, text string }{
		"a body beyond a lambda's limit is 413":  {m.Gateway, "POST / HTTP/1.1\r\nHost: " + hostileHost + "\r\nConnection: close\r\nContent-Length: " + strconv.Itoa(len(big)) + "\r\n\r\n" + big},
		"in chunks too":                          {m.Gateway, "POST / HTTP/1.1\r\nHost: " + hostileHost + "\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks},
		"an event beyond the bus's limit is 413": {m.EventBus, "POST /publish HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + event + "Content-Length: " + strconv.Itoa(len(big)) + "\r\n\r\n" + big},
		"it is in chunks, too":                   {m.EventBus, "POST /publish HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + event + "Transfer-Encoding: chunked\r\n\r\n" + chunks},
	} {
		t.Run(name, func(t *testing.T) {
			for range 5 { // every time, not only when the answer wins the race
				a, err := exchange(address(t, c.url), c.text, false)
				require.NoError(t, err)
				require.Equal(t, http.StatusRequestEntityTooLarge, a.status(t), "%v", a)
			}
		})
	}
}

// A client that sends its headers a byte at a time holds a connection for five
// seconds and no longer, whatever it sends.
func TestHostileSlowClients(t *testing.T) {
	m, _ := hostile(t)
	const limit, slack = 5 * time.Second, 10 * time.Second
	type client struct{ door, begin string }
	cases := map[string]client{}
	for door, d := range doors(m) {
		cases[door+", headers"] = client{d.url, "GET " + d.path + " HTTP/1.1\r\nHost: " + d.host + "\r\nX: "}
		cases[door+", the first line"] = client{d.url, "GE"}
		if strings.HasPrefix(d.url, "https") {
			cases[door+", the handshake"] = client{strings.Replace(d.url, "https", "tcp", 1), "\x16\x03\x01"}
		}
	}
	type outcome struct {
		name string
		took time.Duration
		err  error
	}
	outcomes := make(chan outcome, len(cases))
	for name, c := range cases {
		addr := address(t, c.door)
		go func() {
			took, err := dribble(addr, c.begin, strings.HasPrefix(c.door, "https"), limit+slack)
			outcomes <- outcome{name, took, err}
		}()
	}
	for range cases {
		o := <-outcomes
		require.NoError(t, o.err, o.name)
		require.LessOrEqual(t, o.took, limit+slack, o.name)
	}
}

// dribble sends begin and then a byte at a time, and tells when the server
// closed the connection.
func dribble(addr, begin string, secure bool, patience time.Duration) (time.Duration, error) {
	started := time.Now()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if secure {
		conn = tls.Client(conn, &tls.Config{ServerName: hostileHost, InsecureSkipVerify: true}) //nolint:gosec // the door is tested, not its certificate
	}
	if _, err := io.WriteString(conn, begin); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() {
		_ = conn.SetReadDeadline(started.Add(patience))
		_, err := io.Copy(io.Discard, conn)
		var waited net.Error
		if errors.As(err, &waited) && waited.Timeout() {
			ended <- errorf("still open after %s", patience)
			return
		}
		ended <- nil
	}()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case err := <-ended:
			return time.Since(started), err
		case <-ticker.C:
			_, _ = io.WriteString(conn, "x") // fails when it is over, which the reader sees
		}
	}
}

// h2 sends one request in HTTP/2 frames and returns the answer's status; 0 when
// the stream or the connection was ended instead.
func h2(addr string, fields []hpack.HeaderField, body string) (status int, err error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return 0, err
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		return 0, err
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := encoder.WriteField(f); err != nil {
			return 0, err
		}
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: body == "", EndHeaders: true}); err != nil {
		return 0, err
	}
	if body != "" {
		if err := framer.WriteData(1, true, []byte(body)); err != nil {
			return 0, err
		}
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			var waited net.Error
			if errors.As(err, &waited) && waited.Timeout() {
				return 0, fmt.Errorf("neither an answer nor an end: %w", err)
			}
			return 0, nil // closed
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return strconv.Atoi(frame.PseudoValue("status"))
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return 0, nil
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = framer.WriteSettingsAck()
			}
		}
	}
}

// In HTTP/2 nothing is framed by text, so that texts may hold what HTTP/1.1
// could not carry.
func TestHostileHTTP2(t *testing.T) {
	m, i := hostile(t)
	type field = hpack.HeaderField
	request := func(path string, more ...field) []field {
		return append([]field{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: hostileHost}, {Name: ":path", Value: path}}, more...)
	}
	pseudo := func(method, scheme, authority, path string) (fields []field) {
		for _, f := range []field{{Name: ":method", Value: method}, {Name: ":scheme", Value: scheme}, {Name: ":authority", Value: authority}, {Name: ":path", Value: path}} {
			if f.Value != "-" {
				fields = append(fields, f)
			}
		}
		return fields
	}
	const ended = 0
	closed := []int{ended, http.StatusBadRequest, http.StatusUnauthorized}
	refused := []int{ended, http.StatusBadRequest}
	for name, c := range map[string]struct {
		fields []field
		body   string
		want   []int
	}{
		"a request is answered":                    {request("/"), "", []int{200}},
		"the private part is private":              {request("/private"), "", []int{401}},
		"and open to a token":                      {request("/private", field{Name: "authorization", Value: "Bearer " + i.token(t, nil)}), "", []int{200}},
		"two tokens are refused":                   {request("/private", field{Name: "authorization", Value: "Bearer " + i.token(t, nil)}, field{Name: "authorization", Value: "Bearer x"}), "", closed},
		"a blank behind the path is another path":  {request("/private "), "", append(closed, http.StatusOK)},
		"a blank in it":                            {request("/private /../x/../private"), "", closed},
		"a blank before it":                        {request(" /private"), "", refused},
		"a second line in the path":                {request("/ HTTP/1.1\r\nHost: x\r\n\r\nGET /private"), "", refused},
		"NUL in the path":                          {request("/private\x00"), "", refused},
		"a fragment":                               {request("/#/../private"), "", closed},
		"dot segments":                             {request("/x/../private"), "", closed},
		"doubled slashes":                          {request("//private"), "", closed},
		"a backslash":                              {request(`/x\..\private`), "", closed},
		"an escaped slash":                         {request("/x%2f..%2fprivate"), "", closed},
		"a whole URL as the path":                  {request("http://" + hostileHost + "/private"), "", closed},
		"a path without a slash":                   {request("private"), "", closed},
		"an empty path":                            {request(""), "", refused},
		"a star":                                   {request("*"), "", []int{ended, 400, 404}},
		"raw UTF-8":                                {request("/private/ö"), "", closed},
		"raw bytes":                                {request("/private/\xff"), "", closed},
		"no path":                                  {pseudo("GET", "http", hostileHost, "-"), "", refused},
		"two paths":                                {request("/", field{Name: ":path", Value: "/private"}), "", refused},
		"two hosts":                                {request("/private", field{Name: ":authority", Value: "other.test"}), "", refused},
		"another host beside it":                   {request("/private", field{Name: "host", Value: "unknown.lambdas.localhost"}), "", closed},
		"the host in a header only":                {append(pseudo("GET", "http", "-", "/private"), field{Name: "host", Value: hostileHost}), "", closed},
		"no host":                                  {pseudo("GET", "http", "-", "/private"), "", refused},
		"user information in the host":             {pseudo("GET", "http", "other@"+hostileHost, "/private"), "", refused},
		"a path in the host":                       {pseudo("GET", "http", hostileHost+"/x", "/private"), "", refused},
		"a port in the host":                       {pseudo("GET", "http", hostileHost+":1", "/private"), "", []int{401}},
		"a host in upper case":                     {pseudo("GET", "http", strings.ToUpper(hostileHost), "/private"), "", []int{401}},
		"a dot behind the host":                    {pseudo("GET", "http", hostileHost+".", "/private"), "", closed},
		"no method":                                {pseudo("-", "http", hostileHost, "/private"), "", refused},
		"a method with a blank":                    {pseudo("GET /private", "http", hostileHost, "/"), "", refused},
		"CONNECT":                                  {pseudo("CONNECT", "-", hostileHost, "-"), "", []int{ended, 400, 404, 405}},
		"extended CONNECT":                         {append(pseudo("CONNECT", "http", hostileHost, "/private"), field{Name: ":protocol", Value: "websocket"}), "", []int{ended, 400, 401, 405}},
		"an unknown pseudo-header":                 {request("/private", field{Name: ":rule", Value: "open"}), "", refused},
		"a pseudo-header behind a header":          {append([]field{{Name: "x", Value: "y"}}, request("/private")...), "", refused},
		"an answer's pseudo-header":                {request("/private", field{Name: ":status", Value: "200"}), "", refused},
		"a name in upper case":                     {request("/", field{Name: "X-Upper", Value: "y"}), "", refused},
		"a name with a blank":                      {request("/", field{Name: "x y", Value: "z"}), "", refused},
		"a name with a line in it":                 {request("/", field{Name: "x\r\ny", Value: "z"}), "", refused},
		"an empty name":                            {request("/", field{Name: "", Value: "z"}), "", refused},
		"a name with an underscore":                {request("/", field{Name: "x_y", Value: "z"}), "", refused},
		"a value with a line in it":                {request("/", field{Name: "x", Value: "y\r\nauthorization: Bearer x"}), "", refused},
		"a value with NUL":                         {request("/", field{Name: "x", Value: "y\x00"}), "", refused},
		"Connection":                               {request("/", field{Name: "connection", Value: "authorization"}), "", refused},
		"Transfer-Encoding":                        {request("/", field{Name: "transfer-encoding", Value: "chunked"}), "0\r\n\r\n", refused},
		"Upgrade":                                  {request("/", field{Name: "upgrade", Value: "h2c"}), "", refused},
		"TE other than trailers":                   {request("/", field{Name: "te", Value: "gzip"}), "", refused},
		"a length that is not the body's":          {request("/", field{Name: "content-length", Value: "1"}), "GET /private HTTP/1.1\r\n\r\n", []int{ended, 400}},
		"two lengths":                              {request("/", field{Name: "content-length", Value: "1"}, field{Name: "content-length", Value: "2"}), "xx", refused},
		"headers beyond 64 KiB":                    {request("/", field{Name: "x", Value: strings.Repeat("y", 15<<10)}), "", []int{200}},
		"a caller that the client names is nobody": {request("/private", field{Name: "x-forwarded-client-cert", Value: "URI=spiffe://cluster.local/ns/lambdamesh-system/sa/eventbus"}), "", []int{401}},
	} {
		t.Run(name, func(t *testing.T) {
			status, err := h2(address(t, m.Gateway), c.fields, c.body)
			require.NoError(t, err)
			require.Contains(t, c.want, status)
		})
	}
	resp, err := m.get(t.Context(), hostileHost, "/")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.status, "others are served as before")
}
