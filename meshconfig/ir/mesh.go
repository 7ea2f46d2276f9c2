package ir

import (
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Mesh is everything an output needs. Lists are sorted by key, rules by the
// order in which they are tried. What a list points to never changes: the same
// pointer means the same, also in another mesh.
type Mesh struct {
	// TrustDomain of all identities (SPIFFE-ID, section 2.1).
	TrustDomain string `json:"trustDomain"`
	// Gateways that serve hosts, sorted by Key.
	Gateways []Gateway `json:"gateways,omitempty"`
	// KeySets that JWT providers verify tokens with, sorted by Name.
	KeySets []KeySet `json:"keySets,omitempty"`
	// Destinations of rules and of egress listeners, sorted by Key.
	Destinations []*Destination `json:"destinations,omitempty"`
	// Workloads and who may reach them, sorted by Key.
	Workloads []*Workload `json:"workloads,omitempty"`
	// Sidecars of workload replicas, sorted by Node.
	Sidecars []*Sidecar `json:"sidecars,omitempty"`
}

// Gateway returns the gateway namespace/name.
func (m *Mesh) Gateway(namespace, name string) (*Gateway, bool) {
	for i := range m.Gateways {
		if g := &m.Gateways[i]; g.Namespace == namespace && g.Name == name {
			return g, true
		}
	}
	return nil, false
}

// Destination returns the destination with the key namespace/name:port.
func (m *Mesh) Destination(key string) (*Destination, bool) {
	return find(m.Destinations, key, (*Destination).Key)
}

// Workload returns the workload with the key namespace/name.
func (m *Mesh) Workload(key string) (*Workload, bool) {
	return find(m.Workloads, key, (*Workload).Key)
}

// Sidecar returns the sidecar of a data-plane node id.
func (m *Mesh) Sidecar(node string) (*Sidecar, bool) {
	return find(m.Sidecars, node, func(s *Sidecar) string { return s.Node })
}

// find searches a list that is sorted by key.
func find[T any](all []*T, key string, keyOf func(*T) string) (*T, bool) {
	i := sort.Search(len(all), func(i int) bool { return keyOf(all[i]) >= key })
	if i == len(all) || keyOf(all[i]) != key {
		return nil, false
	}
	return all[i], true
}

// Owner is the object that something was made from.
type Owner struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// UID of the object; empty offline.
	UID string `json:"uid,omitempty"`
}

// Gateway is a set of proxies that take requests from outside.
type Gateway struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Identity of its proxies, a SPIFFE ID.
	Identity string `json:"identity"`
	// TrustedProxies before it append to X-Forwarded-For whom they were called
	// from.
	TrustedProxies uint32 `json:"trustedProxies,omitempty"`
	// ProxyProtocol: connections begin with a header of PROXY protocol version 2.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`
	// Servers it listens with, in the object's order.
	Servers []Server `json:"servers,omitempty"`
	// VirtualHosts it serves, sorted by owner. No two share a host, wildcards
	// included.
	VirtualHosts []*VirtualHost `json:"virtualHosts,omitempty"`
}

// Key is namespace/name.
func (g *Gateway) Key() string { return g.Namespace + "/" + g.Name }

// Protocol of a gateway's server.
type Protocol string

// The protocols a server can speak.
const (
	HTTP  Protocol = "HTTP"
	HTTPS Protocol = "HTTPS"
)

// Server is a port of a gateway and the hosts it accepts there.
type Server struct {
	// Name of the port, unique in the gateway.
	Name string `json:"name"`
	Port uint32 `json:"port"`
	// Bind address; empty: all.
	Bind     string   `json:"bind,omitempty"`
	Protocol Protocol `json:"protocol"`
	// Hosts it accepts: "<namespace>/<pattern>", where namespace (of the
	// VirtualHost's owner) may be * and pattern *, *.name or name.
	Hosts []string `json:"hosts"`
	// TLSSecret in the gateway's namespace with certificate and key; HTTPS only.
	TLSSecret string `json:"tlsSecret,omitempty"`
	// MinTLS and MaxTLS are the versions it speaks; empty: 1.2 and the newest.
	MinTLS TLSVersion `json:"minTLS,omitempty"`
	MaxTLS TLSVersion `json:"maxTLS,omitempty"`
	// CipherSuites of TLS 1.2 in OpenSSL's words; none: the data plane's own. TLS
	// 1.3 has no choice of them.
	CipherSuites []string `json:"cipherSuites,omitempty"`
}

// TLSVersion of a server.
type TLSVersion string

// The versions that are spoken.
const (
	TLS12 TLSVersion = "1.2"
	TLS13 TLSVersion = "1.3"
)

// Accepts says whether the server takes the whole of host (a name or *.name)
// for a VirtualHost of namespace.
func (s *Server) Accepts(namespace, host string) bool {
	for _, entry := range s.Hosts {
		ns, pattern, found := strings.Cut(entry, "/")
		if found && (ns == "*" || ns == namespace) && CoversHost(pattern, host) {
			return true
		}
	}
	return false
}

// RouteTables says in how many of the Gateway's tables of routes the hosts of a
// namespace are: those servers share one that listen without TLS at one place.
func (g *Gateway) RouteTables(namespace string, hosts []string) int {
	type place struct {
		name, bind string
		port       uint32
	}
	tables := map[place]bool{}
	for i := range g.Servers {
		s := &g.Servers[i]
		if !slices.ContainsFunc(hosts, func(h string) bool { return s.Accepts(namespace, h) }) {
			continue
		}
		at := place{bind: s.Bind, port: s.Port}
		if s.Protocol == HTTPS {
			at.name = s.Name
		}
		tables[at] = true
	}
	return len(tables)
}

