package localkube

import (
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheBinariesAreInTheCache(t *testing.T) {
	platform := "/kubernetes/" + KubernetesVersion + "/" + runtime.GOOS + "-" + runtime.GOARCH
	for name, tc := range map[string]struct{ cache, xdg, home, want string }{
		"of the project":     {"/cache", "/xdg", "/home", "/cache" + platform},
		"of the user":        {"", "/xdg", "/home", "/xdg/lambdamesh" + platform},
		"in the home":        {"", "", "/home", "/home/.cache/lambdamesh" + platform},
		"which nobody knows": {"", "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("LAMBDAMESH_CACHE", tc.cache)
			t.Setenv("XDG_CACHE_HOME", tc.xdg)
			t.Setenv("HOME", tc.home)
			require.Equal(t, tc.want, DefaultBinDir())
		})
	}
}

func TestThePortOfTheLastStartIsUsedIfItIsFree(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	last := listener.Addr().(*net.TCPAddr).Port
	config := &Config{DataDir: t.TempDir(), BinDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}
	require.NoError(t, config.complete())
	r := &running{Config: config}
	require.NoError(t, os.Mkdir(config.stateDir(), 0o700))
	require.NoError(t, writeFile(config.portFile(), []byte(strconv.Itoa(last)+"\n")))

	port, err := r.choosePort(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, last, port, "somebody has it")

	require.NoError(t, listener.Close())
	port, err = r.choosePort(t.Context())
	require.NoError(t, err)
	require.Equal(t, last, port)

	require.NoError(t, writeFile(config.portFile(), []byte("what?\n")))
	port, err = r.choosePort(t.Context())
	require.NoError(t, err, "a damaged note is no obstacle")
	require.NotZero(t, port)
}
