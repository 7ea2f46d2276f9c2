package dev

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestObjectsAreReadInAnOrderInWhichTheyCanBeApplied(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "10-rule.yaml", `
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: rule, namespace: shop}
---
# nothing but a comment
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: shop}
`)
	write(t, dir, "20-namespace.yml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")
	write(t, dir, "README.md", "not YAML: [")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "keys.yaml"), 0o700))

	objects, _, err := readObjects([]string{dir})
	require.NoError(t, err)
	var names []string
	for _, o := range objects {
		names = append(names, objectName(o))
	}
	require.Equal(t, []string{"Namespace shop", "Secret shop/keys", "APIRule shop/rule"}, names)
}

func TestFilesThatCannotBeAppliedAreNamed(t *testing.T) {
	dir := t.TempDir()
	tests := map[string]struct{ path, want string }{
		"no such file":          {filepath.Join(dir, "none.yaml"), "none.yaml"},
		"broken YAML":           {write(t, dir, "broken.yaml", "a: [\n"), "broken.yaml"},
		"a document of no kind": {write(t, dir, "nokind.yaml", "hello: world\n"), "apiVersion, kind and metadata.name"},
		"an empty directory":    {t.TempDir(), "no .yaml file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, err := readObjects([]string{tt.path})
			require.ErrorContains(t, err, tt.want)
		})
	}
}

func TestConfigsThatCannotWorkAreNamed(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		want   string
	}{
		"the defaults work":         {func(*Config) {}, ""},
		"port only":                 {func(c *Config) { c.GatewayAddress = ":8080" }, "--gateway-address"},
		"no port":                   {func(c *Config) { c.EventBusAddress = "127.0.0.1" }, "--eventbus-address"},
		"a port beyond all":         {func(c *Config) { c.XDSAddress = "127.0.0.1:70000" }, "--xds-address"},
		"a file that is not there":  {func(c *Config) { c.Apply = []string{"/no/such"} }, "/no/such"},
		"an unreadable target":      {func(c *Config) { c.AllowTargets = []string{"not a target"} }, "--allow-target"},
		"a limit of nothing":        {func(c *Config) { c.Limits = map[string]int{"apirule.color": 1} }, "--limit: there is no limit"},
		"a data plane we have not":  {func(c *Config) { c.Proxy = "nginx" }, "--proxy"},
		"Envoy, in a later version": {func(c *Config) { c.Proxy = "envoy" }, "not implemented"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			tt.change(&cfg)
			if err := cfg.Validate(); tt.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, tt.want)
			}
		})
	}
}

func TestWhatARuleExposesIsOneLine(t *testing.T) {
	rules := map[string]v1alpha1.Rule{
		"GET     http://shop.example.com/orders/{*}  (token)": {Path: "/orders/{*}", Methods: []v1alpha1.HTTPMethod{"GET"}, JWT: &v1alpha1.JWTAuth{}},
		"GET,PUT http://shop.example.com/stock  (API key)":    {Path: "/stock", Methods: []v1alpha1.HTTPMethod{"GET", "PUT"}, APIKey: &v1alpha1.APIKeyAuth{}},
		"*       http://shop.example.com/*":                   {Path: "/*"},
	}
	for want, rule := range rules {
		require.Equal(t, want, exposed("http://shop.example.com/", rule))
	}
}
