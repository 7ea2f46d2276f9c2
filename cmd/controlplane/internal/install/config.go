package install

import (
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Certificate is a signed certificate and its key.
type Certificate struct {
	// ChainPEM begins with the certificate of the server; KeyPEM is its key.
	ChainPEM, KeyPEM []byte
}

// Config of what is made.
type Config struct {
	// Namespace of all of it. Required.
	Namespace string
	// Sign makes the certificate of a Secret, for these names. Required.
	Sign func(secret string, names ...string) (Certificate, error)
	// Root is the certificate (PEM) that verifies what Sign makes. Required.
	Root []byte
	// Certificates are the Secrets to keep, with the names in each certificate.
	Certificates map[string][]string
	// Watched are further Secrets whose certificates' expiry is told: those that
	// others make.
	Watched []string
	// Credentials is the Secret with the user and passwords of NATS; empty: none.
	Credentials string
	// Gateway is the default Gateway; nil: none.
	Gateway *Gateway
	// Now is the clock; default time.Now.
	Now func() time.Time
	// Log; default slog.Default.
	Log *slog.Logger
	// Registry of the metric; default none.
	Registry prometheus.Registerer
}

// Gateway is what the default Gateway is made of.
type Gateway struct {
	// Name of the object.
	Name string
	// Domain completes host labels of APIRules.
	Domain string
	// Selector of the gateway's pods, for Istio.
	Selector map[string]string
	// Secret with the certificate.
	Secret string
}

// Validate names every wrong setting.
func (c Config) Validate() error {
	var errs []error
	if c.Namespace == "" {
		errs = append(errs, errors.New("install: the namespace is not set"))
	}
	if c.Sign == nil || len(c.Root) == 0 {
		errs = append(errs, errors.New("install: there is nobody to sign certificates"))
	}
	for name, names := range c.Certificates {
		if len(names) == 0 {
			errs = append(errs, errors.New("install: the certificate "+name+" is for no name"))
		}
	}
	if g := c.Gateway; g != nil && (g.Name == "" || g.Domain == "" || g.Secret == "") {
		errs = append(errs, errors.New("install: the default Gateway needs a name, a domain and a Secret"))
	}
	return errors.Join(errs...)
}
