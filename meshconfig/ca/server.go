package ca

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"
)

// ServerCertificate is for tls.Config.GetCertificate: a certificate for the DNS
// names or IP addresses, made when it is first asked for and renewed at half of
// its life, and when another root signs.
func (c *CA) ServerCertificate(names ...string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var made *tls.Certificate
	var renewAt time.Time
	var changed <-chan struct{}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		if made != nil && c.config.Now().Before(renewAt) && !closed(changed) {
			return made, nil
		}
		changed = c.Changed()
		leaf, err := c.IssueServer(names...)
		if err != nil {
			return nil, err
		}
		certificate, err := tls.X509KeyPair(leaf.ChainPEM, leaf.KeyPEM)
		if err != nil {
			return nil, fmt.Errorf("load a server's certificate: %w", err)
		}
		made, renewAt = &certificate, leaf.RenewAt()
		return made, nil
	}
}

// closed tells whether what a channel waits for has happened.
func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
