package cluster

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// testDemo is the walk of examples/commerce: checkout, event, push, the
// connector's OAuth2, and what the gateway lets see with and without a token.
func testDemo(t *testing.T, c *cluster) {
	c.apply(t, c.demo(t))
	for _, object := range []string{"commerce lambda/commerce-system", "shop lambda/last-order", "shop lambda/loyalty", "shop lambda/audit", "shop appsvc/commerce.orders", "commerce apirule/commerce", "shop apirule/last-order", "shop apirule/audit", "shop subscription/last-order", "shop subscription/loyalty", "shop subscription/audit"} {
		namespace, name, _ := strings.Cut(object, " ")
		c.waitFor(t, namespace, name, "Ready")
	}
	gateway := c.nodePort(t, "gateway", "https", "")
	ask := func(host, path string, header ...string) (response, error) {
		return c.ask(t.Context(), gateway, http.MethodGet, host, path, "", header...)
	}

	var order struct{ Code, Customer string }
	eventually(t, patience, func() error {
		resp, err := c.ask(t.Context(), gateway, http.MethodPost, "commerce", "/checkout", `{"customer":"ada","total":120}`, "Content-Type", "application/json")
		if err == nil && resp.status != http.StatusCreated {
			err = fmt.Errorf("checkout: %d %s", resp.status, resp.body)
		}
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(resp.body), &order)
	})
	require.NotEmpty(t, order.Code)
	eventually(t, patience, func() error {
		resp, err := ask("last-order", "/")
		if err == nil && !strings.Contains(resp.body, order.Code) {
			err = fmt.Errorf("last-order shows %d %s, not %s", resp.status, resp.body, order.Code)
		}
		return err
	})

	reader, other := c.demoToken(t, "orders:read", "events:read"), c.demoToken(t, "something:else")
	for name, test := range map[string]struct {
		header []string
		want   int
	}{
		"without a token":        {nil, http.StatusUnauthorized},
		"with the scope":         {[]string{"Authorization", "Bearer " + reader}, http.StatusOK},
		"with another scope":     {[]string{"Authorization", "Bearer " + other}, http.StatusForbidden},
		"with a token of no one": {[]string{"Authorization", "Bearer " + reader[:len(reader)-6] + "AAAAAA"}, http.StatusUnauthorized},
	} {
		t.Run("one order, "+name, func(t *testing.T) {
			resp, err := ask("last-order", "/orders/"+order.Code, test.header...)
			require.NoError(t, err)
			require.Equal(t, test.want, resp.status, resp.body)
		})
	}
	t.Run("what a lambda answered with is an event too", func(t *testing.T) {
		eventually(t, patience, func() error {
			resp, err := ask("audit", "/", "Authorization", "Bearer "+reader)
			if err == nil && (!strings.Contains(resp.body, "promotion.granted.v1") || !strings.Contains(resp.body, "/shop/loyalty")) {
				err = fmt.Errorf("audit shows %d %s", resp.status, resp.body)
			}
			return err
		})
	})
}

// demo is examples/commerce with what is written in Go there in Node.js.
func (c *cluster) demo(t *testing.T) string {
	t.Helper()
	return c.example(t, "commerce", "05-commerce-system.yaml")
}

// example is examples/<name>, but for one file and what is written in Go: testdata
// has it in Node.js.
func (c *cluster) example(t *testing.T, name, without string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "examples", name, "*.yaml"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var all strings.Builder
	for _, file := range append(files, filepath.Join("testdata", name+".yaml")) {
		if filepath.Base(file) == without {
			continue
		}
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for document := range strings.SplitSeq(string(data), "\n---\n") {
			if !regexp.MustCompile(`(?m)^  runtime: go$`).MatchString(document) {
				all.WriteString("---\n" + document + "\n")
			}
		}
	}
	return all.String()
}

// demoToken mints one as the README of the demo shows.
func (c *cluster) demoToken(t *testing.T, scopes ...string) string {
	t.Helper()
	args := []string{"token", "--key", "examples/commerce/keys/demo.jwk", "--issuer", "https://issuer.lambdas.localhost", "--audience", "shop", "--subject", "alice"}
	for _, scope := range scopes {
		args = append(args, "--scope", scope)
	}
	out, err := c.cli(t, args...)
	require.NoError(t, err)
	return strings.TrimSpace(out)
}
