package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
)

// Config of a Server. All fields are required but the last two.
type Config struct {
	// NodeID is who serves, for metrics.
	NodeID string
	// Listen opens the socket of a listener.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
	// DrainTimeout bounds how long requests may take to end when Stop is called,
	// or a listener goes.
	DrainTimeout time.Duration
	// Log is where the server writes.
	Log *slog.Logger
	// Registry takes the metrics. Optional.
	Registry prometheus.Registerer
	// SecretServers are the names of servers, besides the control plane, that
	// secrets may come from. Optional.
	SecretServers []string
}

// Server serves what it was given last and accepted.
type Server struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	state   atomic.Pointer[snapshot]
	active  atomic.Int64
	ready   chan struct{}
	once    sync.Once
	serving sync.WaitGroup // accept loops and servers
	// leaving: clients are asked to go, leavingInbound: those of inbound listeners.
	leaving, leavingInbound atomic.Bool
	// stopping is closed when the server drains as a whole.
	stopping chan struct{}
	mirrors  atomic.Int64 // copies under way
	shared   shared

	// applying guards what the control plane served and what is made of it.
	applying  sync.Mutex
	resources *compile.Resources
	sockets   map[string]*socket
	missed    missedSecrets
	again     *time.Timer // applies when a wait for a secret ends
	stopped   bool
	waits     bool // a listener waits for routes or secrets

	mu       sync.Mutex
	shutdown map[int]func() // ends of upgraded connections
	nextHook int
}

// snapshot is the configuration that requests are served with. It never
// changes; a new one replaces it.
type snapshot struct {
	routes   map[string]*compile.RouteTable
	clusters map[string]*cluster
	hcms     map[*chainServer]*compile.HCM
}

// New makes a Server, which serves nothing yet.
func New(config Config) *Server {
	srv := &Server{
		config: config, log: config.Log, ready: make(chan struct{}),
		missed:    missedSecrets{since: map[string]time.Time{}},
		resources: compile.NewResources(config.SecretServers), sockets: map[string]*socket{}, stopping: make(chan struct{}), shutdown: map[int]func(){},
	}
	srv.metrics = newMetrics(srv, config.Registry)
	srv.state.Store(&snapshot{})
	return srv
}

// Ready is closed when all listeners of the first configuration with any serve.
func (srv *Server) Ready() <-chan struct{} { return srv.ready }

// Active is how many requests are under way.
func (srv *Server) Active() int { return int(srv.active.Load()) }

// Accept takes a response of the control plane whole or not at all.
func (srv *Server) Accept(ctx context.Context, typeURL string, list []*anypb.Any) error {
	srv.applying.Lock()
	defer srv.applying.Unlock()
	listeners, raw := srv.resources.Listeners, srv.resources.Raw[typeURL]
	if err := srv.resources.Accept(typeURL, list); err != nil {
		return err
	}
	if typeURL == resource.ListenerType {
		if err := srv.open(ctx); err != nil {
			srv.resources.Listeners, srv.resources.Raw[typeURL] = listeners, raw
			return err
		}
	}
	srv.apply()
	return nil
}

// AcceptChanges takes a response of delta xDS whole or not at all.
func (srv *Server) AcceptChanges(ctx context.Context, typeURL string, changed []*discoveryv3.Resource, gone []string) error {
	srv.applying.Lock()
	defer srv.applying.Unlock()
	listeners, raw := srv.resources.Listeners, srv.resources.Raw[typeURL]
	waited := srv.waits
	if err := srv.resources.AcceptChanges(typeURL, changed, gone); err != nil {
		return err
	}
	switch {
	case typeURL == resource.ListenerType:
		if err := srv.open(ctx); err != nil {
			srv.resources.Listeners, srv.resources.Raw[typeURL] = listeners, raw
			return err
		}
	case typeURL == resource.VirtualHostType && !waited:
		// Nothing else follows from hosts.
		next := *srv.state.Load()
		next.routes = srv.resources.Routes
		srv.state.Store(&next)
		return nil
	}
	srv.apply()
	return nil
}

// Wanted are the names of resources to ask for, by type, because of what was
// accepted.
func (srv *Server) Wanted() map[string][]string {
	srv.applying.Lock()
	defer srv.applying.Unlock()
	return srv.resources.Wanted()
}

// AcceptSecrets takes what another server of secrets sent, whole or not at all.
func (srv *Server) AcceptSecrets(server string, list []*anypb.Any) error {
	srv.applying.Lock()
	defer srv.applying.Unlock()
	if err := srv.resources.AcceptSecrets(server, list); err != nil {
		return err
	}
	if !srv.stopped {
		srv.apply()
	}
	return nil
}

// WantedSecrets are those to ask other servers for, by server.
func (srv *Server) WantedSecrets() map[string][]string {
	srv.applying.Lock()
	defer srv.applying.Unlock()
	return srv.resources.WantedSecrets()
}

// Drain lets every answer end its connection, with inboundOnly those of inbound
// listeners. Connections are still taken.
func (srv *Server) Drain(inboundOnly bool) {
	srv.leavingInbound.Store(inboundOnly)
	srv.leaving.Store(true)
}

