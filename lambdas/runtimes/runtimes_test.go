package runtimes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestMain(m *testing.M) {
	process.WatcherMain()
	os.Exit(m.Run())
}

// languages maps a runtime to the file with its lambda of the table.
func languages() map[v1alpha1.Runtime]string {
	return map[v1alpha1.Runtime]string{v1alpha1.RuntimeGo: "lambda.go", v1alpha1.RuntimeNodeJS: "lambda.mjs", v1alpha1.RuntimePython: "lambda.py"}
}

const structured = "application/cloudevents+json"

// request and answer of one row; the same for every language.
type behavior struct {
	from               string // the caller's identity, as the sidecar tells it
	method, path, body string
	header             map[string]string
	status             int
	contentType        string
	want               string // JSON when it begins with {, else the exact body
	wantHeader         map[string]string
}

func behaviors() map[string]behavior {
	return map[string]behavior{
		"a value is answered as JSON":              {path: "/value", status: 200, contentType: "application/json", want: `{"greeting":"grüezi","lambda":"sample","namespace":"shop"}`},
		"a string is answered as text":             {path: "/text", status: 200, contentType: "text/plain; charset=utf-8", want: "grüezi"},
		"bytes are answered as they are":           {path: "/bytes", status: 200, contentType: "application/octet-stream", want: "\x00\x01\x02"},
		"nothing is 204":                           {path: "/nothing", status: 204},
		"a response is answered as it says":        {path: "/response", status: 418, contentType: "application/json", want: `{"short":"stout"}`, wantHeader: map[string]string{"X-Teapot": "yes"}},
		"a value with a textual status is a value": {path: "/status-value", status: 200, contentType: "application/json", want: `{"status":"fine"}`},
		"a path that climbs out is refused":        {path: "/climb", status: 200, contentType: "application/json", want: `{"refused":true}`},
		"a plain request is no event": {
			method: "PUT", path: "/some%20where?q=1", header: map[string]string{"Content-Type": "application/json", "X-Thing": "t"}, body: `{"a":[1,2]}`, status: 200, contentType: "application/json",
			want: `{"isEvent":false,"type":"","source":"","id":"","subject":"","extensions":{},"data":{"a":[1,2]},"method":"PUT","path":"/some where","q":"1","header":"t","size":11}`,
		},
		"a text body is text": {
			path: "/", method: "POST", header: map[string]string{"Content-Type": "text/plain"}, body: "hallo", status: 200, contentType: "application/json",
			want: `{"isEvent":false,"type":"","source":"","id":"","subject":"","extensions":{},"data":"hallo","method":"POST","path":"/","q":"","header":"","size":5}`,
		},
		"any other body is bytes": {
			path: "/", method: "POST", header: map[string]string{"Content-Type": "application/pdf"}, body: "%PDF", status: 200, contentType: "application/json",
			want: `{"isEvent":false,"type":"","source":"","id":"","subject":"","extensions":{},"data":"bytes:4","method":"POST","path":"/","q":"","header":"","size":4}`,
		},
		"a binary CloudEvent": {
			from: eventBus, path: "/", method: "POST", body: `{"orderCode":"4711"}`, status: 200, contentType: "application/json",
			header: map[string]string{
				"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Type": "order.created.v1", "Ce-Source": "commerce", "Ce-Id": "1", "Ce-Subject": "gr%C3%BCezi", "Ce-Region": "zh",
			},
			want: `{"isEvent":true,"type":"order.created.v1","source":"commerce","id":"1","subject":"grüezi","extensions":{"region":"zh"},"data":{"orderCode":"4711"},"method":"POST","path":"/","q":"","header":"","size":20}`,
		},
		"a structured CloudEvent": {
			from: eventBus, path: "/", method: "POST", header: map[string]string{"Content-Type": structured + "; charset=utf-8"}, status: 200, contentType: "application/json",
			body: `{"specversion":"1.0","type":"t","source":"/s","id":"2","region":"zh","data":{"n":1.5}}`,
			want: `{"isEvent":true,"type":"t","source":"/s","id":"2","subject":"","extensions":{"region":"zh"},"data":{"n":1.5},"method":"POST","path":"/","q":"","header":"","size":86}`,
		},
		"a structured CloudEvent with binary data": {
			from: eventBus, path: "/", method: "POST", header: map[string]string{"Content-Type": structured}, status: 200, contentType: "application/json",
			body: `{"specversion":"1.0","type":"t","source":"/s","id":"2","datacontenttype":"image/png","data_base64":"AAEC"}`,
			want: `{"isEvent":true,"type":"t","source":"/s","id":"2","subject":"","extensions":{},"data":"bytes:3","method":"POST","path":"/","q":"","header":"","size":106}`,
		},
		"a legacy event": {
			from: eventBus, path: "/", method: "POST", body: `{"orderCode":"4711"}`, status: 200, contentType: "application/json",
			header: map[string]string{"Content-Type": "application/json", "KYMA-Event-Type": "order.created", "KYMA-Event-Type-Version": "v1", "KYMA-Source-ID": "commerce", "KYMA-Event-ID": "3"},
			want:   `{"isEvent":true,"type":"order.created.v1","source":"commerce","id":"3","subject":"","extensions":{},"data":{"orderCode":"4711"},"method":"POST","path":"/","q":"","header":"","size":20}`,
		},
		"a body that is not the JSON it says is 400": {path: "/", method: "POST", header: map[string]string{"Content-Type": "application/json"}, body: `{`, status: 400, contentType: "application/problem+json"},
		"a body nested without end is 400": {
			path: "/", method: "POST", header: map[string]string{"Content-Type": "application/json"}, body: strings.Repeat("[", 4000), status: 400, contentType: "application/problem+json",
		},
		"a structured event nested without end is 400": {
			from: eventBus, path: "/", method: "POST", header: map[string]string{"Content-Type": structured}, body: strings.Repeat(`{"a":`, 800), status: 400, contentType: "application/problem+json",
		},
		"data nested without end in an event is 400": {
			from: eventBus, path: "/", method: "POST", header: map[string]string{"Content-Type": structured}, status: 400, contentType: "application/problem+json",
			body: `{"specversion":"1.0","type":"t","source":"/s","id":"2","data":` + strings.Repeat("[", 3500),
		},
		"a broken structured event is 400":  {from: eventBus, path: "/", method: "POST", header: map[string]string{"Content-Type": structured}, body: `{"type":"t"}`, status: 400, contentType: "application/problem+json"},
		"a batch from the event bus is 415": {from: eventBus, path: "/", method: "POST", header: map[string]string{"Content-Type": "application/cloudevents-batch+json"}, body: `[]`, status: 415, contentType: "application/problem+json"},
		"a body over the limit is 413":      {path: "/", method: "POST", body: strings.Repeat("x", 5000), status: 413, contentType: "application/problem+json"},
	}
}

