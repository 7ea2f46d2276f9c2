package localkube

import (
	"log/slog"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

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
