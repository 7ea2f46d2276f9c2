package translate_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/lambdamesh/lambdamesh/meshconfig/ir"
	"github.com/lambdamesh/lambdamesh/meshconfig/translate"
	"github.com/lambdamesh/lambdamesh/pkg/apis/v1alpha1"
	"github.com/lambdamesh/lambdamesh/pkg/targets"
)

const (
	selecting   = `{selector: {app: x}, ports: [{name: http, port: 80}]}`
	selectorOff = `{ports: [{name: http, port: 80}]}`
	byCluster   = `, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io`
	toService   = `[{path: /*, service: {name: x}, noAuth: true}]`
)

func serviceYAML(namespace, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: %s}\nspec: %s", namespace, spec)
}

func sliceYAML(namespace, labels, address string) string {
	return fmt.Sprintf(`
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: x-1, namespace: %s, labels: {kubernetes.io/service-name: x%s}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [%q]}]`, namespace, labels, address)
}

func podYAML(namespace, address, more string) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: x-0, namespace: %s}
spec: {containers: []%s}
status: {podIPs: [{ip: %q}]}`, namespace, more, address)
}

// pinned by a finalizer, a slice is the cluster's no more and stays.
func pinned(slice string) string {
	return strings.Replace(slice, "name: x-1,", `name: x-1, finalizers: [a.b/c], deletionTimestamp: "2026-01-01T00:00:00Z",`, 1)
}

func entryYAML(namespace, created, address, labels string) string {
	return fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: x-0, namespace: %s, creationTimestamp: %q}
spec: {address: %q, ports: {http: 8080}, labels: {app: x%s}}`, namespace, created, address, labels)
}

