package public

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// grace is how long an open connection may go on whose certificate is no longer
// good: the request that revoked it, and who asks meanwhile, are answered. Nobody
// is let in by it.
const grace = time.Second

// young is how long after its signing a certificate is taken that the Application
// does not list here yet: the replica that signed it has listed it, and others
// may hear of that a moment later.
const young = time.Minute

// remember is how long what was revoked here is known without its Application.
const remember = 5 * time.Minute

// Why a client certificate is refused.
var (
	errNone     = errors.New("a client certificate is required: pair first")
	errUnknown  = errors.New("the client certificate is not signed by this connector's authority of applications")
	errExpired  = errors.New("the client certificate has expired or is not valid yet: pair again, or mend the clock")
	errRevoked  = errors.New("the client certificate was revoked: pair again")
	errUnlisted = errors.New("the client certificate is no longer one of the application's: pair again")
)

// Client is who calls.
type Client struct {
	// Application of the certificate.
	Application string
	// Exists: the application did when its certificates were looked at. One of the
	// same name that is there a moment later is another, which does not list this.
	Exists bool
	// Serial number of the certificate, see [authority.Serial].
	Serial string
}

// Clients knows which client certificates are good. It is told what the API
// server has, and answers from memory.
type Clients struct {
	now func() time.Time

	mu           sync.RWMutex
	authority    *authority.Authority
	applications map[string]map[string]listed // by serial number
	revoked      map[string]time.Time         // here; serial numbers and when they were
	open         map[*conn]struct{}
}

// listed is a certificate in an Application's status.
type listed struct {
	good      bool
	expiresAt time.Time
}

// NewClients knows nobody yet.
func NewClients() *Clients {
	return &Clients{
		now: time.Now, applications: map[string]map[string]listed{}, revoked: map[string]time.Time{}, open: map[*conn]struct{}{},
	}
}

// SetAuthority says whose signatures are good; nil: nobody's.
func (c *Clients) SetAuthority(a *authority.Authority) {
	c.mu.Lock()
	c.authority = a
	c.mu.Unlock()
	c.closeRefused(func(Client) bool { return true })
}

// SetApplication says which certificates an application has.
func (c *Clients) SetApplication(app *v1alpha1.Application) {
	certificates := map[string]listed{}
	for _, certificate := range app.Status.Certificates {
		certificates[certificate.Serial] = listed{good: certificate.RevokedAt == nil, expiresAt: certificate.ExpiresAt.Time}
	}
	for _, serial := range app.Spec.RevokedCertificates {
		certificates[serial] = listed{}
	}
	c.mu.Lock()
	same := maps.Equal(c.applications[app.Name], certificates)
	c.applications[app.Name] = certificates
	c.mu.Unlock()
	if same {
		return
	}
	c.closeRefused(func(client Client) bool { return client.Application == app.Name })
}

// RemoveApplication says that an application is gone.
func (c *Clients) RemoveApplication(name string) {
	c.mu.Lock()
	delete(c.applications, name)
	c.mu.Unlock()
	c.closeRefused(func(client Client) bool { return client.Application == name })
}

// Revoke says that a certificate was revoked, before that is read in its
// Application's status: whoever was told so must not be let in with it again.
func (c *Clients) Revoke(client Client) {
	c.mu.Lock()
	now := c.now()
	maps.DeleteFunc(c.revoked, func(_ string, at time.Time) bool { return now.Sub(at) > remember })
	c.revoked[client.Serial] = now
	c.mu.Unlock()
	c.closeRefused(func(other Client) bool {
		return other.Application == client.Application && other.Serial == client.Serial
	})
}

// Exists tells whether there is an application of that name.
func (c *Clients) Exists(application string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	_, ok := c.applications[application]
	return ok
}

// pool verifies client certificates.
func (c *Clients) pool() *x509.CertPool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.authority == nil {
		return x509.NewCertPool()
	}
	return c.authority.Pool()
}

