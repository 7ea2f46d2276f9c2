package proxy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
)

// load sends requests until stopped and counts what was not 2xx.
func load(t *testing.T, addr string) (stop func() (total int64)) {
	t.Helper()
	var total atomic.Int64
	var failures sync.Map
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}, Timeout: time.Minute}
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := client.Post("http://"+addr+"/", "text/plain", strings.NewReader("body"))
				if err != nil {
					failures.Store(err.Error(), true)
					continue
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode/100 != 2 {
					failures.Store(resp.Status, true)
				}
				total.Add(1)
			}
		})
	}
	return func() int64 {
		cancel()
		wg.Wait()
		client.CloseIdleConnections()
		failures.Range(func(k, _ any) bool { t.Error("under load: ", k); return true })
		return total.Load()
	}
}

func TestChangesUnderLoadFailNoRequest(t *testing.T) {
	one, two := backend(t, echo), backend(t, echo)
	base := config{hosts: toBackend, clusters: map[string]string{"backend": one}}
	m, _, addr := serve(t, base)
	stop := load(t, addr)
	for i := range 30 {
		c := base
		name := fmt.Sprintf("c%d", i) // other clusters, other routes, other listeners
		c.clusters = map[string]string{name: two}
		c.hosts = strings.ReplaceAll(toBackend, "backend", name)
		switch i % 3 {
		case 1:
			c.hcm = fmt.Sprintf("server_name: s%d", i)
		case 2:
			c.hcm = fmt.Sprintf("request_headers_timeout: %ds", 10+i) // another server for new connections
		}
		m.mustSet(target, c.resources(t))
	}
	require.Greater(t, stop(), int64(100))
}

func TestConnectionsSurviveANewConfiguration(t *testing.T) {
	base := config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}
	m, _, addr := serve(t, base)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	dials := 0
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, a string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, a)
	}
	require.Equal(t, 200, do(t, client, request(t, "GET", addr, "/")).code)
	c := base
	c.hcm = "server_name: changed"
	c.hosts = "- {name: all, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 204}}]}"
	m.mustSet(target, c.resources(t))
	got := do(t, client, request(t, "GET", addr, "/"))
	require.Equal(t, 204, got.code)
	require.Equal(t, "changed", got.header.Get("Server"))
	require.Equal(t, 1, dials)
}

func TestRemovedListenersFinishTheirRequests(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	base := config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = io.WriteString(w, "done")
	})}}
	m, _, addr := serve(t, base)
	done := make(chan answer, 1)
	go func() { done <- get(t, addr, "/") }()
	<-arrived
	m.mustSet(target, ads.Resources{})
	_, err := net.DialTimeout("tcp", addr, time.Second)
	require.Error(t, err, "the address is closed")
	close(release)
	require.Equal(t, "done", (<-done).body)
}

func TestStoppingLetsRequestsFinish(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	_, n, addr := serve(t, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, func(w http.ResponseWriter, _ *http.Request) {
		close(arrived)
		<-release
		_, _ = io.WriteString(w, "done")
	})}})
	done := make(chan answer, 1)
	go func() { done <- get(t, addr, "/") }()
	<-arrived
	require.Equal(t, 1, n.ActiveRequests())
	stopped := make(chan struct{})
	go func() { n.stop(); close(stopped) }()
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			break
		}
		c.Close()
		require.True(t, time.Now().Before(deadline), "still listening")
	}
	close(release)
	require.Equal(t, "done", (<-done).body)
	<-stopped
	require.Zero(t, n.ActiveRequests())
}

func TestWithoutControlPlaneTheLastConfigurationStays(t *testing.T) {
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	control := func(addr string) (*ads.Server, func()) {
		l, err := net.Listen("tcp", addr)
		require.NoError(t, err)
		s, err := ads.New(ads.Config{
			Listener: l, CA: authority, Authenticator: tokens{}, Log: quiet(),
			NodeIdentity: func(_ context.Context, id string) (ads.Identity, bool) { return identityOf(id), true },
		})
		require.NoError(t, err)
		return s, runComponent(t, s)
	}
	server, stop := control("127.0.0.1:0")
	m := &mesh{t: t, ca: authority, server: server, changed: make(chan struct{})}
	n := m.node(gatewayNode)
	base := config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}
	_, err = server.SetResources(target, base.resources(t))
	require.NoError(t, err)
	n.waitReady(t)
	addr := n.addr("10.0.0.1:80")
	stopLoad := load(t, addr)
	stop()
	require.Equal(t, 200, get(t, addr, "/").code)

	again, _ := control(server.Addr()) // it knows nothing yet
	require.Equal(t, 200, get(t, addr, "/").code)
	changed := base
	changed.hcm = "server_name: again"
	version, err := again.SetResources(target, changed.resources(t))
	require.NoError(t, err)
	eventually(t, "the proxy connects again", func() bool { return again.Status(target).Acknowledged(version) })
	require.Equal(t, "again", get(t, addr, "/").header.Get("Server"))
	stopLoad()
}

