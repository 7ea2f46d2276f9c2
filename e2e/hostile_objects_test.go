package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whatever an object's URL is spelled like: an address that the mesh must not
// call is refused when the object is written, or its status says so.
func TestHostileURLs(t *testing.T) {
	m, _ := hostile(t)
	urls := map[string]string{
		"metadata":            "http://169.254.169.254/latest/meta-data",
		"metadata6":           "http://[fd00:ec2::254]/",
		"metadata-mapped":     "http://[::ffff:169.254.169.254]/",
		"link-local6":         "http://[fe80::1]/",
		"zone":                "http://[fe80::1%25lo]/",
		"localhost":           "http://localhost/",
		"localhost-case":      "http://LOCALHOST./",
		"below-localhost":     "http://x.localhost/",
		"loopback2":           "http://127.0.0.2/",
		"loopback6":           "http://[::1]/",
		"loopback-mapped":     "http://[::ffff:127.0.0.1]/",
		"loopback-mapped-hex": "http://[::ffff:7f00:2]/",
		"loopback-nat64":      "http://[64:ff9b::7f00:2]/",
		"loopback-6to4":       "http://[2002:7f00:2::]/",
		"decimal":             "http://2130706434/",
		"hex":                 "http://0x7f000002/",
		"hex-parts":           "http://0x7f.0.0.0x2/",
		"octal":               "http://0177.0.0.2/",
		"short":               "http://127.2/",
		"zero-short":          "http://0/",
		"unspecified":         "http://0.0.0.0/",
		"unspecified6":        "http://[::]/",
		"private-a":           "http://10.0.0.1/",
		"private-b":           "http://172.16.0.1/",
		"private-c":           "http://192.168.0.1/",
		"shared":              "http://100.64.0.1/",
		"unique-local":        "http://[fd12:3456::1]/",
		"multicast":           "http://224.0.0.1/",
		"broadcast":           "http://255.255.255.255/",
		"reserved":            "http://240.0.0.1/",
		"full-width":          "http://１２７.0.0.2/",
		"escaped":             "http://%31%32%37.0.0.2/",
		"backslash":           `http://127.0.0.2\@example.com/`,
		"user":                "http://user:secret@example.com/",
		"file":                "file:///etc/passwd",
		"gopher":              "gopher://127.0.0.2/",
		"no-scheme":           "//127.0.0.2/",
		"no-host":             "http:///x",
		"port-zero":           "http://example.com:0/",
		"port-large":          "http://example.com:99999/",
		"port-empty":          "http://127.0.0.2:/",
		"line":                "http://127.0.0.2/\r\nX: y",
		"kubernetes":          m.Kubernetes,
		"admin":               m.EventBusAdmin,
		"xds":                 "http://" + m.XDS,
	}
	kinds := map[string]string{
		"Subscription": `
kind: Subscription
metadata: {name: url-%[1]s, namespace: hostile-urls, labels: {test: urls}}
spec: {source: "*", types: ["**"], sink: {uri: %[2]s}}`,
		"APIRule": `
kind: APIRule
metadata: {name: url-%[1]s, namespace: hostile-urls, labels: {test: urls}}
spec: {hosts: [url-%[1]s], rules: [{path: "/*", lambda: x, jwt: {authentications: [{issuer: i, jwksUri: %[2]s}]}}]}`,
		"Application": `
kind: Application
metadata: {name: url-%[1]s, labels: {test: urls}}
spec: {services: [{name: a, api: {targetUrl: %[2]s}}]}`,
	}
	objects := "apiVersion: v1\nkind: Namespace\nmetadata: {name: hostile-urls}\n"
	for _, object := range kinds {
		for name, url := range urls {
			quoted, err := json.Marshal(url)
			require.NoError(t, err)
			objects += "---\napiVersion: lambdamesh.dev/v1alpha1" + fmt.Sprintf(object, name, quoted) + "\n"
		}
	}
	out, _ := m.kubectl(t, objects, "create", "-f", "-") // fails for those that are invalid
	defer m.mustKubectl(t, "", "delete", "--wait=false", "-n", "hostile-urls", "-l", "test=urls", "subscriptions,apirules,applications")
	type object struct {
		Metadata struct{ Name string }
		Status   struct {
			Conditions []struct{ Type, Status, Reason, Message string }
		}
	}
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			var left []string
			eventually(t, time.Minute, func() error {
				var list struct{ Items []object }
				require.NoError(t, json.Unmarshal([]byte(m.mustKubectl(t, "", "get", "-n", "hostile-urls", strings.ToLower(kind), "-o", "json")), &list))
				left = nil
				for name := range urls {
					if strings.Contains(out, fmt.Sprintf("%s.lambdamesh.dev %q is invalid", kind, "url-"+name)) {
						continue
					}
					said := ""
					for _, o := range list.Items {
						for _, c := range o.Status.Conditions {
							if o.Metadata.Name == "url-"+name && c.Status == "False" && strings.Contains(c.Message, "refused") {
								said = c.Message
							}
						}
					}
					if said == "" {
						left = append(left, name)
					}
				}
				if len(left) > 0 {
					return errorf("neither refused nor said to be: %v", left)
				}
				return nil
			})
		})
	}
}

