package install_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/lambdamesh/lambdamesh/cmd/controlplane/internal/install"
	applications "github.com/lambdamesh/lambdamesh/connector/authority"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/telemetry"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const (
	patience = time.Minute
	// overlap of each step when credentials are replaced.
	overlap = time.Hour
)

// installation is a namespace in which replicas of the control plane work.
type installation struct {
	*testing.T
	client.Client
	namespace string
	authority *ca.CA

	mu    sync.Mutex
	clock time.Time
	log   bytes.Buffer
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	config := testkit.KubeAPI(t, manifests.IstioCRDs)
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	c, err := client.New(config, client.Options{Scheme: scheme})
	require.NoError(t, err)
	i := &installation{T: t, Client: c, namespace: testkit.Namespace(t, config), clock: time.Now()}
	i.authority = i.newAuthority()
	return i
}

func (i *installation) newAuthority() *ca.CA {
	root, err := ca.NewRoot(time.Now())
	require.NoError(i, err)
	authority, err := ca.New(root, ca.Config{LeafTTL: 90 * 24 * time.Hour, Now: i.now})
	require.NoError(i, err)
	return authority
}

func (i *installation) now() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.clock
}

func (i *installation) pass(d time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.clock = i.clock.Add(d)
}

// Write collects the logs of the replicas.
func (i *installation) Write(line []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.log.Write(line)
}

func (i *installation) logged() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.log.String()
}

// replica runs one until the test ends or stop is called, and returns its metrics.
func (i *installation) replica(domain string) (metrics *prometheus.Registry, stop func()) {
	config := testkit.KubeAPI(i, manifests.IstioCRDs)
	log := slog.New(slog.NewTextHandler(i, nil))
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: i.Scheme(), Metrics: metricsserver.Options{BindAddress: "0"}, Logger: telemetry.Logr(log),
	})
	require.NoError(i, err)
	metrics = prometheus.NewRegistry()
	authority := i.authority
	require.NoError(i, install.Add(manager, install.Config{
		Namespace: i.namespace, Root: authority.Root, Changed: authority.Changed, Overlap: overlap,
		Sign: func(_ string, names ...string) (install.Certificate, error) {
			leaf, err := authority.IssueServer(names...)
			return install.Certificate{ChainPEM: leaf.ChainPEM, KeyPEM: leaf.KeyPEM}, err
		},
		Certificates: map[string][]string{"nats-tls": {"nats.svc"}, "gateway-tls": {"*." + domain}},
		Authorities:  map[string]install.Authority{"connector-ca": applications.Renew},
		Credentials:  "nats", Watched: []string{"root"},
		Gateway: &install.Gateway{Name: "gateway", Domain: domain, Secret: "gateway-tls", Selector: map[string]string{"istio": "x"}},
		Now:     i.now, Log: log, Registry: metrics,
	}))
	ctx, cancel := context.WithCancel(context.WithoutCancel(i.Context()))
	done := make(chan error, 1)
	go func() { done <- manager.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(i, <-done)
	})
	i.Cleanup(stop)
	return metrics, stop
}

func (i *installation) secret(name string) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	return secret, i.Get(i.Context(), client.ObjectKey{Namespace: i.namespace, Name: name}, secret)
}

// await returns the Secret once it is as check wants it.
func (i *installation) await(name string, check func(*corev1.Secret) error) *corev1.Secret {
	i.Helper()
	var secret *corev1.Secret
	testkit.Eventually(i, patience, func() (err error) {
		if secret, err = i.secret(name); err != nil {
			return err
		}
		return check(secret)
	}, "Secret "+name)
	return secret
}

func present(*corev1.Secret) error { return nil }

func (i *installation) certificateFor(host string) func(*corev1.Secret) error {
	return func(secret *corev1.Secret) error {
		pair, err := tls.X509KeyPair(secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey])
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(secret.Data["ca.crt"]) {
			return errors.New("no ca.crt")
		}
		_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: host, CurrentTime: i.now()})
		return err
	}
}

