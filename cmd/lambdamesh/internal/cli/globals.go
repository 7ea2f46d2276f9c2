package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/dev"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// globals are the flags by which every command finds the system.
type globals struct {
	dataDir string
	kube    kube.Config
	// dataDirGiven: the user named the data directory and means no other mesh.
	dataDirGiven func() bool
}

func (g *globals) register(flags *pflag.FlagSet) {
	flags.StringVar(&g.dataDir, "data-dir", defaultDataDir(), "`directory` where lambdamesh dev keeps its data (LAMBDAMESH_DATA_DIR)")
	flags.StringVar(&g.kube.File, "kubeconfig", "", "`file` of the cluster to talk to (default: $KUBECONFIG, else the local mesh that runs with --data-dir, else kubectl's default)")
	flags.StringVar(&g.kube.Context, "context", "", "`name` of the kubeconfig's context (default: its current one)")
	g.dataDirGiven = func() bool { return flags.Changed("data-dir") || os.Getenv("LAMBDAMESH_DATA_DIR") != "" }
}

// target is what a command talks to.
type target struct {
	// dataDir of a local mesh; "" for a cluster.
	dataDir string
	kube    kube.Config
}

// target is, in this order: what the flags name, the exported KUBECONFIG, the
// local mesh that runs, kubectl's default.
func (g *globals) target() target {
	exported := os.Getenv(clientcmd.RecommendedConfigPathEnvVar)
	switch {
	case g.kube.File != "":
		return target{dataDir: meshOf(g.kube.File), kube: g.kube}
	case g.kube.Context != "":
		return target{kube: g.kube}
	case g.dataDirGiven():
		return g.localTarget()
	case exported != "":
		return target{dataDir: meshOf(exported), kube: g.kube}
	case runs(g.dataDir):
		return g.localTarget()
	default:
		return target{kube: g.kube}
	}
}

func (g *globals) localTarget() target {
	return target{dataDir: g.dataDir, kube: kube.Config{File: filepath.Join(g.dataDir, dev.KubeconfigFile)}}
}

// meshOf is the data directory of the local mesh that runs and has written this
// kubeconfig; "" when none has.
func meshOf(kubeconfig string) string {
	if dir := filepath.Dir(kubeconfig); filepath.Base(kubeconfig) == dev.KubeconfigFile && runs(dir) {
		return dir
	}
	return ""
}

// runs tells whether a local mesh runs with the data directory.
func runs(dataDir string) bool {
	e, err := dev.ReadEndpoints(dataDir)
	if err != nil {
		return false
	}
	// One that was killed has left its file.
	return e.PID <= 0 || !errors.Is(syscall.Kill(e.PID, 0), syscall.ESRCH)
}

func (t target) local() bool { return t.dataDir != "" }

// endpoints reads where the running local mesh listens.
func (t target) endpoints() (dev.Endpoints, error) {
	e, err := dev.ReadEndpoints(t.dataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return e, fmt.Errorf("no local mesh runs with the data directory %s: start one with `lambdamesh dev`, or pass --data-dir", t.dataDir)
	}
	return e, err
}

// check says whether there is what the target names.
func (t target) check() error {
	if t.local() && t.kube.File != "" { // what is exported was found where a mesh runs
		if _, err := os.Stat(t.kube.File); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no local mesh has run with the data directory %s: start one with `lambdamesh dev`, or pass --kubeconfig", t.dataDir)
		}
	}
	return nil
}

func (t target) restConfig() (*rest.Config, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	return t.kube.REST()
}

// namespace is the one given, else the context's.
func (t target) namespace(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	return t.kube.Namespace()
}

func (t target) client() (client.Client, error) {
	cfg, err := t.restConfig()
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
