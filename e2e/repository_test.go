package e2e

import (
	"encoding/pem"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// repository is a git repository behind git's own HTTP server, for a robot
// with a password.
type repository struct {
	url   string
	roots string // file with the server's certificate
	clone string
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	needs(t, "git")
	root := t.TempDir()
	r := &repository{clone: filepath.Join(root, "clone"), roots: filepath.Join(root, "roots.pem")}
	bare := filepath.Join(root, "lambdas.git")
	r.git(t, root, "init", "-q", "--bare", "-b", "main", bare)
	r.git(t, root, "clone", "-q", bare, r.clone)
	r.git(t, r.clone, "checkout", "-q", "-B", "main")
	backend := &cgi.Handler{
		Path: filepath.Join(r.git(t, root, "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if user, password, _ := request.BasicAuth(); user != "robot" || password != "sesame" {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, request)
	}))
	t.Cleanup(server.Close)
	r.url = server.URL + "/lambdas.git"
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	require.NoError(t, os.WriteFile(r.roots, certificate, 0o600))
	return r
}

func (r *repository) git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "git %v: %s", args, output)
	return strings.TrimSpace(string(output))
}

// push commits files to main and returns the commit.
func (r *repository) push(t *testing.T, files map[string]string) string {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(r.clone, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	}
	r.git(t, r.clone, "add", "-A")
	r.git(t, r.clone, "commit", "-q", "-m", "change")
	r.git(t, r.clone, "push", "-q", "origin", "HEAD:main")
	return r.git(t, r.clone, "rev-parse", "HEAD")
}
