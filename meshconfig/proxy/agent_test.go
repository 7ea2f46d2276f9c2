package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const agentIdentity = "spiffe://cluster.local/ns/shop/sa/tax"

// agent is Istio's beside a proxy: on one Unix socket it passes on what the control
// plane serves, on another it serves the workload's certificate, in plain text.
type agent struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	secretv3.UnimplementedSecretDiscoveryServiceServer

	ads, sds  string // unix:PATH
	resources ads.Resources

	mu      sync.Mutex
	ca      *ca.CA
	changed chan struct{} // closed when the CA is another one
	node    *corev3.Node
	bearer  []string
	refused []string
	asked   []string // names of secrets of each stream
}

func newAgent(t *testing.T, resources ads.Resources) *agent {
	t.Helper()
	dir := testkit.TempSocketDir(t)
	a := &agent{resources: resources, changed: make(chan struct{})}
	a.rotate(t)
	for name, register := range map[string]func(*grpc.Server){
		"ads": func(s *grpc.Server) { discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, a) },
		"sds": func(s *grpc.Server) { secretv3.RegisterSecretDiscoveryServiceServer(s, a) },
	} {
		path := filepath.Join(dir, name)
		listener, err := net.Listen("unix", path)
		require.NoError(t, err)
		server := grpc.NewServer()
		register(server)
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		if name == "ads" {
			a.ads = "unix:" + path
		} else {
			a.sds = "unix:" + path
		}
	}
	return a
}

// rotate makes another CA, and pushes what it issues.
func (a *agent) rotate(t *testing.T) *ca.CA {
	t.Helper()
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ca = authority
	close(a.changed)
	a.changed = make(chan struct{})
	return authority
}

// StreamAggregatedResources answers each first request of a type.
func (a *agent) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.bearer = md.Get("authorization")
		if request.GetNode() != nil {
			a.node = request.GetNode()
		}
		if problem := request.GetErrorDetail(); problem != nil {
			a.refused = append(a.refused, problem.GetMessage())
		}
		a.mu.Unlock()
		if request.GetResponseNonce() != "" {
			continue
		}
		if err := stream.Send(response(request.GetTypeUrl(), "1", a.resources[request.GetTypeUrl()]...)); err != nil {
			return err
		}
	}
}

func response(typeURL, version string, list ...types.Resource) *discoveryv3.DiscoveryResponse {
	out := &discoveryv3.DiscoveryResponse{TypeUrl: typeURL, VersionInfo: version, Nonce: version}
	for _, one := range list {
		packed, err := anypb.New(one)
		if err != nil {
			panic(err)
		}
		out.Resources = append(out.Resources, packed)
	}
	return out
}

// StreamSecrets serves one secret, again whenever the CA is another one.
func (a *agent) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	if len(request.GetResourceNames()) != 1 || request.GetNode().GetId() == "" {
		return errors.New("a stream is for one secret of a node")
	}
	a.mu.Lock()
	a.asked = append(a.asked, request.GetResourceNames()[0])
	a.mu.Unlock()
	for version := 1; ; version++ {
		a.mu.Lock()
		authority, changed := a.ca, a.changed
		a.mu.Unlock()
		secret, err := agentSecret(authority, request.GetResourceNames()[0])
		if err != nil {
			return err
		}
		if err := stream.Send(response(resource.SecretType, fmt.Sprint(version), secret)); err != nil {
			return err
		}
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if problem := answer.GetErrorDetail(); problem != nil || answer.GetResponseNonce() != fmt.Sprint(version) || answer.GetVersionInfo() != fmt.Sprint(version) {
			return fmt.Errorf("version %d was not acknowledged: %v", version, answer)
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

func agentSecret(authority *ca.CA, name string) (*tlsv3.Secret, error) {
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	if name == "ROOTCA" {
		return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline(authority.Root()),
			// A file that is there and empty, as Istio's agent names one.
			Crl: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: "/dev/null"}},
		}}}, nil
	}
	leaf, err := authority.Issue(agentIdentity)
	if err != nil {
		return nil, err
	}
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(leaf.ChainPEM), PrivateKey: inline(leaf.KeyPEM),
	}}}, nil
}

// sidecar is a proxy beside the agent. Its listener in is mTLS, out is plain.
func (a *agent) sidecar(t *testing.T) (*proxy.Proxy, map[string]string) {
	t.Helper()
	var mu sync.Mutex
	real := map[string]string{}
	told, err := structpb.NewStruct(map[string]any{"INTERCEPTION_MODE": "NONE"})
	require.NoError(t, err)
	p, err := proxy.New(proxy.Config{
		NodeID: "sidecar~10.0.0.1~tax.shop~shop.svc.cluster.local", NodeMetadata: told, ADSAddress: a.ads,
		SecretServers: map[string]string{"sds-grpc": a.sds}, Log: quiet(),
		Listen: func(_ context.Context, _, address string) (net.Listener, error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				real[address] = l.Addr().String()
			}
			return l, err
		},
	})
	require.NoError(t, err)
	runComponent(t, p)
	(&node{Proxy: p}).waitReady(t)
	mu.Lock()
	defer mu.Unlock()
	return p, real
}

