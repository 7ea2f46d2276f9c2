package controller_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/lambdamesh/lambdamesh/eventbus"
	"github.com/lambdamesh/lambdamesh/eventbus/broker"
	"github.com/lambdamesh/lambdamesh/eventbus/broker/jetstream"
	"github.com/lambdamesh/lambdamesh/eventbus/controller"
	"github.com/lambdamesh/lambdamesh/eventbus/event"
	"github.com/lambdamesh/lambdamesh/eventbus/natsserver"
	"github.com/lambdamesh/lambdamesh/manifests"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/component"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

const patience = time.Minute

// world is a bus on a real API server and an embedded NATS. Its mesh is a proxy
// that keeps what is sent through it.
type world struct {
	t      *testing.T
	rest   *rest.Config
	client client.Client
	ns     string
	dir    string
	bus    *eventbus.Bus
	stop   func()
	cancel func() // begins to stop
	pushed chan pushed
	// elected and drain are of the bus's configuration.
	elected bool
	drain   time.Duration
	admin   string // URL of the administrative port
	// refuse, if set, says what the sink answers instead of 200.
	refuse atomic.Pointer[func(r *http.Request) int]
}

type pushed struct{ url, id string }

func newWorld(t *testing.T) *world {
	w := stillWorld(t)
	w.start()
	return w
}

// stillWorld is a world whose bus is not started.
func stillWorld(t *testing.T) *world {
	w := &world{t: t, rest: testkit.KubeAPI(t, manifests.CRDs), dir: t.TempDir(), pushed: make(chan pushed, 1000)}
	scheme, err := kube.Scheme()
	require.NoError(t, err)
	w.client, err = client.New(w.rest, client.Options{Scheme: scheme})
	require.NoError(t, err)
	w.ns = testkit.Namespace(t, w.rest)
	w.drain = time.Second
	return w
}

func (w *world) start() {
	t := w.t
	proxy := httptest.NewServer(http.HandlerFunc(func(answer http.ResponseWriter, r *http.Request) {
		w.pushed <- pushed{url: r.URL.String(), id: r.Header.Get("Ce-Id")}
		if refuse := w.refuse.Load(); refuse != nil {
			answer.WriteHeader((*refuse)(r))
		}
	}))
	t.Cleanup(proxy.Close)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	nats, err := natsserver.New(natsserver.Config{Dir: w.dir, Logger: log})
	require.NoError(t, err)
	policy, err := targets.New(targets.Config{Allow: []string{"127.0.0.1:7777"}, Deny: []string{"93.184.216.35:9090"}})
	require.NoError(t, err)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	admin, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.admin = "http://" + admin.Addr().String()
	w.bus, err = eventbus.New(eventbus.Config{
		AdminListener: admin,
		JetStream:     jetstream.Config{InProcess: nats, PublishTimeout: time.Minute},
		OpenListener:  listener,
		MeshProxyURL:  proxy.URL,
		Targets:       policy,
		REST:          w.rest,
		DrainTimeout:  w.drain,

		LeaderElection: w.elected,
		Log:            log,
	})
	require.NoError(t, err)
	all := component.NewGroup("test", component.GroupConfig{}, nats, w.bus)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- all.Run(ctx) }()
	stopped := false
	w.cancel = cancel
	w.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			require.NoError(t, <-done)
		}
	}
	t.Cleanup(func() { w.stop() })
	select {
	case <-all.Ready():
	case err := <-done:
		stopped = true
		t.Fatalf("the bus ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the bus is not ready")
	}
}

func (w *world) create(objects ...client.Object) {
	w.t.Helper()
	for _, o := range objects {
		if o.GetNamespace() == "" {
			o.SetNamespace(w.ns)
		}
		require.NoError(w.t, w.client.Create(w.t.Context(), o))
	}
}

func (w *world) update(o client.Object, change func()) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		require.NoError(w.t, w.client.Get(w.t.Context(), client.ObjectKeyFromObject(o), o))
		change()
		err := w.client.Update(w.t.Context(), o)
		if !apierrors.IsConflict(err) {
			require.NoError(w.t, err)
		}
		return err == nil
	}, patience, 10*time.Millisecond)
}

func (w *world) publish(source, eventType string, ids ...string) {
	w.t.Helper()
	for _, id := range ids {
		_, err := w.bus.Store().Publish(w.t.Context(), []event.Event{{ID: id, Source: source, Type: eventType, Data: []byte("{}")}})
		require.NoError(w.t, err)
	}
}

