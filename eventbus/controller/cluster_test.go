package controller_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/eventbus/controller"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
	"github.com/lambdamesh/lambdamesh/pkg/testkit"
)

// endpoints is a slice of a Service; labeled: as the cluster labels those that
// it makes for the pods that the Service selects, and as anybody can.
func endpoints(name, service string, labeled bool, addresses ...string) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: addresses}},
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}},
	}
	if labeled {
		slice.Labels[discoveryv1.LabelManagedBy] = "endpointslice-controller.k8s.io"
	}
	return slice
}

// runs creates a pod that has an address, as a kubelet would report it.
func (w *world) runs(namespace, name, address string) *corev1.Pod {
	w.t.Helper()
	created := pod(namespace, name)
	w.create(created)
	created.Status = podStatus(address)
	require.NoError(w.t, w.client.Status().Update(w.t.Context(), created))
	return created
}

// release lets an object go that a finalizer keeps.
func (w *world) release(object client.Object) {
	require.NoError(w.t, w.client.Patch(context.WithoutCancel(w.t.Context()), object,
		client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
}

func pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	}
}

func podStatus(address string) corev1.PodStatus {
	return corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}}}
}

// throughNAT64 is how a NAT64 gateway spells an IPv4 address.
func throughNAT64(address string) string {
	spelled := netip.MustParseAddr("64:ff9b::").As16()
	b := netip.MustParseAddr(address).As4()
	copy(spelled[12:], b[:])
	return netip.AddrFrom16(spelled).String()
}