func TestEveryLanguageBehavesAlike(t *testing.T) {
	pipeline := newPipeline(t)
	for runtime, file := range languages() {
		t.Run(string(runtime), func(t *testing.T) {
			t.Parallel()
			source, err := os.ReadFile(filepath.Join("testdata", file))
			require.NoError(t, err)
			mesh := newFakeMesh(t)
			server := start(t, pipeline, runtime, string(source), mesh)

			for name, row := range behaviors() {
				t.Run(name, func(t *testing.T) { server.check(t, row) })
			}
			t.Run("who calls", func(t *testing.T) { server.checkCallers(t) })
			t.Run("a chunked body over the limit is 413", func(t *testing.T) {
				response, err := server.client.Post("http://lambda/", "text/plain", io.MultiReader(strings.NewReader(strings.Repeat("x", 5000))))
				require.NoError(t, err)
				defer response.Body.Close()
				require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode)
			})
			t.Run("a body far over the limit is 413 every time", func(t *testing.T) {
				for range 40 {
					for name, body := range map[string]io.Reader{
						"with its length": strings.NewReader(strings.Repeat("x", 2<<20)), "chunked": io.MultiReader(strings.NewReader(strings.Repeat("x", 2<<20))),
					} {
						response, err := server.client.Post("http://lambda/", "text/plain", body)
						require.NoError(t, err, name)
						require.Equal(t, http.StatusRequestEntityTooLarge, response.StatusCode, name)
						require.Contains(t, readAll(t, response), "over the limit of 4096 bytes")
					}
				}
			})
			t.Run("a chunked body is read", func(t *testing.T) {
				response, err := server.client.Post("http://lambda/", "text/plain", io.MultiReader(strings.NewReader("hallo")))
				require.NoError(t, err)
				body := readAll(t, response)
				require.Contains(t, body, `"data":"hallo"`)
			})
			t.Run("a thrown error is 500 without its text, and logged with its invocation", func(t *testing.T) {
				response := server.get(t, "/throw", map[string]string{"X-Request-Id": "inv-1"})
				body := readAll(t, response)
				require.Equal(t, 500, response.StatusCode)
				require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
				require.NotContains(t, body, "secret detail")
				require.Contains(t, body, "inv-1")
				line := server.logged(t, "inv-1", "error")
				require.Contains(t, line["error"], "secret detail")
				require.Equal(t, "sample", line["lambda"])
			})
			t.Run("an invocation over its time is 504", func(t *testing.T) {
				response := server.get(t, "/slow", nil)
				require.Equal(t, 504, response.StatusCode, readAll(t, response))
			})
			t.Run("a returned event is published with the trace", func(t *testing.T) {
				response := server.get(t, "/event", map[string]string{"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
				require.Equal(t, 202, response.StatusCode, readAll(t, response))
				seen := mesh.last(t)
				require.Equal(t, "POST http://eventbus.lambdamesh-system.svc/publish", seen.line)
				require.Equal(t, structured, seen.header.Get("Content-Type"))
				require.Contains(t, seen.header.Get("Traceparent"), "0af7651916cd43dd8448eb211c80319c")
				var event map[string]any
				require.NoError(t, json.Unmarshal(seen.body, &event))
				require.Equal(t, "order.seen", event["type"])
				require.Equal(t, "/shop/sample", event["source"])
				require.Equal(t, "4711", event["subject"])
				require.Equal(t, "zh", event["region"])
				require.Equal(t, map[string]any{"ok": true}, event["data"])
				require.NotEmpty(t, event["id"])
				require.Contains(t, event["traceparent"], "0af7651916cd43dd8448eb211c80319c")
			})
			t.Run("publish answers the id", func(t *testing.T) {
				response := server.get(t, "/publish", nil)
				require.JSONEq(t, `{"id":"given"}`, readAll(t, response))
			})
			t.Run("an event the bus refuses is 500, so that it is sent again", func(t *testing.T) {
				mesh.answer(503)
				defer mesh.answer(202)
				response := server.get(t, "/event", nil)
				require.Equal(t, 500, response.StatusCode, readAll(t, response))
			})
			t.Run("an application is called through the connector", func(t *testing.T) {
				response := server.get(t, "/fetch", nil)
				require.JSONEq(t, `{"status":202,"body":"{\"events\":[]}"}`, readAll(t, response))
				seen := mesh.last(t)
				require.Equal(t, "PUT http://connector-outbound.lambdamesh-system.svc/commerce/orders/orders/4711?full=yes", seen.line)
				require.Equal(t, "1", seen.header.Get("X-Extra"))
				require.Equal(t, "application/json", seen.header.Get("Content-Type"))
				require.JSONEq(t, `{"a":1}`, string(seen.body))
			})
			t.Run("the logger writes JSON lines with the invocation", func(t *testing.T) {
				server.get(t, "/log", map[string]string{"X-Request-Id": "inv-2"}).Body.Close()
				line := server.logged(t, "inv-2", "info")
				require.Equal(t, "hello from the lambda", line["message"])
				require.InDelta(t, 42, line["answer"], 0)
				require.Equal(t, "shop", line["namespace"])
			})
			t.Run("invocations run at the same time", func(t *testing.T) {
				begin := time.Now()
				var group sync.WaitGroup
				for range 30 {
					group.Go(func() { server.get(t, "/wait", nil).Body.Close() })
				}
				group.Wait()
				require.Less(t, time.Since(begin), 14*time.Second, "one after the other it were 15 s")
			})
			t.Run("metrics and health", func(t *testing.T) {
				// An invocation is counted after its answer was sent.
				testkit.Eventually(t, time.Minute, func() error {
					text := readAll(t, server.admin(t, "/metrics"))
					for _, want := range []string{
						`lambdamesh_lambda_invocations_total{namespace="shop",lambda="sample",status="418"} 1`,
						`lambdamesh_lambda_errors_total{namespace="shop",lambda="sample"} 3`,
						`lambdamesh_lambda_duration_seconds_bucket{namespace="shop",lambda="sample",le="0.0025"}`,
						`lambdamesh_lambda_invocations_in_flight{namespace="shop",lambda="sample"} 0`,
					} {
						if !strings.Contains(text, want) {
							return fmt.Errorf("%q is not in\n%s", want, text)
						}
					}
					return nil
				}, "every invocation is counted")
				require.Equal(t, 200, server.admin(t, "/healthz").StatusCode)
				require.Equal(t, 200, server.admin(t, "/readyz").StatusCode)
			})
			t.Run("SIGTERM lets what runs finish and exits 0", func(t *testing.T) {
				result := make(chan error, 1)
				go func() {
					response, err := server.client.Get("http://lambda/wait")
					if err == nil {
						defer response.Body.Close()
						var body []byte
						if body, err = io.ReadAll(response.Body); err == nil && string(body) != "waited" {
							err = fmt.Errorf("answered %q", body)
						}
					}
					result <- err
				}()
				testkit.Eventually(t, time.Minute, func() error {
					if text := readAll(t, server.admin(t, "/metrics")); !strings.Contains(text, `in_flight{namespace="shop",lambda="sample"} 1`) {
						return errors.New("not in flight yet")
					}
					return nil
				}, "the invocation starts")
				require.NoError(t, server.process.Stop(t.Context()))
				require.NoError(t, <-result)
				require.NoError(t, server.process.Err())
			})
		})
	}
}

func TestHandlersInOtherIdioms(t *testing.T) {
	pipeline := newPipeline(t)
	tests := map[string]struct {
		runtime      v1alpha1.Runtime
		handler      string
		source, want string
	}{
		"go: a plain HTTP handler in package main under another name": {
			v1alpha1.RuntimeGo, "lastOrder",
			"package main\n\nimport \"net/http\"\n\nfunc LastOrder(w http.ResponseWriter, r *http.Request) { w.Header().Set(\"X-Path\", r.URL.Path); w.Write([]byte(\"plain\")) }\n", "plain",
		},
		"nodejs: CommonJS":               {v1alpha1.RuntimeNodeJS, "", "const os = require('os');\nexports.main = () => typeof os.arch();\n", "string"},
		"nodejs: module.exports":         {v1alpha1.RuntimeNodeJS, "", "module.exports = function () { return 'default'; };\n", "default"},
		"nodejs: a web Response":         {v1alpha1.RuntimeNodeJS, "run", "export const run = async () => new Response('web');\n", "web"},
		"nodejs: export only in comment": {v1alpha1.RuntimeNodeJS, "", "/*\nexport default nothing\n*/\nexports.main = () => require('path').sep;\n", "/"},
		"python: async def":              {v1alpha1.RuntimePython, "", "import asyncio\n\nasync def main(event, context):\n    await asyncio.sleep(0)\n    return 'async'\n", "async"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := startHandler(t, pipeline, test.runtime, test.handler, test.source, newFakeMesh(t))
			response := server.get(t, "/x", nil)
			require.Equal(t, test.want, readAll(t, response))
			require.Equal(t, 200, response.StatusCode)
		})
	}
}

