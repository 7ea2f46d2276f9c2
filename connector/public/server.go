package public

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/lambdamesh/lambdamesh/pkg/httpserver"
)

// Pairing makes applications known to the connector.
type Pairing interface {
	// Info tells who has a token how to ask for a certificate.
	Info(w http.ResponseWriter, r *http.Request)
	// Sign gives who has a token a certificate.
	Sign(w http.ResponseWriter, r *http.Request)
	// Management tells a paired system what it may call.
	Management(w http.ResponseWriter, r *http.Request, client Client)
	// Renew gives a paired system another certificate.
	Renew(w http.ResponseWriter, r *http.Request, client Client)
	// Revoke ends the certificate that it was called with.
	Revoke(w http.ResponseWriter, r *http.Request, client Client)
}

// Registry serves the catalog of an application, to that application. The
// application exists and is the caller: what the request says about it does not
// count.
type Registry interface {
	// Services serves /{application}/v1/metadata/services.
	Services(w http.ResponseWriter, r *http.Request, application string)
	// Service serves /{application}/v1/metadata/services/{id}.
	Service(w http.ResponseWriter, r *http.Request, application, id string)
}

// Events takes the events of an application, from that application. The
// application exists and is the caller.
type Events interface {
	// Events serves /{application}<path>: /events, /v1/events or
	// /v1/events/subscribed.
	Events(w http.ResponseWriter, r *http.Request, application, path string)
}

// Config of the public port.
type Config struct {
	// Certificate of the server, for the name that a client asks for. Required.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Clients knows who calls. Required.
	Clients *Clients
	// Pairing, Registry and Events serve what is behind this port; nil: there is
	// nothing there.
	Pairing  Pairing
	Registry Registry
	Events   Events
	// Webhooks are served under names of their own; nil: nowhere.
	Webhooks *WebhookConfig
}

// TLS is the configuration of the listener. There are no session tickets: a
// resumed session would show a certificate that was verified in an earlier one.
func (c Config) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: c.Certificate, SessionTicketsDisabled: true,
		GetConfigForClient: c.configFor,
	}
}

// configFor is the configuration of one connection.
func (c Config) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	on, ok := connOf(hello.Conn)
	if !ok {
		return nil, errors.New("the connection does not come from the listener of the clients")
	}
	if c.Webhooks.are(canonical(hello.ServerName)) {
		return &tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: c.Webhooks.Certificate, SessionTicketsDisabled: true,
			NextProtos: []string{"http/1.1"},
		}, nil
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: c.Certificate, SessionTicketsDisabled: true,
		NextProtos: []string{"http/1.1"},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: c.Clients.pool(),
		VerifyConnection: func(state tls.ConnectionState) error { return c.Clients.shown(on, state) },
	}, nil
}

// Handler serves the port.
func (c Config) Handler() http.Handler {
	paired, webhooks := c.mux(), c.mux()
	c.handlePaired(paired)
	if c.Webhooks != nil {
		c.handleWebhooks(webhooks)
	}
	return c.named(paired, webhooks)
}

func (c Config) mux() *http.ServeMux {
	mux := httpserver.Health(func(context.Context) error { return nil })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		Refuse(w, http.StatusNotFound, "there is nothing at %s", r.URL.Path)
	})
	return mux
}

func (c Config) handleWebhooks(mux *http.ServeMux) {
	mux.HandleFunc("/webhooks/{application}/{name}", only(http.MethodPost, func(w http.ResponseWriter, r *http.Request) {
		c.Webhooks.Handler.Webhook(w, r, r.PathValue("application"), r.PathValue("name"))
	}))
}

// handlePaired adds what systems with a client certificate are served, or with a
// token for one.
func (c Config) handlePaired(mux *http.ServeMux) {
	if c.Pairing != nil {
		mux.HandleFunc("/v1/applications/signingRequests/info", only(http.MethodGet, c.Pairing.Info))
		mux.HandleFunc("/v1/applications/certificates", only(http.MethodPost, c.Pairing.Sign))
		mux.HandleFunc("/v1/applications/management/info", only(http.MethodGet, c.paired(c.Pairing.Management)))
		mux.HandleFunc("/v1/applications/certificates/renewals", only(http.MethodPost, c.paired(c.Pairing.Renew)))
		mux.HandleFunc("/v1/applications/certificates/revocations", only(http.MethodPost, c.paired(c.Pairing.Revoke)))
	}
	if c.Registry != nil {
		mux.HandleFunc("/{application}/v1/metadata/services", c.own(c.Registry.Services))
		mux.HandleFunc("/{application}/v1/metadata/services/{id}", c.own(func(w http.ResponseWriter, r *http.Request, application string) {
			c.Registry.Service(w, r, application, r.PathValue("id"))
		}))
	}
	if c.Events == nil {
		return
	}
	for path, method := range map[string]string{
		"/events": http.MethodPost, "/v1/events": http.MethodPost, "/v1/events/subscribed": http.MethodGet,
	} {
		mux.HandleFunc("/{application}"+path, c.own(func(w http.ResponseWriter, r *http.Request, application string) {
			only(method, func(w http.ResponseWriter, r *http.Request) { c.Events.Events(w, r, application, path) })(w, r)
		}))
	}
}

// only serves one method.
func only(method string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			Refuse(w, http.StatusMethodNotAllowed, "use %s", method)
			return
		}
		next(w, r)
	}
}

// client answers those without a good certificate, false, and otherwise returns
// who calls.
func (c Config) client(w http.ResponseWriter, r *http.Request) (Client, bool) {
	client, err := c.Clients.Of(r.TLS)
	if err != nil {
		// What was let in by its handshake must not stay.
		w.Header().Set("Connection", "close")
		Refuse(w, http.StatusForbidden, "%v", err)
		return client, false
	}
	return client, true
}

// paired serves an application that exists.
func (c Config) paired(next func(http.ResponseWriter, *http.Request, Client)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		client, ok := c.client(w, r)
		if !ok {
			return
		}
		if !client.Exists {
			Refuse(w, http.StatusNotFound, "there is no application %q any more", client.Application)
			return
		}
		next(w, r, client)
	}
}

// own serves what is an application's to that application.
func (c Config) own(next func(w http.ResponseWriter, r *http.Request, application string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		client, ok := c.client(w, r)
		if !ok {
			return
		}
		asked := r.PathValue("application")
		exists := client.Exists
		if asked != client.Application {
			exists = c.Clients.Exists(asked)
		}
		if !exists {
			Refuse(w, http.StatusNotFound, "there is no application %q", asked)
			return
		}
		if asked != client.Application {
			Refuse(w, http.StatusForbidden, "the client certificate is that of another application than %q", asked)
			return
		}
		next(w, r, client.Application)
	}
}

// Refuse answers with an error as the clients of this port read it.
func Refuse(w http.ResponseWriter, status int, format string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// A client that went away cannot be told.
	_ = json.NewEncoder(w).Encode(struct {
		Code  int    `json:"code"`
		Error string `json:"error"`
	}{status, fmt.Sprintf(format, args...)})
}
