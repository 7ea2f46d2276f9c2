package localkube

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	// caLife is long because every copy of the kubeconfig holds the CA.
	caLife = 10 * 365 * 24 * time.Hour
	// leafLife ends certificates that were copied and forgotten. They are
	// renewed at a start that finds less than renewBefore left.
	leafLife    = 365 * 24 * time.Hour
	renewBefore = 90 * 24 * time.Hour

	// serviceIPRange is where Services get their cluster IPs from, which nothing
	// listens on here; the first one is the API server's.
	serviceIPRange = "10.0.0.0/16"
	serviceIP      = "10.0.0.1"
)

// pki is what the control plane authenticates with. Keys are ECDSA P-256.
type pki struct {
	dir string
	ca  tls.Certificate
	now time.Time
}

// leaf is a certificate that the CA issues.
type leaf struct {
	name    string // of its files
	subject pkix.Name
	hosts   []string // a server's names and addresses; empty for a client
}

func leaves(host string) []leaf {
	return []leaf{
		{
			name: "apiserver", subject: pkix.Name{CommonName: "kube-apiserver"},
			hosts: []string{
				host, serviceIP, "localhost", "kubernetes", "kubernetes.default",
				"kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
			},
		},
		// system:masters may do everything, whatever RBAC says.
		{name: "admin", subject: pkix.Name{CommonName: "lambdamesh-admin", Organization: []string{"system:masters"}}},
		{name: "controller-manager", subject: pkix.Name{CommonName: "system:kube-controller-manager"}},
	}
}

// ensurePKI makes what is missing in dir and renews what ends soon. The CA and
// the service accounts' key are made together or not at all, so one without the
// other is damage that only the user can judge.
func ensurePKI(dir, host string, now time.Time) (*pki, error) {
	p := &pki{dir: dir, now: now}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := p.create(); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"ca.crt", "ca.key", "sa.key"} {
		if _, err := os.Stat(p.file(name)); err != nil {
			return nil, fmt.Errorf("%s is incomplete: %w; remove that directory to get new certificates (the objects stay)", dir, err)
		}
	}
	ca, err := tls.LoadX509KeyPair(p.file("ca.crt"), p.file("ca.key"))
	if err == nil && p.endsSoon(ca.Leaf) {
		// Whatever trusts it is written anew at each start.
		if err := os.RemoveAll(dir + ".old"); err != nil {
			return nil, err
		}
		if err := os.Rename(dir, dir+".old"); err != nil {
			return nil, err
		}
		return ensurePKI(dir, host, now)
	}
	if err != nil {
		return nil, fmt.Errorf("the certificate authority in %s is unusable: %w; remove that directory to get new certificates (the objects stay)", dir, err)
	}
	p.ca = ca
	for _, l := range leaves(host) {
		if err := p.ensureLeaf(l); err != nil {
			return nil, fmt.Errorf("certificate %s: %w", p.file(l.name+".crt"), err)
		}
	}
	return p, nil
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

// create makes the directory with the CA and the service accounts' key. It gets
// its name when it is complete.
func (p *pki) create() error {
	temporary := p.dir + ".new"
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	if err := os.Mkdir(temporary, 0o700); err != nil {
		return err
	}
	fresh := &pki{dir: temporary, now: p.now}
	template := p.template(pkix.Name{CommonName: "lambdamesh-dev"}, caLife)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.MaxPathLenZero = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if err := fresh.issue("ca", template, nil); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := fresh.writeKey("sa", key); err != nil {
		return err
	}
	return os.Rename(temporary, p.dir)
}

func (p *pki) ensureLeaf(l leaf) error {
	pair, err := tls.LoadX509KeyPair(p.file(l.name+".crt"), p.file(l.name+".key"))
	if err == nil && p.usable(pair.Leaf, l) {
		return nil
	}
	template := p.template(l.subject, leafLife)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, host := range l.hosts {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return p.issue(l.name, template, &p.ca)
}

func (p *pki) endsSoon(certificate *x509.Certificate) bool {
	return p.now.After(certificate.NotAfter.Add(-renewBefore))
}

func (p *pki) usable(certificate *x509.Certificate, l leaf) bool {
	if certificate.CheckSignatureFrom(p.ca.Leaf) != nil || p.now.Before(certificate.NotBefore) ||
		p.endsSoon(certificate) ||
		certificate.Subject.CommonName != l.subject.CommonName ||
		!slices.Equal(certificate.Subject.Organization, l.subject.Organization) {
		return false
	}
	for _, host := range l.hosts {
		if certificate.VerifyHostname(host) != nil {
			return false
		}
	}
	return true
}

func (p *pki) template(subject pkix.Name, life time.Duration) *x509.Certificate {
	// A day back, for clocks that are set back after the first start.
	return &x509.Certificate{Subject: subject, NotBefore: p.now.Add(-24 * time.Hour), NotAfter: p.now.Add(life)}
}

// issue writes a key and its certificate by parent, or by itself. The key is
// first: a stop between the two leaves a pair that does not match, and that is
// issued again.
func (p *pki) issue(name string, template *x509.Certificate, parent *tls.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return err
	}
	issuer, issuerKey := template, any(key)
	if parent != nil {
		issuer, issuerKey = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		return err
	}
	if err := p.writeKey(name, key); err != nil {
		return err
	}
	return writeFile(p.file(name+".crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func (p *pki) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writeFile(p.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

// writeFile replaces a file in one step, readable by its owner only.
func writeFile(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // mode 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }() // gone after the rename
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), path)
}
