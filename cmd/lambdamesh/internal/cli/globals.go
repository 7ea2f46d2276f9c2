package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/dev"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// globals are the flags by which every command finds the system.
type globals struct {
	dataDir    string
	kubeconfig string
	// dataDirGiven: the user named the data directory and means no other mesh.
	dataDirGiven func() bool
}

// local reports whether the local mesh's data directory is what the user means:
// no other cluster is named and a local mesh has run there.
func (g *globals) local() bool {
	if g.kubeconfig != "" {
		return false
	}
	_, err := os.Stat(filepath.Join(g.dataDir, dev.KubeconfigFile))
	return err == nil
}

// endpoints reads where the running local mesh listens.
func (g *globals) endpoints() (dev.Endpoints, error) {
	e, err := dev.ReadEndpoints(g.dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return e, fmt.Errorf("no local mesh runs with the data directory %s: start one with `lambdamesh dev`, or pass --data-dir", g.dataDir)
	}
	return e, err
}

// restConfig is that of --kubeconfig, else of the local mesh, else of the
// environment.
func (g *globals) restConfig() (*rest.Config, error) {
	switch {
	case g.local():
		return kube.RESTConfig(filepath.Join(g.dataDir, dev.KubeconfigFile))
	case g.kubeconfig == "" && g.dataDirGiven():
		return nil, fmt.Errorf("no local mesh has run with the data directory %s: start one with `lambdamesh dev`, or pass --kubeconfig", g.dataDir)
	default:
		return kube.RESTConfig(g.kubeconfig)
	}
}

func (g *globals) client() (client.Client, error) {
	cfg, err := g.restConfig()
	if err != nil {
		return nil, err
	}
	scheme, err := kube.Scheme()
	if err != nil {
		return nil, err
	}
	c, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	return c, nil
}