// touch has the replicas look at a Secret again.
func (i *installation) touch(name string) {
	i.Helper()
	secret, err := i.secret(name)
	require.NoError(i, err)
	patch := client.MergeFrom(secret.DeepCopy())
	metav1.SetMetaDataLabel(&secret.ObjectMeta, "touched", fmt.Sprint(len(secret.Labels["touched"])+1)+secret.ResourceVersion)
	require.NoError(i, i.Patch(i.Context(), secret, patch))
}

func (i *installation) awaitEvent(secret, reason string) (note string) {
	i.Helper()
	testkit.Eventually(i, patience, func() error {
		var events eventsv1.EventList
		if err := i.List(i.Context(), &events, client.InNamespace(i.namespace)); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Regarding.Name == secret && e.Reason == reason {
				note = e.Note
				return nil
			}
		}
		return fmt.Errorf("none among %d", len(events.Items))
	}, "no event "+reason+" on "+secret)
	return note
}

// awaitExpiry waits until a replica has looked at the Secret.
func awaitExpiry(t *testing.T, metrics *prometheus.Registry, secret string) float64 {
	t.Helper()
	var value float64
	testkit.Eventually(t, patience, func() error {
		families, err := metrics.Gather()
		if err != nil {
			return err
		}
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				if metric.GetLabel()[0].GetValue() == secret {
					value = metric.GetGauge().GetValue()
					return nil
				}
			}
		}
		return errors.New("not there")
	}, "no expiry of "+secret)
	return value
}

func TestReplicasAtOnceMakeEverythingOnce(t *testing.T) {
	i := newInstallation(t)
	one, _ := i.replica("shop.example")
	two, _ := i.replica("shop.example")
	i.await("nats-tls", i.certificateFor("nats.svc"))
	made := i.await("gateway-tls", i.certificateFor("hello.shop.example"))
	require.Equal(t, corev1.SecretTypeTLS, made.Type)
	for _, metrics := range []*prometheus.Registry{one, two} {
		for _, name := range []string{"nats-tls", "gateway-tls"} {
			require.InDelta(t, i.now().Add(90*24*time.Hour).Unix(), awaitExpiry(t, metrics, name), 60)
		}
	}
	i.await("gateway-tls", func(secret *corev1.Secret) error {
		if secret.ResourceVersion != made.ResourceVersion {
			return errors.New("made twice")
		}
		return nil
	})
	credentials := i.await("nats", present)
	require.Len(t, credentials.Data["password"], 64)
	require.Equal(t, fmt.Sprintf("users: [\n  {user: %q, password: %q}\n]\n", credentials.Data["user"], credentials.Data["password"]), string(credentials.Data["client.conf"]))

	var gateway networkingv1.Gateway
	testkit.Eventually(t, patience, func() error {
		return i.Get(t.Context(), client.ObjectKey{Namespace: i.namespace, Name: "gateway"}, &gateway)
	}, "no Gateway")
	require.Equal(t, "shop.example", gateway.Annotations[v1alpha1.AnnotationDomain])
	require.Equal(t, "gateway-tls", gateway.Spec.GetServers()[0].GetTls().GetCredentialName())
	require.NotContains(t, i.logged(), "level=ERROR")
	require.NotContains(t, i.logged(), string(credentials.Data["password"]))
	i.awaitEvent("gateway-tls", "Made")
}

func TestWhatWasRemovedIsMadeAgain(t *testing.T) {
	i := newInstallation(t)
	i.replica("shop.example")
	for _, name := range []string{"nats-tls", "nats"} {
		first := i.await(name, present)
		require.NoError(t, i.Delete(t.Context(), first))
		again := i.await(name, func(s *corev1.Secret) error {
			if s.UID == first.UID {
				return errors.New("the old one")
			}
			return nil
		})
		if name == "nats" {
			require.Equal(t, first.Data, again.Data, "NATS and the event bus know these")
		} else {
			require.NotEqual(t, first.Data, again.Data)
		}
	}
}

