package dev

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/connector"
	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/localnode"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// mesh is everything above the Kubernetes API.
type mesh struct {
	cfg        Config
	sockets    *sockets
	rest       *rest.Config
	scheme     *runtime.Scheme
	client     client.Client
	authority  *ca.CA
	clientset  kubernetes.Interface
	targets    *targets.Policy // of what is called for users
	backends   *targets.Policy // of what the gateway passes requests on to
	artifacts  build.Directory
	eventBus   *member
	connector  *member
	lambdas    net.Listener // for the developer's own calls
	components []component.Component
}

// newMesh builds every component; none of them runs yet. Their order is that of
// the start; private is a directory for sockets. The gateway comes last and so stops first: what is in flight is
// answered while everything behind it still runs.
func newMesh(ctx context.Context, cfg Config, sockets *sockets, private string, rest *rest.Config) (*mesh, error) {
	m := &mesh{cfg: cfg, sockets: sockets, rest: rest}
	var err error
	if m.scheme, err = kube.Scheme(); err != nil {
		return nil, err
	}
	if m.client, err = client.New(rest, client.Options{Scheme: m.scheme}); err != nil {
		return nil, fmt.Errorf("connect to the local API server: %w", err)
	}
	if err := applySystem(ctx, m.client); err != nil {
		return nil, fmt.Errorf("set up %s: %w", v1alpha1.SystemNamespace, err)
	}
	if m.authority, err = ca.Open(ctx, ca.Directory(cfg.path("ca")), ca.Config{}); err != nil {
		return nil, err
	}
	if err := m.allowTargets(); err != nil {
		return nil, err
	}
	if m.eventBus, err = newMember(ctx, v1alpha1.ServiceAccountEventBus, v1alpha1.ServiceEventBus, private); err != nil {
		return nil, err
	}
	if m.connector, err = newMember(ctx, v1alpha1.ServiceAccountConnector, v1alpha1.ServiceConnectorOutbound, private); err != nil {
		return nil, err
	}
	if m.lambdas, err = httpserver.Listen(ctx, "unix:"+filepath.Join(private, lambdasSocket), ""); err != nil {
		return nil, err
	}
	for _, add := range []func() error{m.addControlPlane, m.addConnector, m.addLocalNode, m.addEventBus, m.addGateway} {
		if err := add(); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// allowTargets says which addresses objects may name: those that the user
// allows, for URLs also those that dev assigns itself and outsiders are meant to
// reach, and never those that nobody may reach by an object of ours.
func (m *mesh) allowTargets() error {
	own := []string{
		m.sockets.gateway.Addr().String(), m.sockets.gatewayTLS.Addr().String(),
		m.sockets.eventBus.Addr().String(), m.sockets.connector.Addr().String(),
	}
	deny := slices.Concat(everyAddress(m.sockets.eventBusAdmin), everyAddress(m.sockets.xds))
	if host, err := kubernetesAddress(m.rest); err == nil {
		deny = append(deny, host)
	}
	var err error
	if m.targets, err = targets.New(targets.Config{Allow: slices.Concat(own, m.cfg.AllowTargets), Deny: deny}); err != nil {
		return fmt.Errorf("allowed targets: %w", err)
	}
	if m.backends, err = targets.New(targets.Config{Allow: m.cfg.AllowTargets, Deny: deny}); err != nil {
		return fmt.Errorf("allowed backends: %w", err)
	}
	return nil
}

// everyAddress at which a listener answers, as targets: on 0.0.0.0 or [::] that
// is each of the machine's.
func everyAddress(l net.Listener) []string {
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil || !at.Addr().IsUnspecified() {
		return []string{l.Addr().String()}
	}
	return []string{fmt.Sprintf("0.0.0.0/0:%d", at.Port()), fmt.Sprintf("[::/0]:%d", at.Port())}
}

// addConnector adds the connector behind its sidecar.
func (m *mesh) addConnector() error {
	c, err := connector.New(connector.Config{
		REST: m.rest, Outbound: m.connector.app, Public: m.sockets.connector,
		Certificate: m.authority.ServerCertificate(m.sockets.connectorNames()...), PublicURL: m.connectorURL(), Roots: m.authority.Root(),
		Webhooks: connector.Webhooks{
			Names: webhookNames(), Certificate: m.authority.ServerCertificate(webhookNames()...),
			// Who is given an address rather than a name may call them, too.
			Nameless: true,
		},
		Targets: m.targets, MeshProxyURL: m.connector.proxyURL(), Log: m.log("connector"),
	})
	if err != nil {
		return err
	}
	m.components = append(m.components, applicationsAuthority(m.client), m.connector.sidecar(m.client, m.startMemberProxy), c)
	return nil
}

// addLocalNode adds what runs lambdas.
func (m *mesh) addLocalNode() error {
	node, err := localnode.New(localnode.Config{
		REST: m.rest, DataDir: m.cfg.DataDir, Artifacts: m.artifacts, Sidecars: replicaSidecars{m},
		Log: m.log("localnode"),
	})
	if err != nil {
		return err
	}
	lambdas := httpserver.New(httpserver.Config{Name: "lambdas", Listener: m.lambdas, Handler: node, Log: m.log("lambdas")})
	m.components = append(m.components, node, lambdas)
	return nil
}

// addEventBus adds the broker, and the bus behind its sidecar.
func (m *mesh) addEventBus() error {
	nats, err := natsserver.New(natsserver.Config{Dir: m.cfg.path("nats"), Logger: m.log("nats")})
	if err != nil {
		return err
	}
	bus, err := eventbus.New(eventbus.Config{
		JetStream:    jetstream.Config{InProcess: nats},
		MeshListener: m.eventBus.app,
		// Everything on this machine may publish; the bus keeps browsers out.
		OpenListener:   m.sockets.eventBus,
		AdminListener:  m.sockets.eventBusAdmin,
		AdminOpen:      true,
		UnownedSources: eventbus.UnownedSources(m.cfg.UnownedSources),
		MeshProxyURL:   m.eventBus.proxyURL(),
		Targets:        m.targets,
		REST:           m.rest,
		Log:            m.log("eventbus"),
	})
	if err != nil {
		return err
	}
	m.components = append(m.components, nats, m.eventBus.sidecar(m.client, m.startMemberProxy), bus)
	return nil
}

func (m *mesh) log(component string) *slog.Logger { return m.cfg.Log.With("component", component) }

func (m *mesh) endpoints() Endpoints {
	http := func(l net.Listener) string { return "http://" + l.Addr().String() }
	return Endpoints{
		Gateway:           http(m.sockets.gateway),
		GatewayTLS:        "https://" + m.sockets.gatewayTLS.Addr().String(),
		EventBus:          http(m.sockets.eventBus),
		EventBusAdmin:     http(m.sockets.eventBusAdmin),
		Connector:         m.connectorURL(),
		Webhooks:          "https://localhost:" + port(m.sockets.connector),
		ConnectorOutbound: "https://" + m.connector.inbound.Addr().String(),
		XDS:               m.sockets.xds.Addr().String(),
		Kubernetes:        m.rest.Host,
		Lambdas:           m.lambdas.Addr().String(),
		PID:               os.Getpid(),
	}
}

// connectorURL is where third-party systems reach the connector.
func (m *mesh) connectorURL() string {
	at, err := netip.ParseAddrPort(m.sockets.connector.Addr().String())
	if err == nil && at.Addr().IsUnspecified() {
		return "https://127.0.0.1:" + port(m.sockets.connector)
	}
	return "https://" + m.sockets.connector.Addr().String()
}

func port(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func portNumber(l net.Listener) uint32 {
	n, _ := strconv.ParseUint(port(l), 10, 16) // a listener's own address
	return uint32(n)
}
