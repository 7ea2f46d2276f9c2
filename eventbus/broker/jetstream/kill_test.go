package jetstream_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
)

// envVictim makes the test binary the process that TestAKilledProcessLosesNothingItAccepted kills.
const envVictim = "LAMBDAMESH_TEST_VICTIM_DIR"

// TestVictim publishes as fast as it can with 32 publishers, and says on its
// output what was accepted, until it is killed.
func TestVictim(t *testing.T) {
	dir := os.Getenv(envVictim)
	if dir == "" {
		t.Skip("runs as a child of TestAKilledProcessLosesNothingItAccepted only")
	}
	round := os.Getenv(envVictim + "_ROUND")
	_, store, _ := open(t, natsserver.Config{Dir: dir}, jetstream.Config{})
	var mu sync.Mutex
	var publishers sync.WaitGroup
	for p := range 32 {
		publishers.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%s-%d-%d", round, p, i)
				_, err := store.Publish(context.Background(), []event.Event{conformance.Event(id)})
				if err != nil {
					continue
				}
				mu.Lock()
				fmt.Println("accepted", id)
				mu.Unlock()
			}
		})
	}
	publishers.Wait()
}

func TestAKilledProcessLosesNothingItAccepted(t *testing.T) {
	dir := t.TempDir()
	accepted := map[string]bool{}
	const rounds = 3
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$", "-test.timeout=2m")
		cmd.Env = append(os.Environ(), envVictim+"="+dir, fmt.Sprintf("%s_ROUND=%d", envVictim, round))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); {
			if id, ok := strings.CutPrefix(lines.Text(), "accepted "); ok {
				accepted[id] = true
				if n++; n == 500 {
					require.NoError(t, cmd.Process.Kill())
				}
			}
		}
		_ = cmd.Wait() // killed
	}
	require.GreaterOrEqual(t, len(accepted), rounds*500)

	begin := time.Now()
	_, store, _ := open(t, natsserver.Config{Dir: dir}, jetstream.Config{})
	require.Less(t, time.Since(begin), time.Minute, "ready again")
	c := conformance.Subscribe(t, store, "c", broker.Start{Earliest: true}, "", "**")
	stored := map[string]bool{}
	for {
		left, err := c.Info(t.Context())
		require.NoError(t, err)
		if left.Pending == 0 {
			break
		}
		_, err = c.Fetch(t.Context(), broker.Window{Events: 500, Bytes: 1 << 20}, time.Second, func(d broker.Delivery) {
			require.False(t, stored[d.Event().ID], "stored once")
			stored[d.Event().ID] = true
			require.NoError(t, d.Ack())
		})
		require.NoError(t, err)
	}
	for id := range accepted {
		require.True(t, stored[id], "%s was accepted and is lost", id)
	}
}
