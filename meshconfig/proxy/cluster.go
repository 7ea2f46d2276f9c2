package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"
)

// cluster is a cluster at work: its endpoints, connections and counters. It
// lives as long as its configuration stays the same.
type cluster struct {
	config     *clusterConfig
	endpoints  atomic.Pointer[endpointSet]
	transports []*transport // one for each of config.sockets

	active  atomic.Int64 // requests
	retries atomic.Int64
	next    atomic.Uint64 // round robin

	// What was given to it last; for the goroutine that configures it.
	updated   bool
	known     []*endpoint
	secretGen int
}

// endpointSet is what the load balancer chooses from.
type endpointSet struct {
	list []*host // healthy ones of the best priority; weights are repeated
}

type host struct {
	*endpoint
	transport *transport
	active    *atomic.Int64
}

// transport connects to endpoints in one way and pools the connections.
type transport struct {
	cluster *clusterConfig
	socket  *socketConfig
	tls     atomic.Pointer[tls.Config]
	http1   *http.Transport
	http2   *http.Transport
}

func newCluster(config *clusterConfig) *cluster {
	c := &cluster{config: config}
	for i := range config.sockets {
		t := &transport{cluster: config, socket: &config.sockets[i]}
		if config.protocol != protocolHTTP2 {
			t.http1 = t.newHTTP(false)
		}
		if config.protocol != protocolHTTP1 {
			t.http2 = t.newHTTP(true)
		}
		c.transports = append(c.transports, t)
	}
	c.endpoints.Store(&endpointSet{})
	return c
}

func (t *transport) newHTTP(http2 bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	protocols.SetUnencryptedHTTP2(http2)
	return &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return patient(http2)(t.dial(ctx, addr))
		},
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return patient(http2)(t.dialTLS(ctx, addr, http2))
		},
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     t.cluster.idleTimeout,
		DisableCompression:  true,
		WriteBufferSize:     16 << 10,
		ReadBufferSize:      16 << 10,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}

// errConnect wraps what happened before a connection was there.
type errConnect struct{ error }

func (e errConnect) Unwrap() error { return e.error }

func (t *transport) dial(ctx context.Context, addr string) (net.Conn, error) {
	network, addr := dialAddress(addr)
	dialer := net.Dialer{Timeout: t.cluster.connectTimeout, KeepAlive: 30 * time.Second}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, errConnect{err}
	}
	return conn, nil
}

func (t *transport) dialTLS(ctx context.Context, addr string, http2 bool) (net.Conn, error) {
	config := t.tls.Load()
	if config == nil {
		return nil, errConnect{fmt.Errorf("the secrets of cluster %q are not there yet", t.cluster.name)}
	}
	conn, err := t.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	if http2 {
		config.NextProtos = []string{"h2"}
	}
	ctx, cancel := context.WithTimeout(ctx, t.cluster.connectTimeout)
	defer cancel()
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, errConnect{fmt.Errorf("TLS: %w", err)}
	}
	return secured, nil
}

