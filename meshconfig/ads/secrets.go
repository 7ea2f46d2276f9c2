package ads

import (
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
)

// secrets makes the two secrets of a node: its own certificate and the root.
type secrets struct {
	ca       *ca.CA
	identity string
	now      func() time.Time

	leaf  ca.Leaf
	made  map[string]item
	retry time.Time
	// changed is closed when other roots are in force than those that made is of;
	// stale tells that they are.
	changed <-chan struct{}
	stale   bool
}

// items returns the secrets, with a new certificate when half of the life of
// the last one is over, and when the roots have changed.
func (s *secrets) items() (map[string]item, error) {
	now := s.now()
	s.look()
	if s.made != nil && (now.Before(s.leaf.RenewAt()) && !s.stale || now.Before(s.retry)) {
		return s.made, nil
	}
	s.changed = s.ca.Changed()
	leaf, err := s.ca.Issue(s.identity)
	if err != nil {
		s.retry = now.Add(time.Minute)
		if s.made != nil && now.Before(s.leaf.NotAfter) {
			return s.made, nil
		}
		return nil, err
	}
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	made := map[string]item{}
	for _, secret := range []*tlsv3.Secret{
		{Name: SecretWorkload, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(leaf.ChainPEM), PrivateKey: inline(leaf.KeyPEM),
		}}},
		{Name: SecretRoot, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline(s.ca.Root()),
		}}},
	} {
		it, err := newItem(secret)
		if err != nil {
			return nil, fmt.Errorf("serialize the secret %s: %w", secret.GetName(), err)
		}
		made[secret.GetName()] = it
	}
	s.leaf, s.made, s.stale = leaf, made, false
	return made, nil
}

// look notes whether other roots are in force.
func (s *secrets) look() {
	select {
	case <-s.changed: // nil, and so never, until some were made
		s.stale, s.changed = true, nil
	default:
	}
}

// untilRenewal is how long until items returns something new.
func (s *secrets) untilRenewal() time.Duration {
	if s.made == nil {
		return time.Minute
	}
	at := s.leaf.RenewAt()
	if s.stale {
		at = s.now()
	}
	if s.retry.After(at) {
		at = s.retry
	}
	return max(at.Sub(s.now()), time.Second)
}
