package ca_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
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

// parsesTo verifies a leaf by roots, as a peer would who knows only these.
func verifies(t *testing.T, leaf ca.Leaf, rootsPEM []byte, at time.Time) error {
	t.Helper()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(rootsPEM))
	_, err := parse(t, leaf).Verify(x509.VerifyOptions{Roots: pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

// At no time does anybody sign whom somebody does not trust who has seen the step
// before, nor is what was signed in the step before no longer trusted.
func TestARootIsReplacedWhileBothAreTrusted(t *testing.T) {
	now := time.Now()
	storage := ca.Secret(&secrets{stored: map[string]*corev1.Secret{}}, ca.SecretName)
	authority, err := ca.Open(t.Context(), storage, ca.Config{Now: func() time.Time { return now }})
	require.NoError(t, err)
	roots, err := storage.Load(t.Context())
	require.NoError(t, err)
	const overlap = 24 * time.Hour
	server := authority.ServerCertificate("xds.test")
	long := authority.Lasting(90 * 24 * time.Hour)

	same, step, wait, err := roots.Advance(now, false, overlap)
	require.NoError(t, err)
	require.Empty(t, step)
	require.Equal(t, roots, same)
	require.InDelta(t, 8*365*24, wait.Hours(), 24, "a fifth of its life is left then")

	knownBefore := authority.Root()
	signedBefore, err := authority.Issue(identity)
	require.NoError(t, err)
	signedAt := now
	for i, want := range []ca.Step{ca.StepTrust, ca.StepSign, ca.StepDone} {
		if i > 0 {
			early, none, left, err := roots.Advance(now.Add(overlap-time.Hour), true, overlap)
			require.NoError(t, err)
			require.Empty(t, none, "before everybody has learned of the step before, also when it is asked for again")
			require.Equal(t, time.Hour, left)
			require.Equal(t, roots, early)
			now = now.Add(overlap)
		}
		changed := authority.Changed()
		roots, step, _, err = roots.Advance(now, i == 0, overlap)
		require.NoError(t, err)
		require.Equal(t, want, step)
		// As others read it.
		secret := &corev1.Secret{}
		roots.Into(secret)
		roots = ca.FromSecret(secret)
		now = now.Truncate(time.Second)
		require.NoError(t, authority.Set(roots))
		select {
		case <-changed:
		default:
			t.Fatal("nobody is told")
		}
		require.NoError(t, authority.Set(roots))
		leaf, err := authority.Issue(identity)
		require.NoError(t, err)
		require.NoError(t, verifies(t, leaf, knownBefore, now), "%s: who has not seen it yet trusts whom it lets sign", want)
		if want != ca.StepDone {
			require.NoError(t, verifies(t, signedBefore, authority.Root(), signedAt), "%s: what was signed before is trusted", want)
		} else {
			require.Error(t, verifies(t, signedBefore, authority.Root(), signedAt))
		}
		made, err := server(nil)
		require.NoError(t, err)
		served, err := x509.ParseCertificate(made.Certificate[0])
		require.NoError(t, err)
		require.Equal(t, parse(t, leaf).AuthorityKeyId, served.AuthorityKeyId)
		lasting, err := long.IssueServer("nats.test")
		require.NoError(t, err)
		require.Equal(t, served.AuthorityKeyId, parse(t, lasting).AuthorityKeyId)
		require.InDelta(t, 90*24, lasting.NotAfter.Sub(now).Hours(), 1)
		knownBefore = authority.Root()
		if want == ca.StepTrust {
			signedBefore, signedAt = leaf, now
		}
	}
	require.Equal(t, ca.Roots{Issuer: roots.Issuer}, roots)
}

func TestARootIsReplacedBeforeItExpiresUnlessItWasBroughtAlong(t *testing.T) {
	now := time.Now()
	pair, err := ca.NewRoot(now)
	require.NoError(t, err)
	_, step, _, err := ca.Roots{Issuer: pair}.Advance(now.Add(9*365*24*time.Hour), false, time.Hour)
	require.NoError(t, err)
	require.Equal(t, ca.StepTrust, step)

	theirs := ca.Roots{Issuer: broughtAlong(t)}
	_, step, _, err = theirs.Advance(now.Add(50*365*24*time.Hour), false, time.Hour)
	require.NoError(t, err)
	require.Empty(t, step)
	theirs.Next = pair
	next, step, _, err := theirs.Advance(now, false, time.Hour)
	require.NoError(t, err)
	require.Equal(t, ca.StepTrust, step, "somebody has put a next one there")
	require.Equal(t, now, next.Since)
	theirs.Next = ca.Pair{CertPEM: []byte("no certificate"), KeyPEM: pair.KeyPEM}
	_, _, _, err = theirs.Advance(now, false, time.Hour)
	require.ErrorContains(t, err, "read the next mesh CA")
}

// Nothing of the root that signs is given up for one that cannot.
func TestANextRootThatCannotSignIsRefused(t *testing.T) {
	now := time.Now()
	const overlap = time.Hour
	issuer, err := ca.NewRoot(now)
	require.NoError(t, err)
	for want, next := range map[string]ca.Pair{
		"expired at":          brought(t, x509.Certificate{NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour), KeyUsage: x509.KeyUsageCertSign}),
		"is not valid before": brought(t, x509.Certificate{NotBefore: now.Add(time.Hour), NotAfter: now.Add(100 * time.Hour), KeyUsage: x509.KeyUsageCertSign}),
		"for another":         brought(t, x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(overlap / 2), KeyUsage: x509.KeyUsageCertSign}),
		"keyCertSign":         brought(t, x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(100 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}),
	} {
		for step, since := range map[ca.Step]time.Time{ca.StepTrust: {}, ca.StepSign: now.Add(-overlap)} {
			roots := ca.Roots{Issuer: issuer, Next: next, Since: since}
			same, none, _, err := roots.Advance(now, true, overlap)
			require.ErrorContains(t, err, "read the next mesh CA", "%s", step)
			require.ErrorContains(t, err, want, "%s", step)
			require.Empty(t, none)
			require.Equal(t, roots, same)
		}
	}

	// What is valid until the replacement is over passes all of it.
	enough := brought(t, x509.Certificate{NotBefore: now.Add(-time.Hour), NotAfter: now.Add(2*overlap + time.Minute), KeyUsage: x509.KeyUsageCertSign})
	roots, step, _, err := ca.Roots{Issuer: issuer, Next: enough}.Advance(now, false, overlap)
	require.NoError(t, err)
	require.Equal(t, ca.StepTrust, step)
	roots, step, _, err = roots.Advance(now.Add(overlap), false, overlap)
	require.NoError(t, err)
	require.Equal(t, ca.StepSign, step)
	require.Equal(t, enough, roots.Issuer)
}

// broughtAlong is somebody's own authority.
func broughtAlong(t *testing.T) ca.Pair {
	t.Helper()
	return brought(t, x509.Certificate{NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign})
}

// brought is one with what a template says.
func brought(t *testing.T, template x509.Certificate) ca.Pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template.SerialNumber, template.Subject = big.NewInt(1), pkix.Name{CommonName: "corp"}
	template.IsCA, template.BasicConstraintsValid = true, true
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return ca.Pair{CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), KeyPEM: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})}
}