func TestCredentialsThatAreRemovedWhileTheyAreReplacedStayOnTheirWay(t *testing.T) {
	i := newInstallation(t)
	i.replica("shop.example")
	i.await("nats", present)
	i.annotate("nats", v1alpha1.AnnotationRotate, "now")
	first := i.await("nats", func(s *corev1.Secret) error {
		if len(s.Data["next-user"]) == 0 {
			return errors.New("no next user")
		}
		return nil
	})
	i.awaitEvent("nats", "Rotation")
	require.NoError(t, i.Delete(t.Context(), first))
	i.await("nats", func(s *corev1.Secret) error {
		if s.UID == first.UID {
			return errors.New("the old one")
		}
		require.Equal(t, first.Data, s.Data)
		return nil
	})
	i.pass(overlap)
	i.touch("nats")
	i.await("nats", func(s *corev1.Secret) error {
		if string(s.Data["user"]) != string(first.Data["next-user"]) || string(s.Data["previous-user"]) != string(first.Data["user"]) {
			return errors.New("the next one has not taken over")
		}
		return nil
	})
}

func TestCertificatesAreRenewedAtHalfOfTheirLifeAndForOtherNames(t *testing.T) {
	i := newInstallation(t)
	_, stop := i.replica("shop.example")
	first := i.await("gateway-tls", i.certificateFor("hello.shop.example"))
	password := i.await("nats", present)
	other := func(than *corev1.Secret, host string) func(*corev1.Secret) error {
		return func(s *corev1.Secret) error {
			if bytes.Equal(s.Data[corev1.TLSCertKey], than.Data[corev1.TLSCertKey]) {
				return errors.New("the old one")
			}
			return i.certificateFor(host)(s)
		}
	}
	i.pass(46 * 24 * time.Hour)
	i.touch("gateway-tls")
	second := i.await("gateway-tls", other(first, "hello.shop.example"))
	i.awaitEvent("gateway-tls", "Renewed")
	stop()

	_, stop = i.replica("store.example")
	third := i.await("gateway-tls", other(second, "hello.store.example"))
	var gateway networkingv1.Gateway
	testkit.Eventually(t, patience, func() error {
		if err := i.Get(t.Context(), client.ObjectKey{Namespace: i.namespace, Name: "gateway"}, &gateway); err != nil {
			return err
		}
		if domain := gateway.Annotations[v1alpha1.AnnotationDomain]; domain != "store.example" {
			return errors.New(domain)
		}
		return nil
	}, "the default Gateway follows its domain")
	stop()

	i.authority = i.newAuthority() // somebody has removed the mesh's CA
	i.replica("store.example")
	i.await("gateway-tls", other(third, "hello.store.example"))
	require.Equal(t, password.Data, i.await("nats", present).Data, "credentials stay")
}