// expect waits until a condition of the subscription has this reason for its
// current generation, and returns the subscription.
func (w *world) expect(sub *v1alpha1.Subscription, condition string, status metav1.ConditionStatus, reason string) {
	w.t.Helper()
	w.until(sub, func() error {
		c := meta.FindStatusCondition(sub.Status.Conditions, condition)
		if c == nil || c.ObservedGeneration != sub.Generation || c.Status != status || c.Reason != reason {
			return fmt.Errorf("%s is %+v, want %s %s", condition, c, status, reason)
		}
		return nil
	})
}

func (w *world) until(sub *v1alpha1.Subscription, check func() error) {
	w.t.Helper()
	testkit.Eventually(w.t, patience, func() error {
		if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(sub), sub); err != nil {
			return err
		}
		return check()
	}, "subscription "+sub.Name)
}

func (w *world) nextPush() pushed {
	w.t.Helper()
	select {
	case p := <-w.pushed:
		return p
	case <-time.After(patience):
		w.t.Fatal("nothing was pushed")
		return pushed{}
	}
}

func subscription(name, source string, change func(*v1alpha1.SubscriptionSpec)) *v1alpha1.Subscription {
	sub := &v1alpha1.Subscription{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubscriptionSpec{
		Source: source, Types: []string{"order.**"},
		Sink: v1alpha1.Sink{Service: &v1alpha1.SinkService{ServiceRef: v1alpha1.ServiceRef{Name: "orders", Port: 8080}, Path: "/in"}},
	}}
	if change != nil {
		change(&sub.Spec)
	}
	return sub
}

func service(name string, port int32) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: port}}},
	}
}

func binding(application string) *v1alpha1.ApplicationBinding {
	return &v1alpha1.ApplicationBinding{
		ObjectMeta: metav1.ObjectMeta{Name: application},
		Spec:       v1alpha1.ApplicationBindingSpec{Application: application},
	}
}

func TestApplicationEventsNeedABinding(t *testing.T) {
	w := newWorld(t)
	sub := subscription("orders", "commerce", nil)
	w.create(service("orders", 8080), sub)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)

	bound := binding("commerce")
	w.create(bound)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	shown := &unstructured.Unstructured{}
	shown.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("Subscription"))
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(sub), shown))
	require.Contains(t, shown.Object["status"], "deadLettered", "a counter of zero is shown")
	w.publish("commerce", "order.created.v1", "1")
	require.Equal(t, pushed{url: "http://orders." + w.ns + ".svc:8080/in", id: "1"}, w.nextPush())
	w.until(sub, func() error {
		if sub.Status.Delivered != 1 || sub.Status.Pending != 0 || sub.Status.InFlight != 0 {
			return fmt.Errorf("status %+v", sub.Status)
		}
		return nil
	})

	require.NoError(t, w.client.Delete(t.Context(), bound))
	w.expect(sub, v1alpha1.ConditionSubscribed, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
	w.publish("commerce", "order.created.v1", "2")
	w.create(subscription("own", "/"+w.ns+"/cart", nil))
	w.publishUntilPushed("/" + w.ns + "/cart")
}

// A finalizer keeps what somebody has deleted, and not what it permitted.
func TestWhatIsBeingDeletedPermitsNothing(t *testing.T) {
	w := newWorld(t)
	other := testkit.Namespace(t, w.rest)
	bound := binding("commerce")
	grant := &v1alpha1.EventGrant{
		ObjectMeta: metav1.ObjectMeta{Name: "g", Namespace: other},
		Spec:       v1alpha1.EventGrantSpec{Namespaces: []string{w.ns}},
	}
	byBinding, byGrant := subscription("by-binding", "commerce", nil), subscription("by-grant", "/"+other+"/cart", nil)
	w.create(service("orders", 8080), byBinding, byGrant)
	for sub, pinned := range map[*v1alpha1.Subscription]client.Object{byBinding: bound, byGrant: grant} {
		pinned.SetFinalizers([]string{"example.com/pinned"})
		w.create(pinned)
		t.Cleanup(func() { w.release(pinned) })
		w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
		require.NoError(t, w.client.Delete(t.Context(), pinned))
		w.expect(sub, v1alpha1.ConditionSubscribed, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
		require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(pinned), pinned), "it is still there")
	}
}