// setSecrets gives the transports what they authenticate with.
func (c *cluster) setSecrets(secrets map[string]*secret) {
	for _, t := range c.transports {
		if t.socket.tls == nil {
			continue
		}
		m, missing := t.socket.tls.resolve(secrets)
		if missing != "" {
			t.tls.Store(nil)
			continue
		}
		config := &tls.Config{
			MinVersion:   t.socket.tls.minVersion,
			MaxVersion:   t.socket.tls.maxVersion,
			CipherSuites: t.socket.tls.cipherSuites, CurvePreferences: t.socket.tls.curves,
			Certificates: m.certificates,
			ServerName:   t.socket.sni,
			// The peer is known by its SANs, which the hook verifies with the
			// chain; crypto/tls would look for the server name.
			InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
			VerifyConnection: func(state tls.ConnectionState) error {
				return m.validation.verify(state, x509.ExtKeyUsageServerAuth)
			},
		}
		if len(m.certificates) > 0 {
			// Whatever issuers the server names: it is the only identity we have.
			cert := &m.certificates[0]
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		t.tls.Store(config)
	}
}

// setEndpoints replaces the endpoints. Counters of those that stay are kept.
func (c *cluster) setEndpoints(endpoints []*endpoint) {
	old := map[string]*host{}
	for _, h := range c.endpoints.Load().list {
		old[h.key] = h
	}
	best, found := uint32(0), false
	for _, e := range endpoints {
		if e.healthy && e.weight > 0 && (!found || e.priority < best) {
			best, found = e.priority, true
		}
	}
	set := &endpointSet{}
	var divisor uint32
	for _, e := range endpoints {
		if e.healthy && e.weight > 0 && e.priority == best {
			divisor = gcd(divisor, e.weight)
		}
	}
	for _, e := range endpoints {
		if !e.healthy || e.weight == 0 || e.priority != best {
			continue
		}
		h := &host{endpoint: e, transport: c.transportFor(e), active: new(atomic.Int64)}
		if known := old[e.key]; known != nil {
			h.active = known.active
		}
		// Weights up to 128 per endpoint are exact; more are scaled down.
		for range min(max(e.weight/divisor, 1), 128) {
			set.list = append(set.list, h)
		}
	}
	if len(set.list) > len(endpoints) {
		rand.Shuffle(len(set.list), func(i, j int) { set.list[i], set.list[j] = set.list[j], set.list[i] })
	}
	c.endpoints.Store(set)
}

func gcd(a, b uint32) uint32 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func (c *cluster) transportFor(e *endpoint) *transport {
	for i, t := range c.transports {
		if c.config.sockets[i].always || socketMatches(t.socket, e) {
			return t
		}
	}
	return c.transports[len(c.transports)-1]
}

func socketMatches(s *socketConfig, e *endpoint) bool {
	for key, want := range s.match {
		if got, ok := e.socketMeta[key]; !ok || !proto.Equal(got, want) {
			return false
		}
	}
	return true
}

// pick chooses an endpoint, if it can another one than avoid.
func (c *cluster) pick(avoid *host) *host {
	list := c.endpoints.Load().list
	if len(list) == 0 {
		return nil
	}
	var h *host
	for range 4 {
		switch {
		case len(list) == 1:
			return list[0]
		case c.config.lb == clusterv3.Cluster_LEAST_REQUEST:
			h = list[rand.IntN(len(list))]
			for range c.config.choices - 1 {
				if other := list[rand.IntN(len(list))]; other.active.Load() < h.active.Load() {
					h = other
				}
			}
		case c.config.lb == clusterv3.Cluster_RANDOM:
			h = list[rand.IntN(len(list))]
		default:
			h = list[c.next.Add(1)%uint64(len(list))]
		}
		if avoid == nil || h.key != avoid.key {
			break
		}
	}
	return h
}

// limit is how many requests may be under way. With HTTP/1.1 each takes a
// connection, and those beyond wait as pending ones.
func (c *cluster) limit() int64 {
	if c.config.protocol == protocolHTTP1 {
		return min(c.config.maxRequests, c.config.maxConnections+c.config.maxPending)
	}
	return c.config.maxRequests
}

// close gives up the connections that wait for requests.
func (c *cluster) close() {
	for _, t := range c.transports {
		for _, h := range []*http.Transport{t.http1, t.http2} {
			if h != nil {
				h.CloseIdleConnections()
			}
		}
	}
}

// Transports pool connections by the host of the URL, which cannot hold the path
// of a socket; it is encoded.
const pipeSuffix = ".pipe"

func poolKey(network, addr string) string {
	if network == "unix" {
		return hex.EncodeToString([]byte(addr)) + pipeSuffix
	}
	return addr
}

func dialAddress(addr string) (network, target string) {
	host, _, err := net.SplitHostPort(addr)
	if err == nil {
		if encoded, ok := strings.CutSuffix(host, pipeSuffix); ok {
			if path, err := hex.DecodeString(encoded); err == nil {
				return "unix", string(path)
			}
		}
	}
	return "tcp", addr
}
