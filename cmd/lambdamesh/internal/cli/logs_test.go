package cli

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/dev"
)

// localMesh is a data directory as a local mesh leaves it.
func localMesh(t *testing.T, logs map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, dev.KubeconfigFile), nil, 0o600))
	for name, text := range logs {
		path := filepath.Join(dir, dev.LambdaLogsDir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	return dir
}

func TestLogs(t *testing.T) {
	dir := localMesh(t, map[string]string{
		"shop/last-order/one.log": "first\nsecond\nthird\nunfinished",
		"shop/twice/a.log":        "from a\n",
		"shop/twice/b.log":        "from b\n",
		"shop/both/x.log":         "in shop\n",
		"test/both/x.log":         "in test\n",
	})
	// A replica that wrote last comes last.
	older := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(filepath.Join(dir, dev.LambdaLogsDir, "shop/twice/a.log"), older, older))
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"whole lines of the only replica":        {[]string{"last-order"}, ExitOK, "first\nsecond\nthird\n"},
		"the last lines":                         {[]string{"last-order", "--tail", "1"}, ExitOK, "third\n"},
		"several replicas are told apart":        {[]string{"twice"}, ExitOK, "a from a\nb from b\n"},
		"the namespace decides":                  {[]string{"both", "-n", "test"}, ExitOK, "in test\n"},
		"a name in two namespaces is a question": {[]string{"both"}, ExitUsage, "pass -n NAMESPACE"},
		"an unknown lambda":                      {[]string{"nobody"}, ExitFailure, "lambdamesh status"},
		"a path is no lambda":                    {[]string{"../../etc"}, ExitUsage, "not the name"},
		"no argument":                            {nil, ExitUsage, "LAMBDA"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := run(t, "", append([]string{"logs", "--data-dir", dir}, tt.args...)...)
			require.Equal(t, tt.code, code, stderr)
			if code == ExitOK {
				require.Equal(t, tt.want, stdout)
			} else {
				require.Contains(t, stderr, tt.want)
			}
		})
	}
}

func TestFollowReadsWhatIsAppendedAndStartsAnewAfterRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	read := func(offset int64) (string, int64) {
		var out appendBuffer
		next, err := printFrom(&out, path, offset, -1, false)
		require.NoError(t, err)
		return string(out), next
	}
	write("one\n")
	got, offset := read(0)
	require.Equal(t, "one\n", got)
	write("one\ntwo\nhal")
	got, offset = read(offset)
	require.Equal(t, "two\n", got)
	write("one\ntwo\nhalf\n")
	got, offset = read(offset)
	require.Equal(t, "half\n", got)
	write("new\n")
	got, _ = read(offset)
	require.Equal(t, "new\n", got)
}

type appendBuffer []byte

func (b *appendBuffer) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

func TestADataDirectoryThatIsNamedIsMeant(t *testing.T) {
	for _, command := range [][]string{{"status"}, {"logs", "last-order"}} {
		code, _, stderr := run(t, "", append(command, "--data-dir", t.TempDir())...)
		require.Equal(t, ExitFailure, code)
		require.Contains(t, stderr, "no local mesh has run")
	}
}
