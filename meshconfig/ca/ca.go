package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// DefaultRootTTL is how long a created root lives.
	DefaultRootTTL = 10 * 365 * 24 * time.Hour
	// DefaultLeafTTL is how long an issued certificate lives.
	DefaultLeafTTL = 24 * time.Hour
	// organization is in the names of the roots that are made here.
	organization = "Lambdamesh"
	// backdate allows for clocks of peers that are behind ours.
	backdate = time.Minute
)

// Config says how certificates are made. The zero value is usable.
type Config struct {
	// LeafTTL is how long an issued certificate lives; 0 means DefaultLeafTTL.
	LeafTTL time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// CA signs workload certificates. It is safe for concurrent use.
type CA struct {
	// roots are shared by all that Lasting returns.
	roots  *atomic.Pointer[roots]
	config Config
}

// roots are what a CA signs with and is verified by, as it is now.
type roots struct {
	cert    *x509.Certificate
	key     crypto.Signer
	certPEM []byte
	bundle  []byte
	pool    *x509.CertPool
	changed chan struct{} // closed when these are no longer in force
}

// Leaf is an issued certificate with its key.
type Leaf struct {
	// ChainPEM holds the leaf and, after it, the root.
	ChainPEM []byte
	// KeyPEM is the PKCS #8 private key.
	KeyPEM []byte
	// NotBefore and NotAfter bound its validity.
	NotBefore, NotAfter time.Time
}

// RenewAt is when to replace the leaf: half of its life.
func (l Leaf) RenewAt() time.Time { return l.NotBefore.Add(l.NotAfter.Sub(l.NotBefore) / 2) }

// NewRoot makes a new self-signed root.
func NewRoot(now time.Time) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("generate the CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return Pair{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// Two roots are trusted at a time while one is replaced: who looks them up by
		// their names finds one.
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: fmt.Sprintf("Lambdamesh mesh root %x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(DefaultRootTTL),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Pair{}, fmt.Errorf("sign the CA certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), KeyPEM: keyPEM}, nil
}

// New makes a CA of an existing root. It refuses a certificate that is no CA,
// has expired, or does not belong to the key.
func New(root Pair, config Config) (*CA, error) {
	if config.LeafTTL <= 0 {
		config.LeafTTL = DefaultLeafTTL
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	c := &CA{roots: &atomic.Pointer[roots]{}, config: config}
	if err := c.Set(Roots{Issuer: root}); err != nil {
		return nil, err
	}
	return c, nil
}

// Lasting returns a CA with the same roots, also when they change, whose
// certificates live for another while.
func (c *CA) Lasting(ttl time.Duration) *CA {
	other := *c
	other.config.LeafTTL = ttl
	return &other
}

// Set puts other roots in force. What cannot sign is refused as New does, and the
// roots stay as they are.
func (c *CA) Set(stored Roots) error {
	cert, key, err := stored.Issuer.parse()
	if err != nil {
		return fmt.Errorf("read the mesh CA: %w", err)
	}
	if now := c.config.Now(); now.After(cert.NotAfter) {
		return fmt.Errorf("read the mesh CA: the certificate expired at %s; remove it to have a new one created", cert.NotAfter)
	}
	next := &roots{
		cert: cert, key: key, certPEM: encodeCert(cert), bundle: stored.bundle(),
		pool: x509.NewCertPool(), changed: make(chan struct{}),
	}
	next.pool.AppendCertsFromPEM(next.bundle)
	last := c.roots.Load()
	if last != nil && bytes.Equal(last.certPEM, next.certPEM) && bytes.Equal(last.bundle, next.bundle) {
		return nil
	}
	if last = c.roots.Swap(next); last != nil {
		close(last.changed)
	}
	return nil
}

// Changed is closed when the roots change that are in force now: what was issued
// until then is to be issued anew, and who verifies is to be told.
func (c *CA) Changed() <-chan struct{} { return c.roots.Load().changed }

// Open makes a CA of the root in storage, which it creates when there is none.
// When several processes do so at once, all end with the same root.
func Open(ctx context.Context, storage Storage, config Config) (*CA, error) {
	now := time.Now
	if config.Now != nil {
		now = config.Now
	}
	stored, err := storage.Load(ctx)
	if errors.Is(err, ErrNotFound) {
		if stored.Issuer, err = NewRoot(now()); err != nil {
			return nil, err
		}
		if err = storage.Create(ctx, stored.Issuer); errors.Is(err, ErrExists) {
			// Another process was faster: its root is the mesh's.
			stored, err = storage.Load(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	c, err := New(stored.Issuer, config)
	if err != nil {
		return nil, err
	}
	return c, c.Set(stored)
}

// Root returns in PEM what peers verify against: the certificate of the root, and
// while it is replaced that of the other one too.
func (c *CA) Root() []byte { return c.roots.Load().bundle }

// Pool returns Root as a certificate pool, for clients of servers whose
// certificate this CA issued.
func (c *CA) Pool() *x509.CertPool { return c.roots.Load().pool.Clone() }

// Roots is Pool for who asks at each connection.
func (c *CA) Roots() (*x509.CertPool, error) { return c.Pool(), nil }

// Issue makes a certificate for a SPIFFE identity
// ("spiffe://<trust domain>/<path>"), valid for clients and servers.
func (c *CA) Issue(identity string) (Leaf, error) {
	uri, err := url.Parse(identity)
	if err != nil || uri.Scheme != "spiffe" || uri.Host == "" || strings.Trim(uri.Path, "/") == "" || uri.RawQuery != "" || uri.Fragment != "" || uri.User != nil {
		return Leaf{}, fmt.Errorf("issue a certificate: %q is not a SPIFFE identity; write spiffe://<trust domain>/<path>", identity)
	}
	return c.issue(&x509.Certificate{
		URIs:        []*url.URL{uri},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	})
}

// IssueServer makes a certificate for a server known by DNS names or IP
// addresses, such as the ADS server.
func (c *CA) IssueServer(names ...string) (Leaf, error) {
	return c.issueNames(names, x509.ExtKeyUsageServerAuth)
}

// IssuePeer makes a certificate for servers that are each other's clients, such
// as those of a NATS cluster.
func (c *CA) IssuePeer(names ...string) (Leaf, error) {
	return c.issueNames(names, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)
}

func (c *CA) issueNames(names []string, usages ...x509.ExtKeyUsage) (Leaf, error) {
	if len(names) == 0 {
		return Leaf{}, errors.New("issue a server certificate: name at least one DNS name or IP address")
	}
	template := &x509.Certificate{ExtKeyUsage: usages}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return c.issue(template)
}

func (c *CA) issue(template *x509.Certificate) (Leaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Leaf{}, fmt.Errorf("generate a key: %w", err)
	}
	if template.SerialNumber, err = newSerial(); err != nil {
		return Leaf{}, err
	}
	now, root := c.config.Now(), c.roots.Load()
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(c.config.LeafTTL)
	if template.NotAfter.After(root.cert.NotAfter) {
		template.NotAfter = root.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, key.Public(), root.key)
	if err != nil {
		return Leaf{}, fmt.Errorf("sign a certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Leaf{}, err
	}
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), root.certPEM...)
	return Leaf{ChainPEM: chain, KeyPEM: keyPEM, NotBefore: template.NotBefore, NotAfter: template.NotAfter}, nil
}

func encodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// newSerial returns a random 127-bit serial number (RFC 5280, section 4.1.2.2:
// positive, at most 20 octets).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
