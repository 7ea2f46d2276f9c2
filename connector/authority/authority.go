package authority

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// ClientLife is how long a client certificate is good.
	ClientLife = 90 * 24 * time.Hour
	// Backdate is how much earlier than it was signed a client certificate begins,
	// for clocks that differ.
	Backdate = 5 * time.Minute

	// trustedKey of the Secret holds all authorities whose signatures are good.
	trustedKey = "ca.crt"
)

// Authority signs client certificates, and knows whose signatures are good.
type Authority struct {
	issuer  *x509.Certificate
	key     crypto.Signer
	chain   []byte // PEM of the issuer, and of what leads from it to a root
	trusted map[string]bool
	pool    *x509.CertPool
}

// Parse reads the data of the Secret.
func Parse(data map[string][]byte) (*Authority, error) {
	pair, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, fmt.Errorf("read the authority of applications: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("read the authority of applications: its certificate is not a CA certificate (basicConstraints CA:TRUE is missing)")
	}
	a := &Authority{
		issuer: pair.Leaf, key: key, chain: bytes.TrimSpace(data[corev1.TLSCertKey]),
		trusted: map[string]bool{}, pool: x509.NewCertPool(),
	}
	a.chain = append(a.chain, '\n')
	all := append(certificates(data[trustedKey]), a.issuer)
	for _, certificate := range all {
		// Only authorities of ours: what is above one of them, which some who issue
		// intermediates put beside it, has signed others' certificates, too.
		if certificate.IsCA && !above(certificate, all) && !a.trusted[string(certificate.Raw)] {
			a.trusted[string(certificate.Raw)] = true
			a.pool.AddCert(certificate)
		}
	}
	return a, nil
}

// above tells whether a certificate's key signed one of the authorities, of another
// key than its own.
func above(certificate *x509.Certificate, authorities []*x509.Certificate) bool {
	return slices.ContainsFunc(authorities, func(below *x509.Certificate) bool {
		return !bytes.Equal(below.RawSubjectPublicKeyInfo, certificate.RawSubjectPublicKeyInfo) &&
			below.CheckSignatureFrom(certificate) == nil
	})
}

// certificates of a bundle in PEM; what cannot be read is left out.
func certificates(bundle []byte) (all []*x509.Certificate) {
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if certificate, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			all = append(all, certificate)
		}
	}
	return all
}

// Pool verifies client certificates.
func (a *Authority) Pool() *x509.CertPool { return a.pool }

// Trusts tells whether a certificate is that of an authority whose signatures are
// good.
func (a *Authority) Trusts(issuer *x509.Certificate) bool { return a.trusted[string(issuer.Raw)] }

// Issued is a client certificate.
type Issued struct {
	// Certificate and Chain in PEM: the certificate, and what it is signed by, the
	// issuer first.
	Certificate, Chain []byte
	// Serial number, see [Serial].
	Serial string
	// ExpiresAt is the end of its life.
	ExpiresAt time.Time
}

// Serial writes a certificate's serial number as lower-case hexadecimal digits.
func Serial(certificate *x509.Certificate) string {
	return hex.EncodeToString(certificate.SerialNumber.Bytes())
}

// Sign signs a request. The certificate is for TLS clients only.
func (a *Authority) Sign(request *Request, now time.Time) (Issued, error) {
	serial, err := newSerial()
	if err != nil {
		return Issued{}, err
	}
	subject, err := rawSubject(request.application)
	if err != nil {
		return Issued{}, fmt.Errorf("sign a certificate for %s: %w", request.application, err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, RawSubject: subject,
		NotBefore: now.Add(-Backdate), NotAfter: now.Add(ClientLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(a.issuer.NotAfter) {
		template.NotAfter = a.issuer.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.issuer, request.key, a.key)
	if err != nil {
		return Issued{}, fmt.Errorf("sign a certificate for %s: %w", request.application, err)
	}
	return Issued{
		Certificate: encode(der), Chain: a.chain, Serial: hex.EncodeToString(serial.Bytes()),
		ExpiresAt: template.NotAfter.Truncate(time.Second),
	}, nil
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// newSerial returns a random serial number of 127 bits (RFC 5280, section 4.1.2.2:
// positive, at most 20 octets).
func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return serial.Add(serial, big.NewInt(1)), nil
}
