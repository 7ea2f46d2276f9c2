package dev

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Files and directories below the data directory that other programs read.
const (
	KubeconfigFile = "kubeconfig"
	EndpointsFile  = "endpoints.json"
	// LambdaLogsDir holds <namespace>/<lambda>/<replica>.log.
	LambdaLogsDir = "logs/lambdas"
)

// Domain completes the host labels of APIRules; browsers and most resolvers
// send everything below .localhost to this machine (RFC 6761, section 6.3).
const Domain = "lambdas.localhost"

// Config of the local mesh. Every address is host:port; port 0 takes a free one.
type Config struct {
	// DataDir keeps everything that outlives the process.
	DataDir string
	// Apply are YAML files or directories to apply when all is up.
	Apply []string
	// BinDir holds kube-apiserver, etcd and kube-controller-manager.
	BinDir string

	GatewayAddress       string
	GatewayTLSAddress    string
	EventBusAddress      string
	EventBusAdminAddress string
	ConnectorAddress     string
	XDSAddress           string
	KubernetesAddress    string

	// AllowTargets adds to what sinks, jwksUri and targetUrl may point at.
	AllowTargets []string
	// UnownedSources: open lets everybody publish and read sources that nobody
	// owns, refuse nobody.
	UnownedSources string
	// Limits of APIRules by name, as [translate.Limits.Set] takes them.
	Limits map[string]int
	// Proxy is the data plane: embedded, or envoy from PATH.
	Proxy string

	// Out is where progress and addresses are printed.
	Out io.Writer
	// Log is where the components log.
	Log *slog.Logger
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{
		DataDir:              ".lambdamesh",
		GatewayAddress:       "127.0.0.1:8080",
		GatewayTLSAddress:    "127.0.0.1:8443",
		EventBusAddress:      "127.0.0.1:8081",
		EventBusAdminAddress: "127.0.0.1:8082",
		ConnectorAddress:     "127.0.0.1:8083",
		XDSAddress:           "127.0.0.1:0",
		KubernetesAddress:    "127.0.0.1:0",
		UnownedSources:       "open",
		Proxy:                "embedded",
		Out:                  io.Discard,
		Log:                  slog.New(slog.DiscardHandler),
	}
}

// Validate reports everything that cannot work, before anything is started.
func (c *Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("--data-dir is empty"))
	}
	for _, a := range []struct{ flag, address string }{
		{"--gateway-address", c.GatewayAddress},
		{"--gateway-tls-address", c.GatewayTLSAddress},
		{"--eventbus-address", c.EventBusAddress},
		{"--eventbus-admin-address", c.EventBusAdminAddress},
		{"--connector-address", c.ConnectorAddress},
		{"--xds-address", c.XDSAddress},
		{"--kubernetes-address", c.KubernetesAddress},
	} {
		if err := checkAddress(a.address); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", a.flag, a.address, err))
		}
	}
	for flag, address := range map[string]string{"--eventbus-address": c.EventBusAddress, "--eventbus-admin-address": c.EventBusAdminAddress} {
		if !loopback(address) {
			errs = append(errs, fmt.Errorf("%s %q: who reaches it may publish and read anything; use a loopback address such as 127.0.0.1", flag, address))
		}
	}
	for _, path := range c.Apply {
		if _, err := os.Stat(path); err != nil {
			errs = append(errs, fmt.Errorf("--apply: %w", err))
		}
	}
	switch c.Proxy {
	case "embedded":
	case "envoy":
		errs = append(errs, errors.New("--proxy envoy is not implemented by this version: use --proxy embedded"))
	default:
		errs = append(errs, fmt.Errorf("--proxy %q: use embedded", c.Proxy))
	}
	if c.UnownedSources != "open" && c.UnownedSources != "refuse" {
		errs = append(errs, fmt.Errorf("--unowned-sources %q: use open or refuse", c.UnownedSources))
	}
	if _, err := targets.New(targets.Config{Allow: c.AllowTargets}); err != nil {
		errs = append(errs, fmt.Errorf("--allow-target: %w", err))
	}
	if err := new(translate.Limits).Set(c.Limits); err != nil {
		errs = append(errs, fmt.Errorf("--limit: %w", err))
	}
	return errors.Join(errs...)
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return errors.New("write host:port, such as 127.0.0.1:0")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return errors.New("the port is a number from 0 to 65535")
	}
	if host == "" {
		return errors.New("name the host: 127.0.0.1, or 0.0.0.0 to let other machines in on purpose")
	}
	return nil
}

// loopback says whether only this machine reaches the address; what is no
// address at all has been told already.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "" || host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// path is a file below the data directory.
func (c *Config) path(elements ...string) string {
	return filepath.Join(append([]string{c.DataDir}, elements...)...)
}
