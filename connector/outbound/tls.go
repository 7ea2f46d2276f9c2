package outbound

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// clientCertificate is what the connector shows a target, and the authorities
// it believes the target's own certificate from.
type clientCertificate struct {
	secret, version string
	config          *tls.Config
}

func (r resolver) mtls(auth *v1alpha1.MTLSAuth) (*clientCertificate, error) {
	secret, _, err := r.keys(auth.Secret.Name, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return nil, unusable(ReasonSecretInvalid, "Secret %s/%s: tls.crt and tls.key are no PEM certificate and its key",
			v1alpha1.SystemNamespace, auth.Secret.Name)
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	if ca := secret.Data["ca.crt"]; len(ca) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, unusable(ReasonSecretInvalid, "Secret %s/%s: ca.crt holds no PEM certificate", v1alpha1.SystemNamespace, auth.Secret.Name)
		}
	}
	return &clientCertificate{secret: secret.Name, version: secretVersion(secret), config: config}, nil
}

// secretVersion changes whenever a Secret does, also when it is made anew.
func secretVersion(secret *corev1.Secret) string {
	return string(secret.UID) + "/" + secret.ResourceVersion
}

// transports hands out one transport per client certificate, so that their
// connections are kept apart, and one for calls without.
type transports struct {
	policy *targets.Policy
	plain  *targets.Transport

	mu       sync.Mutex
	bySecret map[string]certified
}

type certified struct {
	version   string
	transport *targets.Transport
}

func newTransports(policy *targets.Policy) *transports {
	return &transports{policy: policy, plain: policy.Transport(targets.ClientOptions{}), bySecret: map[string]certified{}}
}

// get returns the transport for a certificate, nil for none. One of an older
// version of the Secret is replaced; calls on it end as they are.
func (t *transports) get(c *clientCertificate) http.RoundTripper {
	if c == nil {
		return t.plain
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.bySecret[c.secret]
	if ok && known.version == c.version {
		return known.transport
	}
	if ok {
		known.transport.CloseIdleConnections()
	}
	known = certified{version: c.version, transport: t.policy.Transport(targets.ClientOptions{TLS: c.config})}
	t.bySecret[c.secret] = known
	return known.transport
}
