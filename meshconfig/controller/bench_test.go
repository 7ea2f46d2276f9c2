package controller_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	istioapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/lambdamesh/lambdamesh/meshconfig/ads"
	"github.com/lambdamesh/lambdamesh/meshconfig/ca"
	"github.com/lambdamesh/lambdamesh/meshconfig/output"
	envoyoutput "github.com/lambdamesh/lambdamesh/meshconfig/output/envoy"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/kube"
)

// BenchmarkRebuild is one change of a mesh of so many rules, each with its
// lambda and sidecar: translation, resources of the gateway and of the sidecars
// that it concerns, statuses. It is what stands between a change and its push.
func BenchmarkRebuild(b *testing.B) {
	for _, rules := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			s := snapshotOf(rules)
			out := envoyOutput(b)
			first, _ := translate.Translate(s)
			out.Update(b.Context(), output.Update{Mesh: &first})
			for n := 0; b.Loop(); n++ {
				// Another path in one rule: another generation.
				rule := s.APIRules[n%rules].DeepCopy()
				rule.Spec.Rules[0].Path = fmt.Sprintf("/v%d/{**}", n)
				rule.Generation++
				s.APIRules[n%rules] = rule

				mesh, problems := translate.Translate(s)
				statuses := translate.Statuses(s, mesh, problems)
				out.Update(b.Context(), output.Update{Mesh: &mesh})
				view := out.Programmed()
				for i := range statuses {
					view(&statuses[i])
				}
				require.Len(b, statuses, rules)
			}
		})
	}
}

func envoyOutput(b *testing.B) *envoyoutput.Output {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	b.Cleanup(func() { listener.Close() })
	authority, err := ca.Open(context.Background(), ca.Directory(b.TempDir()), ca.Config{})
	require.NoError(b, err)
	scheme, err := kube.Scheme()
	require.NoError(b, err)
	var none client.Reader = fake.NewClientBuilder().WithScheme(scheme).Build()
	out, err := envoyoutput.New(envoyoutput.Config{
		ADS:   ads.Config{Listener: listener, CA: authority, Authenticator: tokens{}, Log: slog.New(slog.DiscardHandler)},
		Cache: none, Reader: none,
	})
	require.NoError(b, err)
	return out
}

func snapshotOf(rules int) translate.Snapshot {
	const namespace = "shop"
	plenty := translate.Budget{Bytes: 1 << 30, Matchers: 10_000_000, KeySets: 1000, Hosts: 100_000}
	s := translate.Snapshot{Settings: translate.Settings{Local: true, Limits: translate.Limits{Namespace: plenty, Gateway: plenty}}, Gateways: []*networkingv1.Gateway{{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "gateway", Annotations: map[string]string{v1alpha1.AnnotationDomain: domain}},
		Spec: istioapi.Gateway{Servers: []*istioapi.Server{{
			Port: &istioapi.Port{Number: 80, Name: "http", Protocol: "HTTP"}, Hosts: []string{"*"},
		}}},
	}}}
	for i := range rules {
		name := fmt.Sprintf("lambda-%d", i)
		replica := name + "-0"
		meta := metav1.ObjectMeta{Namespace: namespace, Name: name, Generation: 1}
		s.Lambdas = append(s.Lambdas, &v1alpha1.Lambda{ObjectMeta: meta})
		service := httpService(name, map[string]string{v1alpha1.LabelLambda: name})
		service.Namespace = namespace
		s.Services = append(s.Services, service)
		s.APIRules = append(s.APIRules, &v1alpha1.APIRule{ObjectMeta: meta, Spec: v1alpha1.APIRuleSpec{
			Hosts: []string{name}, Gateway: namespace + "/gateway", Rules: []v1alpha1.Rule{toLambda(name)},
		}})
		s.WorkloadEntries = append(s.WorkloadEntries, &networkingv1.WorkloadEntry{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: replica, Labels: map[string]string{
				v1alpha1.LabelLambda: name, v1alpha1.LabelReplica: replica, v1alpha1.LabelIstioTLSMode: "istio",
			}},
			Spec: istioapi.WorkloadEntry{Address: "127.0.0.1", Ports: map[string]uint32{v1alpha1.ServiceHTTPPort: uint32(20000 + i)}, ServiceAccount: name},
		})
		s.Sidecars = append(s.Sidecars, &networkingv1.Sidecar{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: replica},
			Spec: istioapi.Sidecar{
				WorkloadSelector: &istioapi.WorkloadSelector{Labels: map[string]string{v1alpha1.LabelReplica: replica}},
				Ingress: []*istioapi.IstioIngressListener{{
					Port: &istioapi.SidecarPort{Number: uint32(20000 + i), Name: "http", Protocol: "HTTP"},
					Bind: "127.0.0.1", CaptureMode: istioapi.CaptureMode_NONE, DefaultEndpoint: "unix:///tmp/app",
				}},
				Egress: []*istioapi.IstioEgressListener{{
					Port: &istioapi.SidecarPort{Number: uint32(40000 + i), Name: "http-proxy", Protocol: "HTTP_PROXY"},
					Bind: "127.0.0.1", CaptureMode: istioapi.CaptureMode_NONE, Hosts: []string{"*/*"},
				}},
			},
		})
	}
	return s
}

