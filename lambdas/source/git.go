package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// Bounds of what is taken of a repository.
const (
	maxPackBytes = 256 << 20
	maxTreeBytes = 32 << 20
	maxTreeFiles = 10_000
)

// Keys of the Secret that auth names.
const (
	secretUsername   = "username"
	secretPassword   = "password"
	secretPrivateKey = "ssh-privatekey"
	secretKnownHosts = "known_hosts"
)

// Git reads sources from git repositories over https and ssh.
type Git struct {
	// Targets says which hosts may be called.
	Targets *targets.Policy
	// Secret returns the data of a Secret, or nil when there is none.
	Secret func(ctx context.Context, namespace, name string) (map[string][]byte, error)
	// Roots are the authorities of https hosts; default the system's.
	Roots *x509.CertPool
	// TempDir is where a repository lies while it is read; default the system's.
	TempDir string
}

// Repository is a git source with all that is needed to read it.
type Repository struct {
	spec    *v1alpha1.GitSource
	session transport.UploadPackSession
	offered *packp.AdvRefs
	// Commit that the reference is at.
	Commit  string
	tempDir string
}

// Open asks the repository where its reference is. Close it.
func (g *Git) Open(ctx context.Context, namespace string, spec *v1alpha1.GitSource) (*Repository, error) {
	session, err := g.connect(ctx, namespace, spec)
	if err != nil {
		return nil, gitFailed(ctx, spec, err)
	}
	offered, err := session.AdvertisedReferencesContext(ctx)
	if err != nil {
		_ = session.Close() // the first error tells
		return nil, gitFailed(ctx, spec, err)
	}
	r := &Repository{spec: spec, session: session, offered: offered, tempDir: g.TempDir}
	if r.Commit, err = r.resolve(); err != nil {
		_ = session.Close() // the first error tells
		return nil, err
	}
	return r, nil
}

// Close ends the connection. The other side may have done so first.
func (r *Repository) Close() { _ = r.session.Close() }

func (g *Git) connect(ctx context.Context, namespace string, spec *v1alpha1.GitSource) (transport.UploadPackSession, error) {
	address, err := url.Parse(spec.URL)
	if err != nil {
		return nil, Failed("source.git.url: it cannot be read as a URL")
	}
	if _, has := address.User.Password(); has || address.Scheme == "https" && address.User != nil {
		return nil, Failed("source.git.url: leave user and password out of it; put them into a Secret and name that in source.git.auth")
	}
	var secret map[string][]byte
	if spec.Auth != nil {
		if secret, err = g.Secret(ctx, namespace, spec.Auth.SecretName); err != nil {
			return nil, fmt.Errorf("read Secret %s: %w", spec.Auth.SecretName, err)
		}
		if secret == nil {
			return nil, FailedForNow("source.git.auth: Secret %s does not exist in namespace %s; create it", spec.Auth.SecretName, namespace)
		}
	}
	if address.Scheme == "ssh" {
		return g.connectSSH(ctx, address, spec, secret)
	}
	endpoint, err := transport.NewEndpoint(address.String())
	if err != nil {
		return nil, Failed("source.git.url: %v", err)
	}
	client := g.Targets.HTTPClient(targets.ClientOptions{TLS: &tls.Config{RootCAs: g.Roots, MinVersion: tls.VersionTLS12}})
	client.Transport = boundedBodies{client.Transport}
	var auth transport.AuthMethod
	if spec.Auth != nil {
		if spec.Auth.Type != "basic" || len(secret[secretPassword]) == 0 {
			return nil, FailedForNow("source.git.auth: an https URL needs type basic, and Secret %s the keys %s and %s", spec.Auth.SecretName, secretUsername, secretPassword)
		}
		auth = &githttp.BasicAuth{Username: string(secret[secretUsername]), Password: string(secret[secretPassword])}
	}
	return githttp.NewClientWithOptions(client, nil).NewUploadPackSession(endpoint, auth)
}

// boundedBodies ends an answer that is longer than a repository may be.
type boundedBodies struct{ http.RoundTripper }

func (b boundedBodies) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		response.Body = &boundedBody{response.Body, maxPackBytes}
	}
	return response, err
}

var errPackTooLarge = errors.New("the repository is too large")

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errPackTooLarge
	}
	return n, err
}

// resolve finds the commit of a branch, a tag or a commit.
func (r *Repository) resolve() (string, error) {
	name := r.spec.Reference
	if name == "" {
		name = "main"
	}
	for _, full := range []string{"refs/heads/" + name, "refs/tags/" + name, name} {
		if peeled, annotated := r.offered.Peeled[full]; annotated {
			return peeled.String(), nil
		}
		if hash, found := r.offered.References[full]; found {
			return hash.String(), nil
		}
	}
	if plumbing.IsHash(name) {
		return strings.ToLower(name), nil
	}
	return "", FailedForNow("source.git.reference: %s has no branch, tag or commit %q", shownURL(r.spec.URL), name)
}

