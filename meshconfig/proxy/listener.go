package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// maxConnections bounds the connections of one listener.
const maxConnections = 10_000

// socket is a bound address. It stays open as long as any listener has the
// address, whatever else changes.
type socket struct {
	proxy    *Proxy
	network  string
	addr     string
	listener net.Listener
	current  atomic.Pointer[boundListener]
	started  bool
	active   atomic.Int64
	closed   atomic.Bool
}

// boundListener is a listener with everything it needs.
type boundListener struct {
	config *listenerConfig
	chains map[*chainConfig]*boundChain
}

type boundChain struct {
	tls    *tls.Config // nil for plain text, and while the certificate is missing
	server *chainServer
}

// bind completes a listener: it is nil while a route table or secret is missing,
// which waiting then names. A certificate is waited for as long as its filter
// chain says; then the chain refuses handshakes, so that the others can serve.
func (s *socket) bind(config *listenerConfig, r *resources, missed *missedSecrets) (bound *boundListener, waiting string) {
	bound = &boundListener{config: config, chains: map[*chainConfig]*boundChain{}}
	servers := map[string]*chainServer{}
	if old := s.current.Load(); old != nil {
		for chain, b := range old.chains {
			servers[chain.key] = b.server
		}
	}
	tlsConfigs := map[*chainConfig]*tls.Config{}
	for _, chain := range config.chains {
		if name := chain.hcm.routeName; name != "" && r.routes[name] == nil {
			return nil, "RouteConfiguration " + name
		}
		if chain.tls != nil {
			m, missing := chain.tls.resolve(r.secrets)
			switch {
			case missing == "":
				tlsConfigs[chain] = chain.serverTLS(m)
			case missed.wait(missing, chain.tls.fetchTimeout):
				return nil, "Secret " + missing
			}
		}
	}
	for _, chain := range config.chains {
		server := servers[chain.key]
		if server == nil {
			server = newChainServer(s.proxy, chain)
		}
		bound.chains[chain] = &boundChain{tls: tlsConfigs[chain], server: server}
	}
	return bound, ""
}

// serverTLS is the configuration for clients of the chain.
func (c *chainConfig) serverTLS(m *material) *tls.Config {
	config := &tls.Config{
		MinVersion: c.tls.minVersion, MaxVersion: c.tls.maxVersion, Certificates: m.certificates,
		CipherSuites: c.tls.cipherSuites, CurvePreferences: c.tls.curves,
		// A resumed session would skip a change of what is trusted.
		SessionTicketsDisabled: true,
	}
	for _, protocol := range c.tls.alpn {
		if protocol == "h2" && c.hcm.server.http2 || protocol == "http/1.1" && c.hcm.server.http1 {
			config.NextProtos = append(config.NextProtos, protocol)
		}
	}
	if c.tls.validation == nil && c.tls.validationSecret == "" {
		return config
	}
	config.ClientAuth = tls.RequestClientCert
	if c.requireClient {
		config.ClientAuth = tls.RequireAnyClientCert
	}
	required := c.requireClient
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 && !required {
			return nil
		}
		return m.validation.verify(state, x509.ExtKeyUsageClientAuth)
	}
	return config
}

// use switches new connections to bound and starts accepting.
func (s *socket) use(bound *boundListener) {
	old := s.current.Swap(bound)
	if !s.started {
		s.started = true
		s.proxy.serving.Go(s.accept)
	}
	if old == nil {
		return
	}
	kept := map[*chainServer]bool{}
	for _, b := range bound.chains {
		kept[b.server] = true
	}
	for _, b := range old.chains {
		if !kept[b.server] {
			s.proxy.retire(b.server)
		}
	}
}

func (s *socket) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			if s.closed.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			s.proxy.log.Warn("cannot accept a connection", "address", s.addr, "error", err)
			time.Sleep(10 * time.Millisecond) // out of file descriptors, most likely
			continue
		}
		if s.active.Add(1) > maxConnections {
			s.active.Add(-1)
			s.proxy.metrics.refused.Inc()
			c.Close()
			continue
		}
		counted := &countedConn{Conn: c, done: func() { s.active.Add(-1) }}
		if bound := s.current.Load(); bound.config.chains[0].tls != nil {
			go s.handshake(counted, bound)
			continue
		}
		if !s.hand(newConn(counted, nil), nil) {
			_ = counted.Close()
		}
	}
}