// In a pod the servers listen on ports of every address.
func TestServersListenOnPorts(t *testing.T) {
	pipeline := newPipeline(t)
	for runtime, source := range map[v1alpha1.Runtime]string{
		v1alpha1.RuntimeGo:     "package p\n\nimport \"net/http\"\n\nfunc Main(w http.ResponseWriter, r *http.Request) { w.Write([]byte(\"hi\")) }\n",
		v1alpha1.RuntimeNodeJS: "exports.main = () => 'hi';\n",
		v1alpha1.RuntimePython: "def main(event, context):\n    return 'hi'\n",
	} {
		t.Run(string(runtime), func(t *testing.T) {
			command := buildCommand(t, pipeline, runtime, "", source)
			app, admin := freePort(t), freePort(t)
			child, err := process.Start(t.Context(), process.Spec{
				Path: command.Path, Args: command.Args, Dir: t.TempDir(), Stderr: t.Output(),
				Env: []string{v1alpha1.EnvListen + "=tcp::" + app, v1alpha1.EnvAdminListen + "=tcp:127.0.0.1:" + admin, v1alpha1.EnvSource + "=" + command.SourceDir, "PATH=" + os.Getenv("PATH")},
			})
			require.NoError(t, err)
			t.Cleanup(func() { _ = child.Stop(context.Background()) })
			client := &http.Client{Timeout: time.Minute}
			testkit.Eventually(t, time.Minute, func() error {
				response, err := client.Get("http://127.0.0.1:" + admin + "/readyz")
				if err != nil {
					return err
				}
				defer response.Body.Close()
				if response.StatusCode != http.StatusOK {
					return errors.New(response.Status)
				}
				return nil
			}, "the server is ready")
			response, err := client.Get("http://127.0.0.1:" + app + "/")
			require.NoError(t, err)
			require.Equal(t, "hi", readAll(t, response))
		})
	}
}

