package cluster

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestWalk is docs/install.md as somebody new goes it: in a fresh clone of what is
// committed, by the commands that stand there, with names of theirs for the
// registry and the domain. Its beginnings are A and C, one after the other, or B
// beside Istio; the cluster of C runs already. What "With kubectl alone" says is
// the part overlay of the other tests.
func TestWalk(t *testing.T) {
	c := newCluster(t, cmp.Or(os.Getenv(meshVar), "envoy"))
	t.Cleanup(func() { c.remove(t) })
	_, err := c.kubectl(t, "", "delete", "namespace", "shop", "--ignore-not-found")
	require.NoError(t, err)
	c.before = c.inventory(t)
	w := newWalk(t, c)

	w.run(t, "", "git clone")
	const without, with, here = "A. A cluster without Istio", "B. A cluster with Istio", "C. A cluster on this machine"
	beginnings := []string{without, here}
	switch {
	case c.mesh == "istio":
		beginnings = []string{with}
		// "The images as in A", and what the namespace needs.
		images, _, found := strings.Cut(w.blocks[without], "helm install")
		require.True(t, found)
		w.blocks[with] = images + w.blocks[with]
		require.Contains(t, w.text, "`kubectl label namespace shop istio-injection=enabled`")
		w.replace = append(w.replace, "kubectl create namespace shop\n", "kubectl create namespace shop\nkubectl label namespace shop istio-injection=enabled\n")
	case c.name == "":
		beginnings = []string{without}
	}
	for _, beginning := range beginnings {
		t.Run(beginning, func(t *testing.T) {
			var done []string
			if beginning == here {
				done = []string{"sudo apt-get", `eval "$(make`}
			}
			w.run(t, beginning, done...)
			began := time.Now()
			require.Contains(t, w.run(t, "Wait, and say hello"), `"hello":"/world"`)
			t.Logf("waited and said hello after %s", since(began))
			require.Contains(t, w.run(t, "Publish an event"), "stored")
			eventually(t, patience, func() error {
				delivered := c.mustKubectl(t, "", "get", "-n", "shop", "subscription", "hello", "--no-headers")
				if !regexp.MustCompile(`True\s+0\s+1\s`).MatchString(delivered) {
					return fmt.Errorf("not delivered once: %s", delivered)
				}
				return nil
			})
			w.run(t, "Rotating")
			undone := []string{"make cluster-down"}
			if beginning == with {
				undone = append(undone, "never beside Istio")
			}
			w.run(t, "Remove it", undone...)
			err := c.client.Get(t.Context(), client.ObjectKey{Name: system}, &corev1.Namespace{})
			require.True(t, apierrors.IsNotFound(err), "%v", err)
			eventually(t, patience, func() error {
				if left := c.left(t, regexp.MustCompile(`^- (APIService|PersistentVolume) `).MatchString); len(left) > 0 {
					return fmt.Errorf("left: %s", strings.Join(left, ", "))
				}
				return nil
			})
		})
	}
}

// walk goes through the document.
type walk struct {
	c       *cluster
	dir     string // the clone
	text    string
	blocks  map[string]string // of shell commands, by heading
	replace []string          // old, new: what a reader says in the place of examples
}

func newWalk(t *testing.T, c *cluster) *walk {
	t.Helper()
	w := &walk{c: c, dir: filepath.Join(t.TempDir(), "lambdamesh"), blocks: map[string]string{}}
	_, err := c.run(t, "", "git", "clone", "--quiet", ".", w.dir)
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(w.dir, "docs", "install.md"))
	require.NoError(t, err)
	w.text = string(text)
	for i, section := range strings.Split(w.text, "\n## ") {
		heading, body, _ := strings.Cut(section, "\n")
		if i == 0 {
			heading = ""
		}
		for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(body, -1) {
			w.blocks[heading] += block[1]
		}
	}
	// Tests build for this machine's platform only.
	w.replace = []string{"registry.example.com", c.registry, "lambdas.example.com", domain, "make push", "make push PLATFORMS=linux/$(go env GOARCH)"}
	return w
}

// run runs the commands under a heading, but lines with one of the texts, which say
// what is done already, or not to be done.
func (w *walk) run(t *testing.T, heading string, but ...string) string {
	t.Helper()
	script := w.blocks[heading]
	require.NotEmpty(t, script, "docs/install.md has no commands under %q", heading)
	for _, text := range but {
		require.Contains(t, script, text)
		script = regexp.MustCompile(`(?m)^.*`+regexp.QuoteMeta(text)+`.*\n`).ReplaceAllString(script, "")
	}
	script = strings.NewReplacer(w.replace...).Replace(script)
	tools := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(tools, "helm"), []byte("#!/bin/sh\nexec \"$CHECKOUT/hack/tools/run\" helm \"$@\"\n"), 0o755)) //nolint:gosec // a program
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = w.dir
	// What `make e2e-cluster` was given is not for the reader's make.
	env := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "MAKE") || strings.HasPrefix(variable, "MFLAGS=") || strings.HasPrefix(variable, "ARGS=")
	})
	cmd.Env = append(env, "KUBECONFIG="+w.c.kubeconfig, "REGISTRY="+w.c.registry, "CHECKOUT="+w.dir,
		"PATH="+strings.Join([]string{tools, filepath.Join(w.dir, "bin"), os.Getenv("PATH")}, string(os.PathListSeparator)))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n\nprinted:\n%s", script, out)
	return string(out)
}
