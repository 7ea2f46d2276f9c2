package public

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// Webhooks takes the signed calls of third-party systems, which show no client
// certificate. Whether there is such a webhook is theirs to say.
type Webhooks interface {
	// Webhook serves /webhooks/{application}/{name}.
	Webhook(w http.ResponseWriter, r *http.Request, application, name string)
}

// WebhookConfig is the part of the port that is served without client
// certificates, under names of its own.
type WebhookConfig struct {
	// Names of it, such as hooks.example.com. At least one is required.
	Names []string
	// Certificate of the server under these names. Required.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Nameless serves it also to clients that name no server, as those do that were
	// given an address: beside what else is served to them. For local use.
	Nameless bool
	// Handler of the calls. Required.
	Handler Webhooks
}

// Validate names what is missing or wrong.
func (c *WebhookConfig) Validate() error {
	if len(c.Names) == 0 || c.Certificate == nil || c.Handler == nil {
		return fmt.Errorf("webhooks: at least one name, a certificate and a handler are required")
	}
	for _, name := range c.Names {
		if _, err := netip.ParseAddr(name); err == nil || name == "" || strings.ContainsAny(name, "/:* ") {
			return fmt.Errorf("webhooks: %q: write the name of a host, such as hooks.example.com, without scheme and port; clients name no address in a handshake", name)
		}
	}
	return nil
}

// are reports whether a name is one of them.
func (c *WebhookConfig) are(name string) bool {
	if c == nil || name == "" {
		return false
	}
	for _, own := range c.Names {
		if canonical(own) == name {
			return true
		}
	}
	return false
}

// canonical is a host name as names are compared.
func canonical(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// asked is the host that a request names.
func asked(r *http.Request) string {
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return canonical(strings.Trim(host, "[]"))
}

// named serves each request by the names that its handshake and it gave: what is
// served under one name is not there under another, and a connection that was made
// for one name is not for requests to another, whoever shares certificates or
// addresses (RFC 9110, section 7.4).
func (c Config) named(paired, webhooks http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var server string
		if r.TLS != nil {
			server = canonical(r.TLS.ServerName)
		}
		host := asked(r)
		switch {
		case server != "" && host != server, server == "" && c.Webhooks.are(host) && !c.Webhooks.Nameless:
			w.Header().Set("Connection", "close")
			Refuse(w, http.StatusMisdirectedRequest, "this connection is not for the host of the request: make another")
		case c.Webhooks.are(server):
			webhooks.ServeHTTP(w, r)
		case server == "" && c.Webhooks != nil && c.Webhooks.Nameless && strings.HasPrefix(r.URL.Path, "/webhooks/"): // no name of an application
			webhooks.ServeHTTP(w, r)
		default:
			paired.ServeHTTP(w, r)
		}
	})
}
