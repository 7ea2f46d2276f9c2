package meshtest_test

import (
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/meshtest"
	"github.com/lambdamesh/lambdamesh/meshconfig/xds"
	"github.com/lambdamesh/lambdamesh/pkg/apis/headers"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// Replicas of a case with their real sidecars and mutual TLS between them.
func TestMembersReachWhomTheyMayAndNobodyElse(t *testing.T) {
	// call is a request from one replica through its egress listener.
	type call struct {
		from, url string
		want      int
	}
	for name, calls := range map[string][]call{
		"access-list": {
			{"report-0.shop", "http://orders.shop.svc/", 200},
			{"report-0.shop", "http://orders.shop.svc.cluster.local/", 200},
			{"report-0.shop", "http://orders.shop:80/", 200},
			{"report-0.shop", "http://orders/", 200},
			{"ledger-0.bank", "http://orders.shop.svc/", 200},
			{"ledger-0.bank", "http://orders/", 404}, // a name of another namespace
			{"stranger-0.shop", "http://orders.shop.svc/", 404},
			{"report-0.shop", "http://stranger.shop.svc/", 404},
			{"orders-0.shop", "http://report.shop.svc/", 404},
			{"report-0.shop", "http://orders.shop.svc:8080/", 404},
		},
		"subscription-only": {
			{"eventbus-0.lambdamesh-system", "http://audit.shop.svc/", 200},
			{"eventbus-0.lambdamesh-system", "http://lonely.shop.svc/", 404},
			{"audit-0.shop", "http://eventbus.lambdamesh-system.svc/", 200},
			{"audit-0.shop", "http://lonely.shop.svc/", 404},
		},
		"system-members": {
			{"caller-0.shop", "http://connector-outbound/commerce/orders/", 200},
			{"caller-0.shop", "http://connector-outbound.lambdamesh-system.svc/", 200},
			{"publisher-0.shop", "http://connector-outbound/", 403}, // not 404: what is missing is the binding
			{"publisher-0.shop", "http://eventbus.lambdamesh-system.svc/publish", 200},
			{"connector-0.lambdamesh-system", "http://eventbus.lambdamesh-system.svc/publish", 200},
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := slices.IndexFunc(meshtest.Cases(t), func(c meshtest.Case) bool { return c.Name == name })
			m := newMembers(t, meshtest.Cases(t)[i].Mesh(t))
			for _, c := range calls {
				t.Run(c.from+" "+c.url, func(t *testing.T) {
					response := m.get(t, c.from, c.url)
					require.Equal(t, c.want, response.StatusCode)
					if c.want == http.StatusOK {
						require.Contains(t, response.Header.Get("Seen-Caller"), "URI="+m.principal(t, c.from))
						require.NotContains(t, response.Header.Get("Seen-Caller"), "forged")
						require.Empty(t, response.Header.Values("Seen-From-Gateway"), "only a gateway may say it")
					}
				})
			}
		})
	}
}

// A workload that talks to another one past its own egress listener gets no
// further: the other one's sidecar decides.
func TestTheCalledSidecarRefusesWhomItsWorkloadDoesNotName(t *testing.T) {
	i := slices.IndexFunc(meshtest.Cases(t), func(c meshtest.Case) bool { return c.Name == "access-list" })
	mesh := meshtest.Cases(t)[i].Mesh(t)
	stranger, found := mesh.Sidecar("stranger-0.shop")
	require.True(t, found)
	stranger.Egress[0].Destinations = []string{"shop/orders:80"}
	require.Equal(t, http.StatusForbidden, newMembers(t, mesh).get(t, "stranger-0.shop", "http://orders.shop.svc/").StatusCode)
}

// What the gateway says about a request reaches the application, and only from
// the gateway.
func TestTheGatewayIsBelieved(t *testing.T) {
	i := slices.IndexFunc(meshtest.Cases(t), func(c meshtest.Case) bool { return c.Name == "access-list" })
	mesh := meshtest.Cases(t)[i].Mesh(t)
	orders, found := mesh.Workload("shop/orders")
	require.True(t, found)
	reporter := v1alpha1.SPIFFEID(mesh.TrustDomain, "shop", "report")
	orders.Allow = []ir.Allow{{Principal: reporter, Reason: ir.AllowGateway, Rules: []string{"any"}}}
	response := newMembers(t, mesh).get(t, "report-0.shop", "http://orders.shop.svc/")
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Len(t, response.Header.Values("Seen-From-Gateway"), len(headers.FromGateway()))
}

type members struct {
	mesh   *ir.Mesh
	egress map[string]string // by node
}

// newMembers runs the replicas of the mesh: an application on a Unix socket and
// a proxy each. Inbound listeners are bound first, so that endpoints are right.
func newMembers(t *testing.T, mesh *ir.Mesh) *members {
	t.Helper()
	m := &members{mesh: mesh, egress: map[string]string{}}
	bound := map[string]net.Listener{}
	dir := testkit.TempSocketDir(t)
	for i := range mesh.Sidecars {
		s := mesh.Sidecars[i]
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		bound[s.Node] = l
		_, port, err := net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
		number, err := strconv.ParseUint(port, 10, 16)
		require.NoError(t, err)
		for j := range mesh.Destinations {
			for k := range mesh.Destinations[j].Endpoints {
				if e := &mesh.Destinations[j].Endpoints[k]; e.Port == s.Inbound[0].Port {
					e.Port = uint32(number)
				}
			}
		}
		socket := filepath.Join(dir, strconv.Itoa(i))
		s.Inbound[0].Port, s.Inbound[0].Endpoint = uint32(number), "unix://"+socket
		application(t, socket)
	}
	p := newPlane(t)
	for _, s := range mesh.Sidecars {
		resources, err := xds.SidecarResources(mesh, s.Node)
		require.NoError(t, err)
		id := ads.Identity{Namespace: s.Namespace, ServiceAccount: s.ServiceAccount}
		listeners := p.run(t, s.Node, s.Node, id, resources, bound[s.Node])
		m.egress[s.Node] = listeners[strconv.Itoa(int(s.Egress[0].Port))]
	}
	return m
}

// application tells who it thinks has called.
func application(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Seen-Caller", strings.Join(r.Header.Values(headers.ClientCert), " and "))
		for _, name := range headers.FromGateway() {
			if value := r.Header.Get(name); value != "" {
				w.Header().Add("Seen-From-Gateway", name+": "+value)
			}
		}
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, server.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
}

func (m *members) principal(t *testing.T, node string) string {
	t.Helper()
	s, found := m.mesh.Sidecar(node)
	require.True(t, found)
	return v1alpha1.SPIFFEID(m.mesh.TrustDomain, s.Namespace, s.ServiceAccount)
}

// get asks as the application of a replica does: through its HTTP proxy.
func (m *members) get(t *testing.T, node, target string) *http.Response {
	t.Helper()
	require.NotEmpty(t, m.egress[node])
	transport := &http.Transport{
		Proxy:             http.ProxyURL(&url.URL{Scheme: "http", Host: m.egress[node]}),
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody)
	require.NoError(t, err)
	request.Header.Set(headers.ClientCert, "URI=spiffe://forged")
	for _, name := range headers.FromGateway() {
		request.Header.Set(name, "told")
	}
	response, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	return response
}