func TestASinkStaysInItsNamespaceAndUnderTheAllowedTargets(t *testing.T) {
	w := newWorld(t)
	other := testkit.Namespace(t, w.rest)
	victim := service("victim", 80)
	victim.Namespace = other
	podIP := "10.244.7.9"
	w.runs(other, "victim", podIP)
	pods := in(other, endpoints("victim-pods", "victim", true, podIP))
	for name, ip := range map[string]string{"one": "10.244.7.1", "two": "10.244.7.2"} {
		w.runs(w.ns, name, ip)
	}
	gone := endpoints("leaving-pods", "leaving", true, "10.244.7.3")
	gone.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: new(false), Serving: new(false), Terminating: new(true)}
	mapped := endpoints("translated", "translated", true, throughNAT64(podIP))
	mapped.AddressType = discoveryv1.AddressTypeIPv6
	external := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "external"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeExternalName, ExternalName: "169.254.169.254.nip.example", Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
	selecting := service("selecting", 80)
	selecting.Spec.Selector = map[string]string{"app": "x"}
	forgedToo := service("forged-selecting", 80)
	forgedToo.Spec.Selector = map[string]string{"app": "x"}
	w.create(service("forged", 80), endpoints("forged", "forged", true, "10.9.9.9"), forgedToo, endpoints("forged-selecting", "forged-selecting", true, "10.9.9.9"),
		service("claiming", 80), endpoints("a-claim", "claiming", true, podIP), service("translated", 80), mapped,
		service("picked", 80), endpoints("picked-pods", "picked", true, "10.244.7.1"), service("leaving", 80), gone,
		service("by-hand", 80), endpoints("by-hand", "by-hand", false, "10.244.7.2"))
	hop := service("hop", 80)
	w.create(hop, endpoints("hop", "hop", false, podIP))
	// One that nobody keeps up to date: it stays with what it named.
	pinned := endpoints("pinned", "pinned", true, podIP)
	pinned.Finalizers = []string{"example.com/pinned"}
	w.create(service("first", 80), endpoints("first", "first", false, hop.Spec.ClusterIP), service("pinned", 80), pinned)
	require.NoError(t, w.client.Delete(t.Context(), pinned))
	t.Cleanup(func() { w.release(pinned) })
	two := endpoints("two-ports", "two-ports", false, "93.184.216.35")
	two.Ports = append(two.Ports, discoveryv1.EndpointPort{Name: new("second"), Port: new(int32(9090))})
	w.create(service("two-ports", 80), two)
	// Somebody else's slice may name whatever it likes.
	w.create(in(other, service("naming", 80)), in(other, endpoints("naming", "naming", true, "93.184.216.36", "10.244.7.1")))
	w.create(victim, pods, external, selecting, service("private", 80), service("crossing", 80), service("own", 80), service("public", 80),
		endpoints("private", "private", false, "10.9.9.9"), endpoints("crossing", "crossing", false, podIP),
		endpoints("selecting-pods", "selecting", true, "10.244.7.1"), endpoints("selecting-more", "selecting", false, "192.168.1.1"),
		endpoints("public", "public", false, "93.184.216.34"))
	v := "victim." + other
	byName := func(name string) v1alpha1.Sink {
		return v1alpha1.Sink{Service: &v1alpha1.SinkService{ServiceRef: v1alpha1.ServiceRef{Name: name}}}
	}
	i := 0
	for name, tt := range map[string]struct {
		sink   v1alpha1.Sink
		reason string
	}{
		"an ExternalName":                   {byName("external"), v1alpha1.ReasonTargetRefused},
		"an ExternalName as a URI":          {v1alpha1.Sink{URI: "http://external." + w.ns + ".svc/"}, v1alpha1.ReasonTargetRefused},
		"endpoints that are private":        {byName("private"), v1alpha1.ReasonTargetRefused},
		"endpoints of another namespace":    {byName("crossing"), v1alpha1.ReasonNotPermitted},
		"endpoints besides the pods":        {byName("selecting"), v1alpha1.ReasonTargetRefused},
		"forged ones":                       {byName("forged"), v1alpha1.ReasonTargetRefused},
		"forged ones besides a selector":    {byName("forged-selecting"), v1alpha1.ReasonTargetRefused},
		"forged ones that claim a pod":      {byName("claiming"), v1alpha1.ReasonNotPermitted},
		"forged ones through NAT64":         {byName("translated"), v1alpha1.ReasonNotPermitted},
		"its pods":                          {byName("picked"), ""},
		"its pods, named by hand":           {byName("by-hand"), ""},
		"the address of an own Service":     {byName("first"), v1alpha1.ReasonTargetRefused},
		"a slice that outlives its pods":    {byName("pinned"), v1alpha1.ReasonNotPermitted},
		"a denied port beyond the first":    {byName("two-ports"), v1alpha1.ReasonTargetRefused},
		"a pod that is gone":                {byName("leaving"), ""},
		"what another's slice names":        {v1alpha1.Sink{URI: "http://93.184.216.36/"}, ""},
		"name.namespace":                    {v1alpha1.Sink{URI: "http://" + v + "/"}, v1alpha1.ReasonNotPermitted},
		"name.namespace.":                   {v1alpha1.Sink{URI: "http://" + v + "./"}, v1alpha1.ReasonNotPermitted},
		"name.namespace.svc":                {v1alpha1.Sink{URI: "http://" + v + ".svc/"}, v1alpha1.ReasonNotPermitted},
		"name.namespace.svc.":               {v1alpha1.Sink{URI: "http://" + v + ".svc.:80/"}, v1alpha1.ReasonNotPermitted},
		"name.namespace.svc.cluster.local":  {v1alpha1.Sink{URI: "http://" + v + ".svc.cluster.local/"}, v1alpha1.ReasonNotPermitted},
		"name.namespace.svc.cluster.local.": {v1alpha1.Sink{URI: "http://" + v + ".svc.cluster.local./x?y"}, v1alpha1.ReasonNotPermitted},
		"upper case":                        {v1alpha1.Sink{URI: "http://" + strings.ToUpper(v+".svc.cluster.local") + "/"}, v1alpha1.ReasonNotPermitted},
		"upper case, short":                 {v1alpha1.Sink{URI: "http://" + strings.ToUpper(v) + "/"}, v1alpha1.ReasonNotPermitted},
		"https":                             {v1alpha1.Sink{URI: "https://" + v + ".svc/"}, v1alpha1.ReasonNotPermitted},
		"the address of the Service":        {v1alpha1.Sink{URI: "http://" + victim.Spec.ClusterIP + "/"}, v1alpha1.ReasonNotPermitted},
		"the same in IPv6's form":           {v1alpha1.Sink{URI: "http://[::ffff:" + victim.Spec.ClusterIP + "]/"}, v1alpha1.ReasonNotPermitted},
		"the same through NAT64":            {v1alpha1.Sink{URI: "http://[" + throughNAT64(victim.Spec.ClusterIP) + "]/"}, v1alpha1.ReasonNotPermitted},
		"a pod through NAT64":               {v1alpha1.Sink{URI: "http://[" + throughNAT64(podIP) + "]:8080/"}, v1alpha1.ReasonNotPermitted},
		"the address of a pod":              {v1alpha1.Sink{URI: "http://" + podIP + ":8080/"}, v1alpha1.ReasonNotPermitted},
		"the name of a pod":                 {v1alpha1.Sink{URI: "http://10-244-7-9." + other + ".pod.cluster.local/"}, v1alpha1.ReasonTargetRefused},
		"the name of a pod of a Service":    {v1alpha1.Sink{URI: "http://a." + v + ".svc/"}, v1alpha1.ReasonTargetRefused},
		"a Service that does not exist":     {v1alpha1.Sink{URI: "http://nobody." + other + ".svc/"}, v1alpha1.ReasonNotPermitted},
		"the API server":                    {v1alpha1.Sink{URI: "http://kubernetes.default/"}, v1alpha1.ReasonNotPermitted},
		"an own one, encrypted twice":       {v1alpha1.Sink{URI: "https://own." + w.ns + ".svc/"}, v1alpha1.ReasonTargetRefused},
		"an own one":                        {v1alpha1.Sink{URI: "http://own." + w.ns + ".svc/in?x=1"}, ""},
		"an own one, short":                 {v1alpha1.Sink{URI: "http://OWN." + w.ns + "/in"}, ""},
		"endpoints that are public":         {byName("public"), ""},
	} {
		i++
		t.Run(name, func(t *testing.T) {
			sub := subscription(fmt.Sprint("sink-", i), "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) { s.Sink = tt.sink })
			w.create(sub)
			if tt.reason == "" {
				w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionTrue, "Resolved")
				return
			}
			w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, tt.reason)
		})
	}
	t.Run("a Service that turns away later", func(t *testing.T) {
		sub := subscription("turning", "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) { s.Sink = byName("own") })
		w.create(sub)
		w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionTrue, "Resolved")
		w.create(endpoints("own", "own", true, "10.9.9.9"))
		w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonTargetRefused)
	})
	t.Run("a name and an address that somebody in the cluster takes later", func(t *testing.T) {
		late := func(name, uri string) *v1alpha1.Subscription {
			sub := subscription(name, "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) { s.Sink = v1alpha1.Sink{URI: uri} })
			w.create(sub)
			w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionTrue, "Resolved")
			return sub
		}
		byName, upper := late("late-name", "http://late."+other+"/"), late("late-upper", "http://LATE."+strings.ToUpper(other)+".:8080/x")
		dead := subscription("late-dead", "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) {
			s.Sink = v1alpha1.Sink{URI: "http://93.184.216.50/"}
			s.Delivery.DeadLetter = &v1alpha1.DeadLetter{Sink: v1alpha1.Sink{URI: "http://late." + other + "/"}}
		})
		w.create(dead)
		w.expect(dead, v1alpha1.ConditionSinkReady, metav1.ConditionTrue, "Resolved")
		byAddress := late("late-address", "http://93.184.216.51/")
		external := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: other, Name: "late"},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"},
		}
		w.create(external)
		for _, sub := range []*v1alpha1.Subscription{byName, upper, dead} {
			w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
		}
		w.runs(other, "late", "93.184.216.51")
		w.expect(byAddress, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
		require.NoError(t, w.client.Delete(t.Context(), external))
		w.expect(byName, v1alpha1.ConditionSinkReady, metav1.ConditionTrue, "Resolved")

		own := late("late-own", "http://late-own."+w.ns+"/")
		w.create(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "late-own"}, Spec: external.Spec})
		w.expect(own, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonTargetRefused)
	})
	t.Run("a pod that leaves its address to another", func(t *testing.T) {
		w.create(service("heir", 80), endpoints("heir", "heir", true, "10.244.7.4"))
		sub := subscription("heir", "/"+w.ns+"/cart", func(s *v1alpha1.SubscriptionSpec) { s.Sink = byName("heir") })
		w.create(sub)
		w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonTargetRefused)
		first := w.runs(w.ns, "heir", "10.244.7.4")
		w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionTrue, "Resolved")
		first.Status.Phase = corev1.PodSucceeded
		require.NoError(t, w.client.Status().Update(t.Context(), first))
		w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonTargetRefused)
		w.runs(other, "heir", "10.244.7.4")
		w.expect(sub, v1alpha1.ConditionSinkReady, metav1.ConditionFalse, v1alpha1.ReasonNotPermitted)
	})
}

