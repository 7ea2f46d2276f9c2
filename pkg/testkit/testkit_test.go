package testkit_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// recorder is a testing.TB that remembers a failure instead of failing.
type recorder struct {
	testing.TB
	failure string
}

type stopped struct{}

func (r *recorder) Errorf(format string, args ...any) { r.failure = fmt.Sprintf(format, args...) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	panic(stopped{})
}

func (r *recorder) Fatal(args ...any) { r.Fatalf("%s", fmt.Sprint(args...)) }

func failureOf(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	r := &recorder{TB: t}
	func() {
		defer func() {
			if v := recover(); v != nil {
				require.Equal(t, stopped{}, v)
			}
		}()
		f(r)
	}()
	return r.failure
}

const widgets = `# a comment
---
apiVersion: v1
kind: Namespace
metadata: {name: skipped}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, listKind: WidgetList}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

func TestKubeAPIServesTheGivenKinds(t *testing.T) {
	tree := fstest.MapFS{"deep/crd.yaml": {Data: []byte(widgets)}, "README.md": {Data: []byte("x")}}
	config := testkit.KubeAPI(t, tree)
	require.Equal(t, config.Host, testkit.KubeAPI(t, tree).Host, "all tests share one server")

	client, err := dynamic.NewForConfig(config)
	require.NoError(t, err)
	widget := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.com/v1", "kind": "Widget", "metadata": map[string]any{"name": "w"},
	}}
	for range 2 {
		namespace := testkit.Namespace(t, config)
		require.True(t, strings.HasPrefix(namespace, "testkubeapiserves"), namespace)
		_, err = client.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}).
			Namespace(namespace).Create(t.Context(), widget.DeepCopy(), metav1.CreateOptions{})
		require.NoError(t, err, "namespaces are fresh")
	}
}

func TestKubeAPIReportsADefinitionTheServerRefuses(t *testing.T) {
	tree := fstest.MapFS{"crd.yaml": {Data: []byte(strings.ReplaceAll(widgets, "name: widgets.example.com", "name: bad.example.com"))}}
	failure := failureOf(t, func(tb testing.TB) { testkit.KubeAPI(tb, tree) })
	require.Contains(t, failure, "installing CustomResourceDefinition bad.example.com")
}

func TestMissingBinariesFailTheTestAndSayWhatToDo(t *testing.T) {
	t.Setenv("KUBEBUILDER_ASSETS", "")
	t.Setenv("LAMBDAMESH_CACHE", t.TempDir())
	failure := failureOf(t, func(tb testing.TB) { testkit.KubernetesBinDir(tb) })
	require.Contains(t, failure, "run `make kubernetes`")
	require.Contains(t, failure, os.Getenv("LAMBDAMESH_CACHE"))
}

// child is set when the test binary runs itself to be killed.
const child = "TESTKIT_TEST_CHILD"

func TestKubeAPIEndsWithTheTestBinary(t *testing.T) {
	if os.Getenv(child) != "" {
		fmt.Println(testkit.KubeAPI(t).Host)
		select {} // until killed
	}
	self, err := os.Executable()
	require.NoError(t, err)
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestKubeAPIEndsWithTheTestBinary$") //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+tmp)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	var host string
	_, err = fmt.Fscan(stdout, &host)
	require.NoError(t, err)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()

	testkit.Eventually(t, time.Minute, func() error {
		conn, err := net.Dial("tcp", host)
		if err == nil {
			_ = conn.Close()
			return errors.New("the API server still listens")
		}
		if left, _ := filepath.Glob(filepath.Join(tmp, "*")); len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return nil
	}, "cleaning up after a killed test binary")
}

func TestEventuallyReportsTheLastError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		check := func() error { calls++; return fmt.Errorf("call %d", calls) }
		failure := failureOf(t, func(tb testing.TB) { testkit.Eventually(tb, time.Second, check, "becoming green") })
		require.Equal(t, fmt.Sprintf("becoming green: not within 1s: call %d", calls), failure)
		require.Greater(t, calls, 5)
	})
}

func TestEventuallyEndsWithTheFirstSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		testkit.Eventually(t, time.Minute, func() error {
			if time.Since(begin) < time.Second {
				return errors.New("too early")
			}
			return nil
		}, "waiting a second")
		require.Less(t, time.Since(begin), 1200*time.Millisecond)
	})
}

func TestGolden(t *testing.T) {
	path := filepath.Join(t.TempDir(), "testdata", "got.txt")
	t.Setenv("UPDATE_GOLDEN", "")
	require.Contains(t, failureOf(t, func(tb testing.TB) { testkit.Golden(tb, path, []byte("a\n")) }), "UPDATE_GOLDEN=1 writes it")
	t.Setenv("UPDATE_GOLDEN", "1")
	testkit.Golden(t, path, []byte("a\n"))
	t.Setenv("UPDATE_GOLDEN", "")
	testkit.Golden(t, path, []byte("a\n"))
	require.Contains(t, failureOf(t, func(tb testing.TB) { testkit.Golden(tb, path, []byte("b\n")) }), "differs (-want +got")
}

func TestTempSocketDirHoldsSockets(t *testing.T) {
	listener, err := net.Listen("unix", filepath.Join(testkit.TempSocketDir(t), strings.Repeat("s", 60)))
	require.NoError(t, err)
	require.NoError(t, listener.Close())
}
