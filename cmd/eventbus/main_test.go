package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHelpNamesTheWaysToRun(t *testing.T) {
	var out bytes.Buffer
	cmd := command(func(string) (string, bool) { return "", false })
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--help"})
	require.NoError(t, cmd.Execute())
	for _, part := range []string{"POST /publish", "LAMBDAMESH_EVENTBUS_NATS_URL", "--mesh-proxy-url", "--open-address", "--max-connections-per-remote", "SIGTERM"} {
		require.Contains(t, out.String(), part)
	}
}

func TestEnvironmentSetsWhatTheCommandLineDoesNot(t *testing.T) {
	env := map[string]string{envPrefix + "NATS_URL": "nats://env:4222", envPrefix + "LOG_LEVEL": "loud"}
	cmd := command(func(name string) (string, bool) { v, ok := env[name]; return v, ok })
	require.NoError(t, cmd.ParseFlags([]string{"--nats-url=nats://flag:4222"}))
	require.NoError(t, cmd.PreRunE(cmd, nil))
	require.Equal(t, "nats://flag:4222", cmd.Flag("nats-url").Value.String())
	require.ErrorContains(t, cmd.RunE(cmd, nil), `log level "loud"`)
}

func TestBadEnvironmentIsNamed(t *testing.T) {
	cmd := command(func(name string) (string, bool) { return "soon", name == envPrefix+"MAX_AGE" })
	require.ErrorContains(t, cmd.PreRunE(cmd, nil), envPrefix+"MAX_AGE")
}

func TestOpenAddressMustBeLoopback(t *testing.T) {
	cmd := command(func(string) (string, bool) { return "", false })
	cmd.SetArgs([]string{"--address=", "--admin-address=", "--open-address=0.0.0.0:0", "--kubeconfig=" + kubeconfig(t)})
	cmd.SetErr(&bytes.Buffer{})
	require.ErrorContains(t, cmd.ExecuteContext(t.Context()), "use a loopback address")
}

// kubeconfig writes one that names a server nobody asks.
func kubeconfig(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(path, []byte(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`), 0o600))
	return path
}
