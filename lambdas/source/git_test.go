package source_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skeema/knownhosts"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// remote is a bare repository and a clone to push from.
type remote struct{ root, bare, clone string }

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	output, err := cmd.CombinedOutput()
	require.NoError(t, err, "git %v: %s", args, output)
	return strings.TrimSpace(string(output))
}

func newRemote(t *testing.T) *remote {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skipf("NOT TESTED on this machine: %v", err)
	}
	root := t.TempDir()
	r := &remote{root: root, bare: filepath.Join(root, "lambdas.git"), clone: filepath.Join(root, "clone")}
	git(t, root, "init", "-q", "--bare", "-b", "main", r.bare)
	git(t, root, "clone", "-q", r.bare, r.clone)
	git(t, r.clone, "checkout", "-q", "-B", "main")
	return r
}

// push commits files and returns the commit.
func (r *remote) push(t *testing.T, branch string, files map[string]string) string {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(r.clone, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
		require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	}
	git(t, r.clone, "add", "-A")
	git(t, r.clone, "commit", "-q", "-m", "change")
	git(t, r.clone, "push", "-q", "origin", "HEAD:"+branch)
	return git(t, r.clone, "rev-parse", "HEAD")
}

// overHTTPS serves the repository as git itself does; with a password when one
// is given.
func (r *remote) overHTTPS(t *testing.T, password string) (address string, roots *x509.CertPool) {
	t.Helper()
	backend := &cgi.Handler{
		Path: filepath.Join(git(t, r.root, "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + r.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if user, given, ok := request.BasicAuth(); password != "" && (!ok || user != "robot" || given != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, request)
	}))
	t.Cleanup(server.Close)
	roots = x509.NewCertPool()
	roots.AddCert(server.Certificate())
	return server.URL + "/lambdas.git", roots
}

func newGit(t *testing.T, roots *x509.CertPool, secret map[string]string, allow ...string) *source.Git {
	t.Helper()
	policy, err := targets.New(targets.Config{Allow: allow})
	require.NoError(t, err)
	return &source.Git{
		Targets: policy, Roots: roots, TempDir: t.TempDir(),
		Secret: func(_ context.Context, namespace, name string) (map[string][]byte, error) {
			if secret == nil || namespace != "shop" || name != "git" {
				return nil, nil
			}
			data := map[string][]byte{}
			for key, value := range secret {
				data[key] = []byte(value)
			}
			return data, nil
		},
	}
}

const loopback = "127.0.0.0/8"

func read(t *testing.T, g *source.Git, spec *v1alpha1.GitSource) (source.Tree, error) {
	t.Helper()
	repository, err := g.Open(t.Context(), "shop", spec)
	if err != nil {
		return source.Tree{}, err
	}
	defer repository.Close()
	tree, err := repository.Tree(t.Context())
	if err == nil {
		require.Equal(t, repository.Commit, tree.Revision)
	}
	return tree, err
}

