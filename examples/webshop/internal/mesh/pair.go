package mesh

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Token is what a TokenRequest's Secret holds.
type Token struct {
	// URL where pairing begins; the one-time token is in it.
	URL string
	// CA verifies the connector (PEM).
	CA []byte
}

// ReadToken reads a token out of a Secret as `kubectl get secret -o json` prints
// it.
func ReadToken(secret []byte) (Token, error) {
	var read struct {
		Data struct {
			URL []byte `json:"url"` // base64, as encoding/json reads bytes
			CA  []byte `json:"ca.crt"`
		} `json:"data"`
	}
	if err := json.Unmarshal(secret, &read); err != nil {
		return Token{}, errors.New("the token is no Secret in JSON: pass what `kubectl get secret NAME -o json` prints")
	}
	if len(read.Data.URL) == 0 {
		return Token{}, errors.New("the Secret has no url: pass the one that the TokenRequest's status names")
	}
	return Token{URL: string(read.Data.URL), CA: read.Data.CA}, nil
}

// certificateInfo says what a request for a certificate must be like.
type certificateInfo struct {
	Subject      string `json:"subject"`
	KeyAlgorithm string `json:"key-algorithm"`
}

// management is what a paired system is told of itself.
type management struct {
	ClientIdentity struct {
		Application string `json:"application"`
	} `json:"clientIdentity"`
	URLs        map[string]string `json:"urls"`
	Certificate certificateInfo   `json:"certificate"`
}

// Pair exchanges a token for a certificate, and keeps that in a directory.
func Pair(ctx context.Context, dir string, token Token) (*Connection, error) {
	c := &Connection{dir: dir, ca: token.CA}
	if err := c.use(nil, nil); err != nil {
		return nil, err
	}
	var begin struct {
		CSRURL string `json:"csrUrl"`
		API    struct {
			InfoURL string `json:"infoUrl"`
		} `json:"api"`
		Certificate certificateInfo `json:"certificate"`
	}
	if err := c.call(ctx, http.MethodGet, token.URL, nil, &begin); err != nil {
		return nil, fmt.Errorf("pair: %w", err)
	}
	c.infoURL = begin.API.InfoURL
	if err := c.request(ctx, begin.CSRURL, begin.Certificate); err != nil {
		return nil, fmt.Errorf("pair: %w", err)
	}
	return c, nil
}

// Renew exchanges the certificate for another, with another key. The one before it
// stays good until its end.
func (c *Connection) Renew(ctx context.Context) error {
	var told management
	if err := c.call(ctx, http.MethodGet, c.infoURL, nil, &told); err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	if err := c.request(ctx, told.URLs["renewCertUrl"], told.Certificate); err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	return nil
}

// Revoke ends the certificate.
func (c *Connection) Revoke(ctx context.Context) error {
	if err := c.call(ctx, http.MethodPost, c.url("revokeCertUrl"), nil, nil); err != nil {
		return fmt.Errorf("revoke the certificate: %w", err)
	}
	return nil
}

// request gets a certificate for a new key, and goes on with it.
func (c *Connection) request(ctx context.Context, to string, info certificateInfo) error {
	if info.KeyAlgorithm != "rsa2048" {
		return fmt.Errorf("the mesh wants a key of the kind %q, which is not known here", info.KeyAlgorithm)
	}
	subject, err := encodeSubject(info.Subject)
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{RawSubject: subject}, key)
	if err != nil {
		return fmt.Errorf("make a certificate signing request: %w", err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	var signed struct {
		Chain []byte `json:"crt"` // base64 of PEM
	}
	if err := c.call(ctx, http.MethodPost, to, map[string]string{"csr": base64.StdEncoding.EncodeToString(csr)}, &signed); err != nil {
		return err
	}
	if err := c.use(signed.Chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		return err
	}
	// Who has just got a certificate asks with it what it may call.
	var told management
	if err := c.call(ctx, http.MethodGet, c.infoURL, nil, &told); err != nil {
		return err
	}
	return c.keep(told)
}

// encodeSubject of the form "OU=Applications,O=Lambdamesh,CN=webshop".
func encodeSubject(subject string) ([]byte, error) {
	kinds := map[string]int{"CN": 3, "C": 6, "L": 7, "ST": 8, "O": 10, "OU": 11} // RFC 5280, appendix A.1
	var name pkix.RDNSequence
	for part := range strings.SplitSeq(subject, ",") {
		kind, value, _ := strings.Cut(part, "=")
		if kinds[kind] == 0 {
			return nil, fmt.Errorf("the mesh asks for a subject that is not known here: %q", subject)
		}
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, kinds[kind]}, Value: value}})
	}
	raw, err := asn1.Marshal(name)
	if err != nil {
		return nil, fmt.Errorf("encode the subject %q: %w", subject, err)
	}
	return raw, nil
}