// indexer lets a fake client answer for fields.
type indexer struct{ *fake.ClientBuilder }

func (i indexer) IndexField(_ context.Context, o client.Object, field string, values client.IndexerFunc) error {
	i.WithIndex(o, field, values)
	return nil
}

func TestDialersKeepApartWhatIsInTheClusterAndWhatIsNot(t *testing.T) {
	builder := fake.NewClientBuilder().WithObjects(
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.7", ClusterIPs: []string{"10.96.0.7"}}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pods"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, ClusterIPs: []string{corev1.ClusterIPNone}}},
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "away"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}},
		in("shop", endpoints("pods", "pods", true, "10.244.0.3")), running("shop", "one", "10.244.0.3", false),
		in("shop", endpoints("forged", "pods", true, "93.184.216.34", "10.244.0.5", "10.244.0.6")),
		running("bank", "vault", "10.244.0.5", false),
		running("bank", "a", "10.244.0.6", false), running("shop", "b", "10.244.0.6", false),
		// Behind an own Service's address there may be anything, also another's pod.
		in("shop", endpoints("hop", "pods", false, "10.96.0.7")), in("shop", endpoints("orders", "orders", false, "10.244.0.5")),
		// No pod has these: one is a node's, and slices prove nothing.
		running("bank", "on-the-node", "127.0.0.1", true), in("evil", endpoints("naming", "naming", true, "127.0.0.1")),
	)
	require.NoError(t, controller.IndexAddresses(t.Context(), indexer{builder}))
	c := builder.Build()
	reached := errors.New("reached")
	var dialed []string
	mesh := controller.MeshDial(c, func(_ context.Context, _, address string) (net.Conn, error) {
		dialed = append(dialed, address)
		return nil, reached
	})
	for host, want := range map[string][]string{
		"orders.shop.svc:8080": {"10.96.0.7:8080"}, "orders.shop.svc.cluster.local.:80": {"10.96.0.7:80"}, "pods.shop.svc:80": {"10.244.0.3:80"},
		"away.shop.svc:80": nil, "nobody.shop.svc:80": nil, "127.0.0.1:80": nil, "example.com:80": nil, "orders.shop:80": nil,
	} {
		dialed = nil
		_, err := mesh(t.Context(), "tcp", host)
		require.Error(t, err)
		require.Equal(t, want, dialed, host)
		require.Equal(t, want != nil, errors.Is(err, reached), host)
	}

	direct := controller.DirectDial(c)
	for _, address := range []string{
		"10.96.0.7:80", "[::ffff:10.96.0.7]:80", "10.244.0.3:8080", "10.244.0.6:80",
		"[" + throughNAT64("10.96.0.7") + "]:80", "[" + throughNAT64("10.244.0.3") + "%lo]:80",
	} {
		_, err := direct(t.Context(), "tcp", address)
		require.True(t, targets.IsRefused(err), "%s: %v", address, err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	conn, err := direct(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	conn.Close()

	// They look each time they dial, whatever a Subscription's status says yet.
	require.NoError(t, c.Create(t.Context(), running("bank", "late", "127.0.0.1", false)))
	_, err = direct(t.Context(), "tcp", listener.Addr().String())
	require.True(t, targets.IsRefused(err), "%v", err)
	var orders corev1.Service
	require.NoError(t, c.Get(t.Context(), client.ObjectKey{Namespace: "shop", Name: "orders"}, &orders))
	orders.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}
	require.NoError(t, c.Update(t.Context(), &orders))
	_, err = mesh(t.Context(), "tcp", "orders.shop.svc:8080")
	require.True(t, targets.IsRefused(err), "%v", err)
}

func in[T client.Object](namespace string, object T) T {
	object.SetNamespace(namespace)
	return object
}

func running(namespace, name, address string, hostNetwork bool) *corev1.Pod {
	p := pod(namespace, name)
	p.Spec.HostNetwork, p.Status = hostNetwork, podStatus(address)
	return p
}
