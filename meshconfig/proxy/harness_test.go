package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/cncf/xds/go/udpa/type/v1"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// patience is for what comes about by itself, also on a machine with much to do.
const patience = time.Minute

// mesh is a real control plane's delivery with hand-written resources.
type mesh struct {
	t       testing.TB
	ca      *ca.CA
	server  *ads.Server
	changed chan struct{}
}

// tokens are "namespace/serviceaccount"; every node runs as its namespace and
// the service account of its name up to the first dash.
type tokens struct{}

func (tokens) Authenticate(_ context.Context, token string) (ads.Identity, error) {
	ns, sa, ok := strings.Cut(token, "/")
	if !ok {
		return ads.Identity{}, ads.ErrUnauthenticated
	}
	return ads.Identity{Namespace: ns, ServiceAccount: sa}, nil
}

func identityOf(nodeID string) ads.Identity {
	node, _ := ads.ParseNode(nodeID)
	name, _, _ := strings.Cut(node.Name, "-")
	return ads.Identity{Namespace: node.Namespace, ServiceAccount: name}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newMesh(t testing.TB) *mesh {
	t.Helper()
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	m := &mesh{t: t, ca: authority, changed: make(chan struct{}, 1)}
	m.server, err = ads.New(ads.Config{
		Listener: listener, CA: authority, Authenticator: tokens{}, Log: quiet(),
		NodeIdentity: func(_ context.Context, nodeID string) (ads.Identity, bool) { return identityOf(nodeID), true },
		OnChange: func(string) {
			select {
			case m.changed <- struct{}{}:
			default:
			}
		},
	})
	require.NoError(t, err)
	runComponent(t, m.server)
	<-m.server.Ready()
	return m
}

type component interface {
	Run(context.Context) error
	Ready() <-chan struct{}
}

func runComponent(t testing.TB, c component) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				require.NoError(t, err)
			case <-time.After(patience):
				t.Error("the component did not stop")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// node is a proxy with the addresses its listeners really have.
type node struct {
	*proxy.Proxy
	stop func()
	mu   sync.Mutex
	real map[string]string
	err  error // what Listen answers next
}

func (m *mesh) node(nodeID string, change ...func(*proxy.Config)) *node {
	m.t.Helper()
	n := &node{real: map[string]string{}}
	identity := identityOf(nodeID)
	config := proxy.Config{
		NodeID: nodeID, ADSAddress: m.server.Addr(), RootCAs: m.ca.Roots, Log: quiet(), DrainTimeout: 5 * time.Second,
		Token: func(context.Context) (string, error) { return identity.String(), nil },
		Listen: func(_ context.Context, network, address string) (net.Listener, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.err != nil {
				return nil, n.err
			}
			if network == "unix" {
				return net.Listen(network, address)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				n.real[address] = l.Addr().String()
			}
			return l, err
		},
	}
	for _, f := range change {
		f(&config)
	}
	p, err := proxy.New(config)
	require.NoError(m.t, err)
	n.Proxy = p
	n.stop = runComponent(m.t, p)
	return n
}

// addr is where the listener with that address in its configuration listens.
func (n *node) addr(address string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.real[address]
}

func (n *node) waitReady(t testing.TB) {
	t.Helper()
	select {
	case <-n.Ready():
	case <-time.After(patience):
		t.Fatal("the proxy did not become ready")
	}
}

// set serves resources and waits until every node of the target has answered:
// acknowledged, or refused.
func (m *mesh) set(target string, resources ads.Resources) ads.Status {
	m.t.Helper()
	version, err := m.server.SetResources(target, resources)
	require.NoError(m.t, err)
	deadline := time.After(patience)
	for {
		status := m.server.Status(target)
		answered := len(status.Nodes) > 0
		for _, n := range status.Nodes {
			answered = answered && (n.Version == version || len(n.Nacks) > 0)
		}
		if answered {
			return status
		}
		select {
		case <-m.changed:
		case <-deadline:
			m.t.Fatalf("no answer to version %s: %+v", version, status)
		}
	}
}

// mustSet is set, and nothing may be refused.
func (m *mesh) mustSet(target string, resources ads.Resources) {
	m.t.Helper()
	for _, n := range m.set(target, resources).Nodes {
		require.Empty(m.t, n.Nacks)
	}
}

// resources reads YAML documents; each is a list under its type's name.
func resources(t testing.TB, text string) ads.Resources {
	t.Helper()
	var doc map[string][]any
	require.NoError(t, yaml.Unmarshal([]byte(strings.ReplaceAll(text, "\t", "  ")), &doc), text)
	kinds := map[string]struct {
		url   string
		empty func() types.Resource
	}{
		"listeners": {resource.ListenerType, func() types.Resource { return &listenerv3.Listener{} }},
		"routes":    {resource.RouteType, func() types.Resource { return &routev3.RouteConfiguration{} }},
		"clusters":  {resource.ClusterType, func() types.Resource { return &clusterv3.Cluster{} }},
		"endpoints": {resource.EndpointType, func() types.Resource { return &endpointv3.ClusterLoadAssignment{} }},
		"secrets":   {resource.SecretType, func() types.Resource { return &tlsv3.Secret{} }},
	}
	out := ads.Resources{}
	for kind, list := range doc {
		k, ok := kinds[kind]
		require.True(t, ok, kind)
		for _, one := range list {
			b, err := yaml.Marshal(one)
			require.NoError(t, err)
			j, err := yaml.YAMLToJSON(b)
			require.NoError(t, err)
			m := k.empty()
			require.NoError(t, protojson.Unmarshal(j, m))
			out[k.url] = append(out[k.url], m)
		}
	}
	return out
}

// indent shifts all lines but the first.
func indent(n int, text string) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+strings.Repeat(" ", n))
}