func TestAHandlerThatDoesNotBehaveIsAnsweredForAndTheNextCallWorks(t *testing.T) {
	pipeline := newPipeline(t)
	for name, test := range map[string]struct {
		runtime v1alpha1.Runtime
		source  string
		status  int
	}{
		"python: exit in an async def is 500":         {v1alpha1.RuntimePython, "import sys\n\nasync def main(event, context):\n    if event.path == '/': sys.exit(3)\n    return 'ok'\n", 500},
		"python: a header that cannot be sent is 500": {v1alpha1.RuntimePython, "def main(event, context):\n    return 'ok' if event.path != '/' else {'status': 200, 'headers': {'x': 'a\\r\\nb'}}\n", 500},
		"nodejs: a handler that holds the thread beyond its time is 504": {
			v1alpha1.RuntimeNodeJS,
			"export function main(event) {\n  const end = Date.now() + (event.path === '/' ? 2500 : 0);\n  while (Date.now() < end);\n  return 'ok';\n}\n", 504,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t, pipeline, test.runtime, test.source, newFakeMesh(t))
			response := server.get(t, "/", nil)
			require.Equal(t, test.status, response.StatusCode, readAll(t, response))
			require.Equal(t, "ok", readAll(t, server.get(t, "/again", nil)))
		})
	}
}

