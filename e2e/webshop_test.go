package e2e

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// webshop is the third-party system of examples/webshop, a process of its own.
type webshop struct {
	url    string
	cmd    *exec.Cmd
	output *buffer
	done   chan struct{} // closed when the process has ended
}

// buildWebshop builds the program, as `go run` does.
func buildWebshop(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "webshop")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./examples/webshop")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	return program
}

// openWebshop starts it, and waits until it is open.
func openWebshop(t *testing.T, program, token string, args ...string) *webshop {
	t.Helper()
	s := &webshop{cmd: exec.Command(program, append(args, "--address", "127.0.0.1:0", "--stock-address", "127.0.0.1:0")...), output: &buffer{}, done: make(chan struct{})}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = strings.NewReader(token), s.output, s.output
	require.NoError(t, s.cmd.Start())
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	t.Cleanup(func() {
		s.close(t)
		if t.Failed() {
			t.Logf("webshop wrote:\n%s", s.output)
		}
	})
	open := regexp.MustCompile(`(?m)^webshop: open at (http://[^;]+);`)
	eventually(t, time.Minute, func() error {
		found := open.FindStringSubmatch(s.output.String())
		if found == nil {
			select {
			case <-s.done:
				t.Fatalf("webshop ended:\n%s", s.output)
			default:
			}
			return errorf("webshop is not open: %s", s.output)
		}
		s.url = found[1]
		return nil
	})
	return s
}

func (s *webshop) close(t *testing.T) {
	t.Helper()
	_ = s.cmd.Process.Signal(os.Interrupt) // it may have ended
	select {
	case <-s.done:
	case <-time.After(stopTimeout):
		_ = s.cmd.Process.Kill()
		t.Errorf("webshop did not stop within %s of Ctrl-C", stopTimeout)
	}
}

// buy something; the answer is the shop's.
func (s *webshop) buy(t *testing.T) (response, order) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/checkout", strings.NewReader(`{"customer":"ada","total":120}`))
	require.NoError(t, err)
	resp, err := do(http.DefaultClient, req)
	require.NoError(t, err)
	var bought order
	if resp.status == http.StatusCreated {
		require.NoError(t, json.Unmarshal([]byte(resp.body), &bought))
		require.NotEmpty(t, bought.Code)
	}
	return resp, bought
}

// passesOn calls the service and path of the application that its query names, and
// sends the body there.
const passesOn = `package caller

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
)

func Main(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	q := r.URL.Query()
	request, err := http.NewRequestWithContext(r.Context(), q.Get("method"), os.Getenv("APPLICATION_WEBSHOP_URL")+q.Get("to"), bytes.NewReader(body))
	if err != nil {
		fmt.Fprint(w, err)
		return
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		fmt.Fprint(w, err)
		return
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(response.Body)
	fmt.Fprintf(w, "%d %s", response.StatusCode, answer)
}
`

