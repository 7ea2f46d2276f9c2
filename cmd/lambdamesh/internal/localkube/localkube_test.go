package localkube_test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/lambdamesh/lambdamesh/cmd/lambdamesh/internal/localkube"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// parentDir makes the test binary a program that runs a control plane there.
const parentDir = "LOCALKUBE_TEST_PARENT_DIR"

func TestMain(m *testing.M) {
	process.WatcherMain()
	if dir := os.Getenv(parentDir); dir != "" {
		c, err := localkube.New(localkube.Config{DataDir: dir, BinDir: os.Getenv("BIN_DIR"), CRDs: crdTrees()})
		if err == nil {
			go func() { <-c.Ready(); fmt.Println("ready") }()
			err = c.Run(context.Background())
		}
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func crdTrees() []fs.FS { return []fs.FS{manifests.CRDs, manifests.IstioCRDs} }

// running is a started control plane.
type running struct {
	*localkube.ControlPlane
	client *kubernetes.Clientset
	stop   func()
}

func config(t *testing.T, dir string) localkube.Config {
	t.Helper()
	return localkube.Config{
		DataDir: dir, BinDir: testkit.KubernetesBinDir(t), CRDs: crdTrees(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func start(t *testing.T, c localkube.Config) *running {
	t.Helper()
	plane, err := localkube.New(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	begin := time.Now()
	go func() { result <- plane.Run(ctx) }()
	stopped := false
	r := &running{ControlPlane: plane, stop: func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-result:
			require.NoError(t, err)
		case <-time.After(plane.StopTimeout()):
			t.Fatal("it did not stop in time")
		}
	}}
	t.Cleanup(r.stop)
	select {
	case <-plane.Ready():
		t.Logf("ready after %s", time.Since(begin))
	case err := <-result:
		stopped = true
		t.Fatalf("it ended before it was ready: %v", err)
	}
	r.client, err = kubernetes.NewForConfig(plane.RESTConfig())
	require.NoError(t, err)
	return r
}

// failure starts what must not start.
func failure(t *testing.T, c localkube.Config) string {
	t.Helper()
	plane, err := localkube.New(c)
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		err = plane.Run(ctx)
	}
	require.Error(t, err)
	return err.Error()
}

func requireOneLine(t *testing.T, message string) {
	t.Helper()
	require.NotContains(t, message, "\n")
}

func TestWhatWasStoredIsThereAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 10)) // longer than a socket's path may be
	first := start(t, config(t, dir))
	host := first.RESTConfig().Host
	_, err := first.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Data: map[string]string{"a": "b"},
	}, metav1.CreateOptions{})
	require.NoError(t, err)
	ca, err := os.ReadFile(filepath.Join(dir, "kubernetes/pki/ca.crt"))
	require.NoError(t, err)
	first.stop()
	_, err = net.Dial("tcp", strings.TrimPrefix(host, "https://"))
	require.Error(t, err, "nothing listens after the stop")

	second := start(t, config(t, dir))
	require.Equal(t, host, second.RESTConfig().Host, "the port stays")
	kept, err := second.client.CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "b"}, kept.Data)
	again, err := os.ReadFile(filepath.Join(dir, "kubernetes/pki/ca.crt"))
	require.NoError(t, err)
	require.Equal(t, string(ca), string(again), "the certificate authority stays")

	refused := failure(t, config(t, dir))
	require.Equal(t, fmt.Sprintf("data directory %s is in use by process %d: stop that, or choose another directory", dir, os.Getpid()), refused)
}

