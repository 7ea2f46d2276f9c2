package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/dev"
)

// running makes the files of a local mesh whose process has the id.
func running(t *testing.T, pid int) (dataDir, kubeconfig string) {
	t.Helper()
	dataDir = t.TempDir()
	kubeconfig = filepath.Join(dataDir, dev.KubeconfigFile)
	require.NoError(t, os.WriteFile(filepath.Join(dataDir, dev.EndpointsFile), fmt.Appendf(nil, `{"eventbus": "http://127.0.0.1:1", "pid": %d}`, pid), 0o600))
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`{apiVersion: v1, kind: Config, current-context: local, clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}],
contexts: [{name: local, context: {cluster: c, user: u}}, {name: other, context: {cluster: c, user: u, namespace: shop}}], users: [{name: u, user: {}}]}`), 0o600))
	return dataDir, kubeconfig
}

func TestWhichClusterACommandTalksTo(t *testing.T) {
	mesh, meshConfig := running(t, os.Getpid())
	dead, deadConfig := running(t, 1<<22) // beyond what Linux gives out
	_, cluster := running(t, os.Getpid())
	require.NoError(t, os.Remove(filepath.Join(filepath.Dir(cluster), dev.EndpointsFile)))
	for name, tt := range map[string]struct {
		args      []string
		exported  string
		directory string // where the command runs has .lambdamesh of this
		local     string
		file      string
		namespace string
	}{
		"the flag":                                   {args: []string{"--kubeconfig", cluster}, exported: meshConfig, directory: mesh, file: cluster, namespace: "default"},
		"the flag, of a local mesh":                  {args: []string{"--kubeconfig", meshConfig}, local: mesh, file: meshConfig, namespace: "default"},
		"a context of it":                            {args: []string{"--kubeconfig", cluster, "--context", "other"}, file: cluster, namespace: "shop"},
		"a context of what is exported":              {args: []string{"--context", "other"}, exported: cluster, directory: mesh, namespace: "shop"},
		"the data directory by flag":                 {args: []string{"--data-dir", mesh}, exported: cluster, local: mesh, file: meshConfig, namespace: "default"},
		"the data directory of one that has stopped": {args: []string{"--data-dir", dead}, exported: cluster, local: dead, file: deadConfig, namespace: "default"},
		"what is exported":                           {exported: cluster, directory: mesh, namespace: "default"},
		"what `lambdamesh dev` has one export":       {exported: meshConfig, local: mesh, namespace: "default"},
		"what one had exported that has ended":       {exported: deadConfig, namespace: "default"},
		"the local mesh that runs here":              {directory: mesh, local: mesh, file: meshConfig, namespace: "default"},
		"kubectl's default where one has ended":      {directory: dead},
		"kubectl's default":                          {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", tt.exported)
			t.Setenv("LAMBDAMESH_DATA_DIR", "")
			t.Chdir(t.TempDir())
			if tt.directory != "" {
				require.NoError(t, os.Symlink(tt.directory, ".lambdamesh"))
			}
			g := &globals{}
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			g.register(flags)
			require.NoError(t, flags.Parse(tt.args))
			got := g.target()
			if tt.directory != "" && tt.local == tt.directory && len(tt.args) == 0 {
				tt.local, tt.file = ".lambdamesh", filepath.Join(".lambdamesh", dev.KubeconfigFile)
			}
			require.Equal(t, tt.local, got.dataDir)
			require.Equal(t, tt.file, got.kube.File)
			require.NoError(t, got.check())
			if tt.namespace != "" { // kubectl's default is whatever this machine has
				namespace, err := got.namespace("")
				require.NoError(t, err)
				require.Equal(t, tt.namespace, namespace)
			}
			namespace, err := got.namespace("given")
			require.NoError(t, err)
			require.Equal(t, "given", namespace)
		})
	}
}

func TestNamespacesThatContradict(t *testing.T) {
	code, _, stderr := run(t, "", "status", "-A", "-n", "shop")
	require.Equal(t, ExitUsage, code)
	require.Contains(t, stderr, "not both")
}
