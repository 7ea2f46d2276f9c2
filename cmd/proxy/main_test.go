package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/members"
	"github.com/lambdamesh/lambdamesh/pkg/sidecar"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const (
	patience = time.Minute
	node     = "gateway~lambdamesh-system~gateway~gateway-1"
	target   = "lambdamesh-system/gateway"
)

// controlPlane is a real ADS server that can be replaced by one of another CA.
type controlPlane struct {
	address string
	backend atomic.Pointer[string]

	mu    sync.Mutex
	shown []string // tokens, in the order of streams
}

// Authenticate implements ads.Authenticator.
func (c *controlPlane) Authenticate(_ context.Context, token string) (ads.Identity, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shown = append(c.shown, token)
	if !strings.HasPrefix(token, "good-") {
		return ads.Identity{}, ads.ErrUnauthenticated
	}
	return ads.Identity{Namespace: "lambdamesh-system", ServiceAccount: "gateway"}, nil
}

func (c *controlPlane) lastToken() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.shown) == 0 {
		return ""
	}
	return c.shown[len(c.shown)-1]
}

// newControlPlane listens for connections and passes them on to the server of
// the moment.
func newControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { front.Close() })
	c := &controlPlane{address: front.Addr().String()}
	go func() {
		for {
			client, err := front.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				address := c.backend.Load()
				if address == nil {
					return
				}
				server, err := net.Dial("tcp", *address)
				if err != nil {
					return
				}
				defer server.Close()
				go func() { _, _ = io.Copy(server, client); server.Close() }()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
	return c
}

// serve runs a server with a CA of its own until stop.
func (c *controlPlane) serve(t *testing.T) (server *ads.Server, root []byte, stop func()) {
	t.Helper()
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server, err = ads.New(ads.Config{
		Listener: listener, CA: authority, Authenticator: c, ServerNames: []string{"controlplane.lambdamesh-system.svc"},
		NodeIdentity: func(context.Context, string) (ads.Identity, bool) {
			return ads.Identity{Namespace: "lambdamesh-system", ServiceAccount: "gateway"}, true
		},
		Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); require.NoError(t, <-done) }) }
	t.Cleanup(stop)
	c.backend.Store(new(listener.Addr().String()))
	return server, authority.Root(), stop
}

// installation is what a pod of the manifests finds in its volumes.
type installation struct {
	dir, config string
}

func install(t *testing.T, c *controlPlane) installation {
	t.Helper()
	dir := testkit.TempSocketDir(t)
	i := installation{dir: dir, config: filepath.Join(dir, sidecar.BootstrapFile)}
	data, err := members.ConfigMaps{XDSAddress: "controlplane.lambdamesh-system.svc:15010"}.Data()
	require.NoError(t, err)
	host, port, err := net.SplitHostPort(c.address)
	require.NoError(t, err)
	for name, changes := range map[string][]string{
		sidecar.BootstrapFile: {
			sidecar.MeshDir, dir,
			"address: 127.0.0.1, port_value: 15000", "address: 127.0.0.1, port_value: 0",
			"address: 0.0.0.0, port_value: 15021", "address: 127.0.0.1, port_value: 0",
			"{address: controlplane.lambdamesh-system.svc, port_value: 15010}", fmt.Sprintf("{address: %s, port_value: %s}", host, port),
		},
		sidecar.SecretFile: {sidecar.MeshDir, dir},
	} {
		text := data[name]
		for j := 0; j < len(changes); j += 2 {
			require.Contains(t, text, changes[j])
			text = strings.ReplaceAll(text, changes[j], changes[j+1])
		}
		i.write(t, name, []byte(text))
	}
	return i
}

func (i installation) write(t *testing.T, name string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(filepath.Join(i.dir, name), content, 0o600))
}

// logLines is a log whose lines can be looked for.
type logLines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// address is where a listener of the bootstrap serves.
func (l *logLines) address(t *testing.T, listener string) string {
	t.Helper()
	var found string
	testkit.Eventually(t, patience, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for line := range strings.Lines(l.text.String()) {
			var fields struct{ Listener, Address string }
			if err := json.Unmarshal([]byte(line), &fields); err == nil && fields.Listener == listener {
				found = fields.Address
				return nil
			}
		}
		return fmt.Errorf("no such line in\n%s", l.text.String())
	}, "the log tells where "+listener+" is")
	return found
}

// start runs the program; stop is SIGTERM, and returns how it ended.
func start(t *testing.T, args ...string) (log *logLines, stop context.CancelFunc, ended <-chan error) {
	t.Helper()
	log = &logLines{}
	cmd := command(func(string) (string, bool) { return "", false })
	cmd.SetArgs(args)
	cmd.SetErr(log)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return log, cancel, done
}

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	response, err := client.Get(url)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, string(body)
}

func requireAnswer(t *testing.T, url string, status int, body string) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		response, err := http.Get(url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		got, err := io.ReadAll(response.Body)
		if err != nil {
			return err
		}
		if response.StatusCode != status || string(got) != body {
			return fmt.Errorf("%d %s", response.StatusCode, got)
		}
		return nil
	}, url)
}

func message(t *testing.T, text string, into types.Resource) types.Resource {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	require.NoError(t, protojson.Unmarshal(b, into.(proto.Message)))
	return into
}