func TestAListenerWaitsForItsRoutes(t *testing.T) {
	m := newMesh(t)
	n := m.node(gatewayNode)
	r := config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}.resources(t)
	delete(r, resource.RouteType)
	_, err := m.server.SetResources(target, r)
	require.NoError(t, err)
	eventually(t, "the address is bound", func() bool { return n.addr("10.0.0.1:80") != "" })
	// The address is bound, so that a client waits instead of being refused.
	done := make(chan answer, 1)
	go func() { done <- get(t, n.addr("10.0.0.1:80"), "/") }()
	select {
	case <-n.Ready():
		t.Fatal("ready without routes")
	case <-done:
		t.Fatal("answered without routes")
	case <-time.After(50 * time.Millisecond):
	}
	m.mustSet(target, config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}.resources(t))
	n.waitReady(t)
	require.Equal(t, 200, (<-done).code)
}

// tlsGateway has a filter chain per server name with certificates of Secrets.
func tlsGateway(t *testing.T, secrets map[string]ca.Leaf) ads.Resources {
	t.Helper()
	chain := func(name, names, status string) string {
		return fmt.Sprintf(`
  - name: %s
    filter_chain_match: {server_names: %s}
    transport_socket:
      name: tls
      typed_config:
        %stransport_sockets.tls.v3.DownstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2, http/1.1]
          tls_certificate_sds_secret_configs: [{name: "kubernetes://%s", sds_config: {ads: {}}}]
    filters:
    - name: hcm
      typed_config:
        %sfilters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: x
        use_remote_address: true
        route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: %s, body: {inline_string: "ok"}}}]}]}
        http_filters: [{name: router, typed_config: {%sfilters.http.router.v3.Router}}]`, name, names, typePrefix, name, typePrefix, status, typePrefix)
	}
	out := resources(t, `
listeners:
- name: https
  address: {socket_address: {address: 10.0.0.1, port_value: 443}}
  filter_chains:`+chain("shop", "[shop.example]", "201")+chain("wild", `["*.shop.example"]`, "202"))
	for name, leaf := range secrets {
		out[resource.SecretType] = append(out[resource.SecretType], resources(t, fmt.Sprintf(`
secrets: [{name: "kubernetes://%s", tls_certificate: {certificate_chain: {inline_string: %q}, private_key: {inline_string: %q}}}]`, name, leaf.ChainPEM, leaf.KeyPEM))[resource.SecretType]...)
	}
	return out
}

func TestFilterChainsAreChosenByServerName(t *testing.T) {
	m := newMesh(t)
	n := m.node(gatewayNode)
	shop, err := m.ca.IssueServer("shop.example")
	require.NoError(t, err)
	wild, err := m.ca.IssueServer("*.shop.example")
	require.NoError(t, err)
	m.mustSet(target, tlsGateway(t, map[string]ca.Leaf{"shop": shop, "wild": wild}))
	n.waitReady(t)
	addr := n.addr("10.0.0.1:443")

	fetch := func(name string, h2 bool) (*http.Response, error) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: m.ca.Pool(), ServerName: name}, ForceAttemptHTTP2: h2}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("https://" + addr + "/")
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	for name, code := range map[string]int{"shop.example": 201, "SHOP.example": 201, "a.shop.example": 202} {
		for _, h2 := range []bool{false, true} {
			resp, err := fetch(name, h2)
			require.NoError(t, err, name)
			require.Equal(t, code, resp.StatusCode)
			require.Equal(t, h2, resp.ProtoMajor == 2)
		}
	}
	_, err = fetch("other.example", false)
	require.Error(t, err)

	// A renewed certificate is used for new connections.
	renewed, err := m.ca.IssueServer("shop.example")
	require.NoError(t, err)
	m.mustSet(target, tlsGateway(t, map[string]ca.Leaf{"shop": renewed, "wild": wild}))
	serial := func() string {
		c, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: m.ca.Pool(), ServerName: "shop.example"})
		require.NoError(t, err)
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	want, err := tls.X509KeyPair(renewed.ChainPEM, renewed.KeyPEM)
	require.NoError(t, err)
	eventually(t, "the renewed certificate is served", func() bool { return serial() == want.Leaf.SerialNumber.String() })
	var unknown x509.UnknownAuthorityError
	_, err = tls.Dial("tcp", addr, &tls.Config{ServerName: "shop.example"})
	require.True(t, errors.As(err, &unknown))
}

func TestListenersThatBindNothingAreNotOpened(t *testing.T) {
	r := config{hosts: toBackend, clusters: map[string]string{"backend": backend(t, echo)}}.resources(t)
	r[resource.ListenerType] = append(r[resource.ListenerType], resources(t, `
listeners: [{name: virtual, bind_to_port: false, address: {socket_address: {address: 10.0.0.2, port_value: 80}}}]`)[resource.ListenerType]...)
	m := newMesh(t)
	n := m.node(gatewayNode)
	m.mustSet(target, r)
	n.waitReady(t)
	require.NotEmpty(t, n.addr("10.0.0.1:80"))
	require.Empty(t, n.addr("10.0.0.2:80"))
}

func TestConfigNamesWhatIsMissing(t *testing.T) {
	_, err := proxy.New(proxy.Config{})
	for _, name := range []string{"NodeID", "ADSAddress", "RootCAs", "Token"} {
		require.ErrorContains(t, err, name+" is required")
	}
}
