package httpserver

import (
	"container/list"
	"math"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// headersPerPlace is how much of its headers a connection may send in one
	// place; for more it takes further ones.
	headersPerPlace = 16 << 10
	// placeBytes is what a place stands for: the headers as they were read and as
	// they were parsed, buffers, and the stack of who serves them.
	placeBytes = 64 << 10
	// unlimitedConns is the default where the process has no memory limit.
	unlimitedConns = 4096
	// minConns are always there.
	minConns = 64
)

// DefaultMaxConns is how many connections a listener takes unless told
// otherwise: what fits into a quarter of the process's memory limit
// (GOMEMLIMIT), or 4,096 without one.
func DefaultMaxConns() int { return connsFor(debug.SetMemoryLimit(-1)) }

func connsFor(memory int64) int {
	if memory == math.MaxInt64 {
		return unlimitedConns
	}
	return int(min(max(memory/4/placeBytes, minConns), unlimitedConns))
}

// Why a connection is refused, as the metric says it.
const (
	refusedFull    = "full"    // no place is left
	refusedRemote  = "remote"  // its remote has its share
	refusedHeaders = "headers" // no place is left for headers as large as its
)

// Metrics of the connections of servers. One serves all of a process.
type Metrics struct {
	open    *prometheus.GaugeVec
	refused *prometheus.CounterVec
	evicted *prometheus.CounterVec
}

// NewMetrics registers the metrics of connections.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lambdamesh_http_connections", Help: "Open connections of clients.",
		}, []string{"server"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_http_connections_refused_total",
			Help: "Connections refused: full (no place was left), remote (their address had its share), headers (no place was left for headers so large).",
		}, []string{"server", "reason"}),
		evicted: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lambdamesh_http_connections_evicted_total", Help: "Connections without a request that were closed in favor of others.",
		}, []string{"server"}),
	}
	registry.MustRegister(m.open, m.refused, m.evicted)
	return m
}

func (m *Metrics) count(server string, opened, evicted int, refused string) {
	if m == nil {
		return
	}
	m.open.WithLabelValues(server).Add(float64(opened))
	m.evicted.WithLabelValues(server).Add(float64(evicted))
	if refused != "" {
		m.refused.WithLabelValues(server, refused).Inc()
	}
}

// places are what the connections of a listener share. A connection has one, and
// one more for each further [headersPerPlace] of its request's headers. When all
// are taken, connections that wait for a request make room, those that wait the
// longest first: of the remote that wants more than its share, otherwise of the
// one that has the most. So a flood of idle connections locks nobody out, and one
// remote's no other remote's.
type places struct {
	server  string
	all     int
	share   int // of a remote; 0: no bound
	metrics *Metrics

	mu      sync.Mutex
	taken   int
	remotes map[netip.Prefix]int
	waiting list.List // of *conn, those that wait the longest in front
}

// holder is what a connection has of the places; guarded by their lock.
type holder struct {
	remote netip.Prefix
	has    int
	wait   *list.Element // in waiting
	gone   bool
}

// enter takes the first place for c. It answers why not, or "".
func (p *places) enter(c *conn) (refused string) {
	refused, evicted := p.claim(c, 1)
	opened := -evicted
	if refused == "" {
		opened++
		p.idle(c)
	}
	p.metrics.count(p.server, opened, evicted, refused)
	return refused
}

// more takes n further places for c, whose headers are large.
func (p *places) more(c *conn, n int) (refused string) {
	refused, evicted := p.claim(c, n)
	counted := ""
	if refused != "" {
		counted = refusedHeaders
	}
	p.metrics.count(p.server, -evicted, evicted, counted)
	return refused
}

// claim takes n places for c, and tells how many connections made room.
func (p *places) claim(c *conn, n int) (refused string, evicted int) {
	refused, victims := p.take(c, n)
	for _, victim := range victims {
		victim.raw.Close() // which ends who reads it
	}
	return refused, len(victims)
}

func (p *places) take(c *conn, n int) (refused string, victims []*conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.gone {
		return refusedFull, nil
	}
	for refused = p.missing(c, n); refused != ""; refused = p.missing(c, n) {
		victim := p.victim(c, refused == refusedRemote)
		if victim == nil {
			return refused, victims
		}
		p.release(victim)
		victims = append(victims, victim)
	}
	p.hold(c, n)
	return "", victims
}

// missing tells what there is too little of for n more places.
func (p *places) missing(c *conn, n int) string {
	switch {
	case p.share > 0 && c.remote.IsValid() && p.remotes[c.remote]+n > p.share:
		return refusedRemote
	case p.taken+n > p.all:
		return refusedFull
	}
	return ""
}

// victim is the connection that makes room for c.
func (p *places) victim(c *conn, own bool) (victim *conn) {
	most := 0
	for e := p.waiting.Front(); e != nil; e = e.Next() {
		other, _ := e.Value.(*conn)
		switch {
		case other == c:
		case own:
			if other.remote == c.remote {
				return other
			}
		case victim == nil || p.remotes[other.remote] > most:
			victim, most = other, p.remotes[other.remote]
		}
	}
	return victim
}

func (p *places) hold(c *conn, n int) {
	c.has += n
	p.taken += n
	if p.remotes[c.remote] += n; p.remotes[c.remote] == 0 {
		delete(p.remotes, c.remote)
	}
}

// release returns all that c has, once.
func (p *places) release(c *conn) bool {
	if c.gone {
		return false
	}
	c.gone = true
	p.hold(c, -c.has)
	p.serves(c)
	return true
}

// serves says that c waits no more. Call it with mu held.
func (p *places) serves(c *conn) {
	if c.wait != nil {
		p.waiting.Remove(c.wait)
		c.wait = nil
	}
}

// busy says that a request of c is being served. It is false when c made room.
func (p *places) busy(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serves(c)
	return !c.gone
}

// idle says that c waits for another request: the headers of the last one are
// gone.
func (p *places) idle(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.gone {
		return
	}
	p.hold(c, 1-c.has)
	p.serves(c)
	c.wait = p.waiting.PushBack(c)
}

// leave says that c is closed.
func (p *places) leave(c *conn) {
	p.mu.Lock()
	left := p.release(c)
	p.mu.Unlock()
	if left {
		p.metrics.count(p.server, -1, 0, "")
	}
}

// remoteOf is whom a connection counts for: an address, or for IPv6 the network
// of 64 bits that one host may have to itself. It is not valid for a Unix socket.
func remoteOf(c net.Conn) netip.Prefix {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap()
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
