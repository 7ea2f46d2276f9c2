package proxy_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// app is an HTTP server on a Unix socket, as a lambda is one.
func app(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(testkit.TempSocketDir(t), "app.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}}
	s.Start()
	t.Cleanup(s.Close)
	return path
}

const tlsContext = `
common_tls_context:
  tls_params: {tls_minimum_protocol_version: TLSv1_3}
  tls_certificate_sds_secret_configs: [{name: default, sds_config: {ads: {}, resource_api_version: V3}}]
  alpn_protocols: [h2, http/1.1]
  combined_validation_context:
    default_validation_context: %s
    validation_context_sds_secret_config: {name: ROOTCA, sds_config: {ads: {}, resource_api_version: V3}}
`

// inbound is the sidecar's listener: mutual TLS, only the named callers, to the
// app's socket.
func inbound(t testing.TB, socket, principals string) ads.Resources {
	t.Helper()
	return resources(t, fmt.Sprintf(`
listeners:
- name: inbound
  address: {socket_address: {address: 10.0.0.1, port_value: 8080}}
  traffic_direction: INBOUND
  listener_filters:
  - name: envoy.filters.listener.tls_inspector
    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}
  filter_chains:
  - transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
        require_client_certificate: true
        %s
    filters:
    - name: envoy.filters.network.http_connection_manager
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
        stat_prefix: inbound
        forward_client_cert_details: SANITIZE_SET
        set_current_client_cert_details: {uri: true}
        route_config:
          name: inbound
          virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: app}}]}]
        http_filters:
        - name: envoy.filters.http.rbac
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
            rules:
              action: ALLOW
              policies: {callers: {permissions: [{any: true}], principals: %s}}
        - name: envoy.filters.http.router
          typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
clusters:
- name: app
  type: STATIC
  load_assignment: {cluster_name: app, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %q}}}}]}]}
`, indent(8, fmt.Sprintf(tlsContext, `{match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://cluster.local/"}}]}`)), principals, socket))
}

// outbound is a gateway whose cluster speaks mutual TLS with the named server.
func outbound(t testing.TB, endpoint, names, more string) ads.Resources {
	t.Helper()
	out := config{hosts: toBackend}.resources(t)
	for k, v := range resources(t, fmt.Sprintf(`
clusters:
- name: backend
  type: EDS
  eds_cluster_config: {eds_config: {ads: {}, resource_api_version: V3}, service_name: backend.shop}
  transport_socket_matches:
  - name: tlsMode-istio
    match: {tlsMode: istio}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: backend.shop
        %s
  - {name: tlsMode-disabled, match: {}, transport_socket: {name: envoy.transport_sockets.raw_buffer, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}
  %s
endpoints:
- cluster_name: backend.shop
  endpoints:
  - lb_endpoints:
    - endpoint: {address: %s}
      metadata: {filter_metadata: {envoy.transport_socket_match: {tlsMode: istio}}}
`, indent(8, fmt.Sprintf(tlsContext, names)), more, endpointAddress(endpoint))) {
		out[k] = append(out[k], v...)
	}
	return out
}

const callers = `[{authenticated: {principal_name: {exact: "spiffe://cluster.local/ns/edge/sa/gateway"}}}]`

const lambda = `{match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://cluster.local/ns/shop/sa/orders"}}]}`

func TestTwoProxiesSpeakMutualTLS(t *testing.T) {
	for name, more := range map[string]string{
		"http1": "",
		"http2": `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t)
			sidecar := m.node("orders-1.shop")
			m.mustSet("orders-1.shop", inbound(t, app(t, echo), callers))
			sidecar.waitReady(t)

			gateway := m.node(gatewayNode)
			m.mustSet(target, outbound(t, sidecar.addr("10.0.0.1:8080"), lambda, more))
			gateway.waitReady(t)

			got := get(t, gateway.addr("10.0.0.1:80"), "/orders", header("X-Forwarded-Client-Cert", "URI=spiffe://forged"))
			require.Equal(t, http.StatusOK, got.code, got.body)
			require.Equal(t, "/orders", got.header.Get("Got-Path"))
			require.Regexp(t, `^Hash=[0-9a-f]{64};URI=spiffe://cluster.local/ns/edge/sa/gateway$`, got.header.Get("Got-X-Forwarded-Client-Cert"))
		})
	}
}

