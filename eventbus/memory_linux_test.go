package eventbus_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/eventbus/stream"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// The environment of the process whose memory is measured.
const (
	envMeasuredNATS = "LAMBDAMESH_TEST_MEASURED_NATS"
	envMeasuredSink = "LAMBDAMESH_TEST_MEASURED_SINK"
)

const hungSinks = 50

// TestMeasuredBus is a bus as a pod runs it: its NATS is elsewhere. It ends when
// its input does.
func TestMeasuredBus(t *testing.T) {
	url, sink := os.Getenv(envMeasuredNATS), os.Getenv(envMeasuredSink)
	if url == "" {
		t.Skip("runs as a child of TestMemoryStaysBelowThePodsLimitWhileSinksHang only")
	}
	policy, err := targets.New(targets.Config{Allow: []string{"127.0.0.0/8"}})
	require.NoError(t, err)
	bus, err := eventbus.New(eventbus.Config{
		Stream: stream.Config{URL: url}, OpenListener: listen(t), Targets: policy,
		DrainTimeout: time.Second, Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	run(t, component.NewGroup("test", component.GroupConfig{}, bus))
	names := []string{"healthy"}
	for i := range hungSinks {
		names = append(names, fmt.Sprint("hung", i))
	}
	for _, name := range names {
		sub := subscription(name, sink+"/"+name)
		// All in one namespace, the worst for the one that is healthy.
		sub.MaxInFlight, sub.Timeout, sub.Start = 100, 30*time.Second, event.Start{Earliest: true}
		require.NoError(t, bus.Dispatcher().Set(t.Context(), sub))
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// podLimits are the memory limit and GOMEMLIMIT of the manifest.
func podLimits(t *testing.T) (limit int64, goMemLimit string) {
	t.Helper()
	manifest, err := os.ReadFile("../manifests/base/eventbus.yaml")
	require.NoError(t, err)
	found := regexp.MustCompile(`limits: \{memory: (\w+)\}`).FindSubmatch(manifest)
	require.NotNil(t, found)
	quantity, err := resource.ParseQuantity(string(found[1]))
	require.NoError(t, err)
	env := regexp.MustCompile(`name: GOMEMLIMIT\n\s+value: (\w+)`).FindSubmatch(manifest)
	require.NotNil(t, env)
	return quantity.Value(), string(env[1])
}

func TestMemoryStaysBelowThePodsLimitWhileSinksHang(t *testing.T) {
	limit, goMemLimit := podLimits(t)
	const large = 24 // events of 1 MiB for every sink: more than twice the limit
	server, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	run(t, server)
	store, err := stream.New(stream.Config{URL: server.URL()})
	require.NoError(t, err)
	run(t, store)
	publishing := func(id string, size int) {
		_, err := store.Publish(t.Context(), []event.Event{{ID: id, Source: "commerce", Type: "t", Data: make([]byte, size)}})
		require.NoError(t, err)
	}
	for i := range large {
		publishing(fmt.Sprint("large-", i), event.MaxEventBytes)
	}

	var mu sync.Mutex
	hung := map[string]bool{}
	healthy := make(chan string, 1000)
	release := make(chan struct{})
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthy" {
			healthy <- r.Header.Get("Ce-Id")
			return
		}
		mu.Lock()
		hung[r.URL.Path] = true
		mu.Unlock()
		select { // the body is not even read
		case <-r.Context().Done():
		case <-release:
		}
	}))
	t.Cleanup(sink.Close)
	t.Cleanup(func() { close(release) })

	ctx, cancel := context.WithCancel(t.Context())
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMeasuredBus$", "-test.timeout=5m")
	child.Env = append(os.Environ(), "GOMEMLIMIT="+goMemLimit, envMeasuredNATS+"="+server.URL(), envMeasuredSink+"="+sink.URL)
	var output strings.Builder
	child.Stdout, child.Stderr = &output, &output
	_, err = child.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	t.Cleanup(func() { cancel(); _ = child.Wait() })

	arrives := func(want string) {
		t.Helper()
		for deadline := time.After(90 * time.Second); ; {
			select {
			case id := <-healthy:
				if id == want {
					return
				}
			case <-deadline:
				t.Fatalf("%s did not arrive at the healthy sink\n%s", want, output.String())
			}
		}
	}
	arrives(fmt.Sprint("large-", large-1))
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(hung) == hungSinks
	}, 90*time.Second, 20*time.Millisecond, "every sink got an event and hangs on it")
	for i := range 200 {
		publishing(fmt.Sprint("small-", i), 1000)
		arrives(fmt.Sprint("small-", i))
	}
	publishing("last", event.MaxEventBytes)
	arrives("last")

	peak := peakMemory(t, child.Process.Pid)
	t.Logf("peak memory %d MiB, the pod's limit is %d MiB", peak>>20, limit>>20)
	require.Less(t, peak, limit)
	require.Greater(t, peak, limit/8, "the right process was measured")
}

// peakMemory is the highest resident set of a process so far.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, found)
	kib, err := strconv.ParseInt(string(found[1]), 10, 64)
	require.NoError(t, err)
	return kib << 10
}