// Names and values of objects are data: none of them breaks out of where it is
// written.
func TestHostileValues(t *testing.T) {
	m, _ := hostile(t)
	const lambda = "kind: Lambda\nmetadata: {name: %s, namespace: default}\nspec: {runtime: nodejs, source: {inline: {code: x}}%s}"
	const rule = "kind: APIRule\nmetadata: {name: bad, namespace: default}\nspec: {hosts: [%s], rules: [{path: %s, lambda: x, noAuth: true%s}]}"
	const jwt = "kind: APIRule\nmetadata: {name: bad, namespace: default}\nspec: {hosts: [x], rules: [{path: /, lambda: x, jwt: {authentications: [{issuer: i, jwksSecret: s}], %s}}]}"
	const sub = "kind: Subscription\nmetadata: {name: bad, namespace: default}\nspec: {source: %s, types: [%s], sink: {service: {name: %s, path: %s}}}"
	const app = "kind: Application\nmetadata: {name: %s}\nspec: {services: [{name: %s, api: {targetUrl: %s, auth: {headers: [{name: %s, value: x}]}}}]}"
	for name, yaml := range map[string]string{
		"a lambda's name with a dot":             fmt.Sprintf(lambda, "a.b", ""),
		"in upper case":                          fmt.Sprintf(lambda, "A", ""),
		"of 64 letters":                          fmt.Sprintf(lambda, strings.Repeat("a", 64), ""),
		"that is a path":                         fmt.Sprintf(lambda, "../a", ""),
		"a handler that is a statement":          fmt.Sprintf(lambda, "a", ", handler: 'main();process.exit()'"),
		"a handler that is a path":               fmt.Sprintf(lambda, "a", ", handler: ../main"),
		"a version that is a flag":               fmt.Sprintf(lambda, "a", ", version: --privileged"),
		"a version that is an image":             fmt.Sprintf(lambda, "a", ", version: '22@sha256:x'"),
		"a mount that leads out":                 fmt.Sprintf(lambda, "a", ", secretMounts: [{secretName: s, mountPath: /a/../etc}]"),
		"a body limit that is negative":          fmt.Sprintf(lambda, "a", ", maxBodyBytes: -1"),
		"replicas beyond what is sane":           fmt.Sprintf(lambda, "a", ", scale: {min: 100000, max: 100000}"),
		"a git URL that is a file":               "kind: Lambda\nmetadata: {name: a, namespace: default}\nspec: {runtime: go, source: {git: {url: 'file:///etc'}}}",
		"a git URL that is a command":            "kind: Lambda\nmetadata: {name: a, namespace: default}\nspec: {runtime: go, source: {git: {url: 'ext::sh -c id'}}}",
		"a directory that leads out":             "kind: Lambda\nmetadata: {name: a, namespace: default}\nspec: {runtime: go, source: {git: {url: 'https://x/y', directory: ../..}}}",
		"a code of more than 512 KiB":            "kind: Lambda\nmetadata: {name: a, namespace: default}\nspec: {runtime: go, source: {inline: {code: " + strings.Repeat("x", 525_000) + "}}}",
		"a host that is a star":                  fmt.Sprintf(rule, "'*'", "/", ""),
		"a host with a port":                     fmt.Sprintf(rule, "'a.b:80'", "/", ""),
		"a host with a line":                     fmt.Sprintf(rule, `"a\r\nb"`, "/", ""),
		"a host in upper case":                   fmt.Sprintf(rule, "A.example.com", "/", ""),
		"a host with a dot behind":               fmt.Sprintf(rule, "a.example.com.", "/", ""),
		"a path with a line":                     fmt.Sprintf(rule, "x", `"/a\r\nb"`, ""),
		"a path with NUL":                        fmt.Sprintf(rule, "x", `"/a\0b"`, ""),
		"a path with a fragment":                 fmt.Sprintf(rule, "x", "'/a#b'", ""),
		"a path that is not one":                 fmt.Sprintf(rule, "x", "a", ""),
		"a path with a regular expression":       fmt.Sprintf(rule, "x", "'/{id:.*}'", ""),
		"a header value with a line":             fmt.Sprintf(rule, "x", "/", `, response: {setHeaders: {x-a: "y\r\nset-cookie: z"}}`),
		"a request header's with NUL":            fmt.Sprintf(rule, "x", "/", `, request: {setHeaders: {x-a: "y\0"}}`),
		"a header name with a line":              fmt.Sprintf(rule, "x", "/", `, request: {removeHeaders: ["x\r\ny"]}`),
		"a pseudo-header":                        fmt.Sprintf(rule, "x", "/", ", headers: [{name: ':path', exact: /}]"),
		"a rewrite with a line":                  fmt.Sprintf(rule, "x", "/", `, rewrite: {path: "/a\r\nb"}`),
		"a rewrite to a query":                   fmt.Sprintf(rule, "x", "/", ", rewrite: {path: '/a?admin=1'}"),
		"a rewrite to a host with a port":        fmt.Sprintf(rule, "x", "/", ", rewrite: {host: 'a:80'}"),
		"a method that is none":                  fmt.Sprintf(rule, "x", "/", ", methods: ['GET /']"),
		"CONNECT":                                fmt.Sprintf(rule, "x", "/", ", methods: [CONNECT]"),
		"a hundred retries":                      fmt.Sprintf(rule, "x", "/", ", retries: {attempts: 100}"),
		"a scope that is empty":                  fmt.Sprintf(jwt, "authorizations: [{requiredScopes: ['']}]"),
		"a claim without values":                 fmt.Sprintf(jwt, "authorizations: [{claims: [{name: role, values: []}]}]"),
		"a subscription's source with a blank":   fmt.Sprintf(sub, "'a b'", "t", "s", "/"),
		"a source that is a wildcard's part":     fmt.Sprintf(sub, "'shop.*'", "t", "s", "/"),
		"a type for everything, as NATS says it": fmt.Sprintf(sub, "a", "'>'", "s", "/"),
		"a type with a blank":                    fmt.Sprintf(sub, "a", "'a b'", "s", "/"),
		"a type with a line":                     fmt.Sprintf(sub, "a", `"a\r\nb"`, "s", "/"),
		"a sink's path with a line":              fmt.Sprintf(sub, "a", "t", "s", `"/a\r\nb"`),
		"a sink's path with a query":             fmt.Sprintf(sub, "a", "t", "s", "'/a?b'"),
		"an application called like a path":      fmt.Sprintf(app, "webhooks", "a", "'https://x/'", "x"),
		"with a dot":                             fmt.Sprintf(app, "a.b", "a", "'https://x/'", "x"),
		"a service that is a path":               fmt.Sprintf(app, "a", "a/b", "'https://x/'", "x"),
		"a target with a query":                  fmt.Sprintf(app, "a", "a", "'https://x/?y'", "x"),
		"a credential's header with a line":      fmt.Sprintf(app, "a", "a", "'https://x/'", `"x\r\ny"`),
	} {
		t.Run(name, func(t *testing.T) {
			out, err := m.kubectl(t, "apiVersion: lambdamesh.dev/v1alpha1\n"+yaml, "create", "--dry-run=server", "-f", "-")
			require.Error(t, err, out)
			require.Regexp(t, `is invalid|Invalid value|invalid resource name`, out)
		})
	}
}