func TestAGitSourceIsABranchATagOrACommit(t *testing.T) {
	r := newRemote(t)
	first := r.push(t, "main", map[string]string{"main.js": "1", "lambdas/tax/main.js": "tax 1", "node_modules/x/index.js": "no"})
	git(t, r.clone, "tag", "light")
	git(t, r.clone, "tag", "-a", "-m", "annotated", "v1.0")
	git(t, r.clone, "push", "-q", "origin", "light", "v1.0")
	second := r.push(t, "main", map[string]string{"main.js": "2"})
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(r.clone, "link.js")))
	third := r.push(t, "feature/x", map[string]string{"main.js": "3"})
	address, roots := r.overHTTPS(t, "")
	g := newGit(t, roots, nil, loopback)
	for name, test := range map[string]struct{ reference, directory, commit, want string }{
		"main by default":        {"", "", second, "2"},
		"a branch":               {"feature/x", "", third, "3"},
		"a tag":                  {"light", "", first, "1"},
		"an annotated tag":       {"v1.0", "", first, "1"},
		"the commit of a branch": {second, "", second, "2"},
		"an older commit, of a server that hands out no single ones": {first, "", first, "1"},
		"a directory": {"main", "lambdas/tax", second, "tax 1"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := read(t, g, &v1alpha1.GitSource{URL: address, Reference: test.reference, Directory: test.directory})
			require.NoError(t, err)
			require.Equal(t, test.commit, tree.Revision)
			require.Equal(t, test.want, string(tree.Files["main.js"]))
			require.NotContains(t, tree.Files, "link.js")
			require.NotContains(t, tree.Files, "node_modules/x/index.js")
		})
	}
	for name, test := range map[string]struct {
		spec v1alpha1.GitSource
		want string
	}{
		"no such branch":        {v1alpha1.GitSource{URL: address, Reference: "gone"}, `has no branch, tag or commit "gone"`},
		"no such commit":        {v1alpha1.GitSource{URL: address, Reference: strings.Repeat("a", 40)}, "has no commit aaaa"},
		"no such directory":     {v1alpha1.GitSource{URL: address, Directory: "gone"}, "has no directory gone"},
		"no such repository":    {v1alpha1.GitSource{URL: strings.TrimSuffix(address, "lambdas.git") + "gone.git"}, "there is no repository at https://"},
		"a password in the URL": {v1alpha1.GitSource{URL: strings.Replace(address, "https://", "https://robot:secret@", 1)}, "put them into a Secret"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, g, &test.spec)
			require.ErrorContains(t, err, test.want)
			require.NotContains(t, err.Error(), "robot:secret")
		})
	}
}

func TestAGitSourceWithAPassword(t *testing.T) {
	r := newRemote(t)
	r.push(t, "main", map[string]string{"main.js": "1"})
	address, roots := r.overHTTPS(t, "sesame")
	spec := &v1alpha1.GitSource{URL: address, Auth: &v1alpha1.GitAuth{Type: "basic", SecretName: "git"}}
	tree, err := read(t, newGit(t, roots, map[string]string{"username": "robot", "password": "sesame"}, loopback), spec)
	require.NoError(t, err)
	require.Equal(t, "1", string(tree.Files["main.js"]))

	_, err = read(t, newGit(t, roots, map[string]string{"username": "robot", "password": "wrong"}, loopback), spec)
	require.ErrorContains(t, err, "lets nobody read it with these credentials")
	_, err = read(t, newGit(t, roots, nil, loopback), spec)
	require.EqualError(t, err, "source.git.auth: Secret git does not exist in namespace shop; create it")
	_, err = read(t, newGit(t, roots, map[string]string{"token": "x"}, loopback), spec)
	require.ErrorContains(t, err, "Secret git the keys username and password")
	_, err = read(t, newGit(t, roots, nil, loopback), &v1alpha1.GitSource{URL: address})
	require.ErrorContains(t, err, "lets nobody read it with these credentials")
}

func TestAGitSourceCallsNobodyItMayNot(t *testing.T) {
	r := newRemote(t)
	r.push(t, "main", map[string]string{"main.js": "1"})
	address, roots := r.overHTTPS(t, "")
	host, key := sshServer(t, r)
	secret := map[string]string{"ssh-privatekey": key.private, "known_hosts": key.knownHosts}
	for name, spec := range map[string]*v1alpha1.GitSource{
		"https":    {URL: address},
		"ssh":      {URL: "ssh://git@" + host + r.bare, Auth: &v1alpha1.GitAuth{Type: "key", SecretName: "git"}},
		"metadata": {URL: "https://169.254.169.254/x.git"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := read(t, newGit(t, roots, secret), spec)
			require.ErrorContains(t, err, "is refused")
			require.ErrorContains(t, err, "--allow-target")
		})
	}
}

