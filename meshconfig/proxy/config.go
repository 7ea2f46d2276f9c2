package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Config of a Proxy.
type Config struct {
	// NodeID is who this data plane is: gateway~<namespace>~<name>~<instance>
	// or <workload entry>.<namespace>. Required.
	NodeID string
	// ADSAddress is the host:port of the ADS server. Required.
	ADSAddress string
	// ADSServerName is the name in the server's certificate; default: the host of
	// ADSAddress.
	ADSServerName string
	// RootCAs returns what verifies the ADS server; it is asked for each
	// connection. Required.
	RootCAs func() (*x509.CertPool, error)
	// Token returns the service-account token to authenticate with; it is asked
	// for each new stream. Required.
	Token func(ctx context.Context) (string, error)
	// Listen opens the socket of a listener. Default: net.ListenConfig.Listen
	// with the address of the listener; a stale Unix socket is replaced.
	Listen func(ctx context.Context, network, address string) (net.Listener, error)
	// DrainTimeout bounds how long requests may take to end when Run stops, or a
	// listener goes. Default: 10 seconds.
	DrainTimeout time.Duration
	// Log is where the proxy writes; default slog.Default().
	Log *slog.Logger
	// Registry takes the proxy's metrics. Optional.
	Registry prometheus.Registerer
}

func (c *Config) setDefaults() {
	if c.Listen == nil {
		c.Listen = listen
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = 10 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// Validate tells what is missing.
func (c *Config) Validate() error {
	var errs []error
	for _, required := range []struct {
		name    string
		missing bool
	}{
		{"NodeID", c.NodeID == ""}, {"ADSAddress", c.ADSAddress == ""}, {"RootCAs", c.RootCAs == nil}, {"Token", c.Token == nil},
	} {
		if required.missing {
			errs = append(errs, errors.New(required.name+" is required"))
		}
	}
	return errors.Join(errs...)
}

func listen(ctx context.Context, network, address string) (net.Listener, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, network, address)
	if err == nil || network != "unix" {
		return l, err
	}
	// A process that was killed leaves its socket behind. Nobody answers there:
	// it may go.
	if info, serr := os.Lstat(address); serr != nil || info.Mode()&fs.ModeSocket == 0 {
		return nil, err
	}
	if c, derr := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, address); derr == nil {
		_ = c.Close()
		return nil, err
	}
	if rerr := os.Remove(address); rerr != nil {
		return nil, err
	}
	return config.Listen(ctx, network, address)
}
