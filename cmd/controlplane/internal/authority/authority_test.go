package authority_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/cmd/controlplane/internal/authority"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const overlap = 24 * time.Hour

type world struct {
	*testing.T
	client.Client
	namespace string

	mu    sync.Mutex
	clock time.Time
}

func newWorld(t *testing.T) *world {
	t.Helper()
	config := testkit.KubeAPI(t, manifests.CRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	return &world{T: t, Client: c, namespace: testkit.Namespace(t, config), clock: time.Now()}
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

// replica runs one of the control plane until the test ends; of those with a leader
// election the first one leads.
func (w *world) replica() *ca.CA {
	w.Helper()
	config := testkit.KubeAPI(w, manifests.CRDs)
	clients, err := kubernetes.NewForConfig(config)
	require.NoError(w, err)
	kept, err := ca.Open(w.Context(), ca.Secret(clients.CoreV1().Secrets(w.namespace), ca.SecretName), ca.Config{Now: w.now})
	require.NoError(w, err)
	log := slog.New(slog.NewTextHandler(w.Output(), nil))
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: w.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"}, Logger: telemetry.Logr(log),
		LeaderElection: true, LeaderElectionID: "authority", LeaderElectionNamespace: w.namespace, LeaderElectionReleaseOnCancel: true,
	})
	require.NoError(w, err)
	require.NoError(w, authority.Add(manager, authority.Config{Namespace: w.namespace, CA: kept, Overlap: overlap, Now: w.now, Log: log}))
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	done := make(chan error, 1)
	go func() { done <- manager.Start(ctx) }()
	w.Cleanup(func() {
		cancel()
		require.NoError(w, <-done)
	})
	return kept
}

func (w *world) secret() *corev1.Secret {
	w.Helper()
	secret := &corev1.Secret{}
	require.NoError(w, w.Get(w.Context(), client.ObjectKey{Namespace: w.namespace, Name: ca.SecretName}, secret))
	return secret
}

func (w *world) annotate(key, value string) {
	w.Helper()
	secret := w.secret()
	patch := client.MergeFrom(secret.DeepCopy())
	metav1.SetMetaDataAnnotation(&secret.ObjectMeta, key, value)
	require.NoError(w, w.Patch(w.Context(), secret, patch))
}

func (w *world) pass(d time.Duration) {
	w.Helper()
	w.mu.Lock()
	w.clock = w.clock.Add(d)
	at := w.clock
	w.mu.Unlock()
	w.annotate("looked-at", at.String())
}

// await waits until every replica trusts that many roots.
func await(t *testing.T, replicas []*ca.CA, roots int) {
	t.Helper()
	testkit.Eventually(t, time.Minute, func() error {
		for i, replica := range replicas {
			if n := strings.Count(string(replica.Root()), "BEGIN CERTIFICATE"); n != roots || !bytes.Equal(replica.Root(), replicas[0].Root()) {
				return fmt.Errorf("replica %d trusts %d", i, n)
			}
		}
		return nil
	}, "the replicas do not follow")
}

func TestTheRootIsReplacedInEveryReplica(t *testing.T) {
	w := newWorld(t)
	replicas := []*ca.CA{w.replica(), w.replica()}
	before := bytes.Clone(replicas[0].Root())
	require.Equal(t, before, replicas[1].Root())

	w.annotate(v1alpha1.AnnotationRotate, "now")
	await(t, replicas, 2)
	require.True(t, bytes.HasPrefix(replicas[0].Root(), before), "the last one signs")
	require.NotContains(t, w.secret().Annotations, v1alpha1.AnnotationRotate)
	w.pass(overlap)
	testkit.Eventually(t, time.Minute, func() error {
		if bytes.HasPrefix(replicas[0].Root(), before) {
			return errors.New("the last one signs")
		}
		return nil
	}, "the next one does not sign")
	await(t, replicas, 2)
	w.pass(overlap)
	await(t, replicas, 1)
	require.NotEqual(t, before, replicas[0].Root())
	require.Len(t, w.secret().Data, 2)
	require.Equal(t, replicas[0].Root(), w.replica().Root(), "one that starts later")
}

func TestADeletedRootIsWrittenAgainAndABrokenOneIsNotTaken(t *testing.T) {
	w := newWorld(t)
	replicas := []*ca.CA{w.replica()}
	before := bytes.Clone(replicas[0].Root())
	w.annotate(v1alpha1.AnnotationRotate, "now") // it leads, and has seen the Secret
	await(t, replicas, 2)
	after := bytes.Clone(replicas[0].Root())
	first := w.secret()
	require.NoError(t, w.Delete(t.Context(), first))
	testkit.Eventually(t, time.Minute, func() error {
		secret := &corev1.Secret{}
		return w.Get(t.Context(), client.ObjectKeyFromObject(first), secret)
	}, "it is not there again")
	require.Equal(t, first.Data, w.secret().Data)

	broken := w.secret()
	broken.Data[corev1.TLSCertKey] = []byte("no certificate")
	require.NoError(t, w.Update(t.Context(), broken))
	w.annotate(v1alpha1.AnnotationRotate, "now")
	mended := w.secret()
	mended.Data = map[string][]byte{corev1.TLSCertKey: first.Data[corev1.TLSCertKey], corev1.TLSPrivateKeyKey: first.Data[corev1.TLSPrivateKeyKey]}
	require.Equal(t, after, replicas[0].Root(), "the last one stays in force")
	delete(mended.Annotations, v1alpha1.AnnotationRotate)
	require.NoError(t, w.Update(t.Context(), mended))
	testkit.Eventually(t, time.Minute, func() error {
		if !bytes.Equal(replicas[0].Root(), before) {
			return errors.New("it is not followed")
		}
		return nil
	}, "the mended one is not taken")
}