// Where a sink, an API or an issuer sends the mesh by a redirect, it does not
// go.
func TestHostileRedirects(t *testing.T) {
	m, _ := hostile(t)
	var trapped atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { trapped.Add(1) }))
	t.Cleanup(trap.Close)
	var mu sync.Mutex
	seen := map[string]int{}
	redirects := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.Header.Get("Ce-Id")]++
		mu.Unlock()
		status := map[string]int{"301": 301, "302": 302, "303": 303, "307": 307, "308": 308}[r.Header.Get("Ce-Id")]
		w.Header().Set("Location", trap.URL)
		w.Header().Set("Refresh", "0; url="+trap.URL)
		w.WriteHeader(status)
	}))
	t.Cleanup(redirects.Close)
	const app = "hostile-redirects"
	m.apply(t, bound(app)+strings.Replace(subscription(app, "sink", app, "**", redirects.URL), "spec: {", "spec: {delivery: {retry: {maxAttempts: 2, minBackoff: 50ms, maxBackoff: 50ms}}, ", 1))
	m.waitFor(t, app, "subscription/sink", "Subscribed")
	for _, id := range []string{"301", "302", "303", "307", "308"} {
		publishOne(t, m, app, id)
	}
	eventually(t, time.Minute, func() error {
		dead := m.mustKubectl(t, "", "get", "subscription", "-n", app, "sink", "-o", "jsonpath={.status.deadLettered}")
		if dead != "5" {
			return errorf("%q events are dead letters", dead)
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, map[string]int{"301": 2, "302": 2, "303": 2, "307": 2, "308": 2}, seen, "a redirect is a failure, tried again")
	require.Zero(t, trapped.Load())
}

// callerCode does as it is told: it calls an address, through the proxy that
// lambdas have, or an application, and tells what came of it.
const callerCode = `package caller

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

type order struct {
	Application, Service, Path string // an application's API, or
	Method, URL                string // any address
	Header                     http.Header
}

func Main(ctx context.Context, event *lambda.Event) (any, error) {
	var o order
	if err := json.Unmarshal(event.Body, &o); err != nil {
		return nil, err
	}
	var response *http.Response
	var err error
	if o.Application != "" {
		response, err = lambda.FromContext(ctx).Application(o.Application).Fetch(ctx, o.Service, o.Path, &lambda.FetchOptions{Headers: o.Header})
	} else {
		var request *http.Request
		if request, err = http.NewRequestWithContext(ctx, o.Method, o.URL, nil); err == nil {
			request.Header = o.Header
			client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			response, err = client.Do(request)
		}
	}
	if err != nil {
		return map[string]any{"error": err.Error()}, nil
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return map[string]any{"status": response.StatusCode, "location": response.Header.Get("Location"), "body": string(body)}, nil
}
`

// task is what the caller lambda does.
type task struct {
	Application, Service, Path string
	Method, URL                string
	Header                     http.Header
}

// called is what came of it.
type called struct {
	Status                int
	Location, Body, Error string
}

// A lambda that was taken over reaches what its objects name, and nothing else:
// neither other tenants, nor the mesh's own parts, nor credentials.
func TestHostileLambdas(t *testing.T) {
	m, _ := hostile(t)
	var mu sync.Mutex
	var paths []string
	var header http.Header
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		paths = append(paths, r.URL.Path)
		header = r.Header.Clone()
		if r.URL.Path == "/api/moved" {
			http.Redirect(w, r, m.Kubernetes, http.StatusFound)
		}
	}))
	t.Cleanup(api.Close)
	const namespace = "hostile-lambdas"
	m.apply(t, echo(namespace, "caller", callerCode)+fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: hostile-api, namespace: lambdamesh-system}