// Of returns who is at the other end of a connection. The error says why nobody
// is who may be let in.
func (c *Clients) Of(state *tls.ConnectionState) (Client, error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return Client{}, errNone
	}
	if len(state.VerifiedChains) == 0 {
		return Client{}, errUnknown
	}
	return c.client(state.VerifiedChains)
}

func (c *Clients) client(chains [][]*x509.Certificate) (Client, error) {
	leaf, now := chains[0][0], c.now()
	application, err := authority.ApplicationOf(leaf)
	if err != nil {
		return Client{}, errUnknown
	}
	client := Client{Application: application, Serial: authority.Serial(leaf)}
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return client, errExpired
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	// The chain was good at the handshake; authorities go, too.
	if c.authority == nil || !slices.ContainsFunc(chains, func(chain []*x509.Certificate) bool {
		return c.authority.Trusts(chain[len(chain)-1])
	}) {
		return client, errUnknown
	}
	certificates, exists := c.applications[application]
	client.Exists = exists
	certificate, known := certificates[client.Serial]
	_, revoked := c.revoked[client.Serial]
	switch {
	case !exists: // whoever asks is told so, and gets nothing
		return client, nil
	case revoked, known && !certificate.good:
		return client, errRevoked
	case !known && now.After(leaf.NotBefore.Add(authority.Backdate+young)):
		return client, errUnlisted
	}
	return client, nil
}

// conn is an open connection.
type conn struct {
	net.Conn
	clients *Clients
	chains  [][]*x509.Certificate // guarded by clients; nil: no certificate
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.clients.mu.Lock()
	delete(c.clients.open, c)
	c.clients.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite lets the server end its side and still read.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Conn.Close()
}

// Listener hands out connections that are closed when their client certificate is
// no longer good.
func (c *Clients) Listener(l net.Listener) net.Listener { return &listener{Listener: l, clients: c} }

type listener struct {
	net.Listener
	clients *Clients
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, clients: l.clients}
	l.clients.mu.Lock()
	l.clients.open[c] = struct{}{}
	l.clients.mu.Unlock()
	return c, nil
}

// connOf finds the connection of ours below those of others.
func connOf(c net.Conn) (*conn, bool) {
	for {
		if own, ok := c.(*conn); ok {
			return own, true
		}
		wrapper, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, false
		}
		c = wrapper.NetConn()
	}
}

// shown notes the certificate that was shown on a connection, and refuses one
// that is not good.
func (c *Clients) shown(on *conn, state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	// Noted first: what is revoked between the two closes it.
	c.mu.Lock()
	on.chains = state.VerifiedChains
	c.mu.Unlock()
	_, err := c.Of(&state)
	return err
}

// closeRefused closes the connections, of clients that match, whose certificates
// are no longer good.
func (c *Clients) closeRefused(match func(Client) bool) {
	c.mu.RLock()
	candidates := map[*conn][][]*x509.Certificate{}
	for on := range c.open {
		if on.chains != nil {
			candidates[on] = on.chains
		}
	}
	c.mu.RUnlock()
	for on, chains := range candidates {
		if client, err := c.client(chains); err != nil && match(client) {
			time.AfterFunc(grace, func() { _ = on.Close() }) // its reader sees the end
		}
	}
}

// expiry describes the metric of [Clients.Collect].
func expiry() *prometheus.Desc {
	return prometheus.NewDesc("lambdamesh_connector_client_certificate_expiry_timestamp_seconds",
		"When the last good client certificate of an application expires, in Unix time.", []string{"application"}, nil)
}

// Describe implements prometheus.Collector.
func (c *Clients) Describe(to chan<- *prometheus.Desc) { to <- expiry() }

// Collect implements prometheus.Collector.
func (c *Clients) Collect(to chan<- prometheus.Metric) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for application, certificates := range c.applications {
		var last time.Time
		for _, certificate := range certificates {
			if certificate.good && certificate.expiresAt.After(last) {
				last = certificate.expiresAt
			}
		}
		if !last.IsZero() {
			to <- prometheus.MustNewConstMetric(expiry(), prometheus.GaugeValue, float64(last.Unix()), application)
		}
	}
}
