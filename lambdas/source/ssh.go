package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/transport"
	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// connectSSH checks the host's key against known_hosts of the Secret, and dials
// what the policy allows. go-git's own transport takes no dialer, reads the
// user's ~/.ssh and has no bound on a host that goes silent.
func (g *Git) connectSSH(ctx context.Context, address *url.URL, spec *v1alpha1.GitSource, secret map[string][]byte) (transport.UploadPackSession, error) {
	if spec.Auth == nil || spec.Auth.Type != "key" || len(secret[secretPrivateKey]) == 0 || len(secret[secretKnownHosts]) == 0 {
		return nil, FailedForNow("source.git.auth: an ssh URL needs type key, and a Secret with the keys %s and %s (what ssh-keyscan prints of the host)", secretPrivateKey, secretKnownHosts)
	}
	signer, err := ssh.ParsePrivateKey(secret[secretPrivateKey])
	if err != nil {
		return nil, FailedForNow("source.git.auth: %s of Secret %s cannot be read: %v", secretPrivateKey, spec.Auth.SecretName, err)
	}
	user, port := address.User.Username(), address.Port()
	if user == "" {
		user = "git"
	}
	if port == "" {
		port = "22"
	}
	host := net.JoinHostPort(address.Hostname(), port)
	config := &ssh.ClientConfig{User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}}
	if err := g.knowHost(config, host, secret[secretKnownHosts]); err != nil {
		return nil, FailedForNow("source.git.auth: %s of Secret %s: %v", secretKnownHosts, spec.Auth.SecretName, err)
	}
	conn, err := g.Targets.DialContext(nil)(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	session := &sshSession{conn: conn, unbind: context.AfterFunc(ctx, func() { _ = conn.Close() })} // ends whatever waits for it
	if err := session.start(config, host, address.Path); err != nil {
		_ = session.Close() // the first error tells
		return nil, session.explain(err)
	}
	return session, nil
}

// knowHost has the config accept the keys that known_hosts has for the host,
// and no others.
func (g *Git) knowHost(config *ssh.ClientConfig, host string, known []byte) error {
	file, err := os.CreateTemp(g.TempDir, "known_hosts-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(known)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	hosts, err := knownhosts.NewDB(file.Name())
	if err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), file.Name(), secretKnownHosts))
	}
	config.HostKeyCallback, config.HostKeyAlgorithms = hosts.HostKeyCallback(), hosts.HostKeyAlgorithms(host)
	if len(config.HostKeyAlgorithms) == 0 {
		return fmt.Errorf("it has no key of %s; add what ssh-keyscan prints", host)
	}
	return nil
}

// sshSession is git-upload-pack at the other end of an SSH connection (git's
// pack-protocol, version 0).
type sshSession struct {
	conn    net.Conn
	unbind  func() bool
	client  *ssh.Client
	session *ssh.Session // that runs the program
	stdin   io.WriteCloser
	stdout  io.Reader
	stderr  lastBytes
}

func (s *sshSession) start(config *ssh.ClientConfig, host, path string) error {
	conn, channels, requests, err := ssh.NewClientConn(s.conn, host, config)
	if err != nil {
		return err
	}
	s.client = ssh.NewClient(conn, channels, requests)
	session, err := s.client.NewSession()
	if err != nil {
		return err
	}
	session.Stderr = &s.stderr
	if s.stdin, err = session.StdinPipe(); err != nil {
		return err
	}
	if s.stdout, err = session.StdoutPipe(); err != nil {
		return err
	}
	if err := session.Start("git-upload-pack '" + strings.ReplaceAll(path, "'", `'\''`) + "'"); err != nil {
		return err
	}
	s.session = session
	return nil
}

// lastWords is how long a host that has ended its output may take to say why.
const lastWords = 5 * time.Second

// explain adds what the host said, which may arrive behind the end of its output.
func (s *sshSession) explain(err error) error {
	if err != nil && s.session != nil {
		ended := make(chan struct{})
		go func() {
			_ = s.session.Wait()
			close(ended)
		}()
		select {
		case <-ended:
		case <-time.After(lastWords):
		}
	}
	if said := strings.TrimSpace(s.stderr.String()); err != nil && said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

func (s *sshSession) AdvertisedReferences() (*packp.AdvRefs, error) {
	offered := packp.NewAdvRefs()
	if err := offered.Decode(s.stdout); err != nil {
		return nil, s.explain(err)
	}
	transport.FilterUnsupportedCapabilities(offered.Capabilities)
	return offered, nil
}

// AdvertisedReferencesContext is as AdvertisedReferences: the context that the
// session was made with ends it.
func (s *sshSession) AdvertisedReferencesContext(context.Context) (*packp.AdvRefs, error) {
	return s.AdvertisedReferences()
}

func (s *sshSession) UploadPack(_ context.Context, request *packp.UploadPackRequest) (*packp.UploadPackResponse, error) {
	err := errors.Join(
		request.UploadRequest.Encode(s.stdin),
		request.UploadHaves.Encode(s.stdin, false),
		pktline.NewEncoder(s.stdin).Encodef("done\n"),
		s.stdin.Close(),
	)
	if err != nil {
		return nil, s.explain(err)
	}
	response := packp.NewUploadPackResponse(request)
	if err := response.Decode(io.NopCloser(s.stdout)); err != nil {
		return nil, s.explain(err)
	}
	return response, nil
}

func (s *sshSession) Close() error {
	s.unbind()
	if s.client != nil {
		return s.client.Close()
	}
	return s.conn.Close()
}

// lastBytes keeps the end of what is written.
type lastBytes struct {
	mu   sync.Mutex
	last []byte
}

func (b *lastBytes) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = append(b.last, p...)
	b.last = bytes.Clone(b.last[max(0, len(b.last)-512):])
	return len(p), nil
}

func (b *lastBytes) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.last)
}
