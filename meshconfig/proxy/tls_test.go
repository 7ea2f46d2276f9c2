package proxy_test

import (
	"crypto/tls"
	"net/http"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
)

// withTLS merges fields (YAML) into the DownstreamTlsContext of each filter chain
// of tlsGateway.
func withTLS(t *testing.T, r ads.Resources, fields string) ads.Resources {
	t.Helper()
	listener, ok := r[resource.ListenerType][0].(*listenerv3.Listener)
	require.True(t, ok)
	for _, chain := range listener.GetFilterChains() {
		var d tlsv3.DownstreamTlsContext
		require.NoError(t, chain.GetTransportSocket().GetTypedConfig().UnmarshalTo(&d))
		j, err := yaml.YAMLToJSON([]byte(fields))
		require.NoError(t, err)
		params := &tlsv3.TlsParameters{}
		require.NoError(t, protojson.Unmarshal(j, params))
		d.CommonTlsContext.TlsParams = params
		packed, err := anypb.New(&d)
		require.NoError(t, err)
		chain.GetTransportSocket().GetTypedConfig().Value = packed.GetValue()
	}
	return r
}

func TestTLSParametersAreObeyedOrRefused(t *testing.T) {
	m := newMesh(t)
	n := m.node(gatewayNode)
	shop, err := m.ca.IssueServer("shop.example")
	require.NoError(t, err)
	wild, err := m.ca.IssueServer("*.shop.example")
	require.NoError(t, err)
	leaves := map[string]ca.Leaf{"shop": shop, "wild": wild}
	m.mustSet(target, tlsGateway(t, leaves))
	n.waitReady(t)
	dial := func(change func(*tls.Config)) (tls.ConnectionState, error) {
		config := &tls.Config{RootCAs: m.ca.Pool(), ServerName: "shop.example", MinVersion: tls.VersionTLS10}
		change(config)
		conn, err := tls.Dial("tcp", n.addr("10.0.0.1:443"), config)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), nil
	}
	tls12 := func(suites ...uint16) func(*tls.Config) {
		return func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, suites }
	}
	any := func(*tls.Config) {}
	const aes128, aes256 = tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
	for name, test := range map[string]struct {
		params string
		client func(*tls.Config)
		check  func(tls.ConnectionState) bool // nil: the handshake fails
	}{
		"the newest version":        {`{}`, any, func(s tls.ConnectionState) bool { return s.Version == tls.VersionTLS13 }},
		"a maximum of 1.2":          {`{tls_maximum_protocol_version: TLSv1_2}`, any, func(s tls.ConnectionState) bool { return s.Version == tls.VersionTLS12 }},
		"a minimum of 1.3":          {`{tls_minimum_protocol_version: TLSv1_3}`, tls12(), nil},
		"never below 1.2":           {`{}`, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11 }, nil},
		"a cipher suite":            {`{cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384]}`, tls12(aes128, aes256), func(s tls.ConnectionState) bool { return s.CipherSuite == aes256 }},
		"no suite in common":        {`{cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384]}`, tls12(aes128), nil},
		"suites that are equal":     {`{cipher_suites: ["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]"]}`, tls12(aes128), func(s tls.ConnectionState) bool { return s.CipherSuite == aes128 }},
		"a curve":                   {`{ecdh_curves: [P-384]}`, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384} }, func(s tls.ConnectionState) bool { return s.CurveID == tls.CurveP384 }},
		"no curve in common":        {`{ecdh_curves: [P-384]}`, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, nil},
		"TLS 1.3 has its own suite": {`{cipher_suites: [ECDHE-ECDSA-AES256-GCM-SHA384]}`, any, func(s tls.ConnectionState) bool { return s.Version == tls.VersionTLS13 }},
	} {
		t.Run(name, func(t *testing.T) {
			m.mustSet(target, withTLS(t, tlsGateway(t, leaves), test.params))
			state, err := dial(test.client)
			if test.check == nil {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.True(t, test.check(state), "%+v", state)
		})
	}
	for name, test := range map[string]struct{ params, want string }{
		"an unknown suite":         {`{cipher_suites: [NULL-SHA]}`, `cipher_suites: "NULL-SHA" is not supported`},
		"an unknown curve":         {`{ecdh_curves: [P-224]}`, `ecdh_curves: "P-224" is not supported`},
		"TLS 1.1":                  {`{tls_minimum_protocol_version: TLSv1_1}`, "TLS before 1.2"},
		"no version":               {`{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_2}`, "below the minimum"},
		"signature algorithms":     {`{signature_algorithms: [rsa_pkcs1_sha256]}`, "signature_algorithms"},
		"FIPS compliance policies": {`{compliance_policies: [FIPS_202205]}`, "compliance_policies"},
	} {
		t.Run(name, func(t *testing.T) {
			status := m.set(target, withTLS(t, tlsGateway(t, leaves), test.params))
			require.Len(t, status.Nodes[0].Nacks, 1)
			require.Contains(t, status.Nodes[0].Nacks[0].Message, test.want)
			m.mustSet(target, tlsGateway(t, leaves))
		})
	}
}

// A certificate that does not come closes its server's handshakes and nobody
// else's; when it comes, it is served.
func TestAMissingCertificateHoldsUpNoOtherServer(t *testing.T) {
	m := newMesh(t)
	n := m.node(gatewayNode)
	shop, err := m.ca.IssueServer("shop.example")
	require.NoError(t, err)
	wild, err := m.ca.IssueServer("*.shop.example")
	require.NoError(t, err)
	impatient := func(leaves map[string]ca.Leaf) ads.Resources {
		r := tlsGateway(t, leaves)
		listener, ok := r[resource.ListenerType][0].(*listenerv3.Listener)
		require.True(t, ok)
		for _, chain := range listener.GetFilterChains() {
			var d tlsv3.DownstreamTlsContext
			require.NoError(t, chain.GetTransportSocket().GetTypedConfig().UnmarshalTo(&d))
			d.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs()[0].GetSdsConfig().InitialFetchTimeout = durationpb.New(100 * time.Millisecond)
			packed, err := anypb.New(&d)
			require.NoError(t, err)
			chain.GetTransportSocket().GetTypedConfig().Value = packed.GetValue()
		}
		return r
	}
	fetch := func(name string) int {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: m.ca.Pool(), ServerName: name, MinVersion: tls.VersionTLS12}}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("https://" + n.addr("10.0.0.1:443") + "/")
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	_, err = m.server.SetResources(target, impatient(map[string]ca.Leaf{"shop": shop}))
	require.NoError(t, err)
	n.waitReady(t)
	eventually(t, "this one has its certificate", func() bool { return fetch("shop.example") == 201 })
	require.Zero(t, fetch("a.shop.example"), "this one has none")

	m.mustSet(target, impatient(map[string]ca.Leaf{"shop": shop, "wild": wild}))
	eventually(t, "the certificate that came is served", func() bool { return fetch("a.shop.example") == 202 })

	// What is gone from the control plane stays here.
	_, err = m.server.SetResources(target, impatient(map[string]ca.Leaf{"wild": wild}))
	require.NoError(t, err)
	require.Equal(t, 201, fetch("shop.example"))
}