func TestTheControlPlane(t *testing.T) {
	dir := t.TempDir()
	r := start(t, config(t, dir))
	ctx := t.Context()

	t.Run("has a kubeconfig of its own that only its owner may read", func(t *testing.T) {
		info, err := os.Stat(r.Kubeconfig())
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode())
		config, err := clientcmd.LoadFromFile(r.Kubeconfig())
		require.NoError(t, err)
		require.Equal(t, "lambdamesh", config.CurrentContext)
		kubectl := exec.CommandContext(ctx, filepath.Join(testkit.KubernetesBinDir(t), "kubectl"), //nolint:gosec // ours
			"--kubeconfig", r.Kubeconfig(), "auth", "can-i", "*", "*")
		out, err := kubectl.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, "yes\n", string(out))
	})
	t.Run("keeps its secrets from other users", func(t *testing.T) {
		require.NoError(t, filepath.WalkDir(filepath.Join(dir, "kubernetes"), func(path string, entry fs.DirEntry, err error) error {
			require.NoError(t, err)
			info, err := entry.Info()
			require.NoError(t, err)
			if entry.IsDir() || filepath.Dir(path) == filepath.Join(dir, "kubernetes/pki") {
				require.Zero(t, info.Mode().Perm()&0o077, "%s is %s", path, info.Mode())
			}
			return nil
		}))
	})
	t.Run("serves the given kinds", func(t *testing.T) {
		resources, err := r.client.ServerResourcesForGroupVersion("networking.istio.io/v1")
		require.NoError(t, err)
		require.NotEmpty(t, resources.APIResources)
	})
	t.Run("answers strangers about its health only", func(t *testing.T) {
		stranger, err := rest.HTTPClientFor(rest.AnonymousClientConfig(r.RESTConfig()))
		require.NoError(t, err)
		for path, want := range map[string]int{"/readyz": 200, "/livez": 200, "/version": 401, "/api": 401} {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.RESTConfig().Host+path, nil)
			require.NoError(t, err)
			response, err := stranger.Do(request)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.Equal(t, want, response.StatusCode, path)
		}
	})
	t.Run("gives tokens to service accounts, which may do what RBAC grants", func(t *testing.T) {
		token, err := r.client.CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"lambdamesh-xds"}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
		review, err := r.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
			Spec: authenticationv1.TokenReviewSpec{Token: token.Status.Token, Audiences: []string{"lambdamesh-xds"}},
		}, metav1.CreateOptions{})
		require.NoError(t, err)
		require.True(t, review.Status.Authenticated, review.Status.Error)
		require.Equal(t, "system:serviceaccount:default:default", review.Status.User.Username)

		token, err = r.client.CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		require.NoError(t, err)
		config := rest.AnonymousClientConfig(r.RESTConfig())
		config.BearerToken = token.Status.Token
		client, err := kubernetes.NewForConfig(config)
		require.NoError(t, err)
		_, err = client.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{})
		require.True(t, apierrors.IsForbidden(err), "%v", err)
	})
	t.Run("deletes namespaces and what is owned by what is gone", func(t *testing.T) {
		namespace, err := r.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "gone-"}}, metav1.CreateOptions{})
		require.NoError(t, err)
		maps := r.client.CoreV1().ConfigMaps(namespace.Name)
		owner, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
		require.NoError(t, err)
		_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owned", OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: owner.UID},
		}}}, metav1.CreateOptions{})
		require.NoError(t, err)
		require.NoError(t, maps.Delete(ctx, "owner", metav1.DeleteOptions{}))
		testkit.Eventually(t, time.Minute, func() error {
			_, err := maps.Get(ctx, "owned", metav1.GetOptions{})
			return gone(err)
		}, "garbage collection")
		require.NoError(t, r.client.CoreV1().Namespaces().Delete(ctx, namespace.Name, metav1.DeleteOptions{}))
		testkit.Eventually(t, time.Minute, func() error {
			_, err := r.client.CoreV1().Namespaces().Get(ctx, namespace.Name, metav1.GetOptions{})
			return gone(err)
		}, "deleting a namespace")
	})
	t.Run("restarts a child that was killed", func(t *testing.T) {
		for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
			killed := pid(t, dir, name)
			require.NoError(t, syscall.Kill(killed, syscall.SIGKILL))
			testkit.Eventually(t, time.Minute, func() error {
				if pid(t, dir, name) == killed {
					return fmt.Errorf("%s is not back", name)
				}
				_, err := r.client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
				return err
			}, "coming back")
		}
	})
	t.Run("runs beside another", func(t *testing.T) {
		other := start(t, config(t, t.TempDir()))
		require.NotEqual(t, r.RESTConfig().Host, other.RESTConfig().Host)
		_, err := kubernetes.NewForConfigOrDie(&rest.Config{
			Host: other.RESTConfig().Host,
			TLSClientConfig: rest.TLSClientConfig{
				CAFile: other.RESTConfig().CAFile, CertFile: r.RESTConfig().CertFile, KeyFile: r.RESTConfig().KeyFile,
			},
		}).CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		require.True(t, apierrors.IsUnauthorized(err), "the administrator of one is a stranger to the other: %v", err)
	})
}

func gone(err error) error {
	switch {
	case err == nil:
		return fmt.Errorf("it is still there")
	case apierrors.IsNotFound(err):
		return nil
	default:
		return err
	}
}

func pid(t *testing.T, dir, name string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "kubernetes/run", name+".pid"))
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	require.NoError(t, err)
	return pid
}