// CoversHost says whether every name that host stands for is one that pattern
// stands for. Both are *, *.name or a name; *.name stands for one or more
// labels before .name, as in Envoy's and Istio's suffix match.
func CoversHost(pattern, host string) bool {
	switch {
	case pattern == "*" || pattern == host:
		return true
	case strings.HasPrefix(pattern, "*."):
		return host != "*" && strings.HasSuffix(strings.TrimPrefix(host, "*"), pattern[1:]) &&
			strings.TrimPrefix(host, "*") != pattern[1:]
	default:
		return false
	}
}

// OverlappingHosts says whether a name exists that both stand for.
func OverlappingHosts(a, b string) bool { return CoversHost(a, b) || CoversHost(b, a) }

// VirtualHost is what one APIRule says about its hosts.
type VirtualHost struct {
	Owner Owner `json:"owner"`
	// Hosts are fully qualified names or *.name; sorted.
	Hosts []string `json:"hosts"`
	CORS  *CORS    `json:"cors,omitempty"`
	// Rules in the order they are tried. No match: 404.
	Rules []Rule `json:"rules"`
}

// CORS answers preflight requests (WHATWG Fetch, section 3.2).
type CORS struct {
	// AllowOrigins; none: no page of another origin reads anything.
	AllowOrigins     []StringMatch `json:"allowOrigins,omitempty"`
	AllowMethods     []string      `json:"allowMethods,omitempty"`
	AllowHeaders     []string      `json:"allowHeaders,omitempty"`
	ExposeHeaders    []string      `json:"exposeHeaders,omitempty"`
	AllowCredentials bool          `json:"allowCredentials,omitempty"`
	MaxAge           Duration      `json:"maxAge,omitempty"`
}

// MatchKind is how a string is compared.
type MatchKind string

// The ways to compare. Regex (RE2) must match the whole value. Present and
// Absent are for headers only.
const (
	MatchExact   MatchKind = "exact"
	MatchPrefix  MatchKind = "prefix"
	MatchRegex   MatchKind = "regex"
	MatchPresent MatchKind = "present"
	MatchAbsent  MatchKind = "absent"
)

// StringMatch is a condition on a string.
type StringMatch struct {
	Kind  MatchKind `json:"kind"`
	Value string    `json:"value,omitempty"`
}

// KeySet is where keys of token issuers come from, and the keys.
type KeySet struct {
	// Name tells the source: "uri:https://..." or "secret:namespace/name". Two
	// providers with different names have different sources.
	Name string `json:"name"`
	// JWKS is the set as JSON (RFC 7517), with a key at least. NoKeys when it could not be read: then
	// no token is valid, and nobody is let in.
	JWKS string `json:"jwks"`
}

// NoKeys is a JWK Set that verifies no token: its one key is a point of P-256
// whose x is a hash, so that nobody can have the private key. A set without keys
// would say the same, but a data plane may take it for a configuration error and
// refuse the whole listener with the rules of everybody.
const NoKeys = `{"keys":[{"kty":"EC","kid":"none","alg":"ES256","use":"sig","crv":"P-256",` +
	`"x":"oxUL_4U6f-CGaHGi9X0oyL2rZkUct3FhtwngjDp2rMU","y":"DW7P6IOQvSugorNr_obWZjl8Bkhih5xS8T6CgmEDGz4"}]}`

// NoKeysSeed is what the x of the key in [NoKeys] is the SHA-256 of: a point that
// was not chosen has no known private key.
const NoKeysSeed = "lambdamesh: nobody has this key 1"

// Destination is a port of a Service and its endpoints.
type Destination struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Port      uint32 `json:"port"`
	// Aliases that every workload may call it by, besides the Service's names.
	Aliases []string `json:"aliases,omitempty"`
	// Workload (a key) that stands behind it; empty for a Service that is no
	// member of the mesh's policies.
	Workload string `json:"workload,omitempty"`
	// Identities, SPIFFE IDs, that its endpoints may prove. With any, they are
	// reached by mutual TLS only; without, by plain HTTP.
	Identities []string `json:"identities,omitempty"`
	// Endpoints, sorted; none: 503.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
}

// Key is namespace/name:port.
func (d *Destination) Key() string { return DestinationKey(d.Namespace, d.Name, d.Port) }

// DestinationKey is the key of a Service's port.
func DestinationKey(namespace, name string, port uint32) string {
	return namespace + "/" + name + ":" + strconv.FormatUint(uint64(port), 10)
}

// Hostname of the Service inside the cluster.
func (d *Destination) Hostname() string { return d.Name + "." + d.Namespace + ".svc.cluster.local" }

// Size is an upper estimate, in bytes, of what the destination adds to each of the
// two messages with the clusters and with the endpoints of a data plane. A test
// holds it against what is written.
func (d *Destination) Size() int {
	size := 512 + 4*len(d.Hostname())
	for _, id := range d.Identities {
		size += 24 + len(id)
	}
	for i := range d.Endpoints {
		size += 20 + len(d.Endpoints[i].Address)
	}
	return size
}

// Endpoint is an address behind a destination.
type Endpoint struct {
	Address string `json:"address"`
	Port    uint32 `json:"port"`
}

// Duration is a time.Duration that is written as text ("1m30s").
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}
