package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
)

// Sizes of RSA keys, in bits. A larger one only makes whoever verifies work.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// maxRequest is the length of a request in PEM that is looked at.
const maxRequest = 32 << 10

// Request is a certificate signing request that may be signed.
type Request struct {
	application string
	key         crypto.PublicKey
}

// ParseRequest reads a certificate signing request (PKCS #10, RFC 2986) in base64
// of PEM, and checks that its sender holds the key, that the key is RSA of 2048
// bits or more or ECDSA of P-256, and that its subject is the application's. What
// else it asks for is not granted. Errors say what to send instead.
func ParseRequest(encoded, application string) (*Request, error) {
	if len(encoded) > base64.StdEncoding.EncodedLen(maxRequest) {
		return nil, fmt.Errorf("the certificate signing request is larger than %d bytes", maxRequest)
	}
	text, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("csr is not base64: send the PEM of the certificate signing request in base64")
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST" {
		return nil, errors.New("csr holds no certificate signing request in PEM")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("csr holds more than one certificate signing request")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("csr cannot be read: %w", err)
	}
	if err := checkKey(request.PublicKey); err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, errors.New("the certificate signing request is not signed with its own key")
	}
	if err := checkSubject(request.RawSubject, application); err != nil {
		return nil, err
	}
	return &Request{application: application, key: request.PublicKey}, nil
}

func checkKey(public any) error {
	switch key := public.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("the RSA key has %d bits: use one of %d to %d", bits, minRSABits, maxRSABits)
		}
		return nil
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() {
			return nil
		}
		return fmt.Errorf("the ECDSA key is of the curve %s: use P-256", key.Curve.Params().Name)
	default:
		return fmt.Errorf("the key is of a kind (%T) that is not taken: use RSA of %d bits, or ECDSA with P-256", public, minRSABits)
	}
}
