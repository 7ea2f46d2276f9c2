package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy is a data plane. It is a component.
type Proxy struct {
	config  Config
	log     *slog.Logger
	metrics *metrics
	state   atomic.Pointer[snapshot]
	active  atomic.Int64
	ready   chan struct{}
	once    sync.Once
	serving sync.WaitGroup // accept loops and servers
	// stopping is closed when the proxy drains as a whole.
	stopping chan struct{}

	// applying guards what the control plane served and what is made of it.
	applying  sync.Mutex
	resources *resources
	sockets   map[string]*socket
	missed    missedSecrets
	again     *time.Timer // applies when a wait for a secret ends
	stopped   bool

	mu       sync.Mutex
	shutdown map[int]func() // ends of upgraded connections
	nextHook int
}

// New makes a Proxy; it connects and serves from Run on.
func New(config Config) (*Proxy, error) {
	config.setDefaults()
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("configure the proxy: %w", err)
	}
	p := &Proxy{
		config: config, log: config.Log.With("component", "proxy", "node", config.NodeID), ready: make(chan struct{}),
		missed:    missedSecrets{since: map[string]time.Time{}},
		resources: newResources(), sockets: map[string]*socket{}, stopping: make(chan struct{}), shutdown: map[int]func(){},
	}
	p.metrics = newMetrics(p, config.Registry)
	p.state.Store(&snapshot{})
	return p, nil
}

// Name implements component.Component.
func (p *Proxy) Name() string { return "proxy " + p.config.NodeID }

// Ready is closed when all listeners of the first configuration with any serve;
// it implements component.Component.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// ActiveRequests is how many requests are under way.
func (p *Proxy) ActiveRequests() int { return int(p.active.Load()) }

// Run serves until ctx ends, then lets requests under way finish within
// DrainTimeout; it implements component.Component. Without a control plane it
// keeps the last good configuration.
func (p *Proxy) Run(ctx context.Context) error {
	err := p.follow(ctx)
	p.stop()
	return err
}

// stop closes the sockets and drains.
func (p *Proxy) stop() {
	var servers []*chainServer
	p.applying.Lock()
	p.stopped = true
	if p.again != nil {
		p.again.Stop()
	}
	for _, s := range p.sockets {
		s.close()
		if bound := s.current.Load(); bound != nil {
			for _, b := range bound.chains {
				servers = append(servers, b.server)
			}
		}
	}
	p.applying.Unlock()
	p.mu.Lock()
	close(p.stopping)
	for _, end := range p.shutdown {
		end()
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() { p.drain(s, stopGrace) })
	}
	wg.Wait()
	p.serving.Wait()
	if state := p.state.Load(); state != nil {
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
func (p *Proxy) drain(s *chainServer, grace time.Duration) {
	s.draining.Store(true)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	stopping := p.stopping
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
	ctx, cancel := context.WithTimeout(context.Background(), p.config.DrainTimeout)
	defer cancel()
	if err := s.http.Shutdown(ctx); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			p.log.Warn("requests did not end in time and were cut off", "timeout", p.config.DrainTimeout)
		}
		_ = s.http.Close()
	}
}

// retire drains a server in the background.
func (p *Proxy) retire(s *chainServer) {
	p.serving.Go(func() { p.drain(s, p.config.DrainTimeout) })
}

// onShutdown registers the end of a connection the server does not know any
// more; the result takes it back.
func (p *Proxy) onShutdown(end func()) (cancel func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.stopping: // the others were ended already
		end()
	default:
	}
	p.nextHook++
	id := p.nextHook
	p.shutdown[id] = end
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.shutdown, id)
	}
}

// listenerAddress is the key of a socket.
func (c *listenerConfig) address() string { return c.network + "|" + c.addr }

// open binds the addresses of new listeners. It is done before a response with
// listeners is acknowledged, so that a port in use is a refusal.
func (p *Proxy) open(ctx context.Context) error {
	var opened []*socket
	var errs []error
	seen := map[string]string{}
	for _, l := range p.resources.listeners {
		if !l.bind {
			continue
		}
		key := l.address()
		if other, double := seen[key]; double {
			errs = append(errs, fmt.Errorf("Listener %q: the address %s is taken by the listener %q", l.name, l.addr, other))
			continue
		}
		seen[key] = l.name
		if p.sockets[key] != nil {
			continue
		}
		listener, err := p.config.Listen(ctx, l.network, l.addr)
		if err != nil {
			errs = append(errs, fmt.Errorf("Listener %q: %w", l.name, err))
			continue
		}
		s := &socket{proxy: p, network: l.network, addr: l.addr, listener: listener}
		p.sockets[key] = s
		opened = append(opened, s)
	}
	if err := errors.Join(errs...); err != nil {
		for _, s := range opened {
			s.close()
			delete(p.sockets, s.network+"|"+s.addr)
		}
		return err
	}
	return nil
}

// apply makes what was accepted the configuration that requests are served
// with. A listener that still waits for routes or secrets keeps its former one.
func (p *Proxy) apply() {
	r, old := p.resources, p.state.Load()
	next := &snapshot{clusters: make(map[string]*cluster, len(r.clusters)), hcms: map[*chainServer]*hcm{}}
	for name, config := range r.clusters {
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
	p.missed.begin()
	for _, l := range r.listeners {
		if !l.bind {
			continue
		}
		inUse[l.address()] = true
		s := p.sockets[l.address()]
		b, waiting := s.bind(l, r, &p.missed)
		if b == nil {
			waits++
			p.log.Debug("a listener waits", "listener", l.name, "for", waiting)
			if b = s.current.Load(); b == nil {
				continue
			}
		}
		bound[s] = b
		for chain, one := range b.chains {
			next.hcms[one.server] = chain.hcm
			one.server.hcm.Store(chain.hcm)
		}
	}
	p.missed.end()
	p.applyAgain()
	if waits == 0 {
		r.prune(r.wanted())
	}
	next.routes = r.routes
	p.state.Store(next)
	for s, b := range bound {
		s.use(b)
	}
	for key, s := range p.sockets {
		if !inUse[key] {
			s.close()
			if b := s.current.Load(); b != nil {
				for _, one := range b.chains {
					p.retire(one.server)
				}
			}
			delete(p.sockets, key)
		}
	}
	for name, c := range old.clusters {
		if next.clusters[name] != c {
			c.close()
		}
	}
	if len(bound) > 0 && waits == 0 {
		p.once.Do(func() { close(p.ready) })
	}
}

// applyAgain applies once more when the next wait for a secret ends.
func (p *Proxy) applyAgain() {
	if p.again != nil {
		p.again.Stop()
	}
	if p.missed.next.IsZero() {
		return
	}
	p.again = time.AfterFunc(time.Until(p.missed.next), func() {
		p.applying.Lock()
		defer p.applying.Unlock()
		if !p.stopped {
			p.apply()
		}
	})
}

// update gives a cluster its current endpoints and secrets.
func (c *cluster) update(r *resources) {
	endpoints := c.config.endpoints
	if c.config.edsName != "" {
		endpoints = r.endpoints[c.config.edsName]
	}
	if !c.updated || !sameEndpoints(c.known, endpoints) {
		c.known = endpoints
		c.setEndpoints(endpoints)
	}
	if !c.updated || c.secretGen != r.secretGen {
		c.secretGen = r.secretGen
		c.setSecrets(r.secrets)
	}
	c.updated = true
}

// sameEndpoints tells whether it is the same slice: what did not change is not
// compiled again.
func sameEndpoints(a, b []*endpoint) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
