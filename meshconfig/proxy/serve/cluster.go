package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/proto"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
)

// cluster is a cluster at work: its endpoints, connections and counters. It
// lives as long as its configuration stays the same.
type cluster struct {
	config     *compile.Cluster
	endpoints  atomic.Pointer[endpointSet]
	transports []*transport // one for each of config.sockets

	active  atomic.Int64 // requests
	retries atomic.Int64
	next    atomic.Uint64 // round robin

	ejecting sync.Mutex
	ejected  atomic.Int64 // until when an endpoint is, in Unix nanoseconds

	// What was given to it last; for the goroutine that configures it.
	updated   bool
	known     []*compile.Endpoint
	secretGen int
}

// endpointSet is what the load balancer chooses from.
type endpointSet struct {
	list []*host // healthy ones of the best priority; weights are repeated
}

type host struct {
	*compile.Endpoint
	transport *transport
	active    *atomic.Int64
	health    *health
}

// transport connects to endpoints in one way and pools the connections.
type transport struct {
	cluster *compile.Cluster
	socket  *compile.Socket
	tls     atomic.Pointer[tls.Config]
	http1   *http.Transport
	http2   *http.Transport
}

func newCluster(config *compile.Cluster) *cluster {
	c := &cluster{config: config}
	for i := range config.Sockets {
		t := &transport{cluster: config, socket: &config.Sockets[i]}
		if config.Protocol != compile.ProtocolHTTP2 {
			t.http1 = t.newHTTP(false)
		}
		if config.Protocol != compile.ProtocolHTTP1 {
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
		IdleConnTimeout:     t.cluster.IdleTimeout,
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
	network, addr := compile.DialAddress(addr)
	dialer := net.Dialer{Timeout: t.cluster.ConnectTimeout, KeepAlive: 30 * time.Second}
	if t.cluster.Source != nil && network == "tcp" {
		dialer.LocalAddr = &net.TCPAddr{IP: t.cluster.Source}
	}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, errConnect{err}
	}
	return conn, nil
}

func (t *transport) dialTLS(ctx context.Context, addr string, http2 bool) (net.Conn, error) {
	config := t.tls.Load()
	if config == nil {
		return nil, errConnect{fmt.Errorf("the secrets of cluster %q are not there yet", t.cluster.Name)}
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
	ctx, cancel := context.WithTimeout(ctx, t.cluster.ConnectTimeout)
	defer cancel()
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, errConnect{fmt.Errorf("TLS: %w", err)}
	}
	return secured, nil
}

// setSecrets gives the transports what they authenticate with.
func (c *cluster) setSecrets(secrets map[string]*compile.Secret) {
	for _, t := range c.transports {
		if t.socket.TLS == nil {
			continue
		}
		m, missing := t.socket.TLS.Resolve(secrets)
		if missing != "" {
			t.tls.Store(nil)
			continue
		}
		config := &tls.Config{
			MinVersion:   t.socket.TLS.MinVersion,
			MaxVersion:   t.socket.TLS.MaxVersion,
			CipherSuites: t.socket.TLS.CipherSuites, CurvePreferences: t.socket.TLS.Curves,
			Certificates: m.Certificates,
			ServerName:   t.socket.SNI,
			// The peer is known by its SANs, which the hook verifies with the
			// chain; crypto/tls would look for the server name.
			InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
			VerifyConnection: func(state tls.ConnectionState) error {
				return m.Validation.Verify(state, x509.ExtKeyUsageServerAuth)
			},
		}
		if len(m.Certificates) > 0 {
			// Whatever issuers the server names: it is the only identity we have.
			cert := &m.Certificates[0]
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
		}
		t.tls.Store(config)
	}
}

// setEndpoints replaces the endpoints. Counters of those that stay are kept.
func (c *cluster) setEndpoints(endpoints []*compile.Endpoint) {
	old := map[string]*host{}
	for _, h := range c.endpoints.Load().list {
		old[h.Key] = h
	}
	best, found := uint32(0), false
	for _, e := range endpoints {
		if e.Healthy && e.Weight > 0 && (!found || e.Priority < best) {
			best, found = e.Priority, true
		}
	}
	set := &endpointSet{}
	var divisor uint32
	for _, e := range endpoints {
		if e.Healthy && e.Weight > 0 && e.Priority == best {
			divisor = gcd(divisor, e.Weight)
		}
	}
	for _, e := range endpoints {
		if !e.Healthy || e.Weight == 0 || e.Priority != best {
			continue
		}
		h := &host{Endpoint: e, transport: c.transportFor(e), active: new(atomic.Int64), health: new(health)}
		if known := old[e.Key]; known != nil {
			h.active, h.health = known.active, known.health
		}
		// Weights up to 128 per endpoint are exact; more are scaled down.
		for range min(max(e.Weight/divisor, 1), 128) {
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

func (c *cluster) transportFor(e *compile.Endpoint) *transport {
	for i, t := range c.transports {
		if c.config.Sockets[i].Always || socketMatches(t.socket, e) {
			return t
		}
	}
	return c.transports[len(c.transports)-1]
}

func socketMatches(s *compile.Socket, e *compile.Endpoint) bool {
	for key, want := range s.Match {
		if got, ok := e.SocketMeta[key]; !ok || !proto.Equal(got, want) {
			return false
		}
	}
	return true
}

// pick chooses an endpoint, if it can one that was not tried.
func (c *cluster) pick(tried []*host) *host {
	list := c.available(tried)
	switch {
	case len(list) == 0:
		return nil
	case len(list) == 1:
		return list[0]
	case c.config.LB == clusterv3.Cluster_LEAST_REQUEST:
		h := list[rand.IntN(len(list))]
		for range c.config.Choices - 1 {
			if other := list[rand.IntN(len(list))]; other.active.Load() < h.active.Load() {
				h = other
			}
		}
		return h
	case c.config.LB == clusterv3.Cluster_RANDOM:
		return list[rand.IntN(len(list))]
	default:
		return list[c.next.Add(1)%uint64(len(list))]
	}
}

// limit is how many requests may be under way. With HTTP/1.1 each takes a
// connection, and those beyond wait as pending ones.
func (c *cluster) limit() int64 {
	if c.config.Protocol == compile.ProtocolHTTP1 {
		return min(c.config.MaxRequests, c.config.MaxConnections+c.config.MaxPending)
	}
	return c.config.MaxRequests
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

// update gives a cluster its current endpoints and secrets.
func (c *cluster) update(r *compile.Resources) {
	endpoints := c.config.Endpoints
	if c.config.EDSName != "" {
		endpoints = r.Endpoints[c.config.EDSName]
	}
	if !c.updated || !sameEndpoints(c.known, endpoints) {
		c.known = endpoints
		c.setEndpoints(endpoints)
	}
	if !c.updated || c.secretGen != r.SecretGen {
		c.secretGen = r.SecretGen
		c.setSecrets(r.Secrets)
	}
	c.updated = true
}

// sameEndpoints tells whether it is the same slice: what did not change is not
// compiled again.
func sameEndpoints(a, b []*compile.Endpoint) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
