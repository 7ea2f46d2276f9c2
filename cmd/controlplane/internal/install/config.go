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

// Authority makes the content of a Secret of a certificate authority: in the place
// of have (nil: there is none), and for which reason, or nil when have is good
// until then. With rotate it is another key in any case.
type Authority func(have map[string][]byte, rotate bool, now time.Time) (want map[string][]byte, reason string, until time.Time, err error)

// Config of what is made.
type Config struct {
	// Namespace of all of it. Required.
	Namespace string
	// Sign makes the certificate of a Secret, for these names. Required with
	// Certificates.
	Sign func(secret string, names ...string) (Certificate, error)
	// Root are the certificates (PEM) that verify what Sign makes, now; Changed is
	// closed when they are others, or another one signs. Required with Certificates.
	Root    func() []byte
	Changed func() <-chan struct{}
	// Overlap is how long each step of replacing the credentials lasts. Required with
	// Credentials.
	Overlap time.Duration
	// Certificates are the Secrets to keep, with the names in each certificate.
	Certificates map[string][]string
	// Authorities are Secrets of certificate authorities to keep.
	Authorities map[string]Authority
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
	if len(c.Certificates) > 0 && (c.Sign == nil || c.Root == nil || c.Changed == nil) {
		errs = append(errs, errors.New("install: there is nobody to sign certificates"))
	}
	if c.Credentials != "" && c.Overlap <= 0 {
		errs = append(errs, errors.New("install: without an overlap new credentials would reach one side before the other"))
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