// A target that is no URL goes wrong before there is a handler to call.
func TestWhatGoesWrongAroundAHandlerIsAnsweredAndLogged(t *testing.T) {
	server := start(t, newPipeline(t), v1alpha1.RuntimePython, "def main(event, context):\n    return 'ok'\n", newFakeMesh(t))
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://lambda/", http.NoBody)
	require.NoError(t, err)
	request.URL.Opaque = "http://[/"
	request.Header.Set("X-Request-Id", "around")
	response, err := server.client.Do(request)
	require.NoError(t, err)
	require.Equal(t, http.StatusInternalServerError, response.StatusCode)
	require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"))
	require.Contains(t, readAll(t, response), "around")
	require.Equal(t, "invocation failed", server.logged(t, "around", "error")["message"])
	require.Equal(t, "ok", readAll(t, server.get(t, "/", nil)))
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	require.NoError(t, err)
	return port
}

func newPipeline(t *testing.T) *build.Pipeline {
	t.Helper()
	toolchain, err := build.NewToolchain(build.ToolchainConfig{Dir: t.TempDir()})
	require.NoError(t, err)
	return &build.Pipeline{Toolchain: toolchain, Store: build.Directory{Toolchain: toolchain}}
}

type runningLambda struct {
	client, adminClient *http.Client
	process             *process.Process

	mu    sync.Mutex
	lines []string
}

func start(t *testing.T, pipeline *build.Pipeline, runtime v1alpha1.Runtime, source string, mesh *fakeMesh) *runningLambda {
	t.Helper()
	return startHandler(t, pipeline, runtime, "", source, mesh)
}

