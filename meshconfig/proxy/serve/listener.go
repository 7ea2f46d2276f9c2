package serve

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

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/request"
)

// maxConnections bounds the connections of one listener.
const maxConnections = 10_000

// socket is a bound address. It stays open as long as any listener has the
// address, whatever else changes.
type socket struct {
	server   *Server
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
	config *compile.Listener
	chains map[*compile.Chain]*boundChain
}

type boundChain struct {
	tls    *tls.Config // nil for plain text, and while the certificate is missing
	server *chainServer
}

// bind completes a listener: it is nil while a route table or secret is missing,
// which waiting then names. A certificate is waited for as long as its filter
// chain says; then the chain refuses handshakes, so that the others can serve.
func (s *socket) bind(config *compile.Listener, r *compile.Resources, missed *missedSecrets) (bound *boundListener, waiting string) {
	bound = &boundListener{config: config, chains: map[*compile.Chain]*boundChain{}}
	servers := map[string]*chainServer{}
	if old := s.current.Load(); old != nil {
		for chain, b := range old.chains {
			servers[chain.Key] = b.server
		}
	}
	tlsConfigs := map[*compile.Chain]*tls.Config{}
	for _, chain := range config.Chains {
		if name := chain.HCM.RouteName; name != "" && !r.Routes[name].Complete() {
			return nil, "RouteConfiguration " + name
		}
		if chain.TLS != nil {
			m, missing := chain.TLS.Resolve(r.Secrets)
			switch {
			case missing == "":
				tlsConfigs[chain] = serverTLS(chain, m)
			case missed.wait(missing, chain.TLS.FetchTimeout):
				return nil, "Secret " + missing
			}
		}
	}
	for _, chain := range config.Chains {
		server := servers[chain.Key]
		if server == nil {
			server = newChainServer(s.server, chain)
		}
		bound.chains[chain] = &boundChain{tls: tlsConfigs[chain], server: server}
	}
	return bound, ""
}

// serverTLS is the configuration for clients of the chain.
func serverTLS(c *compile.Chain, m *compile.Material) *tls.Config {
	config := &tls.Config{
		MinVersion: c.TLS.MinVersion, MaxVersion: c.TLS.MaxVersion, Certificates: m.Certificates,
		CipherSuites: c.TLS.CipherSuites, CurvePreferences: c.TLS.Curves,
		// A resumed session would skip a change of what is trusted.
		SessionTicketsDisabled: true,
	}
	for _, protocol := range c.TLS.Alpn {
		if protocol == "h2" && c.HCM.Server.HTTP2 || protocol == "http/1.1" && c.HCM.Server.HTTP1 {
			config.NextProtos = append(config.NextProtos, protocol)
		}
	}
	if c.TLS.Validation == nil && c.TLS.ValidationSecret == "" {
		return config
	}
	config.ClientAuth = tls.RequestClientCert
	if c.RequireClient {
		config.ClientAuth = tls.RequireAnyClientCert
	}
	required := c.RequireClient
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 && !required {
			return nil
		}
		return m.Validation.Verify(state, x509.ExtKeyUsageClientAuth)
	}
	return config
}

// use switches new connections to bound and starts accepting.
func (s *socket) use(bound *boundListener) {
	old := s.current.Swap(bound)
	if !s.started {
		s.started = true
		s.server.serving.Go(s.accept)
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
			s.server.retire(b.server)
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
			s.server.log.Warn("cannot accept a connection", "address", s.addr, "error", err)
			time.Sleep(10 * time.Millisecond) // out of file descriptors, most likely
			continue
		}
		if s.active.Add(1) > maxConnections {
			s.active.Add(-1)
			s.server.metrics.refused.Inc()
			c.Close()
			continue
		}
		counted := &countedConn{Conn: c, done: func() { s.active.Add(-1) }}
		bound := s.current.Load()
		if bound.config.ProxyProtocol {
			go s.begin(counted, bound)
			continue
		}
		s.take(counted, bound)
	}
}

