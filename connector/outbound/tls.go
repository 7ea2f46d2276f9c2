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

// clientTLS is what the connector shows a target, and the authorities it believes
// the target's own certificate from.
type clientTLS struct {
	from    tlsSource
	version string
	config  *tls.Config
}

// tlsSource names the Secrets of a clientTLS; empty names are none.
type tlsSource struct{ certificate, ca, caKey string }

// tls reads a certificate and authorities, where there are such. The key pair is
// parsed here, once for each version of the Secret.
func (r resolver) tls(certificate *v1alpha1.MTLSAuth, ca *v1alpha1.SecretKeyRef) (*clientTLS, error) {
	if certificate == nil && ca == nil {
		return nil, nil //nolint:nilnil // that is the default
	}
	c := &clientTLS{config: &tls.Config{MinVersion: tls.VersionTLS12}}
	if certificate != nil {
		name := certificate.Secret.Name
		secret, _, err := r.keys(name, corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
		if err != nil {
			return nil, unusable(ReasonSecretInvalid, "Secret %s/%s: tls.crt and tls.key are no PEM certificate and its key",
				v1alpha1.SystemNamespace, name)
		}
		c.config.Certificates = []tls.Certificate{pair}
		c.from.certificate, c.version = name, secretVersion(secret)
		if pem := secret.Data["ca.crt"]; len(pem) > 0 && ca == nil {
			if err := c.trust(pem, name, "ca.crt"); err != nil {
				return nil, err
			}
		}
	}
	if ca != nil {
		secret, _, err := r.keys(ca.Name, ca.Key)
		if err != nil {
			return nil, err
		}
		c.from.ca, c.from.caKey, c.version = ca.Name, ca.Key, c.version+" "+secretVersion(secret)
		if err := c.trust(secret.Data[ca.Key], ca.Name, ca.Key); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *clientTLS) trust(pem []byte, name, key string) error {
	c.config.RootCAs = x509.NewCertPool()
	if !c.config.RootCAs.AppendCertsFromPEM(pem) {
		return unusable(ReasonSecretInvalid, "Secret %s/%s: %s holds no PEM certificate", v1alpha1.SystemNamespace, name, key)
	}
	return nil
}

// secretVersion changes whenever a Secret does, also when it is made anew.
func secretVersion(secret *corev1.Secret) string {
	return string(secret.UID) + "/" + secret.ResourceVersion
}

// transports hands out one transport per client certificate and authorities, so
// that their connections are kept apart, and one for calls without.
type transports struct {
	policy *targets.Policy
	plain  *targets.Transport

	mu       sync.Mutex
	bySource map[tlsSource]certified
}

type certified struct {
	version   string
	transport *targets.Transport
}

func newTransports(policy *targets.Policy) *transports {
	return &transports{policy: policy, plain: policy.Transport(targets.ClientOptions{}), bySource: map[tlsSource]certified{}}
}

// get returns the transport for a clientTLS, nil for none. One of an older version
// of a Secret is replaced; calls on it end as they are.
func (t *transports) get(c *clientTLS) http.RoundTripper {
	if c == nil {
		return t.plain
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.bySource[c.from]
	if ok && known.version == c.version {
		return known.transport
	}
	if ok {
		known.transport.CloseIdleConnections()
	}
	known = certified{version: c.version, transport: t.policy.Transport(targets.ClientOptions{TLS: c.config})}
	t.bySource[c.from] = known
	return known.transport
}
