package localnode_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	istioapi "istio.io/api/networking/v1"
	istionetworking "istio.io/client-go/pkg/apis/networking/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/lambdas/build"
	"github.com/lambdamesh/lambdamesh/lambdas/controller"
	"github.com/lambdamesh/lambdamesh/lambdas/localnode"
	"github.com/lambdamesh/lambdamesh/lambdas/source"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/process"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

func TestMain(m *testing.M) {
	process.WatcherMain()
	os.Exit(m.Run())
}

// drainDelay is how long a replica that is no endpoint any more still answers.
const drainDelay = 300 * time.Millisecond

// program answers "<version> <pid> <env SECRET>", and dies at /crash.
const program = `package sample

import (
	"fmt"
	"net/http"
	"os"
	"time"
)

func Main(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/crash" {
		fmt.Fprintln(os.Stderr, "boom: asked to")
		os.Exit(3)
	}
	<-time.After(20 * time.Millisecond)
	fmt.Fprint(w, "v1 ", os.Getpid(), " ", os.Getenv("SECRET"), " ", os.Getenv("HTTP_PROXY"))
}
`

func TestNode(t *testing.T) {
	w := newWorld(t)
	stop := w.start(t)
	defer stop()

	t.Run("a lambda is built, run and announced, and its status says so", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		require.NoError(t, w.client.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "db"}, StringData: map[string]string{"password": "s3cret"}}))
		lambda := newLambda(ns, program)
		lambda.Spec.Env = []corev1.EnvVar{{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "db"}, Key: "password"}}}}
		lambda.Spec.Scale.Min = new(int32(2))
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitReady(t, lambda)
		require.Equal(t, int32(2), lambda.Status.ReadyReplicas)
		require.Equal(t, "http://sample."+ns+".svc", lambda.Status.Address)
		require.Regexp(t, `^lambdamesh\.local/go:[0-9a-f]+$`, lambda.Status.Image)

		entries := w.endpoints(t, ns)
		require.Len(t, entries, 2)
		entry := entries[0]
		require.Equal(t, "127.0.0.1", entry.Spec.Address)
		require.Equal(t, "sample", entry.Spec.ServiceAccount)
		require.Equal(t, entry.Name, entry.Labels[v1alpha1.LabelReplica])
		require.Equal(t, "istio", entry.Labels[v1alpha1.LabelIstioTLSMode])
		sidecar := &istionetworking.Sidecar{}
		require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(entry), sidecar))
		require.Equal(t, entry.Spec.Ports[v1alpha1.ServiceHTTPPort], sidecar.Spec.Ingress[0].Port.Number)
		require.Equal(t, istioapi.CaptureMode_NONE, sidecar.Spec.Ingress[0].CaptureMode)
		require.Regexp(t, `^unix:///`, sidecar.Spec.Ingress[0].DefaultEndpoint)
		require.Equal(t, map[string]string{v1alpha1.LabelReplica: entry.Name}, sidecar.Spec.WorkloadSelector.Labels)

		answer := w.call(t, ns, "/")
		fields := strings.Fields(answer)
		require.Equal(t, "s3cret", fields[2])
		proxy, err := url.Parse(fields[3])
		require.NoError(t, err)
		other := &istionetworking.Sidecar{}
		require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(entries[1]), other))
		require.Contains(t, []string{fmt.Sprintf("127.0.0.1:%d", sidecar.Spec.Egress[0].Port.Number), fmt.Sprintf("127.0.0.1:%d", other.Spec.Egress[0].Port.Number)}, proxy.Host)
		secret, has := proxy.User.Password()
		require.True(t, has && len(secret) >= 26, "the listener asks for a secret")
		require.NotContains(t, fmt.Sprint(sidecar, other, entries), secret, "objects of the cluster do not tell it")

		deployment := &appsv1.Deployment{}
		require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(lambda), deployment))
		require.Equal(t, deployment.Generation, deployment.Status.ObservedGeneration)
		require.Equal(t, int32(2), deployment.Status.AvailableReplicas)

		logs, err := filepath.Glob(filepath.Join(localnode.LogDir(w.dataDir, ns, "sample"), "*.log"))
		require.NoError(t, err)
		require.Len(t, logs, 2)
		text, err := os.ReadFile(logs[0])
		require.NoError(t, err)
		require.Contains(t, string(text), `"message":"ready"`)

		t.Run("its deletion leaves no process and no object", func(t *testing.T) {
			pid, err := strconv.Atoi(fields[1])
			require.NoError(t, err)
			w.remove(t, lambda)
			testkit.Eventually(t, time.Minute, func() error {
				if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
					return fmt.Errorf("process %d is there: %w", pid, err)
				}
				return w.noMembers(t.Context(), ns)
			}, "everything is gone")
		})
	})

	t.Run("a crashed process starts again, and is no endpoint meanwhile", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		lambda := newLambda(ns, program)
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitReady(t, lambda)
		before := w.call(t, ns, "/")
		_, _ = w.try(t.Context(), ns, "/crash")
		testkit.Eventually(t, time.Minute, func() error {
			after, err := w.try(t.Context(), ns, "/")
			if err == nil && after == before {
				return errors.New("the same process answers")
			}
			return err
		}, "another process answers")
		w.waitReady(t, lambda)
		w.remove(t, lambda)
	})

	t.Run("a process that always crashes is reported with its last words", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		lambda := newLambda(ns, strings.Replace(program, "func Main", "func init() { fmt.Fprintln(os.Stderr, \"no license\"); os.Exit(2) }\n\nfunc Main", 1))
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitCondition(t, lambda, v1alpha1.ConditionDeployed, "CrashLoopBackOff", "the process ended with code 2: no license")
		require.Empty(t, w.endpoints(t, ns))
		w.remove(t, lambda)
	})

	t.Run("a killed process and a sidecar that does not start are started again", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		w.sidecars.failures.Store(2)
		lambda := newLambda(ns, program)
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitReady(t, lambda)
		before := strings.Fields(w.call(t, ns, "/"))[1]
		pid, err := strconv.Atoi(before)
		require.NoError(t, err)
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		testkit.Eventually(t, time.Minute, func() error {
			after, err := w.try(t.Context(), ns, "/")
			if err == nil && strings.Fields(after)[1] == before {
				return errors.New("the same process answers")
			}
			return err
		}, "another process answers")
		w.remove(t, lambda)
	})

	t.Run("more and fewer replicas", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		lambda := newLambda(ns, program)
		require.NoError(t, w.client.Create(t.Context(), lambda))
		for _, replicas := range []int32{3, 1} {
			w.change(t, lambda, func(l *v1alpha1.Lambda) { l.Spec.Scale.Min = &replicas })
			w.waitReady(t, lambda)
			require.Equal(t, replicas, lambda.Status.ReadyReplicas)
			require.Len(t, w.endpoints(t, ns), int(replicas))
		}
		w.remove(t, lambda)
	})

	t.Run("a missing Secret is reported, and creating it is enough", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		lambda := newLambda(ns, program)
		lambda.Spec.Env = []corev1.EnvVar{{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "db"}, Key: "password"}}}}
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitCondition(t, lambda, v1alpha1.ConditionDeployed, "StartFailed", "Secret db does not exist")
		require.NoError(t, w.client.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "db"}, StringData: map[string]string{"password": "s3cret"}}))
		w.waitReady(t, lambda)
		w.remove(t, lambda)
	})

	t.Run("new source replaces the old without a failed request, source that does not build leaves it", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		lambda := newLambda(ns, program)
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitReady(t, lambda)

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var answered atomic.Int64
		var seen sync.Map
		failures := make(chan error, 100)
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				for ctx.Err() == nil {
					began := time.Now()
					body, err := w.try(context.WithoutCancel(ctx), ns, "/")
					if err != nil {
						// Who calls later than that after it has looked for a replica
						// cannot expect to find it.
						if time.Since(began) < drainDelay {
							select {
							case failures <- err:
							default:
							}
						}
						continue
					}
					answered.Add(1)
					seen.Store(strings.Fields(body)[0], true)
				}
			})
		}
		for _, version := range []string{"v2", "v3"} {
			w.changeSource(t, lambda, strings.Replace(program, "v1 ", version+" ", 1))
			testkit.Eventually(t, time.Minute, func() error {
				if _, found := seen.Load(version); !found {
					return errors.New("not answered yet")
				}
				return nil
			}, version+" answers")
			w.waitReady(t, lambda)
		}
		w.changeSource(t, lambda, strings.Replace(program, "time.After(", "time.After((", 1))
		w.waitCondition(t, lambda, v1alpha1.ConditionSourceReady, source.ReasonBuildFailed, "main.go:15:")
		require.Contains(t, w.call(t, ns, "/"), "v3", "the last good version runs")
		require.Equal(t, int32(1), lambda.Status.ReadyReplicas)

		cancel()
		clients.Wait()
		close(failures)
		for err := range failures {
			t.Errorf("failed request: %v", err)
		}
		require.Greater(t, answered.Load(), int64(100))

		w.changeSource(t, lambda, program)
		w.waitReady(t, lambda)
		w.remove(t, lambda)
	})

	t.Run("a name that is taken is told, and the object left alone", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "sample"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 1}}}}
		require.NoError(t, w.client.Create(t.Context(), service))
		lambda := newLambda(ns, program)
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitCondition(t, lambda, v1alpha1.ConditionDeployed, controller.ReasonNameTaken, "a Service sample exists and is not this lambda's")
		require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(service), service))
		require.Empty(t, service.Spec.Selector)
		w.remove(t, lambda)
	})

	t.Run("drift is repaired", func(t *testing.T) {
		ns := testkit.Namespace(t, w.config)
		lambda := newLambda(ns, program)
		require.NoError(t, w.client.Create(t.Context(), lambda))
		w.waitReady(t, lambda)
		service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "sample"}}
		require.NoError(t, w.client.Patch(t.Context(), service, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"selector":{"lambdamesh.dev/lambda":"other"}}}`))))
		testkit.Eventually(t, time.Minute, func() error {
			if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(service), service); err != nil {
				return err
			}
			if got := service.Spec.Selector[v1alpha1.LabelLambda]; got != "sample" {
				return fmt.Errorf("selects %s", got)
			}
			return nil
		}, "the selector is put right")

		entry := w.endpoints(t, ns)[0]
		require.NoError(t, w.client.Delete(t.Context(), &istionetworking.WorkloadEntry{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: entry.Name}}))
		require.NoError(t, w.client.Delete(t.Context(), &istionetworking.Sidecar{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: entry.Name}}))
		testkit.Eventually(t, time.Minute, func() error {
			_, err := w.try(t.Context(), ns, "/")
			return errors.Join(err, w.client.Get(t.Context(), client.ObjectKeyFromObject(entry), &istionetworking.Sidecar{}))
		}, "the replica is an endpoint again")
		w.remove(t, lambda)
	})
}

// A process that does not even answer /healthz any more is replaced: one that
// stands still, as a debugger or a page that never comes makes it.
func TestASilentProcessIsReplaced(t *testing.T) {
	w := newWorld(t)
	w.silentMost = 5 * time.Second
	stop := w.start(t)
	defer stop()
	ns := testkit.Namespace(t, w.config)
	lambda := newLambda(ns, program)
	require.NoError(t, w.client.Create(t.Context(), lambda))
	w.waitReady(t, lambda)
	before := strings.Fields(w.call(t, ns, "/"))[1]
	pid, err := strconv.Atoi(before)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	testkit.Eventually(t, time.Minute, func() error {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("process %d is there: %w", pid, err)
		}
		_, err := w.try(t.Context(), ns, "/")
		return err
	}, "another process answers")
	w.remove(t, lambda)
}

func TestStopLeavesNothingBehindAndStartRemovesWhatAKilledRunLeft(t *testing.T) {
	w := newWorld(t)
	ns := testkit.Namespace(t, w.config)
	stale := map[string]string{
		v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelReplica: "sample-old", v1alpha1.LabelOwnerName: "sample", v1alpha1.LabelLambda: "sample",
	}
	member := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy, v1alpha1.LabelReplica: "bus", v1alpha1.LabelMember: "eventbus"}
	for name, labels := range map[string]map[string]string{"sample-old": stale, "bus": member} {
		require.NoError(t, w.client.Create(t.Context(), &istionetworking.WorkloadEntry{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels}, Spec: istioapi.WorkloadEntry{Address: "127.0.0.1"},
		}))
	}
	stop := w.start(t)
	lambda := newLambda(ns, program)
	require.NoError(t, w.client.Create(t.Context(), lambda))
	w.waitReady(t, lambda)
	require.Len(t, w.endpoints(t, ns), 1, "only the new one")
	pid, err := strconv.Atoi(strings.Fields(w.call(t, ns, "/"))[1])
	require.NoError(t, err)
	stop()
	require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	var entries istionetworking.WorkloadEntryList
	require.NoError(t, w.client.List(t.Context(), &entries, client.InNamespace(ns)))
	require.Len(t, entries.Items, 1)
	require.Equal(t, "bus", entries.Items[0].Name, "another's entry stays")
	w.remove(t, lambda)
}

// world is an API server with the lambda controller and the local node on it.
type world struct {
	config   *rest.Config
	client   client.Client
	dataDir  string
	sidecars *fakeSidecars
	// silentMost of the node; zero is its default.
	silentMost time.Duration
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config := testkit.KubeAPI(t, manifests.CRDs, manifests.IstioCRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	return &world{config: config, client: c, dataDir: t.TempDir(), sidecars: &fakeSidecars{}}
}

func (w *world) start(t *testing.T) (stop func()) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	ctrl.SetLogger(telemetry.Logr(slog.New(slog.DiscardHandler))) // global: it outlives this test
	toolchain, err := build.NewToolchain(build.ToolchainConfig{Dir: filepath.Join(w.dataDir, "artifacts")})
	require.NoError(t, err)
	node, err := localnode.New(localnode.Config{
		REST: w.config, DataDir: w.dataDir, RunDir: testkit.TempSocketDir(t), Artifacts: build.Directory{Toolchain: toolchain}, Sidecars: w.sidecars,
		DrainDelay: drainDelay, MinBackoff: 50 * time.Millisecond, MaxBackoff: 500 * time.Millisecond, SilentMost: w.silentMost, Log: log,
	})
	require.NoError(t, err)
	mgr, err := ctrl.NewManager(w.config, ctrl.Options{Scheme: w.client.Scheme(), Metrics: server.Options{BindAddress: "0"}})
	require.NoError(t, err)
	require.NoError(t, controller.Add(mgr, controller.Config{Builder: &build.Pipeline{Toolchain: toolchain, Store: build.Directory{Toolchain: toolchain}}, Log: log}))

	ctx, cancel := context.WithCancel(context.Background())
	results := make(chan error, 2)
	go func() { results <- node.Run(ctx) }()
	go func() { results <- mgr.Start(ctx) }()
	select {
	case <-node.Ready():
	case <-time.After(time.Minute):
		t.Fatal("the node is not ready")
	}
	return func() {
		cancel()
		for range 2 {
			select {
			case err := <-results:
				require.NoError(t, err)
			case <-time.After(time.Minute):
				t.Fatal("the node does not stop")
			}
		}
	}
}

func newLambda(namespace, code string) *v1alpha1.Lambda {
	lambda := &v1alpha1.Lambda{}
	lambda.Namespace, lambda.Name = namespace, "sample"
	lambda.Spec.Runtime = v1alpha1.RuntimeGo
	lambda.Spec.Source.Inline = &v1alpha1.InlineSource{Code: code}
	return lambda
}

func (w *world) changeSource(t *testing.T, lambda *v1alpha1.Lambda, code string) {
	t.Helper()
	w.change(t, lambda, func(l *v1alpha1.Lambda) { l.Spec.Source.Inline.Code = code })
}

func (w *world) change(t *testing.T, lambda *v1alpha1.Lambda, change func(*v1alpha1.Lambda)) {
	t.Helper()
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(lambda), lambda))
	before := lambda.DeepCopy()
	change(lambda)
	require.NoError(t, w.client.Patch(t.Context(), lambda, client.MergeFrom(before)))
}

// remove deletes the lambda and, in the garbage collector's place, its
// Deployment.
func (w *world) remove(t *testing.T, lambda *v1alpha1.Lambda) {
	t.Helper()
	require.NoError(t, w.client.Delete(t.Context(), lambda))
	testkit.Eventually(t, time.Minute, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(lambda), lambda.DeepCopy()); client.IgnoreNotFound(err) != nil || err == nil {
			return fmt.Errorf("still there: %w", err)
		}
		return nil
	}, "the lambda is gone")
	testkit.Eventually(t, time.Minute, func() error {
		// Again, because a reconciliation that was under way may have made it anew.
		err := w.client.Delete(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: lambda.Namespace, Name: lambda.Name}})
		return errors.Join(client.IgnoreNotFound(err), w.noMembers(t.Context(), lambda.Namespace))
	}, "the replicas are gone")
}

func (w *world) noMembers(ctx context.Context, namespace string) error {
	var entries istionetworking.WorkloadEntryList
	var sidecars istionetworking.SidecarList
	selector := client.HasLabels{v1alpha1.LabelReplica, v1alpha1.LabelOwnerName}
	if err := errors.Join(w.client.List(ctx, &entries, client.InNamespace(namespace), selector), w.client.List(ctx, &sidecars, client.InNamespace(namespace), selector)); err != nil {
		return err
	}
	if n := len(entries.Items) + len(sidecars.Items); n > 0 {
		return fmt.Errorf("%d objects are left", n)
	}
	return nil
}

func (w *world) waitReady(t *testing.T, lambda *v1alpha1.Lambda) {
	t.Helper()
	w.waitFor(t, lambda, v1alpha1.ConditionReady, func(c *metav1.Condition) bool { return c.Status == metav1.ConditionTrue })
}

func (w *world) waitCondition(t *testing.T, lambda *v1alpha1.Lambda, conditionType, reason, message string) {
	t.Helper()
	w.waitFor(t, lambda, conditionType, func(c *metav1.Condition) bool {
		return c.Status == metav1.ConditionFalse && c.Reason == reason && strings.Contains(c.Message, message)
	})
}

func (w *world) waitFor(t *testing.T, lambda *v1alpha1.Lambda, conditionType string, ok func(*metav1.Condition) bool) {
	t.Helper()
	testkit.Eventually(t, 60*time.Second, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(lambda), lambda); err != nil {
			return err
		}
		condition := meta.FindStatusCondition(lambda.Status.Conditions, conditionType)
		if condition == nil || condition.ObservedGeneration != lambda.Generation || !ok(condition) {
			return fmt.Errorf("%s of generation %d is %+v", conditionType, lambda.Generation, condition)
		}
		return nil
	}, "the condition is as expected")
}

// endpoints are what the lambda's Service selects.
func (w *world) endpoints(t *testing.T, namespace string) []*istionetworking.WorkloadEntry {
	t.Helper()
	entries, err := w.listEndpoints(t.Context(), namespace)
	require.NoError(t, err)
	return entries
}

func (w *world) listEndpoints(ctx context.Context, namespace string) ([]*istionetworking.WorkloadEntry, error) {
	var entries istionetworking.WorkloadEntryList
	err := w.client.List(ctx, &entries, client.InNamespace(namespace), client.MatchingLabels{v1alpha1.LabelLambda: "sample"})
	return entries.Items, err
}

func (w *world) call(t *testing.T, namespace, path string) string {
	t.Helper()
	body, err := w.try(t.Context(), namespace, path)
	require.NoError(t, err)
	return body
}

// try calls one of the endpoints as a gateway would.
func (w *world) try(ctx context.Context, namespace, path string) (string, error) {
	entries, err := w.listEndpoints(ctx, namespace)
	if err != nil {
		return "", err
	}
	if len(entries) == 0 {
		return "", errors.New("no endpoints")
	}
	entry := entries[int(time.Now().UnixNano())%len(entries)]
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d%s", entry.Spec.Address, entry.Spec.Ports["http"], path), nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(body))
	}
	return string(body), err
}

// fakeSidecars forward what comes in to the process, without a mesh.
type fakeSidecars struct{ failures atomic.Int64 }

type fakeSidecar struct {
	server *http.Server
	active atomic.Int64
	ready  chan struct{}
}

func (f *fakeSidecars) Start(_ context.Context, replica localnode.Replica) (localnode.Sidecar, error) {
	if f.failures.Add(-1) >= 0 {
		return nil, errors.New("no sidecar today")
	}
	s := &fakeSidecar{ready: make(chan struct{})}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "app"})
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", replica.AppSocket)
	}}
	s.server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.active.Add(1)
		defer s.active.Add(-1)
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = s.server.Serve(replica.InboundListener) }()
	close(s.ready)
	return s, nil
}

func (s *fakeSidecar) Ready() <-chan struct{}         { return s.ready }
func (s *fakeSidecar) ActiveRequests() int            { return int(s.active.Load()) }
func (s *fakeSidecar) Stop(ctx context.Context) error { return s.server.Shutdown(ctx) }