// TestAThirdPartySystemFromItsTokenToItsEnd is the walk of examples/webshop: a
// system that nobody knows but by name pairs, says what it offers, is bound, heard
// and called, and is no longer let in in the end.
func TestAThirdPartySystemFromItsTokenToItsEnd(t *testing.T) {
	m := shared(t)
	program, dir := buildWebshop(t), filepath.Join(t.TempDir(), "shop")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, binary(t, "kubectl"), "delete", "--ignore-not-found", "--wait=false", "-f", "examples/webshop")
		cmd.Env, cmd.Dir = append(os.Environ(), "KUBECONFIG="+filepath.Join(m.dataDir, "kubeconfig")), ".."
		_ = cmd.Run()
	})
	m.mustKubectl(t, "", "apply", "-f", "examples/webshop")
	m.waitFor(t, "webshop", "tokenrequest/webshop", "Ready")
	secret := m.mustKubectl(t, "", "get", "-n", "webshop", "tokenrequest", "webshop", "-o", "jsonpath={.status.secretName}")
	token := m.mustKubectl(t, "", "get", "-n", "webshop", "secret", secret, "-o", "json")
	hook := m.Webhooks + "/webhooks/webshop/orders"
	shop := openWebshop(t, program, token, "--dir", dir, "--token", "-", "--webhook", hook)

	for _, object := range []string{
		"application/webshop", "appsvc/webshop.orders", "appsvc/webshop.orders-odata",
		"applicationbinding/webshop", "lambda/receipts", "subscription/receipts", "apirule/receipts",
	} {
		m.waitFor(t, "webshop", object, "Ready")
	}
	m.waitFor(t, "webshop", "application/webshop", "Paired")
	require.Contains(t, m.mustKubectl(t, "", "get", "evt", "-n", "lambdamesh-system", "--field-selector", "spec.source=webshop"), "order.created.v1")

	reader := demoToken(t, m, "orders:read")
	receiptOf := func(t *testing.T, bought order) {
		t.Helper()
		eventually(t, demoTimeout, func() error {
			resp, err := m.get(t.Context(), "receipts.lambdas.localhost", "/orders/"+bought.Code, reader...)
			var receipt order
			if err != nil || resp.status != http.StatusOK || json.Unmarshal([]byte(resp.body), &receipt) != nil || receipt != bought {
				return errorf("the receipt is %d %s %v", resp.status, resp.body, err)
			}
			return nil
		})
	}
	resp, bought := shop.buy(t)
	require.Equal(t, http.StatusCreated, resp.status, resp.body)
	require.Equal(t, order{Code: bought.Code, Customer: "ada", Total: 120, Currency: "EUR"}, bought)
	receiptOf(t, bought)

	t.Run("the receipt is for who has a token", func(t *testing.T) {
		for name, tc := range map[string]struct {
			header []string
			want   int
		}{"none": {nil, http.StatusUnauthorized}, "another scope": {demoToken(t, m, "orders:write"), http.StatusForbidden}} {
			resp, err := m.get(t.Context(), "receipts.lambdas.localhost", "/orders/"+bought.Code, tc.header...)
			require.NoError(t, err)
			require.Equal(t, tc.want, resp.status, name)
		}
	})

	t.Run("the connector gives a token once and the shop's credentials to nobody", func(t *testing.T) {
		again := exec.Command(program, "--dir", t.TempDir(), "--token", "-")
		again.Stdin = strings.NewReader(token)
		out, err := again.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "403: the token is unknown, was used or has expired")
		var credentials struct{ ClientSecret, Password string }
		raw, err := os.ReadFile(filepath.Join(dir, "credentials.json"))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(raw, &credentials))
		require.NotContains(t, m.mustKubectl(t, "", "get", "appsvc", "-o", "yaml"), credentials.ClientSecret)
		for _, secret := range []string{credentials.ClientSecret, credentials.Password} {
			require.NotEmpty(t, secret)
			require.NotContains(t, m.output.String(), secret)
		}
	})

	shop.close(t)
	shop = openWebshop(t, program, "", "--dir", dir, "--webhook", hook) // for the rest of the test
	t.Run("it goes on after a restart with the same services", func(t *testing.T) {
		listed := m.mustKubectl(t, "", "get", "appsvc", "--field-selector", "spec.application=webshop", "-o", "name")
		require.Len(t, strings.Fields(listed), 3, listed)
		resp, bought := shop.buy(t)
		require.Equal(t, http.StatusCreated, resp.status, resp.body)
		receiptOf(t, bought)
	})

	t.Run("its other APIs want a CSRF token, and a client certificate", func(t *testing.T) {
		m.apply(t, echo("webshop-apis", "caller", passesOn)+`
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: webshop, namespace: webshop-apis}
spec: {application: webshop, lambdas: {names: [caller]}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: caller, namespace: webshop-apis}
spec: {hosts: [webshop-apis], rules: [{path: '/', lambda: caller, noAuth: true}]}
`)
		ca, err := os.ReadFile(filepath.Join(dir, "shop.crt"))
		require.NoError(t, err)
		encoded, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": "webshop-ca", "namespace": "lambdamesh-system"},
			"stringData": map[string]string{"ca.crt": string(ca)},
		})
		require.NoError(t, err)
		m.apply(t, string(encoded))
		m.mustKubectl(t, "", "patch", "appsvc", "webshop.stock", "--type", "merge", "-p", `{"spec":{"api":{"ca":{"name":"webshop-ca","key":"ca.crt"}}}}`)
		m.waitFor(t, "webshop-apis", "apirule/caller", "Ready")
		_, bought := shop.buy(t)
		call := func(method, to, body, want string) {
			t.Helper()
			eventually(t, demoTimeout, func() error {
				query := "/?method=" + method + "&to=" + to
				resp, err := m.request(t.Context(), http.MethodPost, "webshop-apis.lambdas.localhost", query, body)
				if err != nil || resp.status != http.StatusOK || !strings.HasPrefix(resp.body, want) {
					return errorf("%s %s: %d %s %v", method, to, resp.status, resp.body, err)
				}
				return nil
			})
		}
		call(http.MethodGet, "/orders/orders/"+bought.Code, "", `200 {"code":"`+bought.Code)
		key := "/orders-odata/Orders('" + bought.Code + "')"
		call(http.MethodPatch, key, `{"Status":"PACKED"}`, "204")
		call(http.MethodGet, key, "", `200 {"d":{"Code":"`+bought.Code+`","Customer":"ada","Currency":"EUR","Status":"PACKED"`)
		call(http.MethodGet, "/orders-odata/$metadata", "", "200 <?xml")
		call(http.MethodGet, "/stock/umbrella", "", `200 {"available":1,"product":"umbrella"}`)
	})

	t.Run("what became of an order it tells by a webhook, until that is taken", func(t *testing.T) {
		eventually(t, demoTimeout, func() error { // the order that was packed
			if !strings.Contains(shop.output.String(), "was not taken: it was answered 404") {
				return errorf("the webhook that nobody takes was not tried: %s", shop.output)
			}
			return nil
		})
		secret, err := os.ReadFile(filepath.Join(dir, "webhook.secret"))
		require.NoError(t, err)
		encoded, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": "webshop-webhook", "namespace": "lambdamesh-system"},
			"stringData": map[string]string{"secret": string(secret)},
		})
		require.NoError(t, err)
		m.apply(t, string(encoded))
		m.mustKubectl(t, "", "patch", "application", "webshop", "--type", "merge", "-p", `{"spec":{"webhooks":[{"name":"orders","provider":"hmac","secretName":"webshop-webhook"}]}}`)
		eventually(t, demoTimeout, func() error {
			stored, code := m.cli(t, "events", "list", "--source", "webshop", "-A")
			if code != 0 || strings.Count(stored, "order.packed.v1") != 1 {
				return errorf("stored: %s", stored)
			}
			return nil
		})
	})

	t.Run("after its end no event of it is taken", func(t *testing.T) {
		revoke := exec.Command(program, "--dir", dir, "--revoke")
		out, err := revoke.CombinedOutput()
		require.NoError(t, err, string(out))
		refused := regexp.MustCompile("the order was taken back: .*the mesh (answered 403|refuses the certificate)")
		eventually(t, demoTimeout, func() error { // its kept connection may end while it sends
			resp, _ := shop.buy(t)
			require.Equal(t, http.StatusServiceUnavailable, resp.status, resp.body)
			if !refused.MatchString(resp.body) {
				return errorf("the shop says %s", resp.body)
			}
			return nil
		})
		m.mustKubectl(t, "", "wait", "application/webshop", "--for=condition=Paired=false", "--timeout=50s")
	})

	shop.close(t)
	pair := exec.Command(binary(t, "lambdamesh"), "pair", "webshop", "--out", dir) // as README has it, with what was exported
	pair.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(m.dataDir, "kubeconfig"))
	out, err := pair.CombinedOutput()
	require.NoError(t, err, string(out))
	shop = openWebshop(t, program, "", "--dir", dir)
	t.Run("it may be paired again, from the command line", func(t *testing.T) {
		resp, bought := shop.buy(t)
		require.Equal(t, http.StatusCreated, resp.status, resp.body)
		receiptOf(t, bought)
	})
}
