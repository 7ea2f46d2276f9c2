package localnode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
)

// Artifacts is the store that images of Deployments are looked up in.
type Artifacts interface {
	// Command returns how to start the artifact of an image.
	Command(ctx context.Context, image string) (build.Command, error)
}

// Sidecars starts mesh sidecars.
type Sidecars interface {
	// Start starts the sidecar of a replica, which serves the listeners it is
	// handed and closes them when it stops. ctx bounds the starting only.
	Start(ctx context.Context, replica Replica) (Sidecar, error)
}

// Sidecar is a running mesh sidecar.
type Sidecar interface {
	// Ready is closed when it has the configuration it needs to serve.
	Ready() <-chan struct{}
	// ActiveRequests counts the inbound requests in flight.
	ActiveRequests() int
	// Stop ends it; ctx bounds how long that may take.
	Stop(ctx context.Context) error
}

// Replica is what a sidecar needs to know of the process it stands beside.
type Replica struct {
	// Name of the replica and of its WorkloadEntry; with Namespace it makes the
	// node id.
	Name, Namespace string
	// ServiceAccount whose identity it has.
	ServiceAccount string
	// Labels by which the Sidecar object selects it and its Service will.
	Labels map[string]string
	// InboundListener takes mutual TLS for the process at AppSocket;
	// EgressListener is the process's HTTP proxy; it lets nobody else in.
	InboundListener, EgressListener net.Listener
	// AppSocket is the path of the Unix socket that the process serves.
	AppSocket string
}

// Config configures a [Node].
type Config struct {
	// REST is how to reach the API server.
	REST *rest.Config
	// DataDir keeps logs: <DataDir>/logs/lambdas/<namespace>/<lambda>/<replica>.log.
	DataDir string
	// RunDir holds sockets; it is emptied at the start and removed at the end, and
	// its path must leave room for their names. Default: <DataDir>/run/lambdas, or
	// when that is too long a private directory under the system's temporary one.
	RunDir string
	// Artifacts and Sidecars are what it builds upon.
	Artifacts Artifacts
	Sidecars  Sidecars
	// DrainDelay is how long a replica serves on after its endpoint was taken
	// out, so that every client learns of it; default 2s.
	DrainDelay time.Duration
	// MaxDrain bounds the wait for requests in flight after that; default 15s.
	MaxDrain time.Duration
	// MinBackoff and MaxBackoff bound the pause before a crashed process starts
	// again; default 500ms and 1m.
	MinBackoff, MaxBackoff time.Duration
	// SilentMost is how long a ready process may leave /healthz without an answer
	// before it is replaced; default 30s, as long as the probes of a pod bear with it.
	SilentMost time.Duration
	// LogBytes is the size at which a replica's log rotates; default 10 MiB.
	LogBytes int64
	Log      *slog.Logger
}

// Validate tells what is missing.
func (c Config) Validate() error {
	var problems []error
	if c.REST == nil {
		problems = append(problems, errors.New("REST is missing"))
	}
	if !filepath.IsAbs(c.DataDir) {
		problems = append(problems, fmt.Errorf("DataDir %q: want an absolute path", c.DataDir))
	}
	if c.Artifacts == nil {
		problems = append(problems, errors.New("Artifacts is missing"))
	}
	if c.Sidecars == nil {
		problems = append(problems, errors.New("Sidecars is missing"))
	}
	if len(problems) > 0 {
		return fmt.Errorf("local node: %w", errors.Join(problems...))
	}
	return nil
}

func (c Config) withDefaults() Config {
	set := func(value *time.Duration, byDefault time.Duration) {
		if *value == 0 {
			*value = byDefault
		}
	}
	set(&c.DrainDelay, 2*time.Second)
	set(&c.MaxDrain, 15*time.Second)
	set(&c.MinBackoff, 500*time.Millisecond)
	set(&c.MaxBackoff, time.Minute)
	set(&c.SilentMost, 30*time.Second)
	if c.LogBytes == 0 {
		c.LogBytes = 10 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
