package proxy_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
)

// only192 lets clients of 192.0.2.0/24 in.
const only192 = `
- name: envoy.filters.http.rbac
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
    rules:
      action: ALLOW
      policies:
        clients:
          permissions: [{any: true}]
          principals: [{remote_ip: {address_prefix: 192.0.2.0, prefix_len: 24}}]
`

func TestTheClientIsWhomTrustedProxiesTell(t *testing.T) {
	forwarded := func(lines ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header["X-Forwarded-For"] = lines }
	}
	for name, tt := range map[string]struct {
		hcm  string
		xff  []string
		want int
	}{
		"at an edge nobody is believed":               {"use_remote_address: true", []string{"192.0.2.1"}, 403},
		"the last of one trusted proxy":               {"use_remote_address: true\nxff_num_trusted_hops: 1", []string{"203.0.113.1, 192.0.2.1"}, 200},
		"not what stands left of it":                  {"use_remote_address: true\nxff_num_trusted_hops: 1", []string{"192.0.2.1,203.0.113.1"}, 403},
		"in several lines":                            {"use_remote_address: true\nxff_num_trusted_hops: 2", []string{"203.0.113.1", "192.0.2.1", "198.51.100.1"}, 200},
		"two proxies and one entry":                   {"use_remote_address: true\nxff_num_trusted_hops: 2", []string{"192.0.2.1"}, 403},
		"one that is no address":                      {"use_remote_address: true\nxff_num_trusted_hops: 1", []string{"192.0.2.1, unknown"}, 403},
		"no proxy said anything":                      {"use_remote_address: true\nxff_num_trusted_hops: 1", nil, 403},
		"inside, the last":                            {"use_remote_address: false", []string{"203.0.113.1, 192.0.2.1"}, 200},
		"inside, what the client wrote":               {"use_remote_address: false", []string{"192.0.2.1, 203.0.113.1"}, 403},
		"an IPv4 address as IPv6 writes it is itself": {"use_remote_address: false", []string{"::ffff:192.0.2.1"}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, addr := serve(t, config{hcm: tt.hcm, filters: only192, hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}})
			require.Equal(t, tt.want, get(t, addr, "/", forwarded(tt.xff...)).code)
		})
	}
}

// proxyHeader of version 2 (PROXY protocol, section 2.2).
func proxyHeader(command, family byte, addresses []byte) []byte {
	head := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x20|command, family, 0, 0)
	binary.BigEndian.PutUint16(head[14:], uint16(len(addresses)))
	return append(head, addresses...)
}

func pair(source, destination string) []byte {
	from, to := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	out := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	out = binary.BigEndian.AppendUint16(out, from.Port())
	return binary.BigEndian.AppendUint16(out, to.Port())
}

const proxyProtocol = `
- name: envoy.filters.listener.proxy_protocol
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
    disallowed_versions: [V1]
`

func TestTheClientIsWhomThePROXYHeaderTells(t *testing.T) {
	c := config{hcm: "use_remote_address: true", filters: only192, hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}
	all := c.resources(t)
	filter := resources(t, "listeners:\n- name: x\n  listener_filters:\n  "+indent(2, proxyProtocol))[resource.ListenerType][0].(*listenerv3.Listener).GetListenerFilters()
	all[resource.ListenerType][0].(*listenerv3.Listener).ListenerFilters = filter
	m := newMesh(t)
	n := m.node(gatewayNode)
	m.mustSet(target, all)
	n.waitReady(t)
	addr := n.addr("10.0.0.1:80")

	for name, tt := range map[string]struct {
		header []byte
		want   int // 0: the connection is closed
	}{
		"a client over IPv4":                {proxyHeader(1, 0x11, pair("192.0.2.1:4711", "10.0.0.1:80")), 200},
		"another client":                    {proxyHeader(1, 0x11, pair("203.0.113.1:4711", "10.0.0.1:80")), 403},
		"a client over IPv6":                {proxyHeader(1, 0x21, pair("[2001:db8::1]:4711", "[::1]:80")), 403},
		"IPv4 as IPv6 writes it":            {proxyHeader(1, 0x21, pair("[::ffff:192.0.2.1]:4711", "[::1]:80")), 200},
		"additions are skipped":             {proxyHeader(1, 0x11, append(pair("192.0.2.1:4711", "10.0.0.1:80"), 0x04, 0, 2, 'x', 'y')), 200},
		"the proxy itself":                  {proxyHeader(0, 0x00, nil), 403},
		"a client that the proxy hides":     {proxyHeader(1, 0x00, nil), 403},
		"no header":                         {nil, 0},
		"version 1":                         {[]byte("PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n"), 0},
		"another version":                   {append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x31, 0x11, 0, 0), 0},
		"too short for its addresses":       {proxyHeader(1, 0x11, []byte{192, 0, 2, 1}), 0},
		"an unknown family":                 {proxyHeader(1, 0x31, make([]byte, 216)), 0},
		"longer than any that a proxy says": {proxyHeader(1, 0x11, make([]byte, 65535)), 0},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", addr)
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
			_, _ = conn.Write(append(tt.header, "GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: close\r\n\r\n"...)) // it may be closed already
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if tt.want == 0 {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			defer response.Body.Close()
			_, _ = io.Copy(io.Discard, response.Body)
			require.Equal(t, tt.want, response.StatusCode)
		})
	}
}