func TestWhatSomebodyElseMadeOrChangedIsLeftAlone(t *testing.T) {
	i := newInstallation(t)
	expired, err := ca.New(mustRoot(t, time.Now().Add(-time.Hour)), ca.Config{LeafTTL: time.Minute, Now: func() time.Time { return time.Now().Add(-time.Hour) }})
	require.NoError(t, err)
	leaf, err := expired.IssueServer("shop.example")
	require.NoError(t, err)
	theirs := map[string][]byte{corev1.TLSCertKey: leaf.ChainPEM, corev1.TLSPrivateKeyKey: leaf.KeyPEM}
	own := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: "gateway-tls"}, Type: corev1.SecretTypeTLS, Data: theirs}
	require.NoError(t, i.Create(t.Context(), own))
	require.NoError(t, i.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: "nats"}, Data: map[string][]byte{"password": []byte("p")},
	}))
	require.NoError(t, i.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: "root"}, Type: corev1.SecretTypeTLS, Data: theirs,
	}))
	metrics, stop := i.replica("shop.example")
	require.Contains(t, i.awaitEvent("gateway-tls", "CertificateExpired"), "delete the Secret to have one made")
	// Without its authority there is no mesh: nobody is told to delete that.
	authority := i.awaitEvent("root", "CertificateExpired")
	require.Contains(t, authority, "keep the Secret")
	require.NotContains(t, authority, "to have one made")
	i.awaitEvent("nats", "Incomplete")
	require.InDelta(t, leaf.NotAfter.Unix(), awaitExpiry(t, metrics, "gateway-tls"), 1)
	require.Equal(t, theirs, i.await("gateway-tls", present).Data)

	// What `kubectl create secret tls --dry-run | kubectl apply` does to one of ours:
	// the annotations stay.
	made := i.await("nats-tls", i.certificateFor("nats.svc"))
	made.Data = theirs
	require.NoError(t, i.Update(t.Context(), made))
	// And an edit of the default Gateway, of which its domain is one.
	var gateway networkingv1.Gateway
	testkit.Eventually(t, patience, func() error {
		return i.Get(t.Context(), client.ObjectKey{Namespace: i.namespace, Name: "gateway"}, &gateway)
	}, "no Gateway")
	gateway.Spec.Servers[0].Hosts = []string{"*.shop.example"}
	require.NoError(t, i.Update(t.Context(), &gateway))
	i.awaitEvent("nats-tls", "CertificateExpired")
	stop()

	i.pass(60 * 24 * time.Hour)
	metrics, _ = i.replica("store.example")
	for _, name := range []string{"nats-tls", "gateway-tls"} {
		require.InDelta(t, leaf.NotAfter.Unix(), awaitExpiry(t, metrics, name), 1)
		require.Equal(t, theirs, i.await(name, present).Data)
	}
	require.NoError(t, i.Get(t.Context(), client.ObjectKeyFromObject(&gateway), &gateway))
	require.Equal(t, "shop.example", gateway.Annotations[v1alpha1.AnnotationDomain])
	require.Equal(t, []string{"*.shop.example"}, gateway.Spec.GetServers()[0].GetHosts())
}

func mustRoot(t *testing.T, at time.Time) ca.Pair {
	t.Helper()
	root, err := ca.NewRoot(at)
	require.NoError(t, err)
	return root
}

// At each step whoever has seen only the step before, NATS or the event bus, is
// understood by the other.
func TestCredentialsAreReplacedWhileBothAreGood(t *testing.T) {
	for name, ask := range map[string]func(*installation){
		"asked for": func(i *installation) { i.annotate("nats", v1alpha1.AnnotationRotate, "now") },
		"old": func(i *installation) {
			i.pass(91 * 24 * time.Hour)
			i.touch("nats")
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation(t)
			i.replica("shop.example")
			steps := []*corev1.Secret{i.await("nats", present)}
			ask(i)
			for range 3 {
				last := steps[len(steps)-1]
				steps = append(steps, i.await("nats", func(s *corev1.Secret) error {
					if string(s.Data["client.conf"]) == string(last.Data["client.conf"]) && string(s.Data["user"]) == string(last.Data["user"]) {
						return errors.New("nothing has changed")
					}
					return nil
				}))
				require.NotContains(t, steps[len(steps)-1].Annotations, v1alpha1.AnnotationRotate)
				i.pass(overlap)
				i.touch("nats")
			}
			lets := func(nats, bus *corev1.Secret) bool {
				return strings.Contains(string(nats.Data["client.conf"]), fmt.Sprintf("{user: %q, password: %q}", bus.Data["user"], bus.Data["password"]))
			}
			for n := 1; n < len(steps); n++ {
				require.True(t, lets(steps[n-1], steps[n]), "step %d: the event bus is ahead of NATS", n)
				require.True(t, lets(steps[n], steps[n-1]), "step %d: NATS is ahead of the event bus", n)
			}
			require.False(t, lets(steps[3], steps[0]), "the first ones are good no more")
			require.Len(t, steps[3].Data, 3)
			require.NotContains(t, i.logged(), string(steps[3].Data["password"]))
		})
	}
}

