package authority

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// life of an authority: it signs for half of it, and what it signed is good for
// the other half at most.
const life = 2 * 365 * 24 * time.Hour

// maxTrusted bounds the authorities whose signatures are good at once: the one
// that signs and those before it.
const maxTrusted = 4

// Renew returns what the Secret of the authority should hold in the place of have
// (nil: there is none) and why, or no data when it is good until then. With
// rotate it is another key in any case. The authorities before it stay trusted
// until they expire, so that what they signed stays good.
func Renew(have map[string][]byte, rotate bool, now time.Time) (want map[string][]byte, reason string, until time.Time, err error) {
	until = now.Add(life / 2)
	var before []*x509.Certificate
	if have != nil {
		pair, err := tls.X509KeyPair(have[corev1.TLSCertKey], have[corev1.TLSPrivateKeyKey])
		switch {
		case err != nil:
			reason = "its certificate and key are no pair"
		case rotate:
			reason = "it was asked for"
		default:
			until = pair.Leaf.NotBefore.Add(pair.Leaf.NotAfter.Sub(pair.Leaf.NotBefore) / 2)
			if now.Before(until) {
				return nil, "", until, nil
			}
			reason, until = "half of its life is over", now.Add(life/2)
		}
		before = certificates(have[trustedKey])
	}
	certificate, key, err := newAuthority(now)
	if err != nil {
		return nil, "", time.Time{}, err
	}
	before = slices.DeleteFunc(before, func(c *x509.Certificate) bool { return !now.Before(c.NotAfter) })
	before = before[:min(len(before), maxTrusted-1)]
	trusted := [][]byte{certificate}
	for _, c := range before {
		trusted = append(trusted, encode(c.Raw))
	}
	return map[string][]byte{
		corev1.TLSCertKey: certificate, corev1.TLSPrivateKeyKey: key, trustedKey: bytes.Join(trusted, nil),
	}, reason, until, nil
}

// newAuthority makes a certificate that may sign others' and no authority's.
func newAuthority(now time.Time) (certificatePEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate the key of applications' authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		// The year and month tell authorities apart for people, the key for programs.
		Subject:   pkix.Name{Organization: []string{"Lambdamesh"}, CommonName: "Lambdamesh applications " + now.UTC().Format("2006-01")},
		NotBefore: now.Add(-Backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign the certificate of applications' authority: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the key of applications' authority: %w", err)
	}
	return encode(der), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}