// lockedBuffer may be read while it is written.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

func TestNothingIsLeftOfAKilledRun(t *testing.T) {
	dir := t.TempDir()
	parent := exec.CommandContext(t.Context(), os.Args[0]) //nolint:gosec // ourselves
	parent.Env = []string{parentDir + "=" + dir, "BIN_DIR=" + testkit.KubernetesBinDir(t)}
	ready := make(chan string, 10)
	parent.Stdout = process.LineFunc(func(line []byte) { ready <- string(line) })
	parent.Stderr = t.Output()
	require.NoError(t, parent.Start())
	require.Equal(t, "ready\n", <-ready+"\n")
	var pids []int
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager"} {
		pids = append(pids, pid(t, dir, name))
	}
	require.NoError(t, parent.Process.Kill())
	_ = parent.Wait()

	// The next start waits for them by itself.
	c := config(t, dir)
	var log lockedBuffer
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	r := start(t, c)
	require.Contains(t, log.String(), "waiting for a process of the last run to end")
	require.NotContains(t, log.String(), "started again")
	for _, pid := range pids {
		require.ErrorIs(t, syscall.Kill(-pid, 0), syscall.ESRCH)
	}
	_, err := r.client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{})
	require.NoError(t, err)
}

func TestStartIsRefusedInOneLine(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = taken.Close() }()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	write := func(t *testing.T, dir string, files map[string]string) {
		for name, content := range files {
			path := filepath.Join(dir, "kubernetes", name)
			require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		}
	}
	for name, tc := range map[string]struct {
		change func(*localkube.Config)
		files  map[string]string
		want   []string
	}{
		"the address is not loopback": {
			change: func(c *localkube.Config) { c.Address = "0.0.0.0:6443" },
			want:   []string{`API server address "0.0.0.0:6443" is not loopback`},
		},
		"the address is no address": {
			change: func(c *localkube.Config) { c.Address = "localhost:6443" },
			want:   []string{`API server address "localhost:6443": want an IP address and a port`},
		},
		"the address is IPv6": {
			change: func(c *localkube.Config) { c.Address = "[::1]:6443" },
			want:   []string{`API server address "[::1]:6443": want an IPv4 address`},
		},
		"no data directory": {
			change: func(c *localkube.Config) { c.DataDir = "" },
			want:   []string{"no data directory given"},
		},
		"the port is taken": {
			change: func(c *localkube.Config) { c.Address = taken.Addr().String() },
			want:   []string{"address " + taken.Addr().String() + " is taken", "choose another"},
		},
		"the data directory cannot be made": {
			change: func(c *localkube.Config) { c.DataDir = filepath.Join(file, "data") },
			want:   []string{"data directory cannot be made", file},
		},
		"the binaries are missing": {
			change: func(c *localkube.Config) { c.BinDir = t.TempDir() },
			want:   []string{"etcd is missing", "run `make kubernetes`"},
		},
		"a key without its certificate": {
			files: map[string]string{"pki/ca.key": "x"},
			want:  []string{"pki is incomplete", "ca.crt: no such file", "remove that directory"},
		},
		"no key of the service accounts": {
			files: map[string]string{"pki/ca.key": "x", "pki/ca.crt": "x"},
			want:  []string{"pki is incomplete", "sa.key: no such file"},
		},
		"a certificate authority that is none": {
			files: map[string]string{"pki/ca.key": "x", "pki/ca.crt": "x", "pki/sa.key": "x"},
			want:  []string{"the certificate authority in", "is unusable"},
		},
		"etcd's data without its members": {
			files: map[string]string{"etcd/other": "x"},
			want:  []string{"objects in", "incomplete", "etcd/member: no such file", "restore"},
		},
		"etcd's data is gone": {
			files: map[string]string{"version": localkube.KubernetesVersion},
			want:  []string{"incomplete", "etcd/member: no such file"},
		},
		"etcd's database is gone": {
			files: map[string]string{"version": localkube.KubernetesVersion, "etcd/member/wal/x": "", "etcd/member/snap/x": ""},
			want:  []string{"incomplete", "etcd/member/snap/db: no such file"},
		},
		"another Kubernetes wrote it": {
			files: map[string]string{"version": "v1.31.9\n"},
			want:  []string{"was written by Kubernetes v1.31.9, these binaries are v1.36", "another data directory"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t, t.TempDir())
			write(t, c.DataDir, tc.files)
			if tc.change != nil {
				tc.change(&c)
			}
			message := failure(t, c)
			requireOneLine(t, message)
			for _, want := range tc.want {
				require.Contains(t, message, want)
			}
		})
	}
}