// Each case is namespace shop's Service x, to which a rule routes.
func TestWhereServicesMayLead(t *testing.T) {
	const istio = ", security.istio.io/tlsMode: istio"
	everything := translate.Settings{Targets: policyOf(t, targets.Config{
		Allow: []string{"0.0.0.0/0", "::/0"}, Deny: []string{"127.0.0.1:9901"}, ServiceCIDRs: []string{"10.96.0.0/12"},
	})}
	local := translate.Settings{Local: true}
	theirPod := []string{podYAML("bank", "10.0.0.7", "")}
	const onNode = "], targetRef: {kind: Pod, name: x-0, namespace: shop}}]"
	with := func(more []string, documents ...string) []string { return append(documents, more...) }
	for name, c := range map[string]struct {
		settings  translate.Settings
		documents []string
		reason    string // empty: the endpoint is called
		message   string
	}{
		"pods":                           {documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "10.0.0.7"), podYAML("shop", "10.0.0.7", "")}},
		"pods with addresses in class E": {documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "240.0.0.7"), podYAML("shop", "240.0.0.7", "")}},
		"an own pod by hand":             {documents: []string{serviceYAML("shop", selectorOff), sliceYAML("shop", "", "10.0.0.7"), podYAML("shop", "10.0.0.7", "")}},
		"a pod that has ended a moment ago": {documents: []string{
			serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "10.0.0.7"), strings.Replace(podYAML("shop", "10.0.0.7", ""), "{podIPs", "{phase: Failed, podIPs", 1),
		}},
		"a pod that another namespace's had its address before": {documents: []string{
			serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "10.0.0.7"), podYAML("shop", "10.0.0.7", ""),
			strings.Replace(podYAML("bank", "10.0.0.7", ""), "{podIPs", "{phase: Succeeded, podIPs", 1),
		}},
		"an address that another's EndpointSlice names": {settings: everything, documents: []string{
			serviceYAML("shop", selectorOff), sliceYAML("shop", "", "10.0.0.7"), serviceYAML("bank", selecting), sliceYAML("bank", byCluster, "10.0.0.7"),
		}},
		"an address that another's EndpointSlice of a Service without a selector names": {settings: everything, documents: []string{
			serviceYAML("shop", selectorOff), sliceYAML("shop", "", "10.0.0.7"), serviceYAML("bank", selectorOff), sliceYAML("bank", byCluster, "10.0.0.7"),
		}},
		"an address that another's EndpointSlice of no Service names": {documents: []string{
			serviceYAML("shop", selectorOff), sliceYAML("shop", "", "8.8.8.8"), sliceYAML("bank", byCluster, "8.8.8.8"),
		}},
		"a pod whose address another's EndpointSlice names": {documents: []string{
			serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "10.0.0.7"), podYAML("shop", "10.0.0.7", ""),
			serviceYAML("bank", selecting), sliceYAML("bank", byCluster, "10.0.0.7"),
		}},
		"a pod on its node's address, which is allowed": {settings: everything, documents: []string{
			serviceYAML("shop", selecting), strings.Replace(sliceYAML("shop", byCluster, "10.0.0.7"), "]}]", onNode, 1), podYAML("shop", "10.0.0.7", ", hostNetwork: true"),
		}},
		"a public address":                 {documents: []string{serviceYAML("shop", selectorOff), sliceYAML("shop", "", "8.8.8.8")}},
		"an allowed address":               {settings: everything, documents: []string{serviceYAML("shop", selectorOff), sliceYAML("shop", "", "10.0.0.7")}},
		"a machine outside":                {settings: everything, documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "10.0.0.7", istio)}},
		"a local member":                   {settings: local, documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "127.0.0.1", istio)}},
		"who came first keeps his address": {settings: everything, documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "10.0.0.7", ""), entryYAML("bank", younger, "10.0.0.7", "")}},

		"an ExternalName": {
			documents: []string{serviceYAML("shop", `{type: ExternalName, externalName: localhost}`)},
			reason:    v1alpha1.ReasonTargetRefused, message: "Service shop/x: it is an ExternalName",
		},
		"no address": {
			documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "localhost", "")},
			reason:    v1alpha1.ReasonTargetRefused, message: "the WorkloadEntry x-0: localhost is no IP address",
		},
		"loopback among pods": {
			settings: everything, documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "127.0.0.1")},
			reason: v1alpha1.ReasonTargetRefused, message: "the EndpointSlice x-1: 127.0.0.1 is refused: it is a loopback address",
		},
		"mapped loopback among pods": {
			settings: everything, documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "::ffff:127.0.0.1")},
			reason: v1alpha1.ReasonTargetRefused, message: "no plain IP address",
		},
		"metadata among pods": {
			settings: everything, documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "169.254.169.254")},
			reason: v1alpha1.ReasonTargetRefused, message: "a metadata service",
		},
		"a private address by hand": {
			documents: []string{serviceYAML("shop", selectorOff), sliceYAML("shop", "", "10.0.0.7")},
			reason:    v1alpha1.ReasonTargetRefused, message: "--allow-target 10.0.0.7:8080",
		},
		"a slice beside the cluster's": {
			documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", "", "10.0.0.7")},
			reason:    v1alpha1.ReasonTargetRefused, message: "a private address",
		},
		"the cluster's name on a Service that selects nothing": {
			documents: []string{serviceYAML("shop", selectorOff), sliceYAML("shop", byCluster, "10.0.0.7")},
			reason:    v1alpha1.ReasonTargetRefused, message: "a private address",
		},
		"the cluster's name where there is no cluster": {
			settings: local, documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "10.0.0.7")},
			reason: v1alpha1.ReasonTargetRefused, message: "a private address",
		},
		"loopback": {
			documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "127.0.0.1", "")},
			reason:    v1alpha1.ReasonTargetRefused, message: "127.0.0.1 is a loopback address",
		},
		"loopback in plain text, locally": {
			settings: local, documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "127.0.0.1", "")},
			reason: v1alpha1.ReasonTargetRefused, message: "a loopback address",
		},
		"a member on loopback in a cluster, where a DestinationRule turns its proof off": {
			documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "127.0.0.1", istio)},
			reason:    v1alpha1.ReasonTargetRefused, message: "a loopback address",
		},
		"another namespace's pod under the cluster's name": {
			documents: with(theirPod, serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "10.0.0.7")),
			reason:    v1alpha1.ReasonNotPermitted, message: "10.0.0.7 belongs to namespace bank",
		},
		"another namespace's pod by a slice that is pinned": {
			documents: with(theirPod, serviceYAML("shop", selecting), pinned(sliceYAML("shop", byCluster, "10.0.0.7"))),
			reason:    v1alpha1.ReasonNotPermitted, message: "10.0.0.7 belongs to namespace bank",
		},
		"another namespace's pod by an IPv4-mapped address": {
			settings: everything, documents: with(theirPod, serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "::ffff:10.0.0.7")),
			reason: v1alpha1.ReasonNotPermitted, message: "belongs to namespace bank",
		},
		"what is no pod by a slice that is pinned": {
			documents: []string{serviceYAML("shop", selecting), pinned(sliceYAML("shop", byCluster, "10.0.0.7"))},
			reason:    v1alpha1.ReasonTargetRefused, message: "a private address",
		},
		"a node by a pod on its address": {
			documents: []string{
				serviceYAML("shop", selecting), strings.Replace(sliceYAML("shop", byCluster, "10.0.0.7"), "]}]", onNode, 1), podYAML("shop", "10.0.0.7", ", hostNetwork: true"),
			},
			reason: v1alpha1.ReasonTargetRefused, message: "a private address",
		},
		"a pod where nobody runs pods": {
			settings: local, documents: []string{serviceYAML("shop", selecting), sliceYAML("shop", byCluster, "10.0.0.7"), podYAML("shop", "10.0.0.7", "")},
			reason: v1alpha1.ReasonTargetRefused, message: "a private address",
		},
		"what is denied": {
			settings:  translate.Settings{Targets: policyOf(t, targets.Config{Allow: []string{"10.0.0.0/8"}, Deny: []string{"10.0.0.7:8080"}})},
			documents: []string{serviceYAML("shop", selecting), entryYAML("shop", older, "10.0.0.7", "")},
			reason:    v1alpha1.ReasonTargetRefused, message: "this installation denies it",
		},
		"another namespace's pod by a slice": {
			settings: everything, documents: with(theirPod, serviceYAML("shop", selectorOff), sliceYAML("shop", "", "10.0.0.7")),
			reason: v1alpha1.ReasonNotPermitted, message: "10.0.0.7 belongs to namespace bank",
		},
		"another namespace's pod by an entry": {
			settings: everything, documents: with(theirPod, serviceYAML("shop", selecting), entryYAML("shop", older, "10.0.0.7", "")),
			reason: v1alpha1.ReasonNotPermitted, message: "10.0.0.7 belongs to namespace bank",
		},
		"another namespace's machine": {
			settings: everything, documents: []string{serviceYAML("shop", selecting), entryYAML("shop", younger, "10.0.0.7", ""), entryYAML("bank", older, "10.0.0.7", "")},
			reason: v1alpha1.ReasonNotPermitted, message: "belongs to namespace bank",
		},
		"another Service's address": {
			settings: everything, documents: []string{
				serviceYAML("shop", selectorOff), sliceYAML("shop", "", "10.96.0.9"),
				serviceYAML("bank", `{clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{name: http, port: 80}]}`),
			},
			reason: v1alpha1.ReasonNotPermitted, message: "10.96.0.9 belongs to Service bank/x",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := snapshot(t, append(c.documents, apiRule("r", older, "h.example.com", toService))...)
			s.Settings = c.settings
			mesh, problems := translate.Translate(s)
			require.NoError(t, mesh.Validate())
			rule := mesh.Gateways[0].VirtualHosts[0].Rules[0]
			require.Len(t, mesh.Destinations, 1)
			if c.reason == "" {
				require.Empty(t, problems)
				require.Nil(t, rule.Closed)
				require.Len(t, mesh.Destinations[0].Endpoints, 1)
				return
			}
			require.Len(t, problems, 1)
			require.Equal(t, v1alpha1.ConditionResolvedRefs, problems[0].Condition)
			require.Equal(t, c.reason, problems[0].Reason)
			require.Contains(t, problems[0].Message, c.message)
			require.Equal(t, "spec.rules[0].service", problems[0].Field)
			require.NotNil(t, rule.Closed)
			require.EqualValues(t, 503, rule.Closed.Status)
			require.Empty(t, mesh.Destinations[0].Endpoints)
		})
	}
}