// publishUntilPushed publishes events of a source until the first is pushed,
// which must be one of them: nothing else was dispatched meanwhile.
func (w *world) publishUntilPushed(source string) {
	w.t.Helper()
	deadline := time.After(patience)
	for i := 0; ; i++ {
		w.publish(source, "order.created.v1", fmt.Sprintf("%s-%d", source, i))
		select {
		case p := <-w.pushed:
			require.True(w.t, strings.HasPrefix(p.id, source), "pushed %s", p.id)
			return
		case <-time.After(100 * time.Millisecond):
		case <-deadline:
			w.t.Fatal("nothing was pushed")
		}
	}
}

func TestEventsOfAnotherNamespaceNeedAGrant(t *testing.T) {
	w := newWorld(t)
	other := w.ns + "-owner"
	require.NoError(t, w.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: other}}))
	source := "/" + other + "/cart"
	sub := subscription("orders", source, nil)
	all := subscription("all", "*", func(s *v1alpha1.SubscriptionSpec) { s.Sink.Service.Path = "/all" })
	w.create(service("orders", 8080), sub, all)
	w.expect(sub, v1alpha1.ConditionSubscribed, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
	w.expect(all, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)

	grant := &v1alpha1.EventGrant{
		ObjectMeta: metav1.ObjectMeta{Name: "g", Namespace: other},
		Spec:       v1alpha1.EventGrantSpec{Namespaces: []string{w.ns}, Lambdas: []string{"cart"}},
	}
	w.create(grant)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.publish("/"+other+"/secret", "order.created.v1", "secret")
	w.publishUntilPushed(source)

	w.done(sub)
	w.done(all)
	require.NoError(t, w.client.Delete(t.Context(), grant))
	w.expect(sub, v1alpha1.ConditionSubscribed, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
	for len(w.pushed) > 0 { // what was published with the grant
		<-w.pushed
	}
	w.publish(source, "order.created.v1", "revoked")
	w.stop() // also when it is a new process that finds it refused
	w.start()
	w.expect(sub, v1alpha1.ConditionSubscribed, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
	w.publish(source, "order.created.v1", "revoked-too")
	w.done(all) // which has not been given it
	require.Empty(t, w.pushed)
	require.NoError(t, w.client.Get(t.Context(), client.ObjectKeyFromObject(sub), sub))
	sub.Spec.Types = append(sub.Spec.Types, "order.*.v9")
	require.NoError(t, w.client.Update(t.Context(), sub))
	testkit.Eventually(t, patience, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(sub), sub); err != nil {
			return err
		}
		if sub.Status.ObservedGeneration != sub.Generation {
			return fmt.Errorf("generation %d of %d", sub.Status.ObservedGeneration, sub.Generation)
		}
		return nil
	}, "the change is seen")
	require.Zero(t, sub.Status.Pending, "how much there is, is none of its business either")

	again := &v1alpha1.EventGrant{ObjectMeta: metav1.ObjectMeta{Name: "again", Namespace: other}, Spec: grant.Spec}
	w.create(again)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	require.ElementsMatch(t, []string{"revoked", "revoked-too"}, []string{w.nextPush().id, w.nextPush().id}, "they waited")
	letters, err := w.bus.Store().DeadLetters(t.Context(), string(sub.UID), 0, 10)
	require.NoError(t, err)
	require.Empty(t, letters)
}

// done waits until nothing waits for a subscription.
func (w *world) done(sub *v1alpha1.Subscription) {
	w.t.Helper()
	testkit.Eventually(w.t, patience, func() error {
		info, err := w.bus.Dispatcher().Info(w.t.Context(), string(sub.UID))
		if err == nil && info.Pending+info.Unacknowledged > 0 {
			err = fmt.Errorf("%+v", info)
		}
		return err
	}, "subscription "+sub.Name+" has no backlog")
}

