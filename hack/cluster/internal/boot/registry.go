package boot

import (
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/lambdamesh/lambdamesh/hack/cluster/internal/state"
)

// RegistryPort is where nodes and pods find the registry, at the switch's address.
const RegistryPort = 5000

// newRegistry is an OCI registry that needs no login. Blobs lie in the
// cluster's folder, manifests in memory: both go with the cluster.
func newRegistry(s *state.State) (http.Handler, error) {
	dir := s.Path("registry")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
		registry.WithReferrersSupport(true),
		registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)),
	), nil
}

func serveRegistry(listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	return server.Serve(listener)
}
