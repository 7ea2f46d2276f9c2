package shop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Files of the certificate that the stock's port shows. It signs itself: whoever
// calls must be given it to verify the shop by.
const (
	CertificateFile = "shop.crt"
	keyFile         = "shop.key"
)

// certificateLife of it.
const certificateLife = 365 * 24 * time.Hour

// clients are the certificates that the stock is told to.
type clients struct {
	mu    sync.Mutex
	known map[[sha256.Size]byte]bool
}

// Admit lets the client with this certificate (PEM) ask for the stock, and no
// longer those before it.
func (s *Shop) Admit(certificate []byte) error {
	block, _ := pem.Decode(certificate)
	if block == nil {
		return errors.New("the client's certificate is not PEM")
	}
	s.clients.mu.Lock()
	defer s.clients.mu.Unlock()
	s.clients.known = map[[sha256.Size]byte]bool{sha256.Sum256(block.Bytes): true}
	return nil
}

// StockHandler serves how much there is of a product, at /stock, to who shows a
// certificate that was admitted.
func (s *Shop) StockHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stock/{product}", func(w http.ResponseWriter, r *http.Request) {
		product := r.PathValue("product")
		answer(w, http.StatusOK, map[string]any{"product": product, "available": len(product) % 7})
	})
	return s.logged(mux)
}

// StockTLS is the configuration of the stock's port, with the certificate in dir,
// which is made where there is none, for the host that clients call.
func (s *Shop) StockTLS(dir, host string) (*tls.Config, error) {
	pair, err := keptPair(dir, host)
	if err != nil {
		return nil, fmt.Errorf("the certificate in %s: %w", dir, err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		// The handshake shows that the client has the key. Which certificates are
		// good is known one by one, and by no authority.
		VerifyConnection: func(state tls.ConnectionState) error {
			s.clients.mu.Lock()
			defer s.clients.mu.Unlock()
			if !s.clients.known[sha256.Sum256(state.PeerCertificates[0].Raw)] {
				return errors.New("the client's certificate was not admitted")
			}
			return nil
		},
	}, nil
}

// keptPair reads the certificate for a host, or makes it, also in the place of one
// for another host or at its end.
func keptPair(dir, host string) (tls.Certificate, error) {
	certificatePath, keyPath := filepath.Join(dir, CertificateFile), filepath.Join(dir, keyFile)
	pair, err := tls.LoadX509KeyPair(certificatePath, keyPath)
	if err == nil && pair.Leaf.VerifyHostname(host) == nil && time.Until(pair.Leaf.NotAfter) > certificateLife/3 {
		return pair, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pair, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair, fmt.Errorf("make a key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetInt64(now.UnixNano()), Subject: pkix.Name{CommonName: "webshop"},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA: true, BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return pair, fmt.Errorf("make a certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return pair, fmt.Errorf("encode the key: %w", err)
	}
	if err := os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		return pair, err
	}
	if err := os.WriteFile(certificatePath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return pair, err
	}
	return tls.LoadX509KeyPair(certificatePath, keyPath)
}