func TestACertificateIsMadeAnewWhenItIsAskedFor(t *testing.T) {
	i := newInstallation(t)
	i.replica("shop.example")
	first := i.await("gateway-tls", i.certificateFor("hello.shop.example"))
	i.annotate("gateway-tls", v1alpha1.AnnotationRotate, "")
	i.await("gateway-tls", func(s *corev1.Secret) error {
		if bytes.Equal(s.Data[corev1.TLSCertKey], first.Data[corev1.TLSCertKey]) {
			return errors.New("the old one")
		}
		require.NotContains(t, s.Annotations, v1alpha1.AnnotationRotate)
		return i.certificateFor("hello.shop.example")(s)
	})
}

func TestCertificatesFollowTheAuthority(t *testing.T) {
	i := newInstallation(t)
	first, next := mustRoot(t, time.Now()), mustRoot(t, time.Now())
	var err error
	i.authority, err = ca.New(first, ca.Config{LeafTTL: 90 * 24 * time.Hour, Now: i.now})
	require.NoError(t, err)
	i.replica("shop.example")
	last := i.await("nats-tls", i.certificateFor("nats.svc"))
	for _, roots := range []ca.Roots{{Issuer: first, Next: next}, {Issuer: next, Previous: first.CertPEM}, {Issuer: next}} {
		require.NoError(t, i.authority.Set(roots))
		for _, name := range []string{"nats-tls", "gateway-tls"} {
			i.await(name, func(s *corev1.Secret) error {
				if !bytes.Equal(s.Data["ca.crt"], i.authority.Root()) {
					return errors.New("others are trusted")
				}
				return nil
			})
		}
		last = i.await("nats-tls", i.certificateFor("nats.svc"))
	}
	block, _ := pem.Decode(last.Data[corev1.TLSCertKey])
	leaf, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: i.authority.Pool(), DNSName: "nats.svc", CurrentTime: i.now()})
	require.NoError(t, err)
}

func (i *installation) annotate(name, key, value string) {
	i.Helper()
	secret, err := i.secret(name)
	require.NoError(i, err)
	patch := client.MergeFrom(secret.DeepCopy())
	metav1.SetMetaDataAnnotation(&secret.ObjectMeta, key, value)
	require.NoError(i, i.Patch(i.Context(), secret, patch))
}

func TestAnAuthorityIsReplacedWhenAskedAndTrustsTheOneBefore(t *testing.T) {
	i := newInstallation(t)
	i.replica("example.com")
	made := i.await("connector-ca", func(s *corev1.Secret) error {
		_, err := applications.Parse(s.Data)
		return err
	})
	first := made.DeepCopy()
	metav1.SetMetaDataAnnotation(&made.ObjectMeta, v1alpha1.AnnotationRotate, "now")
	require.NoError(t, i.Update(t.Context(), made))
	second := i.await("connector-ca", func(s *corev1.Secret) error {
		if _, asked := s.Annotations[v1alpha1.AnnotationRotate]; asked || bytes.Equal(s.Data["tls.key"], first.Data["tls.key"]) {
			return errors.New("it has the same key")
		}
		return nil
	})
	require.Contains(t, string(second.Data["ca.crt"]), string(first.Data["tls.crt"]))
	require.Contains(t, string(second.Data["ca.crt"]), string(second.Data["tls.crt"]))

	// Somebody's own is left alone, whatever is asked.
	second.Data["ca.crt"] = second.Data["tls.crt"]
	metav1.SetMetaDataAnnotation(&second.ObjectMeta, v1alpha1.AnnotationRotate, "now")
	require.NoError(t, i.Update(t.Context(), second))
	require.NoError(t, i.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: i.namespace, Name: "nats"}}))
	i.await("nats", func(*corev1.Secret) error { return nil }) // the controller has worked since
	kept, err := i.secret("connector-ca")
	require.NoError(t, err)
	require.Equal(t, second.Data, kept.Data)
}