// begin takes a connection that tells who its client is.
func (s *socket) begin(c net.Conn, bound *boundListener) {
	told, err := readProxyHeader(c, bound.config.Chains[0].Timeout)
	if err != nil {
		s.server.metrics.handshakes.Inc()
		s.server.log.Debug("a connection was refused", "address", s.addr, "proxy", c.RemoteAddr().String(), "error", err)
		c.Close()
		return
	}
	s.take(told, bound)
}

func (s *socket) take(c net.Conn, bound *boundListener) {
	if bound.config.Chains[0].TLS != nil {
		go s.handshake(c, bound)
		return
	}
	if !s.hand(request.NewConn(c, nil), nil) {
		_ = c.Close()
	}
}

func (s *socket) handshake(c net.Conn, bound *boundListener) {
	var chosen *compile.Chain
	timeout := bound.config.Chains[0].Timeout
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	secured := tls.Server(c, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chain := bound.config.Chain(hello.ServerName)
			if chain == nil || chain.RequireSNI && hello.ServerName == "" {
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
		s.server.metrics.handshakes.Inc()
		s.server.log.Debug("a TLS handshake failed", "address", s.addr, "client", c.RemoteAddr().String(), "error", err)
		c.Close()
		return
	}
	state := secured.ConnectionState()
	if !s.hand(request.NewConn(secured, &state), chosen) {
		_ = secured.Close()
	}
}

// hand gives a connection to the server of its filter chain. When the chain was
// replaced meanwhile, its successor takes a plain connection; one that was
// secured by other rules must come again.
func (s *socket) hand(c *request.Conn, chosen *compile.Chain) bool {
	for {
		bound := s.current.Load()
		chain := bound.config.Chain(c.ServerName())
		if chain == nil || (chain.TLS != nil) != (c.TLS != nil) || chosen != nil && chain.Key != chosen.Key {
			return false
		}
		// As in Envoy, who has agreed on a protocol speaks it, others are heard.
		if chain.HCM.Server.HTTP2 && (c.TLS == nil || c.TLS.NegotiatedProtocol != "http/1.1") {
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
	server *Server
	conns  chan *request.Conn
	closed chan struct{}
	once   sync.Once
	http   *http.Server
	hcm    atomic.Pointer[compile.HCM] // the newest, for requests after the chain is gone

	draining atomic.Bool
	ended    chan struct{} // holds one: a connection has ended
	mu       sync.Mutex
	open     int // connections
	closing  bool
}

type connKey struct{}

func newChainServer(p *Server, chain *compile.Chain) *chainServer {
	settings := chain.HCM.Server
	s := &chainServer{server: p, conns: make(chan *request.Conn), closed: make(chan struct{}), ended: make(chan struct{}, 1)}
	s.hcm.Store(chain.HCM)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(settings.HTTP1)
	protocols.SetUnencryptedHTTP2(settings.HTTP2)
	s.http = &http.Server{
		Handler:   s,
		Protocols: protocols,
		// Else net/http answers OPTIONS * by itself, past every filter.
		DisableGeneralOptionsHandler: true,

		ReadHeaderTimeout: settings.HeaderTimeout,
		IdleTimeout:       settings.IdleTimeout,
		// net/http allows 4 KiB more than it is told.
		MaxHeaderBytes: settings.MaxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: settings.MaxStreams, MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 1 << 20,
		},
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateClosed, http.StateHijacked:
				s.leave()
			case http.StateIdle:
				if own, ok := c.(*request.Conn); ok {
					own.Answered()
				}
			}
		},
	}
	p.serving.Go(func() { _ = s.http.Serve(s) }) // ends with Shutdown or Close
	return s
}

// push hands a connection to the server; it is false when the server takes no
// more.
func (s *chainServer) push(c *request.Conn) bool {
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
	p := s.server
	p.active.Add(1)
	defer p.active.Add(-1)
	state := p.state.Load()
	h := state.hcms[s]
	if h == nil {
		h = s.hcm.Load()
	}
	if s.draining.Load() || p.leaving.Load() && (h.Inbound || !p.leavingInbound.Load()) {
		w.Header()["Connection"] = []string{"close"}
	}
	c, _ := r.Context().Value(connKey{}).(*request.Conn)
	e := &exchange{server: p, state: state, hcm: h, w: w}
	e.HTTP, e.Conn, e.Scheme = r, c, h.SchemeOf(c)
	e.serve()
}
