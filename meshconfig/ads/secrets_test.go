package ads

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
)

func TestSecretsAreRenewedAtHalfOfTheirLife(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{Now: clock})
	require.NoError(t, err)
	s := &secrets{ca: authority, identity: "spiffe://cluster.local/ns/a/sa/b", now: clock}
	first, err := s.items()
	require.NoError(t, err)
	require.InDelta(t, 12*time.Hour, s.untilRenewal(), float64(2*time.Minute))

	now = now.Add(11 * time.Hour)
	same, err := s.items()
	require.NoError(t, err)
	require.Equal(t, first[SecretWorkload].hash, same[SecretWorkload].hash)

	now = now.Add(2 * time.Hour)
	renewed, err := s.items()
	require.NoError(t, err)
	require.NotEqual(t, first[SecretWorkload].hash, renewed[SecretWorkload].hash)
	require.Equal(t, first[SecretRoot].hash, renewed[SecretRoot].hash)
}

func TestAnOldCertificateIsKeptWhenNoneCanBeIssued(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	authority, err := ca.Open(t.Context(), ca.Directory(t.TempDir()), ca.Config{Now: clock})
	require.NoError(t, err)
	s := &secrets{ca: authority, identity: "spiffe://cluster.local/ns/a/sa/b", now: clock}
	first, err := s.items()
	require.NoError(t, err)
	s.identity = "not an identity"
	now = now.Add(13 * time.Hour)
	kept, err := s.items()
	require.NoError(t, err)
	require.Equal(t, first, kept)
	require.Equal(t, time.Minute, s.untilRenewal(), "tried again soon")
	now = now.Add(12 * time.Hour)
	_, err = s.items()
	require.Error(t, err, "an expired one is not served")
}

func TestSecretsAreOfTheRootsInForce(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	first, err := ca.NewRoot(now)
	require.NoError(t, err)
	next, err := ca.NewRoot(now)
	require.NoError(t, err)
	authority, err := ca.New(first, ca.Config{Now: clock})
	require.NoError(t, err)
	s := &secrets{ca: authority, identity: "spiffe://cluster.local/ns/a/sa/b", now: clock}
	made, err := s.items()
	require.NoError(t, err)
	for _, roots := range []ca.Roots{{Issuer: first, Next: next}, {Issuer: next, Previous: first.CertPEM}, {Issuer: next}} {
		require.NoError(t, authority.Set(roots))
		select {
		case <-s.changed:
		default:
			t.Fatal("a stream would not hear of it")
		}
		s.look()
		require.LessOrEqual(t, s.untilRenewal(), time.Second)
		changed, err := s.items()
		require.NoError(t, err)
		require.NotEqual(t, made[SecretRoot].hash, changed[SecretRoot].hash)
		require.NotEqual(t, made[SecretWorkload].hash, changed[SecretWorkload].hash)
		made = changed
		same, err := s.items()
		require.NoError(t, err)
		require.Equal(t, made, same)
	}
}
