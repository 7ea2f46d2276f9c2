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
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // a type that a bootstrap names
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
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
	// Metadata and Locality of the node, which the control plane is told; nil: none.
	Metadata *structpb.Struct
	Locality *corev3.Locality
	// Admin is where the admin interface listens, host:port; empty: nowhere.
	Admin string
	// Listeners that are not the control plane's.
	Listeners []Listener
	// ControlPlane where everything else comes from.
	ControlPlane ControlPlane
	// SecretServers are the SDS servers beside the control plane that certificates
	// may be taken from: unix:PATH by the name of the cluster.
	SecretServers map[string]string
}

// Listener leads paths to the admin interface and to ports of this machine.
type Listener struct {
	Name string
	// Address is host:port.
	Address string
	// Routes are tried in order; every other path is 404.
	Routes []Route
}

// Route of a Listener.
type Route struct {
	// Path, and with Prefix whatever begins with it.
	Path   string
	Prefix bool
	// Upstream is a host:port on loopback that answers; empty: the admin interface.
	Upstream string
}

// Read reads a bootstrap; overlay, which may be empty, is merged into it as
// Envoy merges --config-yaml. With allowUnknown fields that Envoy's API does not
// have are ignored, as with its --allow-unknown-static-fields.
func Read(file, overlay []byte, allowUnknown bool) (*Bootstrap, error) {
	message, err := parse(file, allowUnknown)
	if err != nil {
		return nil, err
	}
	if len(overlay) > 0 {
		more, err := parse(overlay, allowUnknown)
		if err != nil {
			return nil, fmt.Errorf("the overlay: %w", err)
		}
		proto.Merge(message, more)
	}
	if err := errors.Join(checkFields(message.ProtoReflect()), checkInert(message)); err != nil {
		return nil, err
	}
	if err := message.ValidateAll(); err != nil {
		return nil, err
	}
	return compile(message)
}

func parse(text []byte, allowUnknown bool) (*bootstrapv3.Bootstrap, error) {
	json, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, err
	}
	message := &bootstrapv3.Bootstrap{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: allowUnknown}).Unmarshal(json, message); err != nil {
		return nil, fmt.Errorf("it is no envoy.config.bootstrap.v3.Bootstrap: %w", err)
	}
	return message, nil
}

// compile reads what checkFields has let through.
func compile(m *bootstrapv3.Bootstrap) (*Bootstrap, error) {
	b := &Bootstrap{
		NodeID: m.GetNode().GetId(), Cluster: m.GetNode().GetCluster(),
		Metadata: m.GetNode().GetMetadata(), Locality: m.GetNode().GetLocality(),
	}
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
	b.ControlPlane.WholeState = m.GetDynamicResources().GetAdsConfig().GetApiType() == corev3.ApiConfigSource_GRPC
	if b.ControlPlane.Agent() && !b.ControlPlane.WholeState {
		return nil, errors.New("dynamic_resources.ads_config: an agent is asked for the state of the world; write api_type: GRPC")
	}
	for _, l := range m.GetStaticResources().GetListeners() {
		listener, err := b.listener(l, clusters, used)
		if err != nil {
			return nil, fmt.Errorf("listener %q: %w", l.GetName(), err)
		}
		b.Listeners = append(b.Listeners, listener)
	}
	for _, c := range m.GetStaticResources().GetClusters() {
		if used[c.GetName()] {
			continue
		}
		socket, err := plainSocket(c)
		if err != nil {
			return nil, fmt.Errorf("cluster %q: nothing that is supported uses it, and it is no SDS server: %w", c.GetName(), err)
		}
		if b.SecretServers == nil {
			b.SecretServers = map[string]string{}
		}
		b.SecretServers[c.GetName()] = socket
	}
	return b, nil
}

