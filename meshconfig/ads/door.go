package ads

import (
	"net"
	"net/netip"
	"sync"
)

// door is the server's listener. Everybody in the cluster reaches it, so it bounds
// what there is of connections before a token is known: each remote has a share,
// and when all places are taken the oldest connection of the remote that has most
// makes room. A connection whose client has been let in is counted for its remote
// only, which has a share of these too.
type door struct {
	net.Listener
	// unproven and unprovenPerRemote bound connections without a good token,
	// perRemote those of a remote in all.
	unproven, unprovenPerRemote, perRemote int
	refused                                func(reason string)

	mu      sync.Mutex
	next    uint64
	waiting int
	conns   map[string]*guest // by the remote address, port included
	remotes map[netip.Addr]*remoteCount
}

type remoteCount struct{ all, unproven int }

type guest struct {
	net.Conn
	door   *door
	key    string
	remote netip.Addr
	number uint64
	proven bool
	gone   bool
}

// Why a connection is refused, as the metric says it.
const (
	refusedRemote  = "remote"  // its remote has its share
	refusedEvicted = "evicted" // it made room before it had shown a token
)

func newDoor(listener net.Listener, config Config, refused func(string)) *door {
	return &door{
		Listener: listener, refused: refused,
		unproven: config.MaxUnproven, unprovenPerRemote: config.MaxUnprovenPerRemote, perRemote: config.MaxConnsPerRemote,
		conns: map[string]*guest{}, remotes: map[netip.Addr]*remoteCount{},
	}
}

// Accept implements net.Listener. Who finds no place is closed: there is no
// answer before TLS.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		g, evicted := d.enter(c)
		if evicted != nil {
			d.refused(refusedEvicted)
			evicted.Conn.Close() // which ends who reads it
		}
		if g != nil {
			return g, nil
		}
		d.refused(refusedRemote)
		c.Close()
	}
}

func (d *door) enter(c net.Conn) (entered, evicted *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := &guest{Conn: c, door: d, key: c.RemoteAddr().String(), remote: remoteOf(c.RemoteAddr()), number: d.next}
	if !g.remote.IsValid() {
		g.gone = true // a Unix socket's permissions say who comes: nothing is counted
		return g, nil
	}
	count := d.remotes[g.remote]
	if count != nil && (count.unproven >= d.unprovenPerRemote || count.all >= d.perRemote) {
		return nil, nil
	}
	if d.waiting >= d.unproven {
		if evicted = d.victim(); evicted != nil {
			d.leave(evicted)
		}
	}
	d.next++
	if count = d.remotes[g.remote]; count == nil {
		count = &remoteCount{}
		d.remotes[g.remote] = count
	}
	count.all++
	count.unproven++
	d.waiting++
	d.conns[g.key] = g
	return g, evicted
}

// victim is the oldest connection without a token of the remote with most of them.
func (d *door) victim() (victim *guest) {
	for _, g := range d.conns {
		if g.proven {
			continue
		}
		if victim == nil {
			victim = g
			continue
		}
		has, most := d.remotes[g.remote].unproven, d.remotes[victim.remote].unproven
		if has > most || has == most && g.number < victim.number {
			victim = g
		}
	}
	return victim
}

// prove says that a connection's client has been let in.
func (d *door) prove(remote net.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.conns[remote.String()]; g != nil && !g.proven {
		g.proven = true
		d.waiting--
		d.remotes[g.remote].unproven--
	}
}

// leave returns the place of g, once. Call it with mu held.
func (d *door) leave(g *guest) {
	if g.gone {
		return
	}
	g.gone = true
	count := d.remotes[g.remote]
	if count.all--; !g.proven {
		count.unproven--
		d.waiting--
	}
	if count.all == 0 {
		delete(d.remotes, g.remote)
	}
	if d.conns[g.key] == g {
		delete(d.conns, g.key)
	}
}

// Close implements net.Conn.
func (g *guest) Close() error {
	g.door.mu.Lock()
	g.door.leave(g)
	g.door.mu.Unlock()
	return g.Conn.Close()
}

// remoteOf is whom a connection counts for: an address, or for IPv6 the network of
// 64 bits that one host may have to itself. It is not valid for what is no TCP.
func remoteOf(address net.Addr) netip.Addr {
	tcp, ok := address.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	addr := tcp.AddrPort().Addr().Unmap()
	if addr.Is6() {
		prefix, err := addr.WithZone("").Prefix(64)
		if err != nil {
			return netip.Addr{}
		}
		return prefix.Addr()
	}
	return addr
}