// resources lead a Unix socket to a backend.
func resources(t *testing.T, socket, backend string) ads.Resources {
	t.Helper()
	host, port, err := net.SplitHostPort(backend)
	require.NoError(t, err)
	return ads.Resources{
		resource.ListenerType: {message(t, fmt.Sprintf(`
name: http
address: {pipe: {path: %q}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: http
      route_config:
        name: http
        virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: backend}}]}]
      http_filters:
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`, socket), &listenerv3.Listener{})},
		resource.ClusterType: {message(t, fmt.Sprintf(`
name: backend
type: STATIC
load_assignment:
  cluster_name: backend
  endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: %s}}}}]}]
`, host, port), &clusterv3.Cluster{})},
	}
}

func TestTheShippedBootstrapMakesAGateway(t *testing.T) {
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			arrived <- struct{}{}
			<-release
		}
		fmt.Fprintf(w, "backend %s", r.URL.Path)
	}))
	defer backend.Close()

	plane := newControlPlane(t)
	files := install(t, plane)
	files.write(t, "token", []byte("bad-1"))
	log, terminate, ended := start(t, "--config-path", files.config, "--service-cluster", "gateway", "--service-node", node, "--drain-time-s", "20")
	ready, admin := "http://"+log.address(t, "ready"), "http://"+log.address(t, "admin")

	// Neither CA nor control plane nor a good token: it waits and says so.
	status, _ := get(t, http.DefaultClient, ready+"/ready")
	require.Equal(t, http.StatusServiceUnavailable, status)
	server, root, stopServer := plane.serve(t)
	socket := filepath.Join(files.dir, "http.sock")
	_, err := server.SetResources(target, resources(t, socket, backend.Listener.Addr().String()))
	require.NoError(t, err)
	files.write(t, "ca.crt", root)
	testkit.Eventually(t, patience, func() error {
		if token := plane.lastToken(); token != "bad-1" {
			return fmt.Errorf("it showed %q", token)
		}
		return nil
	}, "it shows its token")
	status, _ = get(t, http.DefaultClient, ready+"/ready")
	require.Equal(t, http.StatusServiceUnavailable, status)

	// The token is renewed: the next stream has it.
	files.write(t, "token", []byte("good-2\n"))
	requireAnswer(t, ready+"/ready", http.StatusOK, "LIVE\n")
	requireAnswer(t, admin+"/ready", http.StatusOK, "LIVE\n")
	require.Equal(t, "good-2", plane.lastToken())
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	status, body := get(t, client, "http://gateway/hello")
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "backend /hello", body)

	status, body = get(t, http.DefaultClient, ready+"/stats/prometheus")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, body, `lambdamesh_proxy_updates_total{node="`+node+`",result="ack",type="Listener"} 1`)
	for _, path := range []string{"/", "/quitquitquit", "/config_dump"} {
		status, _ = get(t, http.DefaultClient, admin+path)
		require.Equal(t, http.StatusNotFound, status, path)
	}

	// A control plane of another CA: trusted as soon as the file says so.
	stopServer()
	server, root, _ = plane.serve(t)
	changed := resources(t, socket, backend.Listener.Addr().String())
	changed[resource.ListenerType][0].(*listenerv3.Listener).FilterChains[0].Name = "changed"
	_, err = server.SetResources(target, changed)
	require.NoError(t, err)
	status, _ = get(t, client, "http://gateway/meanwhile")
	require.Equal(t, http.StatusOK, status)
	files.write(t, "token", []byte("good-3"))
	files.write(t, "ca.crt", root)
	testkit.Eventually(t, patience, func() error {
		if s := server.Status(target); !s.Acknowledged(s.Version) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	}, "it follows the new control plane")
	require.Equal(t, "good-3", plane.lastToken())

	// SIGTERM: what is in flight is answered, and who asks is told.
	answer := make(chan string, 1)
	go func() {
		response, err := client.Get("http://gateway/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body)
		answer <- fmt.Sprint(response.StatusCode, " ", string(text))
	}()
	<-arrived
	terminate()
	requireAnswer(t, ready+"/ready", http.StatusServiceUnavailable, "DRAINING\n")
	close(release)
	require.Equal(t, "200 backend /slow", <-answer)
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(patience):
		t.Fatal("it did not end")
	}
}

func TestWhatItCannotDoIsSaid(t *testing.T) {
	plane := newControlPlane(t)
	files := install(t, plane)
	good := []string{"--config-path", files.config, "--service-node", node}
	for name, test := range map[string]struct {
		args    []string
		refused string
	}{
		"no bootstrap":     {nil, "pass --config-path"},
		"no file":          {[]string{"--config-path", "/nonexistent/envoy.yaml"}, "read the bootstrap"},
		"no node":          {good[:2], "pass --service-node"},
		"an overlay":       {append(good, "--config-yaml", "stats_sinks: [{name: x}]"), files.config + ": stats_sinks is not supported"},
		"a flag":           {append(good, "--base-id", "2"), "unknown flag: --base-id"},
		"a level":          {append(good, "--log-level", "loud"), `log level "loud"`},
		"no number":        {append(good, "--drain-time-s", "-1"), "drain-time-s"},
		"an argument more": {append(good, "serve"), `unknown command "serve"`},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, ended := start(t, test.args...)
			require.ErrorContains(t, <-ended, test.refused)
		})
	}
}