// Tree fetches the commit's files, those of the source's directory.
func (r *Repository) Tree(ctx context.Context) (Tree, error) {
	dir, err := os.MkdirTemp(r.tempDir, "git-")
	if err != nil {
		return Tree{}, fmt.Errorf("make a directory for the repository: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // a temporary one
	store := filesystem.NewStorage(osfs.New(dir), cache.NewObjectLRU(16<<20))
	if err := r.fetch(ctx, store); err != nil {
		return Tree{}, gitFailed(ctx, r.spec, err)
	}
	commit, err := object.GetCommit(store, plumbing.NewHash(r.Commit))
	if err != nil {
		return Tree{}, FailedForNow("source.git.reference: %s has no commit %s", shownURL(r.spec.URL), r.Commit)
	}
	root, err := commit.Tree()
	if err != nil {
		return Tree{}, gitFailed(ctx, r.spec, err)
	}
	if directory := path.Clean("/" + filepath.ToSlash(r.spec.Directory))[1:]; directory != "" {
		if root, err = root.Tree(directory); err != nil {
			return Tree{}, Failed("source.git.directory: commit %.12s has no directory %s", r.Commit, directory)
		}
	}
	return readTree(root, r.Commit)
}

// fetch gets the commit alone, or everything from a server that hands out no
// single commits.
func (r *Repository) fetch(ctx context.Context, store *filesystem.Storage) error {
	request := packp.NewUploadPackRequestFromCapabilities(r.offered.Capabilities)
	wanted := plumbing.NewHash(r.Commit)
	single := slices.ContainsFunc([]capability.Capability{capability.AllowReachableSHA1InWant, capability.AllowTipSHA1InWant}, r.offered.Capabilities.Supports)
	for _, hash := range r.offered.References {
		single = single || hash == wanted
	}
	for _, hash := range r.offered.Peeled {
		single = single || hash == wanted
	}
	if single {
		request.Wants = []plumbing.Hash{wanted}
		if r.offered.Capabilities.Supports(capability.Shallow) {
			request.Depth = packp.DepthCommits(1)
			if err := request.Capabilities.Set(capability.Shallow); err != nil {
				return err
			}
		}
	} else {
		for _, hash := range r.offered.References {
			if !slices.Contains(request.Wants, hash) {
				request.Wants = append(request.Wants, hash)
			}
		}
	}
	response, err := r.session.UploadPack(ctx, request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Close() }() // it was read, or failed already
	var pack io.Reader = &boundedBody{response, maxPackBytes}
	switch {
	case request.Capabilities.Supports(capability.Sideband64k):
		pack = sideband.NewDemuxer(sideband.Sideband64k, pack)
	case request.Capabilities.Supports(capability.Sideband):
		pack = sideband.NewDemuxer(sideband.Sideband, pack)
	}
	return packfile.UpdateObjectStorage(store, pack)
}

func readTree(root *object.Tree, commit string) (Tree, error) {
	tree := Tree{Files: map[string][]byte{}, Revision: commit}
	walker := object.NewTreeWalker(root, true, nil)
	defer walker.Close()
	size := int64(0)
	for {
		name, entry, err := walker.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return Tree{}, fmt.Errorf("read commit %s: %w", commit, err)
		}
		// Links and submodules lead elsewhere; packages are installed.
		if entry.Mode != filemode.Regular && entry.Mode != filemode.Executable && entry.Mode != filemode.Deprecated || slices.Contains(strings.Split(name, "/"), "node_modules") {
			continue
		}
		if err := checkPath(name); err != nil {
			return Tree{}, err
		}
		file, err := root.TreeEntryFile(&entry)
		if err != nil {
			return Tree{}, fmt.Errorf("read %s of commit %s: %w", name, commit, err)
		}
		if size += file.Size; size > maxTreeBytes || len(tree.Files) == maxTreeFiles {
			return Tree{}, Failed("source.git: commit %.12s has more than %d files or %d MiB there; name the lambda's own directory in source.git.directory", commit, maxTreeFiles, maxTreeBytes>>20)
		}
		reader, err := file.Reader()
		if err != nil {
			return Tree{}, fmt.Errorf("read %s of commit %s: %w", name, commit, err)
		}
		tree.Files[name], err = io.ReadAll(io.LimitReader(reader, maxTreeBytes))
		if err = errors.Join(err, reader.Close()); err != nil {
			return Tree{}, fmt.Errorf("read %s of commit %s: %w", name, commit, err)
		}
	}
	return tree, checkTree(tree)
}

// gitFailed tells what went wrong between here and the host. All of it may be
// mended there.
func gitFailed(ctx context.Context, spec *v1alpha1.GitSource, err error) error {
	where := shownURL(spec.URL)
	switch told := (*Error)(nil); {
	case errors.As(err, &told):
		return err
	case ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return ctx.Err()
	case ctx.Err() != nil:
		return FailedForNow("source.git: %s did not answer in time", where)
	case targets.IsRefused(err):
		return FailedForNow("source.git.url: %v; who runs the control plane allows it (--allow-target)", err)
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		return FailedForNow("source.git: %s lets nobody read it with these credentials, or it does not exist; see source.git.auth", where)
	case errors.Is(err, transport.ErrRepositoryNotFound):
		return FailedForNow("source.git.url: there is no repository at %s", where)
	case errors.Is(err, transport.ErrEmptyRemoteRepository):
		return FailedForNow("source.git: the repository at %s is empty; push something", where)
	case errors.Is(err, errPackTooLarge):
		return Failed("source.git: the repository at %s has more than %d MiB", where, maxPackBytes>>20)
	}
	return FailedForNow("source.git: %s: %v", where, err)
}

// shownURL is a URL without credentials and query.
func shownURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "the URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}
