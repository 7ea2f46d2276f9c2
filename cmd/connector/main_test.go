package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

type syncBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

func noEnv(string) (string, bool) { return "", false }

func TestTheEnvironmentSetsWhatTheCommandLineDoesNot(t *testing.T) {
	env := map[string]string{envPrefix + "MESH_PROXY_URL": "http://127.0.0.1:15001", envPrefix + "LOG_LEVEL": "warn"}
	cmd := command(&bytes.Buffer{}, func(name string) (string, bool) { value, ok := env[name]; return value, ok })
	require.NoError(t, cmd.ParseFlags([]string{"--log-level", "debug"}))
	require.NoError(t, cmd.PreRunE(cmd, nil))
	require.Equal(t, "http://127.0.0.1:15001", cmd.Flag("mesh-proxy-url").Value.String())
	require.Equal(t, "debug", cmd.Flag("log-level").Value.String())

	cmd = command(&bytes.Buffer{}, func(name string) (string, bool) { return "maybe", name == envPrefix+"LEADER_ELECT" })
	require.ErrorContains(t, cmd.PreRunE(cmd, nil), envPrefix+"LEADER_ELECT")
}

func TestWrongFlagsEndItWithOneLine(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`{"clusters":[{"name":"c","cluster":{"server":"https://127.0.0.1:1"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}],"current-context":"c"}`), 0o600))
	for want, args := range map[string][]string{
		"log level \"loud\"":               {"--log-level", "loud"},
		"allowed target: \"a b\"":          {"--allow-target", "a b"},
		"service CIDR \"x\"":               {"--service-cidr", "x"},
		"listening on nonsense":            {"--outbound-address", "nonsense", "--public-address", ""},
		"pass --tls-cert and --tls-key":    {},
		"mesh proxy URL \"x\" must be":     {"--mesh-proxy-url", "x", "--outbound-address", "127.0.0.1:0", "--public-address", "", "--admin-address", "127.0.0.1:0"},
		"unknown flag: --alow-target":      {"--alow-target", "x"},
		"no such file or directory":        {"--kubeconfig", "/nonexistent/kubeconfig"},
		"unknown command \"x\" for \"conn": {"x"},
	} {
		cmd := command(&bytes.Buffer{}, noEnv)
		cmd.SetArgs(append([]string{"--kubeconfig", kubeconfig}, args...))
		err := cmd.ExecuteContext(t.Context())
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "\n")
	}
}

func TestItServesUntilItIsStopped(t *testing.T) {
	rest := testkit.KubeAPI(t, manifests.CRDs)
	file := clientcmdapi.NewConfig()
	file.Clusters["c"] = &clientcmdapi.Cluster{Server: rest.Host, CertificateAuthorityData: rest.CAData}
	file.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: rest.CertData, ClientKeyData: rest.KeyData}
	file.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	file.CurrentContext = "c"
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, clientcmd.WriteToFile(*file, kubeconfig))

	authority := testkit.NewAuthority(t)
	certificate, key := authority.Issue(t, "127.0.0.1")
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.crt"), certificate, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.key"), key, 0o600))
	var stderr syncBuffer
	cmd := command(&stderr, noEnv)
	cmd.SetArgs([]string{
		"--kubeconfig", kubeconfig, "--leader-elect=false", "--log-format", "text", "--log-level", "info",
		"--outbound-address", "unix:" + filepath.Join(testkit.TempSocketDir(t), "o"), "--public-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0",
		"--tls-cert", filepath.Join(dir, "tls.crt"), "--tls-key", filepath.Join(dir, "tls.key"),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	testkit.Eventually(t, time.Minute, func() error {
		if !strings.Contains(stderr.String(), "Starting workers") {
			return errors.New(stderr.String())
		}
		return nil
	}, "the controllers start")
	cancel()
	require.NoError(t, <-done)
}