// The cluster tells of a pod and of the EndpointSlice with it one after the other:
// what is not known to be its pod is not called, and closes nothing.
func TestAnEndpointWhosePodIsNotKnownYetIsLeftOut(t *testing.T) {
	two := strings.Replace(sliceYAML("shop", byCluster, "10.0.0.7"), "]}]", "]}, {addresses: [10.0.0.8]}]", 1)
	mesh, problems := translate.Translate(snapshot(t, serviceYAML("shop", selecting), two, podYAML("shop", "10.0.0.7", ""),
		apiRule("r", older, "h.example.com", toService)))
	require.Empty(t, problems)
	require.Nil(t, mesh.Gateways[0].VirtualHosts[0].Rules[0].Closed)
	require.Equal(t, []ir.Endpoint{{Address: "10.0.0.7", Port: 8080}}, mesh.Destinations[0].Endpoints)
}

// What is kept of a pod in memory is enough, and the rest of it is not there.
func TestWhatATranslationNeedsOfAPod(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "x-0", UID: "1", ResourceVersion: "7", Labels: map[string]string{"app": "x", v1alpha1.LabelLambda: "a"},
			Annotations: map[string]string{"big": strings.Repeat("x", 1000), "sidecar.istio.io/status": "{}"},
		},
		Spec:   corev1.PodSpec{ServiceAccountName: "a", Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.7", PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}}, Message: "m"},
	}
	needed := translate.NeededOfPod(pod)
	require.Equal(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "x-0", UID: "1", ResourceVersion: "7", Labels: map[string]string{v1alpha1.LabelLambda: "a"},
			Annotations: map[string]string{"sidecar.istio.io/status": "{}"},
		},
		Spec:   corev1.PodSpec{ServiceAccountName: "a"},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.7"}}},
	}, needed)
	require.True(t, translate.SameOfPod(needed, needed.DeepCopy()))
	for what, change := range map[string]func(*corev1.Pod){
		"another pod": func(p *corev1.Pod) { p.UID = "2" },
		"address":     func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "10.0.0.8" },
		"its end":     func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
		"sidecar":     func(p *corev1.Pod) { p.Annotations = nil },
		"labels":      func(p *corev1.Pod) { p.Labels = nil },
	} {
		other := needed.DeepCopy()
		change(other)
		require.False(t, translate.SameOfPod(needed, other), what)
	}
	started := needed.DeepCopy()
	started.Status.Phase = corev1.PodPending
	require.True(t, translate.SameOfPod(needed, started))
}

func policyOf(t *testing.T, config targets.Config) *targets.Policy {
	t.Helper()
	p, err := targets.New(config)
	require.NoError(t, err)
	return p
}

// The Service of a lambda's name leads wherever its namespace says, too, and
// Istio's gateway would follow it.
func TestALambdasServiceMayNotLeadElsewhere(t *testing.T) {
	for name, documents := range map[string][]string{
		"ExternalName": {"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {type: ExternalName, externalName: localhost}"},
		"a slice by hand": {"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: " + selecting, `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, namespace: shop, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: http, port: 15000}]
endpoints: [{addresses: [127.0.0.1]}]`},
	} {
		t.Run(name, func(t *testing.T) {
			mesh, problems := translate.Translate(snapshot(t, append(documents, lambdaA, apiRule("r", older, "h.example.com", open))...))
			require.Len(t, problems, 1)
			require.Equal(t, v1alpha1.ReasonTargetRefused, problems[0].Reason)
			require.NotNil(t, mesh.Gateways[0].VirtualHosts[0].Rules[0].Closed)
			require.Empty(t, mesh.Destinations[0].Endpoints)
		})
	}
}
