package stan_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lambdamesh/lambdamesh/eventbus/broker/conformance"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/stan/stantest"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
)

// envVictim makes the test binary the process that TestKillOfBusAndServerLosesNothing kills.
const envVictim = "LAMBDAMESH_TEST_VICTIM_DIR"

// TestVictim runs a server, and publishes as fast as it can with 32 publishers
// and says on its output what was accepted, until it is killed.
func TestVictim(t *testing.T) {
	dir := os.Getenv(envVictim)
	if dir == "" {
		t.Skip("runs as a child of TestKillOfBusAndServerLosesNothing only")
	}
	round := os.Getenv(envVictim + "_ROUND")
	store, _ := open(t, stan.Config{URL: stantest.Start(t, stantest.Options{Dir: dir}).URL})
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

func TestKillOfBusAndServerLosesNothing(t *testing.T) {
	dir := t.TempDir()
	accepted := map[string]bool{}
	const rounds = 2
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
				if n++; n == 300 {
					require.NoError(t, cmd.Process.Kill())
				}
			}
		}
		_ = cmd.Wait() // killed
	}
	require.GreaterOrEqual(t, len(accepted), rounds*300)

	store, _ := open(t, stan.Config{URL: stantest.Start(t, stantest.Options{Dir: dir}).URL})
	stored := map[string]bool{}
	require.NoError(t, store.Events(t.Context(), func(e *event.Event) error {
		require.False(t, stored[e.ID], "%s is stored once", e.ID)
		stored[e.ID] = true
		return nil
	}))
	for id := range accepted {
		require.True(t, stored[id], "%s was accepted and is lost", id)
	}
}
