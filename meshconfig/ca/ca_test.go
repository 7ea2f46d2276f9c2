package ca_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
)

const identity = "spiffe://cluster.local/ns/shop/sa/last-order"

func parse(t *testing.T, leaf ca.Leaf) *x509.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(leaf.ChainPEM, leaf.KeyPEM)
	require.NoError(t, err)
	return pair.Leaf
}

func TestIssuedCertificatesCarryOnlyTheIdentity(t *testing.T) {
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	leaf, err := authority.Issue(identity)
	require.NoError(t, err)
	cert := parse(t, leaf)
	require.Len(t, cert.URIs, 1)
	require.Equal(t, identity, cert.URIs[0].String())
	require.Empty(t, cert.DNSNames)
	require.False(t, cert.IsCA)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		_, err = cert.Verify(x509.VerifyOptions{Roots: authority.Pool(), KeyUsages: []x509.ExtKeyUsage{usage}})
		require.NoError(t, err)
	}

	again, err := authority.Issue(identity)
	require.NoError(t, err)
	require.NotEqual(t, cert.SerialNumber, parse(t, again).SerialNumber)
}

func TestLeavesAreRenewedAtHalfOfTheirLife(t *testing.T) {
	now := time.Now()
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{Now: func() time.Time { return now }})
	require.NoError(t, err)
	leaf, err := authority.Issue(identity)
	require.NoError(t, err)
	require.WithinDuration(t, now.Add(24*time.Hour), leaf.NotAfter, time.Second)
	require.WithinDuration(t, now.Add(12*time.Hour), leaf.RenewAt(), time.Minute)
}

func TestIssueRefusesWhatIsNoIdentity(t *testing.T) {
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	for _, bad := range []string{"", "last-order", "https://cluster.local/ns/a/sa/b", "spiffe://", "spiffe://cluster.local", "spiffe://cluster.local/", "spiffe://cluster.local/a?b", "spiffe://u@cluster.local/a"} {
		_, err := authority.Issue(bad)
		require.ErrorContains(t, err, "not a SPIFFE identity", bad)
	}
	_, err = authority.IssueServer()
	require.Error(t, err)
}

func TestServerCertificatesCarryNamesAndAddresses(t *testing.T) {
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	leaf, err := authority.IssueServer("xds.lambdamesh-system.svc", "127.0.0.1")
	require.NoError(t, err)
	cert := parse(t, leaf)
	require.NoError(t, cert.VerifyHostname("xds.lambdamesh-system.svc"))
	require.NoError(t, cert.VerifyHostname("127.0.0.1"))
}

// secrets is an API server's behavior on one namespace's Secrets.
type secrets struct {
	mu     sync.Mutex
	stored map[string]*corev1.Secret
}

func (s *secrets) Get(_ context.Context, name string, _ metav1.GetOptions) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if object, ok := s.stored[name]; ok {
		return object, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (s *secrets) Create(_ context.Context, object *corev1.Secret, _ metav1.CreateOptions) (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.stored[object.Name]; ok {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "secrets"}, object.Name)
	}
	s.stored[object.Name] = object
	return object, nil
}

func TestTheRootIsCreatedOnceAndKept(t *testing.T) {
	for name, storage := range map[string]ca.Storage{
		"directory": ca.Directory(filepath.Join(t.TempDir(), "ca")),
		"secret":    ca.Secret(&secrets{stored: map[string]*corev1.Secret{}}, ca.SecretName),
	} {
		t.Run(name, func(t *testing.T) {
			roots := make([]string, 8)
			var wg sync.WaitGroup
			for i := range roots {
				wg.Go(func() {
					if authority, err := ca.Open(t.Context(), storage, ca.Config{}); err == nil {
						roots[i] = string(authority.Root())
					}
				})
			}
			wg.Wait()
			require.NotEmpty(t, roots[0])
			for _, root := range roots {
				require.Equal(t, roots[0], root)
			}
		})
	}
}

func TestDirectoryIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	_, err := ca.Open(t.Context(), ca.Directory(dir), ca.Config{})
	require.NoError(t, err)
	info, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1, "no temporary file stays")
	file, err := entries[0].Info()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), file.Mode().Perm())
}

func TestBrokenRootsAreRefused(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "root.pem"), []byte("half a file"), 0o600))
	_, err := ca.Open(t.Context(), ca.Directory(dir), ca.Config{})
	require.ErrorContains(t, err, "remove the file")

	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{})
	require.NoError(t, err)
	leaf, err := authority.Issue(identity)
	require.NoError(t, err)
	_, err = ca.New(ca.Pair{CertPEM: leaf.ChainPEM, KeyPEM: leaf.KeyPEM}, ca.Config{})
	require.ErrorContains(t, err, "not a CA certificate")

	old, err := ca.NewRoot(time.Now().Add(-11 * 365 * 24 * time.Hour))
	require.NoError(t, err)
	_, err = ca.New(old, ca.Config{})
	require.ErrorContains(t, err, "expired")
}
