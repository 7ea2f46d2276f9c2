package testkit

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/lambdamesh/lambdamesh/pkg/crds"
)

// kubernetesVersion is what hack/kubernetes builds.
const kubernetesVersion = "v1.36.3"

// apiServer is the one API server of a test binary: starting it takes seconds,
// and tests keep apart by namespaces.
type apiServer struct {
	sync.Mutex
	config    *rest.Config
	err       error
	installed map[string]bool
}

var shared apiServer //nolint:gochecknoglobals // one per test binary is its purpose

// KubeAPI returns the configuration of an administrator of a real
// kube-apiserver on etcd, which all tests of the binary share, after installing
// the CustomResourceDefinitions in the trees. It has no controllers: nothing is
// garbage collected and deleted namespaces stay Terminating. It ends with the
// test binary, however that ends.
//
// The binaries come from KUBEBUILDER_ASSETS, or from the cache that `make
// kubernetes` fills. Without them the test fails.
func KubeAPI(t testing.TB, crdFS ...fs.FS) *rest.Config {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.config == nil && shared.err == nil {
		_, shared.config, shared.err = startAPIServer()
		shared.installed = map[string]bool{}
	}
	if shared.err != nil {
		t.Fatalf("no API server: %v", shared.err)
	}
	definitions, err := crds.Load(crdFS...)
	if err != nil {
		t.Fatal(err)
	}
	var missing []*unstructured.Unstructured
	for _, definition := range definitions {
		if !shared.installed[definition.GetName()] {
			missing = append(missing, definition)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := crds.Install(ctx, shared.config, "testkit", missing); err != nil {
		t.Fatal(err)
	}
	for _, definition := range missing {
		shared.installed[definition.GetName()] = true
	}
	return rest.CopyConfig(shared.config)
}

// EmptyKubeAPI returns the configuration of an administrator of an API server of
// the test's own, with nothing in it, which ends with the test. It takes seconds:
// use KubeAPI where a namespace is enough.
func EmptyKubeAPI(t testing.TB) *rest.Config {
	t.Helper()
	env, config, err := startAPIServer()
	if err != nil {
		t.Fatalf("no API server: %v", err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stopping the API server: %v", err)
		}
		if err := os.RemoveAll(filepath.Dir(env.ControlPlane.Etcd.DataDir)); err != nil {
			t.Errorf("removing the API server's files: %v", err)
		}
	})
	return config
}

// KubernetesBinDir returns the directory of kube-apiserver, etcd,
// kube-controller-manager and kubectl, or fails the test.
func KubernetesBinDir(t testing.TB) string {
	t.Helper()
	dir, err := binDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func binDir() (string, error) {
	dir := os.Getenv("KUBEBUILDER_ASSETS")
	if dir == "" {
		cache := os.Getenv("LAMBDAMESH_CACHE")
		if cache == "" {
			user, err := userCacheDir()
			if err != nil {
				return "", err
			}
			cache = filepath.Join(user, "lambdamesh")
		}
		dir = filepath.Join(cache, "kubernetes", kubernetesVersion, runtime.GOOS+"-"+runtime.GOARCH)
	}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("no Kubernetes binaries (%w): run `make kubernetes`, or point KUBEBUILDER_ASSETS at some", err)
		}
	}
	return dir, nil
}

// userCacheDir is $XDG_CACHE_HOME or ~/.cache on every system, unlike
// os.UserCacheDir, so that the Makefile finds the same place in one line of sh.
func userCacheDir() (string, error) {
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".cache"), err
}

func startAPIServer() (*envtest.Environment, *rest.Config, error) {
	bin, err := binDir()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "testkit-")
	if err != nil {
		return nil, nil, err
	}
	env := &envtest.Environment{
		ControlPlaneStartTimeout: 60 * time.Second, // machines that run many test binaries at once
	}
	server := env.ControlPlane.GetAPIServer()
	server.CertDir = filepath.Join(dir, "pki")
	env.ControlPlane.Etcd = &envtest.Etcd{DataDir: filepath.Join(dir, "etcd")}
	for _, sub := range []string{server.CertDir, env.ControlPlane.Etcd.DataDir} {
		if err := os.Mkdir(sub, 0o700); err != nil {
			return nil, nil, err
		}
	}
	env.ControlPlane.KubectlPath = filepath.Join(bin, "kubectl")
	if server.Path, err = mortal(dir, bin, "kube-apiserver"); err != nil {
		return nil, nil, err
	}
	if env.ControlPlane.Etcd.Path, err = mortal(dir, bin, "etcd"); err != nil {
		return nil, nil, err
	}
	// ServiceAccount admission stays off, as envtest has it: without the
	// service account controller no namespace has a "default" one.
	config, err := env.Start()
	if err != nil {
		_ = env.Stop()
		return nil, nil, err
	}
	// envtest makes a directory for the certificates of webhooks, wherever it
	// likes and whether there are webhooks or not.
	if err := env.WebhookInstallOptions.Cleanup(); err != nil {
		return nil, nil, err
	}
	config.QPS, config.Burst = -1, 0
	return env, config, nil
}

// mortal writes a script that becomes the named program and has it killed, and
// dir removed, when this process is gone. Test binaries end by os.Exit, by a
// timeout's panic or by a signal: no cleanup in this process sees all of them.
func mortal(dir, bin, name string) (string, error) {
	script := `#!/bin/sh
(
	trap '' INT
	while kill -0 ` + strconv.Itoa(os.Getpid()) + ` && kill -0 $$; do sleep 1; done
	if kill -0 ` + strconv.Itoa(os.Getpid()) + `; then exit; fi
	kill -9 $$
	sleep 1
	rm -rf '` + dir + `'
) </dev/null >/dev/null 2>&1 &
exec '` + filepath.Join(bin, name) + `' "$@"
`
	file := filepath.Join(dir, name)
	return file + ".sh", os.WriteFile(file+".sh", []byte(script), 0o700) //nolint:gosec // it must be executable
}

var notLabel = regexp.MustCompile(`[^a-z0-9]+`)

// Namespace creates a namespace named after the test and deletes it when the
// test ends.
func Namespace(t testing.TB, config *rest.Config) string {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Trim(notLabel.ReplaceAllString(strings.ToLower(t.Name()), "-"), "-")
	namespace, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: name[:min(len(name), 40)] + "-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating a namespace: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}); err != nil {
			t.Errorf("deleting the namespace %s: %v", namespace.Name, err)
		}
	})
	return namespace.Name
}