func TestLambdaSinkWaitsForAReplica(t *testing.T) {
	w := newWorld(t)
	sub := subscription("orders", "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) { s.Sink = v1alpha1.Sink{Lambda: "last-order"} })
	w.create(sub)
	w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonNotFound)
	w.expect(sub, v1alpha1.ConditionSubscribed, metav1.ConditionTrue, "Subscribed")
	w.publish("/"+w.ns+"/cart", "order.created.v1", "1")

	lambda := &v1alpha1.Lambda{
		ObjectMeta: metav1.ObjectMeta{Name: "last-order"},
		Spec:       v1alpha1.LambdaSpec{Runtime: "nodejs", Source: v1alpha1.SourceSpec{Inline: &v1alpha1.InlineSource{Code: "x"}}},
	}
	w.create(lambda)
	w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, "NoReplicas")
	require.Empty(t, w.pushed)
	lambda.Status.ReadyReplicas = 1
	require.NoError(t, w.client.Status().Update(t.Context(), lambda))
	require.Equal(t, pushed{url: "http://last-order." + w.ns + ".svc/", id: "1"}, w.nextPush())
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
}

func TestRefusedSinks(t *testing.T) {
	w := newWorld(t)
	w.create(service("orders", 8080))
	for name, tt := range map[string]struct {
		sink   v1alpha1.Sink
		reason string
	}{
		"no-such-service":   {v1alpha1.Sink{Service: &v1alpha1.SinkService{ServiceRef: v1alpha1.ServiceRef{Name: "nobody"}}}, v1alpha1.ReasonNotFound},
		"no-such-port":      {v1alpha1.Sink{Service: &v1alpha1.SinkService{ServiceRef: v1alpha1.ServiceRef{Name: "orders", Port: 81}}}, v1alpha1.ReasonNotFound},
		"another-namespace": {v1alpha1.Sink{Service: &v1alpha1.SinkService{ServiceRef: v1alpha1.ServiceRef{Name: "orders", Namespace: "default"}}}, v1alpha1.ReasonNotPermitted},
		"loopback":          {v1alpha1.Sink{URI: "http://127.0.0.1:9/"}, v1alpha1.ReasonTargetRefused},
		"metadata":          {v1alpha1.Sink{URI: "http://169.254.169.254/latest"}, v1alpha1.ReasonTargetRefused},
	} {
		t.Run(name, func(t *testing.T) {
			sub := subscription(name, "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) { s.Sink = tt.sink })
			w.create(sub)
			w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, tt.reason)
			w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionFalse, tt.reason)
		})
	}
	allowed := subscription("allowed", "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) { s.Sink = v1alpha1.Sink{URI: "http://127.0.0.1:7777/"} })
	w.create(allowed)
	w.expect(allowed, v1alpha1.ConditionSinkReady, metav1.ConditionTrue, "Resolved")
}

func TestPauseKeepsEventsAndAnEditKeepsThePosition(t *testing.T) {
	w := newWorld(t)
	source := "/" + w.ns + "/cart"
	sub := subscription("orders", source, nil)
	w.create(service("orders", 8080), sub)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.publish(source, "order.created.v1", "1")
	require.Equal(t, "1", w.nextPush().id)

	w.update(sub, func() { sub.Spec.Paused = true })
	w.expect(sub, v1alpha1.ConditionDelivering, metav1.ConditionFalse, "Paused")
	w.publish(source, "order.created.v1", "2", "3")
	w.until(sub, func() error {
		if sub.Status.Pending != 2 {
			return fmt.Errorf("pending %d", sub.Status.Pending)
		}
		return nil
	})
	w.update(sub, func() {
		sub.Spec.Paused = false
		sub.Spec.Types = append(sub.Spec.Types, "invoice.**")
		sub.Spec.Sink.Service.Path = "/edited"
	})
	for range 2 {
		p := w.nextPush()
		require.Contains(t, []string{"2", "3"}, p.id)
		require.True(t, strings.HasSuffix(p.url, "/edited"), p.url)
	}
}

func TestDeletingASubscriptionDeletesItsConsumerOnly(t *testing.T) {
	w := newWorld(t)
	source := "/" + w.ns + "/cart"
	gone, stays := subscription("gone", source, nil), subscription("stays", source, nil)
	w.create(service("orders", 8080), gone, stays)
	w.expect(gone, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.expect(stays, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	require.NoError(t, w.client.Delete(t.Context(), gone))
	testkit.Eventually(t, patience, func() error {
		if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(gone), gone); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there: %w", err)
		}
		return nil
	}, "it is not kept")
	testkit.Eventually(t, patience, func() error {
		if uids := w.consumers(); slices.Contains(uids, string(gone.UID)) {
			return fmt.Errorf("among %v", uids)
		}
		return nil
	}, "its consumer stays")
	require.Contains(t, w.consumers(), string(stays.UID))
	_, err := w.bus.Dispatcher().Info(t.Context(), string(gone.UID))
	require.ErrorIs(t, err, broker.ErrNotFound)
	w.publish(source, "order.created.v1", "1")
	require.Equal(t, "1", w.nextPush().id)
	require.Empty(t, w.pushed)
}