func TestSidecarRefusesWhoIsNotNamed(t *testing.T) {
	m := newMesh(t)
	sidecar := m.node("orders-1.shop")
	m.mustSet("orders-1.shop", inbound(t, app(t, echo), `[{authenticated: {principal_name: {exact: "spiffe://cluster.local/ns/other/sa/caller"}}}]`))
	sidecar.waitReady(t)
	gateway := m.node(gatewayNode)
	m.mustSet(target, outbound(t, sidecar.addr("10.0.0.1:8080"), lambda, ""))
	gateway.waitReady(t)
	got := get(t, gateway.addr("10.0.0.1:80"), "/")
	require.Equal(t, http.StatusForbidden, got.code)
	require.Equal(t, "RBAC: access denied", got.body)
}

func TestGatewayRefusesAServerWithAnotherIdentity(t *testing.T) {
	m := newMesh(t)
	sidecar := m.node("impostor-1.shop")
	m.mustSet("impostor-1.shop", inbound(t, app(t, echo), callers))
	sidecar.waitReady(t)
	gateway := m.node(gatewayNode)
	m.mustSet(target, outbound(t, sidecar.addr("10.0.0.1:8080"), lambda, ""))
	gateway.waitReady(t)
	require.Equal(t, http.StatusServiceUnavailable, get(t, gateway.addr("10.0.0.1:80"), "/").code)
}

// istiod writes names of any type, in the older field.
func TestNamesOfAnyTypeAreExpected(t *testing.T) {
	m := newMesh(t)
	sidecar := m.node("orders-1.shop")
	m.mustSet("orders-1.shop", inbound(t, app(t, echo), callers))
	sidecar.waitReady(t)
	gateway := m.node(gatewayNode)
	for _, test := range []struct {
		name string
		want int
	}{{"spiffe://cluster.local/ns/shop/sa/orders", http.StatusOK}, {"spiffe://cluster.local/ns/shop/sa/other", http.StatusServiceUnavailable}} {
		m.mustSet(target, outbound(t, sidecar.addr("10.0.0.1:8080"), `{match_subject_alt_names: [{exact: "`+test.name+`"}]}`, ""))
		gateway.waitReady(t)
		testkit.Eventually(t, time.Minute, func() error {
			if got := get(t, gateway.addr("10.0.0.1:80"), "/"); got.code != test.want {
				return fmt.Errorf("answered %d", got.code)
			}
			return nil
		}, test.name)
	}
}

func TestSidecarRefusesConnectionsWithoutAMeshCertificate(t *testing.T) {
	m := newMesh(t)
	sidecar := m.node("orders-1.shop")
	m.mustSet("orders-1.shop", inbound(t, app(t, echo), callers))
	sidecar.waitReady(t)
	addr := sidecar.addr("10.0.0.1:8080")

	other := newMesh(t).ca
	foreign, err := other.Issue("spiffe://cluster.local/ns/edge/sa/gateway")
	require.NoError(t, err)
	foreignPair, err := tls.X509KeyPair(foreign.ChainPEM, foreign.KeyPEM)
	require.NoError(t, err)
	own, err := m.ca.Issue("spiffe://cluster.local/ns/edge/sa/gateway")
	require.NoError(t, err)
	ownPair, err := tls.X509KeyPair(own.ChainPEM, own.KeyPEM)
	require.NoError(t, err)
	outsider, err := m.ca.Issue("spiffe://elsewhere/ns/edge/sa/gateway")
	require.NoError(t, err)
	outsiderPair, err := tls.X509KeyPair(outsider.ChainPEM, outsider.KeyPEM)
	require.NoError(t, err)

	for name, test := range map[string]struct {
		certs []tls.Certificate
		max   uint16
		ok    bool
	}{
		"mesh certificate":   {certs: []tls.Certificate{ownPair}, ok: true},
		"no certificate":     {},
		"other root":         {certs: []tls.Certificate{foreignPair}},
		"other trust domain": {certs: []tls.Certificate{outsiderPair}},
		"old TLS":            {certs: []tls.Certificate{ownPair}, max: tls.VersionTLS12},
	} {
		t.Run(name, func(t *testing.T) {
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
				InsecureSkipVerify: true, MaxVersion: test.max,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					if len(test.certs) == 0 {
						return &tls.Certificate{}, nil
					}
					return &test.certs[0], nil
				},
				VerifyConnection: func(state tls.ConnectionState) error {
					_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: m.ca.Pool()})
					return err
				},
			}}}
			defer client.CloseIdleConnections()
			resp, err := client.Get("https://" + addr + "/")
			if !test.ok {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, http.StatusOK, resp.StatusCode)
		})
	}
	plain, err := http.Get("http://" + addr + "/")
	if err == nil {
		plain.Body.Close()
		require.Equal(t, http.StatusBadRequest, plain.StatusCode)
	}
}