func TestAGitSourceOverSSH(t *testing.T) {
	r := newRemote(t)
	first := r.push(t, "main", map[string]string{"main.js": "1"})
	r.push(t, "main", map[string]string{"main.js": "2"})
	host, key := sshServer(t, r)
	secret := func() map[string]string {
		return map[string]string{"ssh-privatekey": key.private, "known_hosts": key.knownHosts}
	}
	spec := &v1alpha1.GitSource{URL: "ssh://git@" + host + r.bare, Auth: &v1alpha1.GitAuth{Type: "key", SecretName: "git"}}
	tree, err := read(t, newGit(t, nil, secret(), loopback), spec)
	require.NoError(t, err)
	require.Equal(t, "2", string(tree.Files["main.js"]))
	older := *spec
	older.Reference = first
	tree, err = read(t, newGit(t, nil, secret(), loopback), &older)
	require.NoError(t, err)
	require.Equal(t, "1", string(tree.Files["main.js"]))

	_, other := newKey(t)
	for name, test := range map[string]struct {
		change func(map[string]string)
		want   string
	}{
		"without known_hosts": {func(s map[string]string) { delete(s, "known_hosts") }, "a Secret with the keys ssh-privatekey and known_hosts"},
		"an unknown host": {func(s map[string]string) {
			s["known_hosts"] = strings.Replace(key.knownHosts, "127.0.0.1", "127.0.0.9", 1)
		}, "it has no key of " + host},
		"another host's key":   {func(s map[string]string) { s["known_hosts"] = key.otherHost }, "key mismatch"},
		"another user's key":   {func(s map[string]string) { s["ssh-privatekey"] = other }, "unable to authenticate"},
		"a key that is no key": {func(s map[string]string) { s["ssh-privatekey"] = "no" }, "ssh-privatekey of Secret git cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			changed := secret()
			test.change(changed)
			_, err := read(t, newGit(t, nil, changed, loopback), spec)
			require.ErrorContains(t, err, test.want)
		})
	}
	gone := *spec
	gone.URL = "ssh://git@" + host + r.root + "/it's gone.git"
	_, err = read(t, newGit(t, nil, secret(), loopback), &gone)
	require.ErrorContains(t, err, "it's gone.git")
}

// A host that takes the connection and says nothing holds up a build no longer
// than the build's time.
func TestAGitHostThatSaysNothing(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	taken := make(chan net.Conn, 1)
	go func() {
		if conn, err := listener.Accept(); err == nil {
			taken <- conn
		}
	}()
	_, private := newKey(t)
	hostKey, _ := newKey(t)
	secret := map[string]string{"ssh-privatekey": private, "known_hosts": knownhosts.Line([]string{listener.Addr().String()}, hostKey.PublicKey())}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := newGit(t, nil, secret, loopback).Open(ctx, "shop", &v1alpha1.GitSource{URL: "ssh://git@" + listener.Addr().String() + "/x.git", Auth: &v1alpha1.GitAuth{Type: "key", SecretName: "git"}})
		ended <- err
	}()
	conn := <-taken
	defer conn.Close()
	cancel()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(time.Minute):
		t.Fatal("it waits on")
	}
}

func newKey(t *testing.T) (signer ssh.Signer, private string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer, err = ssh.NewSignerFromKey(key)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(key, "")
	require.NoError(t, err)
	return signer, string(pem.EncodeToMemory(block))
}

type sshKeys struct{ private, knownHosts, otherHost string }

// sshServer runs git-upload-pack for whoever has the key.
func sshServer(t *testing.T, r *remote) (host string, keys sshKeys) {
	t.Helper()
	hostKey, _ := newKey(t)
	otherKey, _ := newKey(t)
	user, private := newKey(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if meta.User() != "git" || string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, os.ErrPermission
		}
		return nil, nil
	}}
	config.AddHostKey(hostKey)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serveSSH(conn, config)
		}
	}()
	host = listener.Addr().String()
	return host, sshKeys{private, knownhosts.Line([]string{host}, hostKey.PublicKey()), knownhosts.Line([]string{host}, otherKey.PublicKey())}
}

func serveSSH(conn net.Conn, config *ssh.ServerConfig) {
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for opened := range channels {
		channel, requests, err := opened.Accept()
		if err != nil {
			return
		}
		for request := range requests {
			if request.Type != "exec" {
				_ = request.Reply(false, nil)
				continue
			}
			_ = request.Reply(true, nil)
			// Like sshd, by a shell; the first four bytes are the length.
			cmd := exec.Command("/bin/sh", "-c", string(request.Payload[4:]))
			cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
			stdin, err := cmd.StdinPipe()
			if err != nil {
				return
			}
			go func() { // its end is not waited for: a client may wait for ours
				_, _ = io.Copy(stdin, channel)
				_ = stdin.Close()
			}()
			status := uint32(0)
			if cmd.Run() != nil {
				status = 1
			}
			_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
			_ = channel.Close()
		}
	}
}
