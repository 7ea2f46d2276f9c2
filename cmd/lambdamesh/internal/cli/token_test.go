package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

// run executes a command line as a user would.
func run(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Run(t.Context(), "test", args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func newTestKey(t *testing.T) (private, public string) {
	t.Helper()
	dir := t.TempDir()
	private, public = filepath.Join(dir, "my.jwk"), filepath.Join(dir, "jwks.json")
	code, _, stderr := run(t, "", "token", "new-key", "--private", private, "--public", public)
	require.Equal(t, ExitOK, code, stderr)
	return private, public
}

func TestATokenVerifiesWithTheKeySetMadeBesideItsKey(t *testing.T) {
	private, public := newTestKey(t)
	code, stdout, stderr := run(t, "", "token", "--key", private, "--issuer", "https://issuer.test",
		"--subject", "alice", "--audience", "shop", "--scope", "orders:read", "--scope", "orders:write",
		"--claim", "tier=gold", "--claim", "level=3", "--expires-in", "5m")
	require.Equal(t, ExitOK, code, stderr)

	set, err := os.ReadFile(public)
	require.NoError(t, err)
	require.NotContains(t, string(set), `"d"`, "the public set holds no private part")
	keys, err := keyfunc.NewJWKSetJSON(json.RawMessage(set))
	require.NoError(t, err)
	claims := jwt.MapClaims{}
	_, err = jwt.ParseWithClaims(strings.TrimSpace(stdout), claims, keys.Keyfunc,
		jwt.WithValidMethods([]string{"ES256"}), jwt.WithIssuer("https://issuer.test"), jwt.WithAudience("shop"),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	require.NoError(t, err)
	require.Equal(t, "alice", claims["sub"])
	require.Equal(t, "orders:read orders:write", claims["scope"])
	require.Equal(t, "gold", claims["tier"])
	require.EqualValues(t, 3, claims["level"])
}

func TestMintUsesTheTimeGiven(t *testing.T) {
	private, _ := newTestKey(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	token, err := mint(tokenOptions{key: private, issuer: "i", expiresIn: time.Minute}, now)
	require.NoError(t, err)
	claims := jwt.MapClaims{}
	_, _, err = jwt.NewParser().ParseUnverified(token, claims)
	require.NoError(t, err)
	require.EqualValues(t, now.Unix(), claims["iat"])
	require.EqualValues(t, now.Add(time.Minute).Unix(), claims["exp"])
}

func TestTokenMistakes(t *testing.T) {
	private, public := newTestKey(t)
	garbage := filepath.Join(t.TempDir(), "garbage")
	require.NoError(t, os.WriteFile(garbage, []byte("hello"), 0o600))
	tests := map[string]struct {
		args     []string
		wantCode int
		want     string
	}{
		"no key":                     {[]string{"token", "--issuer", "i"}, ExitUsage, "needs --key and --issuer"},
		"a key that is not there":    {[]string{"token", "--key", "/no/such.jwk", "--issuer", "i"}, ExitFailure, "/no/such.jwk"},
		"a file that is no key":      {[]string{"token", "--key", garbage, "--issuer", "i"}, ExitFailure, "not a JSON Web Key"},
		"a set instead of a key":     {[]string{"token", "--key", public, "--issuer", "i"}, ExitFailure, public},
		"a claim without a value":    {[]string{"token", "--key", private, "--issuer", "i", "--claim", "x"}, ExitUsage, "NAME=VALUE"},
		"a key is not overwritten":   {[]string{"token", "new-key", "--private", private, "--public", public}, ExitFailure, "not overwritten"},
		"new-key without file names": {[]string{"token", "new-key"}, ExitUsage, "--private and --public"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			code, _, stderr := run(t, "", tt.args...)
			require.Equal(t, tt.wantCode, code)
			require.Contains(t, stderr, tt.want)
			require.Equal(t, 1, strings.Count(stderr, "\n"), "one line: %s", stderr)
		})
	}
}

func TestThePrivateKeyIsReadableByItsOwnerOnly(t *testing.T) {
	private, _ := newTestKey(t)
	info, err := os.Stat(private)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
}
