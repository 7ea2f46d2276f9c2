package localkube

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// KubernetesVersion is the version that `make kubernetes` provides.
const KubernetesVersion = "v1.36.3"

// Config says where the control plane lives.
type Config struct {
	// DataDir holds everything that is kept; it is created where missing.
	DataDir string
	// BinDir holds etcd, kube-apiserver and kube-controller-manager; empty means
	// DefaultBinDir.
	BinDir string
	// Address is where the API server listens; it must be IPv4 loopback. Port 0 means
	// the port of the last start if it is free, else any. Empty means 127.0.0.1:0.
	Address string
	// CRDs are trees of files with CustomResourceDefinitions to install.
	CRDs []fs.FS
	// Log gets the phases of the start and what is restarted; nil means
	// slog.Default.
	Log *slog.Logger
	// StartTimeout bounds the time until everything is ready; 0 means a minute.
	StartTimeout time.Duration
}

func (c *Config) complete() error {
	if c.DataDir == "" {
		return errors.New("no data directory given")
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return err
	}
	c.DataDir = dir
	if c.BinDir == "" {
		c.BinDir = DefaultBinDir()
	}
	if c.BinDir == "" {
		return errors.New("no directory of the Kubernetes binaries is known: set HOME or LAMBDAMESH_CACHE")
	}
	if c.Address == "" {
		c.Address = "127.0.0.1:0"
	}
	address, err := netip.ParseAddrPort(c.Address)
	if err != nil {
		return fmt.Errorf("API server address %q: want an IP address and a port, such as 127.0.0.1:6443", c.Address)
	}
	if !address.Addr().Is4() { // of one family with the cluster IPs
		return fmt.Errorf("API server address %q: want an IPv4 address", c.Address)
	}
	if !address.Addr().IsLoopback() {
		return fmt.Errorf("API server address %q is not loopback: this control plane is for one machine", c.Address)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.StartTimeout <= 0 {
		c.StartTimeout = time.Minute
	}
	return nil
}

// DefaultBinDir is where `make kubernetes` puts the binaries:
// ${LAMBDAMESH_CACHE:-${XDG_CACHE_HOME:-~/.cache}/lambdamesh}/kubernetes/<version>/<os>-<arch>.
// It is empty if none of the three is known.
func DefaultBinDir() string {
	cache := os.Getenv("LAMBDAMESH_CACHE")
	if cache == "" {
		user := os.Getenv("XDG_CACHE_HOME")
		if user == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return ""
			}
			user = filepath.Join(home, ".cache")
		}
		cache = filepath.Join(user, "lambdamesh")
	}
	return filepath.Join(cache, "kubernetes", KubernetesVersion, runtime.GOOS+"-"+runtime.GOARCH)
}

// host is the IP address the API server listens on.
func (c *Config) host() string {
	host, _, _ := net.SplitHostPort(c.Address) // complete has parsed it
	return host
}

func (c *Config) port() int {
	return int(netip.MustParseAddrPort(c.Address).Port())
}

// Paths inside the data directory.

func (c *Config) lockFile() string    { return filepath.Join(c.DataDir, "lock") }
func (c *Config) kubeconfig() string  { return filepath.Join(c.DataDir, "kubeconfig") }
func (c *Config) stateDir() string    { return filepath.Join(c.DataDir, "kubernetes") }
func (c *Config) pkiDir() string      { return filepath.Join(c.stateDir(), "pki") }
func (c *Config) etcdDir() string     { return filepath.Join(c.stateDir(), "etcd") }
func (c *Config) runDir() string      { return filepath.Join(c.stateDir(), "run") }
func (c *Config) versionFile() string { return filepath.Join(c.stateDir(), "version") }
func (c *Config) portFile() string    { return filepath.Join(c.stateDir(), "port") }
func (c *Config) binary(name string) string {
	return filepath.Join(c.BinDir, name)
}

func (c *Config) logFile(name string) string {
	return filepath.Join(c.DataDir, "logs", "kubernetes", name+".log")
}
