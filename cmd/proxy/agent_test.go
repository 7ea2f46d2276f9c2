package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// agentADS is the Unix socket of Istio's agent: it answers each first request of a
// type once it may.
type agentADS struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	resources ads.Resources
	may       chan struct{}
}

func (a *agentADS) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	<-a.may
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		if request.GetResponseNonce() != "" {
			continue
		}
		response := &discoveryv3.DiscoveryResponse{TypeUrl: request.GetTypeUrl(), VersionInfo: "1", Nonce: "1"}
		for _, one := range a.resources[request.GetTypeUrl()] {
			packed, err := anypb.New(one)
			if err != nil {
				return err
			}
			response.Resources = append(response.Resources, packed)
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

// Istio's agent starts its Envoy with the bootstrap that it makes and this command
// line (pkg/envoy of Istio), and asks it for its state at the admin address.
func TestStartedByIstiosAgent(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "backend") }))
	defer backend.Close()
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "agent %s", r.URL.Path) }))
	defer agent.Close()

	dir := testkit.TempSocketDir(t)
	a := &agentADS{resources: resources(t, filepath.Join(dir, "http.sock"), backend.Listener.Addr().String()), may: make(chan struct{})}
	listener, err := net.Listen("unix", filepath.Join(dir, "XDS"))
	require.NoError(t, err)
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, a)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	text, err := os.ReadFile(filepath.Join("..", "..", "meshconfig", "proxy", "bootstrap", "testdata", "istio.json"))
	require.NoError(t, err)
	_, agentPort, err := net.SplitHostPort(agent.Listener.Addr().String())
	require.NoError(t, err)
	config := string(text)
	for old, with := range map[string]string{
		`"./etc/istio/proxy/XDS"`: fmt.Sprintf("%q", filepath.Join(dir, "XDS")), `"port_value": 15000`: `"port_value": 0`,
		`"port_value": 15020`: `"port_value": ` + agentPort, `"port_value": 15021`: `"port_value": 0`, `"port_value": 15090`: `"port_value": 0`,
		`"0.0.0.0"`: `"127.0.0.1"`,
	} {
		require.Contains(t, config, old)
		config = strings.ReplaceAll(config, old, with)
	}
	file := filepath.Join(dir, "envoy-rev.json")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	log, stop, ended := start(t, "-c", file, "--drain-time-s", "45", "--drain-strategy", "immediate", "--local-address-ip-version", "v4",
		"--file-flush-interval-msec", "1000", "--disable-hot-restart", "--allow-unknown-static-fields",
		"-l", "info", "--component-log-level", "misc:error", "--skip-deprecated-logs", "--concurrency", "2")
	admin, metrics, status := "http://"+log.address(t, "admin"), "http://"+log.address(t, "0.0.0.0_15090"), "http://"+log.address(t, "0.0.0.0_15021")

	const ready = "/stats?usedonly&filter=^(server\\.state|listener_manager\\.workers_started)$"
	code, body := get(t, http.DefaultClient, admin+ready)
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "listener_manager.workers_started: 0\nserver.state: 3\n", body, "it initializes")
	close(a.may)
	requireAnswer(t, admin+ready, http.StatusOK, "listener_manager.workers_started: 1\nserver.state: 0\n")
	_, body = get(t, http.DefaultClient, admin+"/stats?usedonly&filter=^(cluster_manager\\.cds|listener_manager\\.lds)\\.(update_success|update_rejected)$")
	require.Equal(t, "cluster_manager.cds.update_rejected: 0\ncluster_manager.cds.update_success: 1\nlistener_manager.lds.update_rejected: 0\nlistener_manager.lds.update_success: 1\n", body)
	code, _ = get(t, http.DefaultClient, admin+"/stats?filter=(")
	require.Equal(t, http.StatusBadRequest, code)

	// The bootstrap's listeners lead to the agent and to the metrics.
	code, body = get(t, http.DefaultClient, status+"/healthz/ready")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, "agent /healthz/ready", body)
	code, body = get(t, http.DefaultClient, metrics+"/stats/prometheus")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, "lambdamesh_proxy_updates_total")
	for _, url := range []string{status + "/quitquitquit", status + "/stats", metrics + "/stats", metrics + "/drain_listeners", admin + "/quitquitquit"} {
		code, _ = get(t, http.DefaultClient, url)
		require.Equal(t, http.StatusNotFound, code, url)
	}
	agent.Close()
	code, _ = get(t, http.DefaultClient, status+"/healthz/ready")
	require.Equal(t, http.StatusServiceUnavailable, code)

	for query, want := range map[string]int{"?inboundonly&graceful&skip_exit": http.StatusOK, "": http.StatusBadRequest} {
		response, err := http.Post(admin+"/drain_listeners"+query, "", nil)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, want, response.StatusCode, query)
	}
	stop()
	require.NoError(t, <-ended)
}

func TestFlagsThatWouldMeanSomethingElseAreRefused(t *testing.T) {
	for flag, want := range map[string]string{
		"--drain-strategy=eventually": "write gradual or immediate", "--local-address-ip-version=v5": "write v4 or v6",
		"--disable-hot-restart=false": "there is no hot restart", "--restart-epoch=1": "unknown flag",
	} {
		_, _, ended := start(t, flag, "--config-path", "none")
		require.ErrorContains(t, <-ended, want)
	}
}