// Stop closes the sockets and lets requests under way finish within DrainTimeout.
func (srv *Server) Stop() {
	var servers []*chainServer
	srv.applying.Lock()
	srv.stopped = true
	if srv.again != nil {
		srv.again.Stop()
	}
	for _, s := range srv.sockets {
		s.close()
		if bound := s.current.Load(); bound != nil {
			for _, b := range bound.chains {
				servers = append(servers, b.server)
			}
		}
	}
	srv.applying.Unlock()
	srv.mu.Lock()
	close(srv.stopping)
	for _, end := range srv.shutdown {
		end()
	}
	srv.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() { srv.drain(s, stopGrace) })
	}
	wg.Wait()
	srv.serving.Wait()
	if state := srv.state.Load(); state != nil {
		for _, c := range state.clusters {
			c.close()
		}
	}
}

// stopGrace is how long connections that wait for a request may still bring one
// when the proxy stops. A client that is sending right now would lose it.
const stopGrace = 250 * time.Millisecond

// drain ends the connections of a server: each with its next answer, those
// without a request when grace is over, and requests within DrainTimeout.
func (srv *Server) drain(s *chainServer, grace time.Duration) {
	s.draining.Store(true)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	stopping := srv.stopping
	for over := false; !s.refuse(over); {
		select {
		case <-s.ended:
		case <-timer.C:
			over = true
		case <-stopping:
			stopping = nil
			timer.Reset(min(grace, stopGrace))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), srv.config.DrainTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			srv.log.Warn("requests did not end in time and were cut off", "timeout", srv.config.DrainTimeout)
		}
		_ = s.http.Close()
	}
}

// retire drains a server in the background.
func (srv *Server) retire(s *chainServer) {
	srv.serving.Go(func() { srv.drain(s, srv.config.DrainTimeout) })
}

// onShutdown registers the end of a connection the server does not know any
// more; the result takes it back.
func (srv *Server) onShutdown(end func()) (cancel func()) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	select {
	case <-srv.stopping: // the others were ended already
		end()
	default:
	}
	srv.nextHook++
	id := srv.nextHook
	srv.shutdown[id] = end
	return func() {
		srv.mu.Lock()
		defer srv.mu.Unlock()
		delete(srv.shutdown, id)
	}
}

// open binds the addresses of new listeners. It is done before a response with
// listeners is acknowledged, so that a port in use is a refusal.
func (srv *Server) open(ctx context.Context) error {
	var opened []*socket
	var errs []error
	seen := map[string]string{}
	for _, l := range srv.resources.Listeners {
		if !l.Bind {
			continue
		}
		key := l.Address()
		if other, double := seen[key]; double {
			errs = append(errs, fmt.Errorf("Listener %q: the address %s is taken by the listener %q", l.Name, l.Addr, other))
			continue
		}
		seen[key] = l.Name
		if srv.sockets[key] != nil {
			continue
		}
		listener, err := srv.config.Listen(ctx, l.Network, l.Addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("Listener %q: %w", l.Name, err))
			continue
		}
		s := &socket{server: srv, network: l.Network, addr: l.Addr, listener: listener}
		srv.sockets[key] = s
		opened = append(opened, s)
	}
	if err := errors.Join(errs...); err != nil {
		for _, s := range opened {
			s.close()
			delete(srv.sockets, s.network+"|"+s.addr)
		}
		return err
	}
	return nil
}

// apply makes what was accepted the configuration that requests are served
// with. A listener that still waits for routes or secrets keeps its former one.
func (srv *Server) apply() {
	r, old := srv.resources, srv.state.Load()
	next := &snapshot{clusters: make(map[string]*cluster, len(r.Clusters)), hcms: map[*chainServer]*compile.HCM{}}
	for name, config := range r.Clusters {
		c := old.clusters[name]
		if c == nil || c.config != config {
			c = newCluster(config)
		}
		c.update(r)
		next.clusters[name] = c
	}

	bound := map[*socket]*boundListener{}
	inUse := map[string]bool{}
	waits := 0
	srv.missed.begin()
	for _, l := range r.Listeners {
		if !l.Bind {
			continue
		}
		inUse[l.Address()] = true
		s := srv.sockets[l.Address()]
		b, waiting := s.bind(l, r, &srv.missed)
		if b == nil {
			waits++
			srv.log.Debug("a listener waits", "listener", l.Name, "for", waiting)
			if b = s.current.Load(); b == nil {
				continue
			}
		}
		bound[s] = b
		for chain, one := range b.chains {
			next.hcms[one.server] = chain.HCM
			one.server.hcm.Store(chain.HCM)
		}
	}
	srv.missed.end()
	srv.shared.forget(time.Now())
	srv.applyAgain()
	if srv.waits = waits > 0; !srv.waits {
		r.Prune()
	}
	next.routes = r.Routes
	srv.state.Store(next)
	for s, b := range bound {
		s.use(b)
	}
	for key, s := range srv.sockets {
		if !inUse[key] {
			s.close()
			if b := s.current.Load(); b != nil {
				for _, one := range b.chains {
					srv.retire(one.server)
				}
			}
			delete(srv.sockets, key)
		}
	}
	for name, c := range old.clusters {
		if next.clusters[name] != c {
			c.close()
		}
	}
	if len(bound) > 0 && waits == 0 {
		srv.once.Do(func() { close(srv.ready) })
	}
}

// applyAgain applies once more when the next wait for a secret ends.
func (srv *Server) applyAgain() {
	if srv.again != nil {
		srv.again.Stop()
	}
	if srv.missed.next.IsZero() {
		return
	}
	srv.again = time.AfterFunc(time.Until(srv.missed.next), func() {
		srv.applying.Lock()
		defer srv.applying.Unlock()
		if !srv.stopped {
			srv.apply()
		}
	})
}