// config is a gateway with one plain listener at 10.0.0.1:80, its routes over
// RDS, and static clusters.
type config struct {
	hcm      string // further fields of the connection manager
	filters  string // HTTP filters before the router
	hosts    string // virtual hosts
	table    string // further fields of the route table
	clusters map[string]string
}

func (c config) resources(t testing.TB) ads.Resources {
	t.Helper()
	text := fmt.Sprintf(`
listeners:
- name: http
  address: {socket_address: {address: 10.0.0.1, port_value: 80}}
  filter_chains:
  - filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: http
        rds: {route_config_name: http, config_source: {ads: {}, resource_api_version: V3}}
        %s
        http_filters:
        %s
        - name: envoy.filters.http.router
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
routes:
- name: http
  %s
  virtual_hosts:
  %s
`, indent(8, c.hcm), indent(8, c.filters), indent(2, c.table), indent(2, c.hosts))
	out := resources(t, text)
	for name, addr := range c.clusters {
		out[resource.ClusterType] = append(out[resource.ClusterType], staticCluster(t, name, addr, ""))
	}
	return out
}

func endpointAddress(addr string) string {
	if strings.HasPrefix(addr, "/") {
		return fmt.Sprintf("{pipe: {path: %q}}", addr)
	}
	host, port, _ := net.SplitHostPort(addr)
	return fmt.Sprintf("{socket_address: {address: %s, port_value: %s}}", host, port)
}

func staticCluster(t testing.TB, name, addr, more string) types.Resource {
	t.Helper()
	return resources(t, fmt.Sprintf(`
clusters:
- name: %s
  type: STATIC
  connect_timeout: 1s
  load_assignment:
    cluster_name: %s
    endpoints: [{lb_endpoints: [{endpoint: {address: %s}}]}]
  %s
`, name, name, endpointAddress(addr), indent(2, more)))[resource.ClusterType][0]
}

const target = "edge/gateway"

const gatewayNode = "gateway~edge~gateway~1"

// serve runs a gateway with the configuration and returns its address.
func serve(t testing.TB, c config) (*mesh, *node, string) {
	t.Helper()
	m := newMesh(t)
	n := m.node(gatewayNode)
	m.mustSet(target, c.resources(t))
	n.waitReady(t)
	return m, n, n.addr("10.0.0.1:80")
}

const toBackend = `
- name: all
  domains: ["*"]
  routes: [{match: {prefix: /}, route: {cluster: backend}}]
`

// backend is an upstream server.
func backend(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// echo tells what it got.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Got-Method", r.Method)
	w.Header().Set("Got-Path", r.RequestURI)
	w.Header().Set("Got-Host", r.Host)
	for k, v := range r.Header {
		w.Header()["Got-"+k] = v
	}
	_, _ = w.Write(body)
}

type answer struct {
	code   int
	header http.Header
	body   string
}

func do(t testing.TB, client *http.Client, req *http.Request) answer {
	t.Helper()
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func request(t testing.TB, method, addr, path string, change ...func(*http.Request)) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
	require.NoError(t, err)
	for _, f := range change {
		f(req)
	}
	return req
}

func get(t testing.TB, addr, path string, change ...func(*http.Request)) answer {
	t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	return do(t, client, request(t, http.MethodGet, addr, path, change...))
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func host(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }

func eventually(t testing.TB, what string, check func() bool) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		if !check() {
			return errors.New("not yet")
		}
		return nil
	}, what)
}
