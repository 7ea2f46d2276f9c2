package eventbus_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

// The environment of the process whose memory is measured.
const (
	envMeasuredNATS = "LAMBDAMESH_TEST_MEASURED_NATS"
	envMeasuredSink = "LAMBDAMESH_TEST_MEASURED_SINK"
	envMeasuredFile = "LAMBDAMESH_TEST_MEASURED_FILE" // gets the address to publish at
)

const hungSinks = 50

// TestMeasuredBus is a bus as a pod runs it: its NATS is elsewhere. It ends when
// its input does.
func TestMeasuredBus(t *testing.T) {
	url, sink := os.Getenv(envMeasuredNATS), os.Getenv(envMeasuredSink)
	if url == "" {
		t.Skip("runs as a child of tests of the pod's memory only")
	}
	policy, err := targets.New(targets.Config{Allow: []string{"127.0.0.0/8"}})
	require.NoError(t, err)
	listener := listen(t)
	bus, err := eventbus.New(eventbus.Config{
		JetStream: jetstream.Config{URL: url}, OpenListener: listener, Targets: policy,
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
		sub.MaxInFlight, sub.Timeout, sub.Start = 100, 30*time.Second, broker.Start{Earliest: true}
		require.NoError(t, bus.Dispatcher().Set(t.Context(), sub))
	}
	file := os.Getenv(envMeasuredFile)
	require.NoError(t, os.WriteFile(file+".new", []byte(listener.Addr().String()), 0o600))
	require.NoError(t, os.Rename(file+".new", file))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// measuredBus is a [TestMeasuredBus] with the pod's limits.
type measuredBus struct {
	pid    int
	file   string
	output *strings.Builder
}

func startMeasuredBus(t *testing.T, nats, sink string) measuredBus {
	t.Helper()
	_, goMemLimit := podLimits(t)
	ctx, cancel := context.WithCancel(t.Context())
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestMeasuredBus$", "-test.timeout=5m")
	b := measuredBus{file: filepath.Join(t.TempDir(), "address"), output: &strings.Builder{}}
	child.Env = append(os.Environ(), "GOMEMLIMIT="+goMemLimit, envMeasuredNATS+"="+nats, envMeasuredSink+"="+sink, envMeasuredFile+"="+b.file)
	child.Stdout, child.Stderr = b.output, b.output
	_, err := child.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	t.Cleanup(func() { cancel(); _ = child.Wait() })
	b.pid = child.Process.Pid
	return b
}

// address waits until it can be published to.
func (b measuredBus) address(t *testing.T) (address string) {
	t.Helper()
	require.Eventually(t, func() bool {
		raw, err := os.ReadFile(b.file)
		address = string(raw)
		return err == nil
	}, time.Minute, 20*time.Millisecond, "the bus is ready")
	return address
}

// podLimits are the memory limit and GOMEMLIMIT of the manifest.
func podLimits(t *testing.T) (limit int64, goMemLimit string) {
	t.Helper()
	manifests, err := os.ReadFile("../manifests/overlays/istio/lambdamesh.yaml")
	require.NoError(t, err)
	for manifest := range strings.SplitSeq(string(manifests), "\n---\n") {
		var deployment appsv1.Deployment
		if err := yaml.Unmarshal([]byte(manifest), &deployment); err != nil || deployment.Kind != "Deployment" || deployment.Name != "eventbus" {
			continue
		}
		container := deployment.Spec.Template.Spec.Containers[0]
		for _, env := range container.Env {
			if env.Name == "GOMEMLIMIT" {
				return container.Resources.Limits.Memory().Value(), env.Value
			}
		}
	}
	t.Fatal("no limits for the event bus")
	return 0, ""
}

func TestMemoryStaysBelowThePodsLimitWhileSinksHang(t *testing.T) {
	limit, _ := podLimits(t)
	const large = 24 // events of 1 MiB for every sink: more than twice the limit
	server, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	run(t, server)
	store, err := jetstream.New(jetstream.Config{URL: server.URL(), PublishTimeout: time.Minute})
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

	child := startMeasuredBus(t, server.URL(), sink.URL)

	arrives := func(want string) {
		t.Helper()
		for deadline := time.After(90 * time.Second); ; {
			select {
			case id := <-healthy:
				if id == want {
					return
				}
			case <-deadline:
				t.Fatalf("%s did not arrive at the healthy sink\n%s", want, child.output)
			}
		}
	}
	arrives(fmt.Sprint("large-", large-1))
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(hung) == hungSinks
	}, time.Minute, 20*time.Millisecond, "every sink got an event and hangs on it")
	for i := range 200 {
		publishing(fmt.Sprint("small-", i), 1000)
		arrives(fmt.Sprint("small-", i))
	}
	publishing("last", event.MaxEventBytes)
	arrives("last")

	peak := peakMemory(t, child.pid)
	t.Logf("peak memory %d MiB, the pod's limit is %d MiB", peak>>20, limit>>20)
	require.Less(t, peak, limit)
	require.Greater(t, peak, limit/8, "the right process was measured")
}

// Connections, each with as large headers as are taken and a body that does not
// come, of many addresses at once, and none of them has shown who it is.
func TestMemoryStaysBelowThePodsLimitUnderAFloodOfHeaders(t *testing.T) {
	const remotes, each = 4, 1000
	limit, _ := podLimits(t)
	server, err := natsserver.New(natsserver.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	run(t, server)
	child := startMeasuredBus(t, server.URL(), "http://127.0.0.1:1")
	address := child.address(t)

	request := "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nX: " + strings.Repeat("x", 63<<10) + "\r\n\r\n"
	var flood sync.WaitGroup
	for i := range remotes {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+i))}}
		flood.Go(func() {
			for range each {
				c, err := dialer.DialContext(t.Context(), "tcp", address)
				if err != nil {
					continue
				}
				t.Cleanup(func() { c.Close() })
				_ = c.SetWriteDeadline(time.Now().Add(10 * time.Second))
				_, _ = io.WriteString(c, request) // fails when it is refused
			}
		})
	}
	flood.Wait()
	require.Eventually(t, func() bool { // as a publisher does that is told to come again
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/publish", strings.NewReader("{}"))
		require.NoError(t, err)
		for name, value := range map[string]string{"specversion": "1.0", "id": "1", "source": "commerce", "type": "t"} {
			r.Header.Set("Ce-"+name, value)
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		return response.StatusCode == http.StatusAccepted
	}, time.Minute, 100*time.Millisecond, child.output)
	peak := peakMemory(t, child.pid)
	t.Logf("peak memory %d MiB, the pod's limit is %d MiB", peak>>20, limit>>20)
	require.Less(t, peak, raceMemory*limit*3/4)
	require.Greater(t, peak, limit/16, "the right process was measured")
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