func startHandler(t *testing.T, pipeline *build.Pipeline, runtime v1alpha1.Runtime, handler, source string, mesh *fakeMesh, more ...string) *runningLambda {
	t.Helper()
	command := buildCommand(t, pipeline, runtime, handler, source)

	dir := testkit.TempSocketDir(t)
	app, admin := filepath.Join(dir, "app"), filepath.Join(dir, "admin")
	env := []string{
		v1alpha1.EnvListen + "=unix:" + app, v1alpha1.EnvAdminListen + "=unix:" + admin,
		v1alpha1.EnvLambda + "=sample", v1alpha1.EnvNamespace + "=shop", v1alpha1.EnvSource + "=" + command.SourceDir,
		v1alpha1.EnvTimeout + "=2s", v1alpha1.EnvMaxBodyBytes + "=4096",
		v1alpha1.EnvPublishURL + "=http://eventbus.lambdamesh-system.svc/publish",
		v1alpha1.EnvConnectorURL + "=http://connector-outbound.lambdamesh-system.svc",
		v1alpha1.EnvHTTPProxy + "=" + mesh.server.URL, "PATH=" + os.Getenv("PATH"),
		v1alpha1.EnvSidecar + "=test",
	}
	if handler != "" {
		env = append(env, v1alpha1.EnvHandler+"="+handler)
	}
	env = append(more, env...) // the first of a name counts
	running := &runningLambda{client: unixClient(app), adminClient: unixClient(admin)}
	var err error
	running.process, err = process.Start(t.Context(), process.Spec{
		Name: string(runtime), Path: command.Path, Args: command.Args, Env: env, Dir: dir,
		Stdout: process.LineFunc(func(line []byte) {
			running.mu.Lock()
			defer running.mu.Unlock()
			running.lines = append(running.lines, string(line))
		}),
		Stderr: t.Output(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = running.process.Stop(context.Background()) })
	testkit.Eventually(t, time.Minute, func() error {
		select {
		case <-running.process.Done():
			t.Fatalf("the server ended: %v", running.process.Err())
		default:
		}
		response, err := running.adminClient.Get("http://admin/readyz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	}, "the server is ready")
	return running
}

func buildCommand(t *testing.T, pipeline *build.Pipeline, runtime v1alpha1.Runtime, handler, code string) build.Command {
	t.Helper()
	lambda := &v1alpha1.Lambda{}
	lambda.Name, lambda.Namespace = "sample", "shop"
	lambda.Spec.Runtime, lambda.Spec.Handler = runtime, handler
	lambda.Spec.Source.Inline = &v1alpha1.InlineSource{Code: code}
	artifact, err := pipeline.Build(t.Context(), lambda)
	if source.ReasonOf(err) == source.ReasonRuntimeMissing && err != nil {
		t.Skipf("NOT TESTED on this machine: %v", err)
	}
	require.NoError(t, err)
	command, err := build.Directory{Toolchain: pipeline.Toolchain}.Command(t.Context(), artifact.Image)
	require.NoError(t, err)
	return command
}

func (r *runningLambda) check(t *testing.T, row behavior) {
	t.Helper()
	method := row.method
	if method == "" {
		method = http.MethodGet
	}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://lambda"+row.path, bytes.NewReader([]byte(row.body)))
	require.NoError(t, err)
	for name, value := range row.header {
		request.Header.Set(name, value)
	}
	if row.from != "" {
		request.Header.Set(clientCert, certOf(row.from))
	}
	response, err := r.client.Do(request)
	require.NoError(t, err)
	body := readAll(t, response)
	require.Equal(t, row.status, response.StatusCode, body)
	require.Equal(t, row.contentType, response.Header.Get("Content-Type"))
	for name, value := range row.wantHeader {
		require.Equal(t, value, response.Header.Get(name))
	}
	switch {
	case strings.HasPrefix(row.want, "{"):
		require.JSONEq(t, row.want, body)
	case row.want != "":
		require.Equal(t, row.want, body)
	}
}

func (r *runningLambda) get(t *testing.T, path string, header map[string]string) *http.Response {
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://lambda"+path, nil)
	require.NoError(t, err)
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := r.client.Do(request)
	require.NoError(t, err)
	return response
}

func (r *runningLambda) admin(t *testing.T, path string) *http.Response {
	response, err := r.adminClient.Get("http://admin" + path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

// logged returns the first log line of the invocation at the level.
func (r *runningLambda) logged(t *testing.T, invocation, level string) map[string]any {
	t.Helper()
	var found map[string]any
	testkit.Eventually(t, time.Minute, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, text := range r.lines {
			var line map[string]any
			if err := json.Unmarshal([]byte(text), &line); err != nil {
				return fmt.Errorf("a line that is not JSON: %s", text)
			}
			if line["invocation"] == invocation && line["level"] == level {
				found = line
				return nil
			}
		}
		return fmt.Errorf("no line of %s in %q", invocation, r.lines)
	}, "the line is logged")
	return found
}

func unixClient(path string) *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
}

func readAll(t *testing.T, response *http.Response) string {
	t.Helper()
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(body)
}

// fakeMesh is the egress listener of a sidecar: an HTTP proxy that notes what
// it is asked.
type fakeMesh struct {
	server *httptest.Server

	mu     sync.Mutex
	status int
	seen   []seenRequest
}

type seenRequest struct {
	line   string
	header http.Header
	body   []byte
}

func newFakeMesh(t *testing.T) *fakeMesh {
	t.Helper()
	mesh := &fakeMesh{status: http.StatusAccepted}
	mesh.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mesh.mu.Lock()
		defer mesh.mu.Unlock()
		mesh.seen = append(mesh.seen, seenRequest{r.Method + " " + r.RequestURI, r.Header, body})
		w.WriteHeader(mesh.status)
		_, _ = io.WriteString(w, `{"events":[]}`)
	}))
	t.Cleanup(mesh.server.Close)
	return mesh
}

func (m *fakeMesh) answer(status int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status = status
}

func (m *fakeMesh) last(t *testing.T) seenRequest {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	require.NotEmpty(t, m.seen)
	return m.seen[len(m.seen)-1]
}