stringData: {username: connector, password: the-password}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: Application
metadata: {name: hostile-api}
spec:
  services:
    - {name: bound, api: {targetUrl: "%[1]s/api", auth: {basic: {secret: {name: hostile-api}}}}}
    - {name: unbound, api: {targetUrl: "%[1]s/other", auth: {basic: {secret: {name: hostile-api}}}}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: ApplicationBinding
metadata: {name: hostile-api, namespace: %[2]s}
spec: {application: hostile-api, services: [bound], lambdas: {names: [caller]}}
---
apiVersion: lambdamesh.dev/v1alpha1
kind: APIRule
metadata: {name: caller, namespace: %[2]s}
spec: {hosts: [hostile-caller], rules: [{path: "/*", lambda: caller, noAuth: true}]}
`, api.URL, namespace))
	m.waitFor(t, namespace, "lambda/caller", "Ready")
	m.waitFor(t, namespace, "apirule/caller", "Ready")
	call := func(t *testing.T, o task) (c called) {
		t.Helper()
		body, err := json.Marshal(o)
		require.NoError(t, err)
		resp, err := m.request(t.Context(), http.MethodPost, "hostile-caller.lambdas.localhost", "/", string(body), "Content-Type", "application/json")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.status, resp.body)
		require.NoError(t, json.Unmarshal([]byte(resp.body), &c), resp.body)
		require.NotContains(t, resp.body, "the-password")
		return c
	}
	eventually(t, time.Minute, func() error {
		if c := call(t, task{Application: "hostile-api", Service: "bound", Path: "/ready"}); c.Status != http.StatusOK {
			return errorf("the bound API answers %+v", c)
		}
		return nil
	})
	refused := []int{0, 400, 403, 404, 405, 502, 503} // 0: not even an answer
	for name, c := range map[string]struct {
		task
		want []int
	}{
		"a bound API is called":                     {task{Application: "hostile-api", Service: "bound", Path: "/orders/1"}, []int{200}},
		"one that is not bound is refused":          {task{Application: "hostile-api", Service: "unbound", Path: "/orders/1"}, []int{403}},
		"an application that is not bound":          {task{Application: "commerce", Service: "orders", Path: "/orders/1"}, []int{403}},
		"one that is none":                          {task{Application: "nowhere", Service: "x", Path: "/"}, []int{404}},
		"a path that leads out of the API":          {task{Application: "hostile-api", Service: "bound", Path: "/../other/secret"}, []int{400, 403, 404, 0}},
		"escaped":                                   {task{Application: "hostile-api", Service: "bound", Path: "/%2e%2e/other/secret"}, []int{400, 403, 404, 0}},
		"by an escaped slash":                       {task{Application: "hostile-api", Service: "bound", Path: "/..%2fother/secret"}, []int{400, 403, 404, 0}},
		"by a backslash":                            {task{Application: "hostile-api", Service: "bound", Path: `/..\secret`}, []int{400, 403, 404, 0}},
		"by a parameter":                            {task{Application: "hostile-api", Service: "bound", Path: "/..;/other/secret"}, []int{200, 400, 403, 404, 0}},
		"to another application":                    {task{Application: "hostile-api", Service: "bound", Path: "/../../../commerce/orders/1"}, []int{400, 403, 404, 0}},
		"a service that is a path":                  {task{Application: "hostile-api", Service: "bound/../unbound", Path: "/secret"}, []int{400, 403, 404, 0}},
		"a redirect is the lambda's to follow":      {task{Application: "hostile-api", Service: "bound", Path: "/moved"}, []int{302}},
		"another tenant's lambda":                   {task{Method: "GET", URL: "http://reflect.hostile.svc/"}, []int{403, 404}},
		"it by its whole name":                      {task{Method: "GET", URL: "http://reflect.hostile.svc.cluster.local/"}, []int{403, 404}},
		"the connector in the name of another":      {task{Method: "GET", URL: "http://connector-outbound.lambdamesh-system.svc/commerce/orders/1", Header: http.Header{"X-Forwarded-Client-Cert": {"URI=spiffe://cluster.local/ns/shop/sa/last-order"}}}, []int{403, 404}},
		"the same under its short name":             {task{Method: "GET", URL: "http://connector-outbound/commerce/orders/1", Header: http.Header{"X-Forwarded-Client-Cert": {"URI=spiffe://cluster.local/ns/shop/sa/last-order"}}}, []int{403, 404}},
		"the metadata service through its proxy":    {task{Method: "GET", URL: "http://169.254.169.254/latest"}, refused},
		"the API server through it, without rights": {task{Method: "GET", URL: m.Kubernetes + "/api/v1/secrets"}, []int{0, 401, 403, 404, 502, 503}},
		"a name that is nobody's":                   {task{Method: "GET", URL: "http://nobody.nowhere.svc/"}, refused},
	} {
		t.Run(name, func(t *testing.T) {
			got := call(t, c.task)
			require.Contains(t, c.want, got.Status, "%+v", got)
		})
	}
	t.Run("a lambda's headers are not the connector's", func(t *testing.T) {
		c := call(t, task{Application: "hostile-api", Service: "bound", Path: "/headers", Header: http.Header{
			"Authorization": {forged}, "X-Forwarded-Client-Cert": {forged}, "X-Forwarded-Host": {forged}, "X-Lambdamesh-Rule": {forged}, "Proxy-Authorization": {forged},
		}})
		require.Equal(t, http.StatusOK, c.Status, "%+v", c)
		mu.Lock()
		defer mu.Unlock()
		user, password, _ := (&http.Request{Header: header}).BasicAuth()
		require.Equal(t, "connector the-password", user+" "+password)
		for name, values := range header {
			require.NotContains(t, values, forged, name)
			require.NotContains(t, strings.Join(values, ","), "spiffe://", "%s tells an outsider about the mesh", name)
		}
	})
	mu.Lock()
	defer mu.Unlock()
	for _, path := range paths {
		require.True(t, strings.HasPrefix(path, "/api/"), "the API was asked for %s", path)
	}
}
