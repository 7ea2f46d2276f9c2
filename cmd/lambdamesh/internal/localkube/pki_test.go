package localkube

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCertificatesAreKeptWhileTheyAreGood(t *testing.T) {
	begin := time.Now()
	for name, tc := range map[string]struct {
		host    string
		after   time.Duration
		damage  func(t *testing.T, dir string)
		renewed []string
	}{
		"the next day":              {host: "127.0.0.1", after: 24 * time.Hour},
		"when leaves end soon":      {host: "127.0.0.1", after: leafLife - renewBefore + time.Hour, renewed: []string{"admin", "apiserver", "controller-manager"}},
		"when the authority does":   {host: "127.0.0.1", after: caLife - renewBefore + time.Hour, renewed: []string{"admin", "apiserver", "ca", "controller-manager"}},
		"at another address":        {host: "127.0.0.2", after: 0, renewed: []string{"apiserver"}},
		"when a clock was set back": {host: "127.0.0.1", after: -23 * time.Hour},
		"after a stop between a key and its certificate": {
			host: "127.0.0.1", renewed: []string{"admin"},
			damage: func(t *testing.T, dir string) {
				key, err := os.ReadFile(filepath.Join(dir, "ca.key"))
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "admin.key"), key, 0o600))
			},
		},
		"when a certificate is gone": {
			host: "127.0.0.1", renewed: []string{"apiserver"},
			damage: func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "apiserver.crt"))) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			_, err := ensurePKI(dir, "127.0.0.1", begin)
			require.NoError(t, err)
			before := certificates(t, dir)
			if tc.damage != nil {
				tc.damage(t, dir)
			}
			_, err = ensurePKI(dir, tc.host, begin.Add(tc.after))
			require.NoError(t, err)
			after := certificates(t, dir)
			var renewed []string
			for _, name := range []string{"admin", "apiserver", "ca", "controller-manager"} {
				if before[name] != after[name] {
					renewed = append(renewed, name)
				}
			}
			require.Equal(t, tc.renewed, renewed)
		})
	}
}

func certificates(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, name := range []string{"admin", "apiserver", "ca", "controller-manager"} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
		require.NoError(t, err)
		found[name] = string(pair.Leaf.Raw)
	}
	return found
}