func TestAPortThatIsLostBeforeTheServerListensIsReplaced(t *testing.T) {
	c := config(t, t.TempDir())
	real := c.BinDir
	c.BinDir = t.TempDir()
	for _, name := range []string{"etcd", "kube-controller-manager"} {
		require.NoError(t, os.Symlink(filepath.Join(real, name), filepath.Join(c.BinDir, name)))
	}
	// The first time it tells its port and waits until that is taken.
	told, taken := filepath.Join(c.BinDir, "told"), filepath.Join(c.BinDir, "taken")
	require.NoError(t, syscall.Mkfifo(told, 0o600))
	require.NoError(t, syscall.Mkfifo(taken, 0o600))
	script := fmt.Sprintf(`#!/bin/sh
if [ "$1" != --version ] && mkdir '%s/once' 2>/dev/null; then
	for argument; do case $argument in --secure-port=*) echo "${argument#*=}" ;; esac; done >'%s'
	cat '%s'
fi
exec '%s/kube-apiserver' "$@"
`, c.BinDir, told, taken, real)
	require.NoError(t, os.WriteFile(filepath.Join(c.BinDir, "kube-apiserver"), []byte(script), 0o700)) //nolint:gosec // it must be executable
	lost := make(chan net.Listener, 1)
	go func() {
		port, _ := os.ReadFile(told)
		var config net.ListenConfig
		listener, _ := config.Listen(context.Background(), "tcp", "127.0.0.1:"+strings.TrimSpace(string(port)))
		lost <- listener
		_ = os.WriteFile(taken, nil, 0o600)
	}()
	r := start(t, c)
	listener := <-lost
	require.NotNil(t, listener)
	defer func() { _ = listener.Close() }()
	require.NotEqual(t, "https://"+listener.Addr().String(), r.RESTConfig().Host)
}

func TestAStopDuringTheStartLeavesNothing(t *testing.T) {
	c := config(t, t.TempDir())
	plane, err := localkube.New(c)
	require.NoError(t, err)
	require.Nil(t, plane.RESTConfig(), "it is not ready")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- plane.Run(ctx) }()
	var group int
	testkit.Eventually(t, time.Minute, func() error {
		data, err := os.ReadFile(filepath.Join(c.DataDir, "kubernetes/run/kube-apiserver.pid"))
		if err == nil {
			group, err = strconv.Atoi(strings.TrimSpace(string(data)))
		}
		return err
	}, "starting kube-apiserver")
	cancel()
	require.NoError(t, <-result)
	require.ErrorIs(t, syscall.Kill(-group, 0), syscall.ESRCH)
	left, err := filepath.Glob(filepath.Join(c.DataDir, "kubernetes/run/*.pid"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestAChildThatKeepsEndingFailsTheComponentWithItsLastLines(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"kube-apiserver", "kube-controller-manager"} {
		require.NoError(t, os.Symlink(filepath.Join(testkit.KubernetesBinDir(t), name), filepath.Join(bin, name)))
	}
	script := "#!/bin/sh\necho 'the disk is made of cheese' >&2\nexit 7\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "etcd"), []byte(script), 0o700)) //nolint:gosec // it must be executable
	c := config(t, t.TempDir())
	c.BinDir = bin
	message := failure(t, c)
	require.Contains(t, message, "etcd: giving up after 5 failures in a row: etcd exited with code 7")
	require.Contains(t, message, "the disk is made of cheese")
	log, err := os.ReadFile(filepath.Join(c.DataDir, "logs/kubernetes/etcd.log"))
	require.NoError(t, err)
	require.Contains(t, string(log), "the disk is made of cheese")
}

func TestAStartThatTakesTooLongSaysWhatItWaitsFor(t *testing.T) {
	bin := t.TempDir()
	for _, name := range []string{"kube-apiserver", "kube-controller-manager"} {
		require.NoError(t, os.Symlink(filepath.Join(testkit.KubernetesBinDir(t), name), filepath.Join(bin, name)))
	}
	require.NoError(t, os.WriteFile(filepath.Join(bin, "etcd"), []byte("#!/bin/sh\nexec sleep 1000\n"), 0o700)) //nolint:gosec // it must be executable
	c := config(t, t.TempDir())
	c.BinDir, c.StartTimeout = bin, time.Second
	require.Equal(t, "not ready within 1s: waiting for etcd", failure(t, c))
}