// BenchmarkApplyToProgrammed is the time from creating an APIRule until its
// status says Programmed, with so many rules there already: a real API server,
// ADS and a gateway that acknowledges. Beside it stands what istiod takes for the
// same rules on the same API server; see benchmarkIstiod.
func BenchmarkApplyToProgrammed(b *testing.B) {
	for _, rules := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			w := newWorld(b)
			w.service("orders", "an order")
			p := w.controlPlane()
			gateway := w.gateway(p.address)
			programmed := w.watchProgrammed()
			var group errgroup.Group
			group.SetLimit(8)
			for i := range rules - 1 {
				group.Go(func() error {
					name := fmt.Sprintf("rule-%d", i)
					return w.client.Create(b.Context(), w.apiRule(name, name, toService("orders")))
				})
			}
			require.NoError(b, group.Wait())
			for range rules - 1 {
				<-programmed
			}
			b.Run("lambdamesh", func(b *testing.B) {
				for n := 0; b.Loop(); n++ {
					name := fmt.Sprintf("new-%d", n)
					rule := w.apiRule(name, name, toService("orders"))
					require.NoError(b, w.client.Create(b.Context(), rule))
					for <-programmed != name {
					}
					b.StopTimer()
					w.delete(rule)
					b.StartTimer()
				}
			})
			gateway.stop()
			p.stop()
			b.Run("istiod", func(b *testing.B) { w.benchmarkIstiod(b, rules) })
			for _, left := range []client.Object{&v1alpha1.APIRule{}, &networkingv1.VirtualService{}} {
				require.NoError(b, w.client.DeleteAllOf(context.Background(), left, client.InNamespace(w.namespace)))
			}
		})
	}
}

// watchProgrammed tells the names of the APIRules that become Programmed, each
// once.
func (w *world) watchProgrammed() <-chan string {
	w.t.Helper()
	c, err := client.NewWithWatch(w.config, client.Options{Scheme: w.client.Scheme()})
	require.NoError(w.t, err)
	events, err := c.Watch(context.Background(), &v1alpha1.APIRuleList{}, client.InNamespace(w.namespace))
	require.NoError(w.t, err)
	w.t.Cleanup(events.Stop)
	names := make(chan string, 10_000)
	go func() {
		told := map[string]bool{}
		for event := range events.ResultChan() {
			rule, ok := event.Object.(*v1alpha1.APIRule)
			if ok && !told[rule.Name] && meta.IsStatusConditionTrue(rule.Status.Conditions, v1alpha1.ConditionProgrammed) {
				told[rule.Name] = true
				names <- rule.Name
			}
		}
	}()
	return names
}
