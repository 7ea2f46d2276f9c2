package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// certificateLife of a generated certificate. The third-party system trusts this
	// very certificate, so a new one takes a change there.
	certificateLife = 5 * 365 * 24 * time.Hour
	// certificateRest: an update makes a new one when so little of its life is left.
	certificateRest = 90 * 24 * time.Hour
	// maxCommonName (RFC 5280, appendix A.1: ub-common-name).
	maxCommonName = 64
)

// keyPair puts a key and a certificate for it into secret: those of before when the
// name is the same.
func keyPair(commonName string, before, secret map[string][]byte) error {
	if len(commonName) > maxCommonName {
		return refuse(http.StatusBadRequest, "api.credentials.certificateGen.commonName has more than %d bytes", maxCommonName)
	}
	if old := parse(before[corev1.TLSCertKey]); old != nil && old.Subject.CommonName == commonName &&
		time.Until(old.NotAfter) > certificateRest && len(before[corev1.TLSPrivateKeyKey]) > 0 {
		secret[corev1.TLSCertKey], secret[corev1.TLSPrivateKeyKey] = before[corev1.TLSCertKey], before[corev1.TLSPrivateKeyKey]
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("making a serial number: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: commonName},
		NotBefore: now.Add(-5 * time.Minute), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fmt.Errorf("making a certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	secret[corev1.TLSCertKey] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret[corev1.TLSPrivateKeyKey] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return nil
}

func parse(raw []byte) *x509.Certificate {
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return certificate
}

// publicPart is what a client learns of a generated certificate.
func publicPart(raw []byte) *certificate {
	found := parse(raw)
	if found == nil {
		return &certificate{}
	}
	return &certificate{CommonName: found.Subject.CommonName, Certificate: base64.StdEncoding.EncodeToString(raw)}
}
