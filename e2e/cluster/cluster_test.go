package cluster

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCluster is the life of one installation. Each part needs those before it
// that make what it looks at: `-run 'TestCluster/^(install|demo|kill)'` is the core
// that CI runs.
func TestCluster(t *testing.T) {
	c := newCluster(t, "envoy")
	c.pushProbe(t)
	t.Cleanup(func() { c.remove(t) })
	for _, part := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"install", testInstall},
		{"idle", testIdle},
		{"figures", testFigures},
		{"demo", testDemo},
		{"webshop", testWebshop},
		{"hostile", testHostile},
		{"outside", testOutside},
		{"rotate", testRotate},
		{"failures", testFailures},
		{"kill", testKill},
		{"removal", testRemoval},
		{"overlay", testOverlay},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.run(t, c)
			if t.Failed() {
				c.tell(t)
			}
		})
		if !c.installed {
			return // nothing can be told from the rest
		}
	}
}

// pushProbe builds what pods do for the test and brings it into the registry.
func (c *cluster) pushProbe(t *testing.T) {
	t.Helper()
	c.probeImage = c.push(t, "probe", "./e2e/cluster/testdata/probe")
}

// push builds a program, brings it into the registry, and returns the name of its
// image there.
func (c *cluster) push(t *testing.T, name, pkg string) (image string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	t.Setenv("CGO_ENABLED", "0")
	_, err := c.run(t, "", "go", "build", "-trimpath", "-o", program, pkg)
	require.NoError(t, err)
	require.NoError(t, os.Chmod(program, 0o755))
	content, err := os.ReadFile(program)
	require.NoError(t, err)
	// By its content: nodes keep what they have pulled under a name.
	image = fmt.Sprintf("/lambdamesh-e2e/%s:%.24x", name, sha256.Sum256(content))
	_, err = c.run(t, "", "hack/cluster/run", "push", program, c.registry+image)
	require.NoError(t, err)
	return image
}

// tell logs what one wants to know when something failed.
func (c *cluster) tell(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "lambdas,apirules,subscriptions,applications,applicationbindings", "-A"},
		{"get", "events", "-A", "--field-selector", "type=Warning", "--sort-by", ".lastTimestamp"},
		{"logs", "-n", system, "-l", "app.kubernetes.io/name=nats", "--prefix", "--tail=40"},
		{"logs", "-n", system, "-l", "app.kubernetes.io/part-of=lambdamesh", "--all-containers", "--prefix", "--tail=15"},
	} {
		out, err := c.kubectl(t, "", args...)
		t.Logf("kubectl %v: %v\n%s", args, err, out)
	}
}
