// Package pki makes the certificates of a cluster: one CA, and what it signed
// for each component. Files lie in one folder, as NAME.crt and NAME.key.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Authority signs certificates of one cluster.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Subject is whom a certificate is for.
type Subject struct {
	CommonName string
	Groups     []string
	// Names and Addresses make it a server's certificate as well.
	Names     []string
	Addresses []netip.Addr
}

const life = 10 * 365 * 24 * time.Hour

// NewAuthority makes a CA (ca.crt, ca.key) in the folder.
func NewAuthority(dir, name string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	a := &Authority{dir: dir, key: key}
	der, err := a.create(template, template, key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, a.write("ca", der, key)
}

// Issue writes NAME.crt and NAME.key.
func (a *Authority) Issue(name string, subject Subject) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: subject.CommonName, Organization: subject.Groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    subject.Names,
	}
	for _, address := range subject.Addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	if len(subject.Names)+len(subject.Addresses) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := a.create(template, a.cert, key)
	if err != nil {
		return fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	return a.write(name, der, key)
}

// Key writes NAME.key alone, for tokens of service accounts.
func (a *Authority) Key(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return a.write(name, nil, key)
}

func (a *Authority) create(template, parent *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour) // clocks of machines that sleep
	template.NotAfter = template.NotBefore.Add(life)
	return x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, a.key)
}

func (a *Authority) write(name string, der []byte, key *ecdsa.PrivateKey) error {
	// SEC 1: kube-apiserver reads an EC key for tokens in no other form.
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	if err := os.WriteFile(filepath.Join(a.dir, name+".key"), block, 0o600); err != nil || der == nil {
		return err
	}
	block = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return os.WriteFile(filepath.Join(a.dir, name+".crt"), block, 0o600)
}

// Kubeconfig is the configuration of a client that has the certificate NAME.crt
// in the folder. (JSON, which is YAML too.)
func Kubeconfig(dir, name, cluster, server string) ([]byte, error) {
	var files [3][]byte
	for i, file := range []string{"ca.crt", name + ".crt", name + ".key"} {
		var err error
		if files[i], err = os.ReadFile(filepath.Join(dir, file)); err != nil {
			return nil, err
		}
	}
	type object = map[string]any
	return json.MarshalIndent(object{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": cluster,
		"clusters":        []object{{"name": cluster, "cluster": object{"server": server, "certificate-authority-data": files[0]}}},
		"users":           []object{{"name": name, "user": object{"client-certificate-data": files[1], "client-key-data": files[2]}}},
		"contexts":        []object{{"name": cluster, "context": object{"cluster": cluster, "user": name}}},
	}, "", "  ")
}
