package proxy

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/client"
	"github.com/lambdamesh/lambdamesh/meshconfig/proxy/compile"
)

// Config of a Proxy.
type Config struct {
	// NodeID is who this data plane is: gateway~<namespace>~<name>~<instance>
	// or <workload entry>.<namespace>. Required.
	NodeID string
	// NodeMetadata and NodeLocality are told to the ADS server with it. Optional.
	NodeMetadata *structpb.Struct
	NodeLocality *corev3.Locality
	// ADSAddress is the host:port of the ADS server, or unix:PATH. Required. With
	// unix: and no RootCAs it is an agent of this machine, which is spoken to in
	// plain text and shown no token.
	ADSAddress string
	// WholeState: the ADS server is asked for state of the world instead of changes
	// (delta xDS). An agent always is.
	WholeState bool
	// ADSServerName is the name in the server's certificate; default: the host of
	// ADSAddress.
	ADSServerName string
	// RootCAs returns what verifies the ADS server; it is asked for each
	// connection. Required but for an agent.
	RootCAs func() (*x509.CertPool, error)
	// Token returns the service-account token to authenticate with; it is asked
	// for each new stream. Required but for an agent.
	Token func(ctx context.Context) (string, error)
	// SecretServers are further servers of secrets (SDS): unix:PATH by the name that
	// configurations call the server, a cluster of the bootstrap. They are agents as
	// well. Optional.
	SecretServers map[string]string
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

// agent tells whether the ADS server is one of this machine's.
func (c *Config) agent() bool {
	return c.RootCAs == nil && strings.HasPrefix(c.ADSAddress, client.UnixScheme)
}

// Validate tells what is missing.
func (c *Config) Validate() error {
	var errs []error
	for name, address := range c.SecretServers {
		if !strings.HasPrefix(address, client.UnixScheme) || name == "" || strings.Contains(name, compile.SecretSeparator) {
			errs = append(errs, fmt.Errorf("SecretServers[%q]: %q is not unix:PATH by a name", name, address))
		}
	}
	for _, required := range []struct {
		name    string
		missing bool
	}{
		{"NodeID", c.NodeID == ""}, {"ADSAddress", c.ADSAddress == ""}, {"RootCAs", c.RootCAs == nil && !c.agent()}, {"Token", c.Token == nil && !c.agent()},
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