// adsCluster is the name of the control plane's cluster.
func adsCluster(m *bootstrapv3.Bootstrap) (string, error) {
	d := m.GetDynamicResources()
	config := d.GetAdsConfig()
	switch {
	case config.GetApiType() != corev3.ApiConfigSource_GRPC && config.GetApiType() != corev3.ApiConfigSource_DELTA_GRPC:
		return "", errors.New("dynamic_resources.ads_config: write api_type: DELTA_GRPC or GRPC; everything comes from a control plane")
	case config.GetTransportApiVersion() != corev3.ApiVersion_V3:
		return "", errors.New("dynamic_resources.ads_config: write transport_api_version: V3")
	case len(config.GetGrpcServices()) != 1:
		return "", errors.New("dynamic_resources.ads_config: exactly one of grpc_services is supported")
	case d.GetCdsConfig().GetAds() == nil || d.GetLdsConfig().GetAds() == nil:
		return "", errors.New("dynamic_resources: cds_config and lds_config must both be over ads")
	case d.GetCdsConfig().GetInitialFetchTimeout().AsDuration() != 0 || d.GetLdsConfig().GetInitialFetchTimeout().AsDuration() != 0:
		return "", errors.New("dynamic_resources: initial_fetch_timeout: only 0s is supported; the first configuration is waited for as long as it takes")
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

// listener checks that one leads to this machine's loopback only.
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
	if manager.GetCodecType() != hcmv3.HttpConnectionManager_AUTO {
		return out, fmt.Errorf("codec_type %s is not supported", manager.GetCodecType())
	}
	// Who may send something compressed need not.
	filters := slices.DeleteFunc(slices.Clone(manager.GetHttpFilters()), func(f *hcmv3.HttpFilter) bool {
		return f.GetTypedConfig().MessageIs(&compressorv3.Compressor{})
	})
	if len(filters) != 1 {
		return out, errors.New("exactly one HTTP filter besides compressors, the router, is supported")
	}
	hosts := manager.GetRouteConfig().GetVirtualHosts()
	if len(hosts) != 1 || !slices.Equal(hosts[0].GetDomains(), []string{"*"}) {
		return out, errors.New(`exactly one virtual host, for domains ["*"], is supported`)
	}
	for _, r := range hosts[0].GetRoutes() {
		route, err := b.route(r, clusters)
		if err != nil {
			return out, err
		}
		used[r.GetRoute().GetCluster()] = true
		out.Routes = append(out.Routes, route)
	}
	return out, nil
}

func (b *Bootstrap) route(r *routev3.Route, clusters map[string]*clusterv3.Cluster) (Route, error) {
	out, name := Route{Path: r.GetMatch().GetPath()}, r.GetRoute().GetCluster()
	if prefix := r.GetMatch().GetPrefix(); prefix != "" {
		out.Path, out.Prefix = prefix, true
	}
	c := clusters[name]
	if c == nil {
		return out, fmt.Errorf("path %q: there is no cluster %q", out.Path, name)
	}
	address, err := onlyAddress(c)
	if err != nil || c.GetTransportSocket() != nil || len(c.GetTypedExtensionProtocolOptions()) > 0 {
		return out, fmt.Errorf("path %q: cluster %q is not one address in plain HTTP/1.1, the only one that is supported", out.Path, name)
	}
	if address == b.Admin {
		if out.Path != PathReady && out.Path != PathMetrics {
			return out, fmt.Errorf("path %q: listeners may lead to %s and %s of the admin interface only", out.Path, PathReady, PathMetrics)
		}
		return out, nil
	}
	if addr, err := netip.ParseAddrPort(address); err != nil || !addr.Addr().IsLoopback() || out.Path == "" || out.Path == "/" {
		return out, fmt.Errorf("path %q: cluster %q is neither the admin address %q nor another on loopback with a path of its own, the only ones that are supported", out.Path, name, b.Admin)
	}
	out.Upstream = address
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
	address := localities[0].GetLbEndpoints()[0].GetEndpoint().GetAddress()
	if pipe := address.GetPipe().GetPath(); pipe != "" {
		return unixScheme + pipe, nil
	}
	return hostPort(address), nil
}

// unixScheme begins the address of a Unix socket, as gRPC writes it.
const unixScheme = "unix:"

func hostPort(a *corev3.Address) string {
	socket := a.GetSocketAddress()
	return net.JoinHostPort(socket.GetAddress(), strconv.FormatUint(uint64(socket.GetPortValue()), 10))
}
