package e2e

import (
	"context"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Any page that a developer visits can have their browser send requests to
// loopback.
func TestHostilePages(t *testing.T) {
	m, _ := hostile(t)
	event := eventLines(map[string]string{"ce-source": "hostile-pages"})
	type request struct {
		url, head string
		want      int
	}
	cases := map[string]request{}
	for door, d := range map[string]struct{ url, line string }{
		"publishing":     {m.EventBus, "POST /publish"},
		"legacy":         {m.EventBus, "POST /v1/events"},
		"administration": {m.EventBusAdmin, "GET /admin/v1/dead-letters"},
	} {
		for name, c := range map[string]struct {
			header string
			want   int
		}{
			"a page of another origin":       {"Host: localhost\r\nOrigin: https://evil.test", http.StatusForbidden},
			"a page from a file":             {"Host: localhost\r\nOrigin: null", http.StatusForbidden},
			"a page on another port":         {"Host: localhost\r\nOrigin: http://localhost:3000", http.StatusForbidden},
			"two origins":                    {"Host: localhost\r\nOrigin: http://localhost\r\nOrigin: https://evil.test", http.StatusForbidden},
			"a request without an origin":    {"Host: localhost\r\nSec-Fetch-Site: cross-site", http.StatusForbidden},
			"a name that leads to loopback":  {"Host: rebound.evil.test", http.StatusMisdirectedRequest},
			"a name that begins like ours":   {"Host: localhost.evil.test", http.StatusMisdirectedRequest},
			"an address that is not ours":    {"Host: 192.0.2.1", http.StatusMisdirectedRequest},
			"a name of the gateway's domain": {"Host: hostile.lambdas.localhost", http.StatusMisdirectedRequest},
		} {
			cases[door+": "+name] = request{d.url, d.line + " HTTP/1.1\r\n" + c.header, c.want}
		}
	}
	each(t, cases, func(c request) (answer, error) {
		return exchange(address(t, c.url), c.head+"\r\n"+event+"Content-Length: 2\r\nConnection: close\r\n\r\n{}", false)
	}, func(t *testing.T, c request, a answer) {
		require.Equal(t, c.want, a.status(t), "%v", a)
	})
}

// Nobody else on the machine reads what the local mesh keeps: keys, events, logs
// and the environments of lambdas.
func TestHostileNeighbors(t *testing.T) {
	m, _ := hostile(t)
	files := 0
	require.NoError(t, filepath.WalkDir(m.dataDir, func(path string, entry fs.DirEntry, err error) error {
		if os.IsNotExist(err) || path == m.dataDir {
			return nil // it works meanwhile; whose the directory is, is the user's choice
		}
		require.NoError(t, err)
		info, err := entry.Info()
		if os.IsNotExist(err) {
			return nil
		}
		require.NoError(t, err)
		if entry.IsDir() && info.Mode().Perm()&0o077 == 0 {
			files++
			return fs.SkipDir // nothing below it can be opened
		}
		if info.Mode().IsRegular() {
			files++
			require.Zero(t, info.Mode().Perm()&0o077, "%s is %s", strings.TrimPrefix(path, m.dataDir), info.Mode())
		}
		return nil
	}))
	require.Greater(t, files, 5)
}

// What everybody may use without a word about who they are must not be open to
// other machines, not even on purpose.
func TestHostileMachinesFindNoOpenPort(t *testing.T) {
	for _, flag := range []string{"--eventbus-address", "--eventbus-admin-address"} {
		for _, address := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.test:0"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			out, err := exec.CommandContext(ctx, binary(t, "lambdamesh"), "dev", "--data-dir", t.TempDir(), flag, address).CombinedOutput()
			cancel()
			require.Error(t, err, "%s %s", flag, address)
			require.Contains(t, string(out), "use a loopback address", "%s %s", flag, address)
		}
	}
}