func (s *socket) handshake(c net.Conn, bound *boundListener) {
	var chosen *chainConfig
	timeout := bound.config.chains[0].timeout
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	secured := tls.Server(c, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chain := bound.config.chain(hello.ServerName)
			if chain == nil || chain.requireSNI && hello.ServerName == "" {
				return nil, errors.New("no filter chain is for the server name " + hello.ServerName)
			}
			config := bound.chains[chain].tls
			if config == nil {
				return nil, errors.New("there is no certificate for the server name " + hello.ServerName)
			}
			chosen = chain
			return config, nil
		},
	})
	if err := secured.HandshakeContext(ctx); err != nil {
		s.proxy.metrics.handshakes.Inc()
		s.proxy.log.Debug("a TLS handshake failed", "address", s.addr, "client", c.RemoteAddr().String(), "error", err)
		c.Close()
		return
	}
	state := secured.ConnectionState()
	if !s.hand(newConn(secured, &state), chosen) {
		_ = secured.Close()
	}
}

// hand gives a connection to the server of its filter chain. When the chain was
// replaced meanwhile, its successor takes a plain connection; one that was
// secured by other rules must come again.
func (s *socket) hand(c *conn, chosen *chainConfig) bool {
	for {
		bound := s.current.Load()
		chain := bound.config.chain(c.serverName())
		if chain == nil || (chain.tls != nil) != (c.tls != nil) || chosen != nil && chain.key != chosen.key {
			return false
		}
		// As in Envoy, who has agreed on a protocol speaks it, others are heard.
		if chain.hcm.server.http2 && (c.tls == nil || c.tls.NegotiatedProtocol != "http/1.1") {
			c.AllowHTTP2()
		}
		if bound.chains[chain].server.push(c) {
			return true
		}
		if s.current.Load() == bound {
			return false // the socket is closing
		}
	}
}

func (s *socket) close() {
	if s.closed.CompareAndSwap(false, true) {
		s.listener.Close()
	}
}

type countedConn struct {
	net.Conn
	once sync.Once
	done func()
}

func (c *countedConn) Close() error {
	c.once.Do(c.done)
	return c.Conn.Close()
}

func (c *countedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}

// chainServer serves the connections of a filter chain. It lives as long as
// what is decided per connection stays the same; what is decided per request is
// looked up for each.
type chainServer struct {
	proxy  *Proxy
	conns  chan *conn
	closed chan struct{}
	once   sync.Once
	http   *http.Server
	hcm    atomic.Pointer[hcm] // the newest, for requests after the chain is gone

	draining atomic.Bool
	ended    chan struct{} // holds one: a connection has ended
	mu       sync.Mutex
	open     int // connections
	closing  bool
}

type connKey struct{}

func newChainServer(p *Proxy, chain *chainConfig) *chainServer {
	settings := chain.hcm.server
	s := &chainServer{proxy: p, conns: make(chan *conn), closed: make(chan struct{}), ended: make(chan struct{}, 1)}
	s.hcm.Store(chain.hcm)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(settings.http1)
	protocols.SetUnencryptedHTTP2(settings.http2)
	s.http = &http.Server{
		Handler:   s,
		Protocols: protocols,
		// Else net/http answers OPTIONS * by itself, past every filter.
		DisableGeneralOptionsHandler: true,

		ReadHeaderTimeout: settings.headerTimeout,
		IdleTimeout:       settings.idleTimeout,
		// net/http allows 4 KiB more than it is told.
		MaxHeaderBytes: settings.maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: settings.maxStreams, MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 1 << 20,
		},
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				s.leave()
			}
		},
	}
	p.serving.Go(func() { _ = s.http.Serve(s) }) // ends with Shutdown or Close
	return s
}

// push hands a connection to the server; it is false when the server takes no
// more.
func (s *chainServer) push(c *conn) bool {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return false
	}
	s.open++
	s.mu.Unlock()
	select {
	case s.conns <- c:
	case <-s.closed:
		c.Close()
		s.leave()
	}
	return true
}

// leave notes the end of a connection.
func (s *chainServer) leave() {
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
	select {
	case s.ended <- struct{}{}:
	default:
	}
}

// refuse makes push refuse connections, if there are none open or with force.
func (s *chainServer) refuse(force bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open > 0 && !force {
		return false
	}
	s.closing = true
	return true
}

// Accept implements net.Listener.
func (s *chainServer) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *chainServer) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Addr implements net.Listener.
func (s *chainServer) Addr() net.Addr { return &net.TCPAddr{} }

// ServeHTTP implements http.Handler.
func (s *chainServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := s.proxy
	p.active.Add(1)
	defer p.active.Add(-1)
	state := p.state.Load()
	h := state.hcms[s]
	if h == nil {
		h = s.hcm.Load()
	}
	if s.draining.Load() {
		w.Header()["Connection"] = []string{"close"}
	}
	c, _ := r.Context().Value(connKey{}).(*conn)
	e := &exchange{proxy: p, state: state, hcm: h, conn: c, w: w, r: r}
	e.serve()
}
