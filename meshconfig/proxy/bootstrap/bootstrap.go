package bootstrap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // a type that a bootstrap names
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"
)

// Paths of the admin interface.
const (
	PathReady   = "/ready"
	PathMetrics = "/stats/prometheus"
)

// Bootstrap is what a file says.
type Bootstrap struct {
	// NodeID and Cluster of the node; the command line may say them instead.
	NodeID, Cluster string
	// Admin is where the admin interface listens, host:port; empty: nowhere.
	Admin string
	// Listeners that are not the control plane's.
	Listeners []Listener
	// ControlPlane where everything else comes from.
	ControlPlane ControlPlane
}

// Listener leads paths to the admin interface.
type Listener struct {
	Name string
	// Address is host:port.
	Address string
	// Paths of the admin interface that it serves; every other is 404.
	Paths []string
}

// Read reads a bootstrap; overlay, which may be empty, is merged into it as
// Envoy merges --config-yaml.
func Read(file, overlay []byte) (*Bootstrap, error) {
	message, err := parse(file)
	if err != nil {
		return nil, err
	}
	if len(overlay) > 0 {
		more, err := parse(overlay)
		if err != nil {
			return nil, fmt.Errorf("the overlay: %w", err)
		}
		proto.Merge(message, more)
	}
	if err := checkFields(message.ProtoReflect()); err != nil {
		return nil, err
	}
	if err := message.ValidateAll(); err != nil {
		return nil, err
	}
	return compile(message)
}

func parse(text []byte) (*bootstrapv3.Bootstrap, error) {
	json, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, err
	}
	message := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(json, message); err != nil {
		return nil, fmt.Errorf("it is no envoy.config.bootstrap.v3.Bootstrap: %w", err)
	}
	return message, nil
}

// compile reads what checkFields has let through.
func compile(m *bootstrapv3.Bootstrap) (*Bootstrap, error) {
	b := &Bootstrap{NodeID: m.GetNode().GetId(), Cluster: m.GetNode().GetCluster()}
	if m.GetAdmin() != nil {
		b.Admin = hostPort(m.GetAdmin().GetAddress())
		if addr, err := netip.ParseAddrPort(b.Admin); err != nil || !addr.Addr().IsLoopback() {
			return nil, fmt.Errorf("admin.address: %s is not on loopback, which everybody else could reach", b.Admin)
		}
	}
	name, err := adsCluster(m)
	if err != nil {
		return nil, err
	}
	clusters, err := clustersByName(m)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{name: true}
	control := clusters[name]
	if control == nil {
		return nil, fmt.Errorf("dynamic_resources.ads_config: there is no cluster %q", name)
	}
	if b.ControlPlane, err = controlPlane(control); err != nil {
		return nil, fmt.Errorf("cluster %q: %w", name, err)
	}
	for _, l := range m.GetStaticResources().GetListeners() {
		listener, err := b.listener(l, clusters, used)
		if err != nil {
			return nil, fmt.Errorf("listener %q: %w", l.GetName(), err)
		}
		b.Listeners = append(b.Listeners, listener)
	}
	for _, c := range m.GetStaticResources().GetClusters() {
		if !used[c.GetName()] {
			return nil, fmt.Errorf("cluster %q: nothing that is supported uses it", c.GetName())
		}
	}
	return b, nil
}

// adsCluster is the name of the control plane's cluster.
func adsCluster(m *bootstrapv3.Bootstrap) (string, error) {
	d := m.GetDynamicResources()
	config := d.GetAdsConfig()
	switch {
	case config.GetApiType() != corev3.ApiConfigSource_GRPC:
		return "", errors.New("dynamic_resources.ads_config: write api_type: GRPC; everything comes from a control plane")
	case config.GetTransportApiVersion() != corev3.ApiVersion_V3:
		return "", errors.New("dynamic_resources.ads_config: write transport_api_version: V3")
	case len(config.GetGrpcServices()) != 1:
		return "", errors.New("dynamic_resources.ads_config: exactly one of grpc_services is supported")
	case d.GetCdsConfig().GetAds() == nil || d.GetLdsConfig().GetAds() == nil:
		return "", errors.New("dynamic_resources: cds_config and lds_config must both be over ads")
	}
	return config.GetGrpcServices()[0].GetEnvoyGrpc().GetClusterName(), nil
}

func clustersByName(m *bootstrapv3.Bootstrap) (map[string]*clusterv3.Cluster, error) {
	clusters := map[string]*clusterv3.Cluster{}
	for _, c := range m.GetStaticResources().GetClusters() {
		if clusters[c.GetName()] != nil {
			return nil, fmt.Errorf("static_resources: two clusters are named %q", c.GetName())
		}
		clusters[c.GetName()] = c
	}
	return clusters, nil
}

// listener checks that one leads to the admin address only.
func (b *Bootstrap) listener(l *listenerv3.Listener, clusters map[string]*clusterv3.Cluster, used map[string]bool) (Listener, error) {
	out := Listener{Name: l.GetName(), Address: hostPort(l.GetAddress())}
	chains := l.GetFilterChains()
	if len(chains) != 1 || len(chains[0].GetFilters()) != 1 {
		return out, errors.New("exactly one filter chain with one filter, the HTTP connection manager, is supported")
	}
	manager := &hcmv3.HttpConnectionManager{}
	if err := chains[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(manager); err != nil {
		return out, fmt.Errorf("its filter: %w", err)
	}
	if len(manager.GetHttpFilters()) != 1 {
		return out, errors.New("exactly one HTTP filter, the router, is supported")
	}
	hosts := manager.GetRouteConfig().GetVirtualHosts()
	if len(hosts) != 1 || !slices.Equal(hosts[0].GetDomains(), []string{"*"}) {
		return out, errors.New(`exactly one virtual host, for domains ["*"], is supported`)
	}
	for _, route := range hosts[0].GetRoutes() {
		path, name := route.GetMatch().GetPath(), route.GetRoute().GetCluster()
		if path != PathReady && path != PathMetrics {
			return out, fmt.Errorf("path %q: the admin interface has %s and %s only", path, PathReady, PathMetrics)
		}
		c := clusters[name]
		if c == nil {
			return out, fmt.Errorf("path %q: there is no cluster %q", path, name)
		}
		used[name] = true
		if address, err := onlyAddress(c); err != nil || address != b.Admin || c.GetTransportSocket() != nil || len(c.GetTypedExtensionProtocolOptions()) > 0 {
			return out, fmt.Errorf("path %q: cluster %q is not the admin address %q, the only one that is supported", path, name, b.Admin)
		}
		out.Paths = append(out.Paths, path)
	}
	return out, nil
}

// onlyAddress of a cluster.
func onlyAddress(c *clusterv3.Cluster) (string, error) {
	if t := c.GetType(); t != clusterv3.Cluster_STATIC && t != clusterv3.Cluster_STRICT_DNS && t != clusterv3.Cluster_LOGICAL_DNS {
		return "", fmt.Errorf("type %s is not supported; write STATIC or STRICT_DNS", t)
	}
	localities := c.GetLoadAssignment().GetEndpoints()
	if len(localities) != 1 || len(localities[0].GetLbEndpoints()) != 1 {
		return "", errors.New("exactly one endpoint is supported")
	}
	return hostPort(localities[0].GetLbEndpoints()[0].GetEndpoint().GetAddress()), nil
}

func hostPort(a *corev3.Address) string {
	socket := a.GetSocketAddress()
	return net.JoinHostPort(socket.GetAddress(), strconv.FormatUint(uint64(socket.GetPortValue()), 10))
}
