package runtimes_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
)

// holding are handlers that answer when a file is there, with how many of them
// run.
func holding() map[v1alpha1.Runtime]string {
	return map[v1alpha1.Runtime]string{
		v1alpha1.RuntimeNodeJS: `import { existsSync } from 'node:fs';
let running = 0;
export async function main() {
  const now = ++running;
  while (!existsSync(process.env.GO)) await new Promise((resolve) => setTimeout(resolve, 5));
  running--;
  return String(now);
}
`,
		v1alpha1.RuntimePython: `import os, threading, time

lock, running = threading.Lock(), 0


def main(event, context):
    global running
    with lock:
        running += 1
        now = running
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.005)
    with lock:
        running -= 1
    return str(now)
`,
		v1alpha1.RuntimeGo: `package p

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
)

var running atomic.Int64

func Main(ctx context.Context, event *lambda.Event) (any, error) {
	now := running.Add(1)
	defer running.Add(-1)
	for {
		if _, err := os.Stat(os.Getenv("GO")); err == nil {
			return fmt.Sprint(now), nil
		}
		<-time.After(5 * time.Millisecond)
	}
}
`,
	}
}

func TestConcurrencyIsBoundedAndSoIsTheQueue(t *testing.T) {
	pipeline := newPipeline(t)
	for runtime, code := range holding() {
		t.Run(string(runtime), func(t *testing.T) {
			t.Parallel()
			release := filepath.Join(t.TempDir(), "go")
			server := startHandler(t, pipeline, runtime, "", code, newFakeMesh(t), v1alpha1.EnvConcurrency+"=1", v1alpha1.EnvTimeout+"=5m", "GO="+release)
			type answer struct {
				status     int
				retryAfter string
				body       string
			}
			const fits = 1 + 10
			answers := make(chan answer, fits+3)
			for range fits + 3 {
				go func() {
					request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://lambda/", nil)
					if err != nil {
						return
					}
					response, err := server.client.Do(request)
					if err != nil {
						answers <- answer{body: err.Error()}
						return
					}
					defer response.Body.Close()
					body, _ := io.ReadAll(response.Body)
					answers <- answer{response.StatusCode, response.Header.Get("Retry-After"), string(body)}
				}()
			}
			for range 3 { // those beyond one that runs and ten that wait
				got := <-answers
				require.Equal(t, http.StatusServiceUnavailable, got.status, got.body)
				require.Equal(t, "1", got.retryAfter)
				require.Contains(t, got.body, "as many invocations wait here as may")
			}
			require.NoError(t, os.WriteFile(release, nil, 0o600))
			for range fits {
				got := <-answers
				require.Equal(t, http.StatusOK, got.status, got.body)
				require.Equal(t, "1", got.body, "one runs at a time")
			}
		})
	}
}
