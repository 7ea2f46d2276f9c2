package install

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// caKey of a Secret holds what verifies its certificate.
const caKey = "ca.crt"

// certificate makes the data of a Secret of type kubernetes.io/tls.
func (m *maker) certificate(secret string, names []string) (map[string][]byte, error) {
	made, err := m.config.Sign(secret, names...)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{corev1.TLSCertKey: made.ChainPEM, corev1.TLSPrivateKeyKey: made.KeyPEM, caKey: m.config.Root()}, nil
}

// parse returns the certificate in data, with its key or without.
func parse(data map[string][]byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data[corev1.TLSCertKey])
	if block == nil {
		return nil, errors.New("it holds no certificate in tls.crt")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("its tls.crt cannot be read: %w", err)
	}
	return certificate, nil
}

// outdated tells why a certificate that was made here is to be made anew, "" when
// it is not, and until when that holds.
func (m *maker) outdated(data map[string][]byte, names []string) (reason string, until time.Time) {
	certificate, err := parse(data)
	if err != nil {
		return err.Error(), time.Time{}
	}
	if _, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey]); err != nil {
		return "its certificate and key are no pair", time.Time{}
	}
	until = certificate.NotBefore.Add(certificate.NotAfter.Sub(certificate.NotBefore) / 2)
	inIt := slices.Clone(certificate.DNSNames)
	for _, ip := range certificate.IPAddresses {
		inIt = append(inIt, ip.String())
	}
	wanted := slices.Clone(names)
	slices.Sort(inIt)
	slices.Sort(wanted)
	switch {
	case !m.config.Now().Before(until):
		return "half of its life is over", until
	case !slices.Equal(inIt, wanted):
		return "it is for other names", until
	case !bytes.Equal(data[caKey], m.config.Root()):
		return "another authority signs, or is trusted too", until
	}
	return "", until
}

// warnBefore is how long before its end a certificate that nobody renews here is
// talked about.
const warnBefore = 14 * 24 * time.Hour

// judge tells what is wrong with a Secret that is not ours to mend, or that it is
// all right.
func (m *maker) judge(secret *corev1.Secret) {
	if secret.Name == m.config.Credentials {
		for _, key := range []string{userKey, passwordKey, clientKey} {
			if len(secret.Data[key]) == 0 {
				m.warn(secret, "Incomplete", "it was not made by the control plane and lacks the key %s, which NATS needs; add it, or delete the Secret to have one made", key)
				return
			}
		}
		return
	}
	mend, renewal := "replace it, or delete the Secret to have one made", "the control plane did not make it and does not renew it"
	if slices.Contains(m.config.Watched, secret.Name) {
		// Everything verifies by an authority: without it, or by another one, no
		// member of the mesh talks to any other until all have started again.
		mend = "everything in the mesh verifies by it: keep the Secret, and plan for all of the mesh to start again with a new one"
		renewal = "an authority that was brought along is not renewed by itself: write the next one into next.crt and next.key of the Secret, or annotate it with " + v1alpha1.AnnotationRotate + " to have one made"
	}
	certificate, err := parse(secret.Data)
	if err != nil {
		m.warn(secret, "BadCertificate", "%v; %s", err, mend)
		return
	}
	switch left := certificate.NotAfter.Sub(m.config.Now()); {
	case left <= 0:
		m.warn(secret, "CertificateExpired", "the certificate has expired at %s; %s", certificate.NotAfter.Format(time.RFC3339), mend)
	case left < warnBefore:
		m.warn(secret, "CertificateExpires", "the certificate expires at %s; %s", certificate.NotAfter.Format(time.RFC3339), renewal)
	}
}