// caller is a member of the mesh of a CA.
func caller(t *testing.T, authority *ca.CA) *http.Client {
	t.Helper()
	leaf, err := authority.Issue("spiffe://cluster.local/ns/shop/sa/cart")
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(leaf.ChainPEM, leaf.KeyPEM)
	require.NoError(t, err)
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, //nolint:gosec // what is verified is the server's part
		VerifyConnection: func(state tls.ConnectionState) error {
			if got := state.PeerCertificates[0].URIs[0].String(); got != agentIdentity {
				return fmt.Errorf("it is %s", got)
			}
			return nil
		},
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Timeout: patience, Transport: transport}
}

const sdsConfig = `{api_config_source: {api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: %s}}]}, resource_api_version: V3, initial_fetch_timeout: 0s}`

func agentResources(t *testing.T, server, backend string) ads.Resources {
	t.Helper()
	config := fmt.Sprintf(sdsConfig, server)
	manager := func(cluster string) string {
		return `name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: http
        route_config: {name: http, virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: ` + cluster + `}}]}]}
        http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]`
	}
	out := resources(t, `
listeners:
- name: in
  traffic_direction: INBOUND
  address: {socket_address: {address: 10.0.0.1, port_value: 8080}}
  filter_chains:
  - filter_chain_match: {destination_port: 8080}
    filters:
    - `+manager("backend")+`
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        require_client_certificate: true
        common_tls_context:
          tls_certificate_sds_secret_configs: [{name: default, sds_config: `+config+`}]
          combined_validation_context:
            default_validation_context: {}
            validation_context_sds_secret_config: {name: ROOTCA, sds_config: `+config+`}
- name: out
  traffic_direction: OUTBOUND
  address: {socket_address: {address: 127.0.0.1, port_value: 15080}}
  filter_chains:
  - filters:
    - `+manager("PassthroughCluster")+`
clusters:
- name: PassthroughCluster
  type: ORIGINAL_DST
  lb_policy: CLUSTER_PROVIDED
`)
	out[resource.ClusterType] = append(out[resource.ClusterType], staticCluster(t, "backend", backend, "upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}}"))
	return out
}

func TestASidecarBesideIstiosAgent(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, host)
	}))
	defer backend.Close()
	a := newAgent(t, agentResources(t, "sds-grpc", backend.Listener.Addr().String()))
	p, at := a.sidecar(t)
	in, out := "https://"+at["10.0.0.1:8080"]+"/", "http://"+at["127.0.0.1:15080"]+"/"

	a.mu.Lock()
	first := a.ca
	require.Equal(t, "NONE", a.node.GetMetadata().GetFields()["INTERCEPTION_MODE"].GetStringValue())
	require.Empty(t, a.bearer, "an agent has a token of its own")
	require.Empty(t, a.refused)
	require.ElementsMatch(t, []string{"default", "ROOTCA"}, a.asked)
	a.mu.Unlock()
	require.Equal(t, 1, p.Updates("Listener").Accepted)

	status, body := get2(t, caller(t, first), in)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, "127.0.0.6", body, "the address that the application sees its sidecar at")

	// Where a connection was going before it was redirected: none was.
	status, _ = get2(t, http.DefaultClient, out)
	require.Equal(t, http.StatusServiceUnavailable, status)

	// Another CA: new connections are verified by it.
	second := a.rotate(t)
	testkit.Eventually(t, patience, func() error {
		resp, err := caller(t, second).Get(in)
		if err == nil {
			err = resp.Body.Close()
		}
		return err
	}, "who has a certificate of the new CA is let in")
	_, err := caller(t, first).Get(in) //nolint:bodyclose // there is none
	require.Error(t, err)

	// Drained as its agent asks: clients of the inbound listener go, others stay.
	p.Drain(true)
	for url, want := range map[string]bool{in: true, out: false} {
		resp, err := caller(t, second).Get(url)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, want, resp.Close, url)
	}
}

func TestASecretOfAServerThatIsNotThereIsRefused(t *testing.T) {
	a := newAgent(t, agentResources(t, "sds-elsewhere", "127.0.0.1:1"))
	p, err := proxy.New(proxy.Config{NodeID: "n", ADSAddress: a.ads, SecretServers: map[string]string{"sds-grpc": a.sds}, Log: quiet()})
	require.NoError(t, err)
	runComponent(t, p)
	testkit.Eventually(t, patience, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.refused) == 0 {
			return errors.New("nothing is refused")
		}
		require.Contains(t, a.refused[0], `Listener "in": there is no SDS server "sds-elsewhere" in the bootstrap`)
		return nil
	}, "it is refused by its name")
	require.Equal(t, 1, p.Updates("Listener").Refused)
}

func TestAnAgentIsOnThisMachine(t *testing.T) {
	for name, config := range map[string]proxy.Config{
		"a control plane without a CA": {NodeID: "n", ADSAddress: "127.0.0.1:1"},
		"secrets from elsewhere":       {NodeID: "n", ADSAddress: "unix:x", SecretServers: map[string]string{"sds-grpc": "127.0.0.1:1"}},
	} {
		_, err := proxy.New(config)
		require.Error(t, err, name)
	}
}

func get2(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := client.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}