// consumers of the event store.
func (w *world) consumers() []string {
	w.t.Helper()
	lister, ok := w.bus.Store().(controller.Consumers)
	require.True(w.t, ok)
	uids, err := lister.Consumers(w.t.Context())
	require.NoError(w.t, err)
	return uids
}

// One with the same name is another one, with a backlog of its own.
func TestASubscriptionThatComesAgainBeginsAnew(t *testing.T) {
	w := newWorld(t)
	source := "/" + w.ns + "/cart"
	first := subscription("orders", source, func(s *v1alpha1.SubscriptionSpec) { s.Paused = true })
	w.create(service("orders", 8080), first)
	w.expect(first, v1alpha1.ConditionSubscribed, metav1.ConditionTrue, "Subscribed")
	w.publish(source, "order.created.v1", "1")
	require.NoError(t, w.client.Delete(t.Context(), first))
	second := subscription("orders", source, nil)
	w.create(second)
	w.expect(second, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.publish(source, "order.created.v1", "2")
	require.Equal(t, "2", w.nextPush().id)
	testkit.Eventually(t, patience, func() error {
		if uids := w.consumers(); slices.Contains(uids, string(first.UID)) {
			return fmt.Errorf("among %v", uids)
		}
		return nil
	}, "the consumer of the first one stays")
}

func TestWithoutAnEventBusASubscriptionCanBeDeleted(t *testing.T) {
	w := newWorld(t)
	old := subscription("old", "/"+w.ns+"/cart", nil)
	old.Finalizers = []string{"lambdamesh.dev/event-consumer"} // as an older version left it
	sub := subscription("orders", "/"+w.ns+"/cart", nil)
	w.create(service("orders", 8080), sub, old)
	for _, s := range []*v1alpha1.Subscription{sub, old} {
		w.expect(s, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	}
	w.stop()
	for _, s := range []*v1alpha1.Subscription{sub, old} {
		require.NoError(t, w.client.Delete(t.Context(), s))
		err := w.client.Get(t.Context(), client.ObjectKeyFromObject(s), s)
		require.True(t, apierrors.IsNotFound(err), "%v: %v", s.Finalizers, err)
	}
}

func TestARestartKeepsCountersAndBacklog(t *testing.T) {
	w := newWorld(t)
	source := "/" + w.ns + "/cart"
	sub := subscription("orders", source, nil)
	w.create(service("orders", 8080), sub)
	w.expect(sub, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	delivered := func(n int64) {
		t.Helper()
		w.until(sub, func() error {
			if sub.Status.Delivered != n {
				return fmt.Errorf("delivered %d, want %d", sub.Status.Delivered, n)
			}
			return nil
		})
	}
	w.publish(source, "order.created.v1", "1", "2")
	delivered(2)
	w.stop()
	w.start()
	w.publish(source, "order.created.v1", "3")
	delivered(3)
}

func TestFiltersDecideAndBadOnesAreRefused(t *testing.T) {
	w := newWorld(t)
	source := "/" + w.ns + "/cart"
	filters := func(text string) []v1alpha1.Filter {
		var f v1alpha1.Filter
		require.NoError(t, json.Unmarshal([]byte(text), &f))
		return []v1alpha1.Filter{f}
	}
	bad := subscription("bad", source, func(s *v1alpha1.SubscriptionSpec) { s.Filters = filters(`{"sql":"=="}`) })
	good := subscription("good", source, func(s *v1alpha1.SubscriptionSpec) { s.Filters = filters(`{"suffix":{"type":".v2"}}`) })
	w.create(service("orders", 8080), bad, good)
	w.expect(bad, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonInvalid)
	w.expect(good, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady)
	w.publish(source, "order.created.v1", "1")
	w.publish(source, "order.created.v2", "2")
	require.Equal(t, "2", w.nextPush().id)
	require.Empty(t, w.pushed)
}
