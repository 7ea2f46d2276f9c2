package runtimes_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// hanging are handlers that never end, and how many of their calls it takes
// until the server can do no more. Their time is 2 s.
func hanging() map[string]struct {
	runtime v1alpha1.Runtime
	source  string
	calls   int
	trouble string
} {
	type row = struct {
		runtime v1alpha1.Runtime
		source  string
		calls   int
		trouble string
	}
	const python = "import threading, time, re\n\n%s main(event, context):\n    if event.path == '/hang':\n        %s\n    return 'ok'\n"
	return map[string]row{
		"nodejs: a loop": {v1alpha1.RuntimeNodeJS, "exports.main = (event) => { if (event.path === '/hang') while (true); return 'ok'; };\n", 1, "blocked the event loop"},
		"nodejs: a loop after its promise has timed out": {
			v1alpha1.RuntimeNodeJS, "exports.main = async (event) => {\n  if (event.path === '/hang') { await new Promise((resolve) => setTimeout(resolve, 2500)); while (true); }\n  return 'ok';\n};\n", 1, "blocked the event loop",
		},
		"python: a coroutine that waits in the wrong way":          {v1alpha1.RuntimePython, fmt.Sprintf(python, "async def", "threading.Event().wait()"), 1, "blocked the interpreter or the event loop"},
		"python: what never gives the interpreter's lock back":     {v1alpha1.RuntimePython, fmt.Sprintf(python, "def", "re.match('(a*)*b', 'a' * 64)"), 1, "blocked the interpreter or the event loop"},
		"python: as many waiting handlers as there are threads":    {v1alpha1.RuntimePython, fmt.Sprintf(python, "def", "threading.Event().wait()"), 256, "every thread has been running a handler beyond its time"},
		"go: as many handlers that do not look at their deadlines": {v1alpha1.RuntimeGo, "package p\n\nimport (\n\t\"net/http\"\n)\n\nfunc Main(w http.ResponseWriter, r *http.Request) {\n\tif r.URL.Path == \"/hang\" {\n\t\tselect {}\n\t}\n\tw.Write([]byte(\"ok\"))\n}\n", 256, "256 handlers have been running beyond their time"},
	}
}

// What a supervisor acts on: /healthz stays 200 while a handler may still be
// busy, tells then what is wrong, and answers all the while.
func TestAServerWhoseHandlersNeverEndSaysSo(t *testing.T) {
	pipeline := newPipeline(t)
	for name, test := range hanging() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t, pipeline, test.runtime, test.source, newFakeMesh(t))
			begin := time.Now()
			for range test.calls {
				go server.abandon(t.Context(), "/hang")
			}
			testkit.Eventually(t, 2*time.Minute, func() error {
				response := server.admin(t, "/healthz")
				text := readAll(t, response)
				if response.StatusCode != http.StatusServiceUnavailable {
					return errors.New(response.Status + " " + text)
				}
				if !strings.Contains(text, test.trouble) {
					t.Errorf("%q does not tell %q", text, test.trouble)
				}
				return nil
			}, "the server says that it is of no use any more")
			require.Greater(t, time.Since(begin), 2*time.Second, "a handler may take its time")
			require.Less(t, readStatus(t, server, "/readyz"), 500, "it is not for readiness to tell")
		})
	}
}

func readStatus(t *testing.T, server *runningLambda, path string) int {
	t.Helper()
	return server.admin(t, path).StatusCode
}

// abandon calls and does not wait for an answer that may never come.
func (r *runningLambda) abandon(ctx context.Context, path string) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lambda"+path, http.NoBody)
	if err != nil {
		return
	}
	if response, err := r.client.Do(request); err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
	}
}

// Handlers that compute for nearly all of their time, one after the other on
// the one thread there is: busy, and not to be replaced.
func TestABusyServerIsNotTakenForAHungOne(t *testing.T) {
	pipeline := newPipeline(t)
	for name, test := range map[string]struct {
		runtime v1alpha1.Runtime
		source  string
	}{
		"nodejs":                       {v1alpha1.RuntimeNodeJS, "exports.main = () => { const end = Date.now() + 1500; while (Date.now() < end); return 'ok'; };\n"},
		"python, a coroutine":          {v1alpha1.RuntimePython, "import time\n\nasync def main(event, context):\n    time.sleep(1.5)\n    return 'ok'\n"},
		"python, holding the one lock": {v1alpha1.RuntimePython, "import re\n\ndef main(event, context):\n    re.match('(a*)*b', 'a' * 23)\n    return 'ok'\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t, pipeline, test.runtime, test.source, newFakeMesh(t))
			ctx, cancel := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			for range 10 {
				clients.Go(func() { server.abandon(ctx, "/") })
			}
			finished := make(chan struct{})
			go func() { clients.Wait(); close(finished) }()
			for probing := true; probing; {
				require.Equal(t, http.StatusOK, readStatus(t, server, "/healthz"))
				select {
				case <-finished:
					probing = false
				case <-time.After(100 * time.Millisecond):
				}
			}
			cancel()
			require.Equal(t, http.StatusOK, readStatus(t, server, "/healthz"))
		})
	}
}
