package xds

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
)

func TestANameStandsForOneThing(t *testing.T) {
	all := map[string]trusted{}
	same := func(a, b trusted) bool { return a == b }
	added, err := once(all, "p", trusted{"i", "k", ""}, same)
	require.NoError(t, err)
	require.True(t, added)
	added, err = once(all, "p", trusted{"i", "k", ""}, same)
	require.NoError(t, err)
	require.False(t, added)
	_, err = once(all, "p", trusted{"i", "other", ""}, same)
	require.ErrorContains(t, err, "p stands for {i k } and for {i other }")
	require.Equal(t, trusted{"i", "k", ""}, all["p"])
}

func TestNamesTellWherePartsEnd(t *testing.T) {
	seen := map[string]bool{}
	for _, parts := range [][]string{{"a", "b"}, {"ab", ""}, {"", "ab"}, {"ab"}, {"a", "b", ""}, {"1:a", "b"}, {"a1:b"}, {"a", "1:b"}} {
		name := nameOf("x", parts...)
		require.False(t, seen[name], parts)
		seen[name] = true
	}
	require.NotEqual(t, providerName(ir.JWTProvider{Issuer: "a|b", KeySet: "c"}), providerName(ir.JWTProvider{Issuer: "a", KeySet: "b|c"}))
}
